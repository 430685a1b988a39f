"""Work on many clips by chunks, one shard each: hosts share them, devices share batches, a stopped run goes on.

What a chunk holds depends on its number alone, so any number of hosts and devices, stopped and started again, makes the
same files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vftok.data import shards
from vftok.data.dataset_writer import keep_log, whole_directory, work_directory
from vftok.data.folder import opened_once
from vftok.data.sources import Source, source_of
from vftok.io.sides import NoSuchSplit
from vftok.runtime.lock import locked
from vftok.runtime.meeting import listen, meet
from vftok.runtime.process import local
from vftok.show.progress import progress
from vftok.train.experiment import define_config

LARGE = 2**20  # numbers; weights of text encoders above this are cut over the devices of a host


def define_flags(text: str) -> None:
  """--config (`text` says which), --out, --workers, --distributed. Not at import: tests import such tools together."""
  define_config(text)
  flags.DEFINE_string("out", None, "Where the set goes; default: where the config looks for it.")
  flags.DEFINE_integer("workers", 0, "Processes that decode videos; 0: two threads.", lower_bound=0)
  flags.DEFINE_bool("distributed", False, "Join the other processes of a pod or SLURM job first.")


@contextlib.contextmanager
def writing(out: str | os.PathLike) -> Iterator[None]:
  """Inside, no other job writes the set `out`, and sources are opened once. Raises ValueError where one does."""
  with locked(local(out, "--out")) if not jax.process_index() else contextlib.nullcontext(), opened_once():
    yield


def make_set(
  out: Path,
  meta: dict[str, Any],
  name: str,
  write: Callable[[Path], Any],
  finish: Callable[[Path, Any], dict[str, int]],
) -> tuple[dict[str, int], int] | None:
  """Makes the set `out` of shards that all processes of the job write beside it, and removes these.

  Args:
    meta: the set's recipe. name: of the tool, for the others to wait at.
    write: writes this process's shards into a folder that is there.
    finish: makes the set of them in another; of what `write` gave. Returns {split: clips}.

  Returns:
    ({split: clips}, bytes of the set); None in all processes but the first.
  """
  work = out.with_name(f".{out.name}.shards")
  if not jax.process_index():
    work_directory(work, meta)
  meet(f"{name} begins")
  written = write(work)
  meet(f"{name} ends")
  if jax.process_count() > 1:
    time.sleep(1.0)  # network file systems show new names late
  if jax.process_index():
    return None
  with whole_directory(out, meta) as directory:
    clips = finish(directory, written)
    keep_log(work, directory)
  shutil.rmtree(work)
  return clips, sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def write_chunks(
  opened,
  batches: int,
  per_chunk: int,
  path_of: Callable[[int], Path],
  features,
  work: Callable[[dict, int], Callable[[], Iterable[dict[str, Any]]]],
  *,
  what: str,
  workers: int = 0,
) -> list[Path]:
  """Writes this process's chunks (every `process_count`-th) that are not there yet. Returns the shards of all chunks.

  Args:
    opened: a loader for evaluation, from which only the missing batches are read.
    batches: of the whole split, `per_chunk` of them in a chunk.
    path_of: chunk number -> its shard.
    work: (batch, its number) -> a function that gives its examples; the next batch is begun before it is called, so
      that a device computes while examples are written.
    workers: processes that decode; 0: two threads.
  """
  chunks = range(-(-batches // per_chunk))
  mine = [c for c in chunks if c % jax.process_count() == jax.process_index()]
  missing = [c for c in mine if shards.shard_facts(path_of(c)) is None]
  parts = {c: range(c * per_chunk, min((c + 1) * per_chunk, batches)) for c in missing}
  numbers = [b for part in parts.values() for b in part]
  with opened.only(numbers, workers) as loader, progress(what, len(numbers), "batches") as done:
    stream = iter(loader)

    def examples(part: range) -> Iterator[dict[str, Any]]:
      begun = None
      for number in part:
        listen()
        following = work(next(stream), number)
        if begun is not None:
          yield from begun()
          done(1)
        begun = following
      yield from begun()
      done(1)

    for c, part in parts.items():
      shards.write_shard(path_of(c), features, examples(part))
  return [path_of(c) for c in chunks]


def directory_of(cfg: ConfigDict, kind: str, hint: str) -> str:
  """Where the config looks for its set of a kind. Raises ValueError, which ends with a hint, where it names none."""
  for source in cfg.data.sources.values():
    if source.kind == kind:
      return source.directory
  raise ValueError(f"config.data.sources names no {kind}, expected one of kind {kind!r}: {hint}.")


def present_splits(splits: dict[str, dict[str, dict[str, Any]]], what: str) -> dict[str, dict[str, Source]]:
  """The opened sources of {split: {name: entry}}; one that stands for all splits need not have each.

  Those that it lacks are left out, and a line says so; `what` is their part of the config.

  Raises:
    ValueError: there is no "train"; or one of several sources lacks a split, or one that it states itself.
  """
  opened = {}
  for split, entries in splits.items():
    try:
      opened[split] = {name: source_of(entry, split) for name, entry in entries.items()}
    except NoSuchSplit:
      entry = next(iter(entries.values()))
      if split == "train" or len(entries) > 1 or "split" in entry:
        raise
      if not jax.process_index():
        print(f"{what}.{split} is left out: {entry['kind']} has no such split.", flush=True)
  return opened


@functools.cache
def local_mesh() -> Mesh:
  """All devices of this process, each with its part of a batch."""
  devices = np.array(jax.local_devices())
  return Mesh(devices, ("host",), axis_types=(AxisType.Auto,))


def check_batch(batch_size: int, name: str) -> None:
  """Raises ValueError unless the devices of a host can share a batch."""
  if batch_size % jax.local_device_count():
    count = jax.local_device_count()
    raise ValueError(f"{name} is {batch_size}, expected a multiple of the {count} devices of this host: change it.")


def shared(array) -> Any:
  """A batch cut along its first axis over the devices of this process; with one device, as it is."""
  if jax.local_device_count() == 1:
    return array
  return jax.device_put(array, NamedSharding(local_mesh(), P("host")))


def copied(params: Any) -> Any:
  """Parameters on every device of this process."""
  if jax.local_device_count() == 1:
    return params
  return jax.device_put(params, NamedSharding(local_mesh(), P()))


def cut(params: Any) -> Any:
  """Parameters with large arrays cut over the devices of this process, for nets of which no device holds a copy."""
  count = jax.local_device_count()
  if count == 1:
    return params

  def place(x):
    fits = [n for n in x.shape if n % count == 0]
    entries = [None] * x.ndim
    if x.size >= LARGE and fits:
      entries[x.shape.index(max(fits))] = "host"
    return jax.device_put(x, NamedSharding(local_mesh(), P(*entries)))

  return jax.tree.map(place, params)
