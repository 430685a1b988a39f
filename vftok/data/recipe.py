"""recipe.json of a stored set: what it was made from, and what its records must look like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vftok.runtime.words import brief, is_whole

RECIPE = "recipe.json"


def whole(value: Any, least: int = 1) -> bool:
  """Whether a value is a whole number from `least` on: JSON's true is none, though Python counts with it."""
  return is_whole(value) and value >= least


def shape(rank: int, least: int = 1) -> Callable[[Any], bool]:
  """Whether a value is so many whole numbers from `least` on."""
  return lambda value: isinstance(value, list) and len(value) == rank and all(whole(n, least) for n in value)


def text(value: Any) -> bool:
  return isinstance(value, str)


def read_recipe(
  directory: str | os.PathLike, what: str, tool: str, fields: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any]:
  """The recipe in `directory`.

  Args:
    what, tool: "tokens" and what writes them, for the sentence.
    fields: {key that must be there: whether its value can be used}.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged; the sentence names file and key.
  """
  path = Path(directory) / RECIPE
  try:
    recipe = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    raise FileNotFoundError(f"{directory} holds no {what} ({RECIPE} is missing): {tool}.") from None
  except (ValueError, RecursionError):  # of the text or its JSON
    raise ValueError(f"{path} is damaged, expected JSON: get a whole copy of the set, or write it again.") from None
  if not isinstance(recipe, dict):
    raise ValueError(f"{path} is damaged, expected a JSON object: get a whole copy of the set, or write it again.")
  check_fields(directory, recipe, fields)
  return recipe


def check_fields(directory: str | os.PathLike, recipe: Mapping[str, Any], fields: Mapping[str, Callable]) -> None:
  """Raises ValueError at the first of `fields` that a recipe lacks or cannot be used, as `read_recipe` has them."""
  for key, usable in fields.items():
    if key not in recipe or not usable(recipe[key]):
      found, path = brief(recipe.get(key, "missing")), Path(directory) / RECIPE
      raise ValueError(f"{path} is damaged ({key} is {found}): get a whole copy of the set, or write it again.")
