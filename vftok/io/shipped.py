"""Models that come with the package, by name: `Tokenizer.load("vftok-mini")` needs no network."""

from __future__ import annotations

import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / "weights"


def names() -> list[str]:
  """Names of the shipped models, sorted."""
  return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def find(name: str) -> pathlib.Path | None:
  """Where a shipped model's files are; None if no model has that name."""
  return FOLDER / name if name in names() else None
