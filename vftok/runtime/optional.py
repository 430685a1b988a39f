"""Packages that only some features need: imported where they are used, one sentence where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def required(module: str, package: str, what: str) -> ModuleType:
  """The module. Raises ModuleNotFoundError saying that `what` needs it and which package to install."""
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    missing = (error.name or module).partition(".")[0]
    package = package if missing == module.partition(".")[0] else f"{package} {missing}"
    raise ModuleNotFoundError(f"{what} needs {missing}, which is not installed: pip install {package}.") from None


def present(module: str) -> bool:
  """Whether `module` can be imported; does not import it."""
  try:
    return module in sys.modules or importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False
