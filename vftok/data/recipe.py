"""recipe.json of a stored set: what it was made from, and what its records must look like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECIPE = "recipe.json"


def shape(rank: int) -> Callable[[Any], bool]:
  """Whether a value is so many whole numbers of at least 1."""
  whole = lambda n: isinstance(n, int) and not isinstance(n, bool) and n > 0
  return lambda value: isinstance(value, list) and len(value) == rank and all(map(whole, value))


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
  for key, usable in fields.items():
    if key not in recipe or not usable(recipe[key]):
      found = repr(recipe.get(key, "missing"))[:60]
      raise ValueError(f"{path} is damaged ({key} is {found}): get a whole copy of the set, or write it again.")
  return recipe
