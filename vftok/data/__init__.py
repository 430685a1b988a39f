"""Video in and out, sources of clips and the loader. Names load on first use: `import vftok.data` costs nothing."""

from __future__ import annotations

from vftok.runtime import lazy

_PUBLIC = {
  "ClipSpec": "vftok.data.clip",
  "make_loader": "vftok.data.loader",
  "Loader": "vftok.data.loader",
  "DATASETS": "vftok.data.sources",
}

__all__ = [*_PUBLIC]

__getattr__, __dir__ = lazy.names(__name__, _PUBLIC)
