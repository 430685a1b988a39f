"""Weights in several safetensors files, as an index tells which tensor is where."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

from vftok.runtime.words import cut

INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1_000


def read_index(
  index: pathlib.Path, read_json: Callable, read_header: Callable
) -> tuple[dict[str, pathlib.Path], dict[str, tuple[int, ...]]]:
  """(tensor -> its file, tensor -> its shape) of an index, every file of which lies beside it.

  Raises:
    ValueError: an index that is none, or that its files contradict. FileNotFoundError: a file is missing.
  """
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not where or not all(_is_plain(name) for name in where.values()):
    raise ValueError(f"{cut(index, 150)} has no weight_map from tensors to files beside it: fetch it again.")
  names = sorted(set(where.values()))
  if len(names) > MAX_SHARDS:
    raise ValueError(f"{cut(index, 150)} names {len(names)} files, expected {MAX_SHARDS} at most: fetch it again.")
  missing = [name for name in names if not (index.parent / name).is_file()]
  if missing:
    which = f"{cut(index.parent, 150)} has no {cut(missing[0])}"
    raise FileNotFoundError(f"{which}, which {INDEX} names: fetch the missing shard.")
  shapes: dict[str, tuple[int, ...]] = {}
  for name in names:
    path = index.parent / name
    found = read_header(path)[0]
    wanted = {key for key, file in where.items() if file == name}
    for key in sorted(wanted ^ found.keys()):
      which = f"{cut(path, 150)} {'does not hold' if key in wanted else 'holds'} {cut(key)}"
      raise ValueError(f"{which}, otherwise than {INDEX} says: fetch both again.")
    shapes |= found
  return {key: index.parent / name for key, name in where.items()}, shapes


def _is_plain(name) -> bool:
  """A name in the same folder: no path, nothing hidden."""
  return isinstance(name, str) and len(name) < 256 and re.fullmatch(r"\w[\w.-]*", name) is not None
