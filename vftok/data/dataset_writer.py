"""Writes TFDS sets as ArrayRecord, without TensorFlow, whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vftok.data import shards
from vftok.data.recipe import RECIPE
from vftok.runtime.files import whole_file
from vftok.runtime.lock import locked

PER_SHARD = 1024  # examples of `write_tfds`


def is_made(path: Path, recipe: Mapping) -> bool:
  """True where `path` was written by `whole_directory` from this recipe."""
  return _recipe(path) == json.loads(json.dumps(recipe))


@contextlib.contextmanager
def whole_directory(path: Path, recipe: Mapping) -> Iterator[Path]:
  """Gives a temporary directory beside `path` that becomes `path` when the block succeeds, and is removed when not.

  `recipe` (JSON) says what is in it and lies beside it as recipe.json. A directory that was written this way
  before is replaced; one that was not is left alone.

  Raises:
    ValueError: `path` exists and holds something else, or another process writes it (`lock.InUse`).
  """
  with locked(path), _replaced(path, recipe) as temporary:
    yield temporary


@contextlib.contextmanager
def _replaced(path: Path, recipe: Mapping) -> Iterator[Path]:
  if path.exists() and not (path.is_dir() and (_recipe(path) is not None or not any(path.iterdir()))):
    raise ValueError(f"{path} exists and was not written by this tool, so it is left alone: choose another --out.")
  temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("part", "old"))
  _remove(temporary)  # of a run that was killed
  temporary.mkdir(parents=True)
  try:
    yield temporary
    (temporary / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
    _remove(old)
    if path.exists():
      os.replace(path, old)
    os.replace(temporary, path)
  finally:
    _remove(temporary)
    _remove(old)


def work_directory(path: Path, recipe: Mapping) -> Path:
  """The folder of unfinished work at `path`; what an earlier run with another recipe left there goes."""
  if path.exists() and not is_made(path, recipe):
    _remove(path)
  path.mkdir(parents=True, exist_ok=True)
  with whole_file(path / RECIPE) as temporary:
    temporary.write_text(json.dumps(recipe))
  return path


def keep_log(work: Path, directory: Path) -> None:
  """Copies the log of clips that could not be used beside the set that is made of the others."""
  for log in work.glob("bad_clips.jsonl"):
    shutil.copy(log, directory / log.name)


def write_tfds(
  directory: Path,
  name: str,
  version: str,
  description: str,
  features: Mapping,
  splits: Mapping[str, Callable[[], Iterable[dict]]],
) -> None:
  """Writes a TFDS set to `directory`/name/version; examples keep their order, and the same ones give the same bytes.

  TFDS's own writer puts the fields of a record in another order in every process.

  Args:
    features: {name: TFDS feature}. Raw images, videos and bfloat16 need TensorFlow, the others do not.
    splits: {split: function that gives its examples, dicts of the features}. No split may be empty.
  """
  kinds = shards.tfds().features.FeaturesDict(dict(features))
  work, made = directory / ".shards", {}
  work.mkdir()
  for split, of_split in splits.items():
    examples, count, made[split] = iter(of_split()), PER_SHARD, []
    while count == PER_SHARD:
      path = work / f"{split}-{len(made[split]):05d}"
      count = shards.write_shard(path, kinds, itertools.islice(examples, PER_SHARD))
      made[split].append(path)
  shards.finish(directory, name, version, description, kinds, made)
  shutil.rmtree(work)


def _recipe(path: Path):
  try:
    return json.loads((path / RECIPE).read_text())
  except (OSError, ValueError):
    return None


def _remove(path: Path) -> None:
  if path.exists():
    shutil.rmtree(path)
