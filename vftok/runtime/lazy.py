"""Public names of a package that load on first use, so that importing it costs next to nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, public: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """(`__getattr__`, `__dir__`) of a package whose `public` names are in these modules."""

  def get(name: str) -> Any:
    if name not in public:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(public[name]), name)

  return get, lambda: sorted(public)
