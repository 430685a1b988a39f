"""Video in and out, sources of clips and the loader. Names load on first use: `import vftok.data` costs nothing."""

from __future__ import annotations

import importlib

_PUBLIC = {
  "ClipSpec": "vftok.data.clip",
  "make_loader": "vftok.data.loader",
  "Loader": "vftok.data.loader",
  "DATASETS": "vftok.data.sources",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'vftok.data' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)
