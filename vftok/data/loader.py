"""Batches of clips by example number: batch n is a function of (sources, spec, seed, n) and of nothing else.

So a run that stops after N examples goes on with `start=N`, and neither the number of workers nor that of hosts
changes what is in a batch. Every random choice about example e comes from a generator keyed by (seed, e).
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vftok.data.clip import ClipSpec
from vftok.data.examples import Examples, Part, mix, required_grain
from vftok.data.memory_loader import MemoryLoader
from vftok.data.sources import source_of

__all__ = ["ClipSpec", "Loader", "make_loader"]


def make_loader(
  sources: Mapping[str, Mapping[str, Any]],
  spec: ClipSpec,
  batch_size: int,
  *,
  seed: int = 0,
  split: str = "train",
  train: bool = True,
  start: int = 0,
  workers: int = 0,
  bad_clips: str | os.PathLike | None = None,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Loader | MemoryLoader:
  """Batches for this process of a mix of sources.

  Training is endless: every source is shuffled anew in each of its epochs and the sources interleave by weight.
  Evaluation is one pass over all of them, one after the other, in order; the last batch is padded.
  Where all sources give many clips at once (`Source.take`), a thread of this process makes the batches, without grain.

  Args:
    sources: {name: dict(kind=, weight=1, split=, **options)}: `kind` is a key of `sources.DATASETS`, `split`
      stands in for the loader's, the rest goes to the source.
    batch_size: examples of a batch over all processes; each gets an equal and contiguous part of it.
    start: examples (over all processes) to skip, whatever their batches were. They are not read.
    workers: processes that decode; 0 decodes in threads of this one. They start by importing the main script
      again, which must guard itself by `if __name__ == "__main__"`.
    bad_clips: a file that gets a JSON line for every clip that could not be used (see `bad_clips`).
    process_index, process_count: by default those of jax.

  Raises:
    ValueError, FileNotFoundError: an argument out of range, or a source that cannot be opened.
  """
  if process_count is None or process_index is None:
    import jax

    process_index, process_count = jax.process_index(), jax.process_count()
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {process_count} processes: change it.")
  if start < 0:
    raise ValueError(f"start is {start}, expected the examples consumed so far: pass 0 or more.")
  if seed < 0 or workers < 0:
    raise ValueError(f"seed is {seed} and workers {workers}, expected numbers of at least 0: change them.")
  if not sources:
    raise ValueError("sources is empty, expected at least one: name one of vftok.data.sources.DATASETS.")
  opened, weights = {}, []
  for name, entry in sources.items():
    if "kind" not in entry:
      raise ValueError(f"source {name!r} has no kind, expected one of vftok.data.sources.DATASETS: add it.")
    opened[name] = source_of(entry, split)
    weights.append(float(entry.get("weight", 1.0)))
    if not 0 < weights[-1] < float("inf"):
      raise ValueError(f"source {name!r} has weight {weights[-1]}, expected more than 0: leave it out, or raise it.")
  kinds = {getattr(source, "arrays", None) for source in opened.values()}
  if len(kinds) > 1:
    raise ValueError("some sources give stored arrays and others video, or other arrays: mix only one kind and shape.")
  part = Part(start, batch_size, process_index, process_count)
  if kinds == {None} and all(hasattr(source, "take") for source in opened.values()):
    return MemoryLoader(tuple(opened), tuple(opened.values()), weights, spec, seed, train, part)
  examples = Examples(
    names=tuple(opened),
    sources=tuple(opened.values()),
    spec=spec,
    seed=seed,
    order=mix([len(source) for source in opened.values()], weights, seed) if train else None,
    part=part,
    log=None if bad_clips is None else os.fspath(bad_clips),
    arrays=kinds.pop(),
  )
  return Loader(examples, workers)


class Loader:
  """An iterable of batches; each `iter` begins at `start` anew. Use as a context manager, or call `close`.

  A batch is a dict of numpy arrays over this process's b = batch_size / processes examples:
    "video" uint8 [b, F, H, W, 3] (of a `MemoryLoader` a jax.Array, if a source gives such), or "latents" float16
    [b, T, h, w, C], or the arrays of stored tokens: "ids" uint16 [b, T, K] and, with text, "text_emb" float16
    [b, S, C] and "text_mask" bool [b, S]; routed ones have "curves" float32 [b, T, m];
    "_mask" bool [b], False for padding and, in evaluation, for clips that could not be used;
    "label" int32 [b], -1 unknown; "source" int32 [b], position in `names`; "index" int64 [b], within the source
    (both -1 where the mask is False); "caption" object [b] of str.

  Attributes:
    names: of the sources.
    label_names: {name of a source: its label names, () where it has none}.
    examples: examples of one pass over all sources (and all processes).
    wait_seconds: how long the consumer has waited for batches in total.
  """

  def __init__(self, examples: Examples, workers: int):
    grain = required_grain()
    self.names, self.examples, self.wait_seconds = examples.names, examples.ends[-1], 0.0
    self.label_names = {
      name: tuple(getattr(source, "label_names", ()))
      for name, source in zip(examples.names, examples.sources, strict=True)
    }
    self._endless, self._part, self._running = examples.order is not None, examples.part, []
    self._examples, self._workers = examples, workers
    size = examples.part.size
    count = 2**62 if self._endless else len(self) * size
    if self._endless:
      examples.order[0]  # grain makes its bookkeeping at the first access, and not thread-safely
    threads = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2 if workers else 2 * size)
    dataset = grain.MapDataset.range(count).map(examples).to_iter_dataset(threads)
    if workers:
      _parse_flags()
      buffer = -(-2 * size // workers)
      processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer)
      dataset = dataset.mp_prefetch(processes, _start_worker)
    # Batching comes after the workers: each of them sees only its stride of the examples.
    self._dataset = dataset.batch(size, batch_fn=_stack)

  def __len__(self) -> int:
    """Batches of one pass in evaluation, from `start` on."""
    if self._endless:
      raise TypeError("a loader for training is endless and has no length.")
    if self._part.batches is not None:
      return len(self._part.batches)
    return max(0, -(-(self.examples - self._part.start) // self._part.batch))

  def only(self, batches: Sequence[int], workers: int | None = None) -> Loader:
    """A loader of some batches of this one (in evaluation), by number and in this order; no source is opened again."""
    part = dataclasses.replace(self._part, batches=np.asarray(batches, np.int64))
    return Loader(dataclasses.replace(self._examples, part=part), self._workers if workers is None else workers)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    iterator = iter(self._dataset)
    iterator.start_prefetch()  # now, not when the first batch is asked for: programs compile meanwhile
    batches = self._batches(iterator)
    next(batches)  # into its `try`, so that closing it cleans up
    self._running = [*(other for other in self._running if other.gi_frame), batches]
    return batches

  def _batches(self, iterator):
    try:
      batch = None
      while True:
        yield batch
        begin = time.perf_counter()
        batch = next(iterator, None)
        self.wait_seconds += time.perf_counter() - begin
        if batch is None:
          return
    finally:
      iterator.close()

  def close(self) -> None:
    """Stops threads and workers."""
    while self._running:
      self._running.pop().close()
    gc.collect()  # grain's iterators are cycles, and noisy when the interpreter finds them at its end

  def __enter__(self) -> Loader:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _stack(examples):
  """A batch of examples; strings stay Python objects."""
  batch = {key: np.stack([example[key] for example in examples]) for key in examples[0] if key != "caption"}
  captions = np.empty(len(examples), object)
  captions[:] = [example["caption"] for example in examples]
  return batch | {"caption": captions}


def _parse_flags():
  from absl import flags

  if not flags.FLAGS.is_parsed():  # grain's workers read flags, which only absl.app.run parses
    flags.FLAGS.mark_as_parsed()


def _start_worker(index, count):
  """In each worker: Ctrl-C is the main process's to handle, and when that is killed its workers must not stay."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def first_clips(batches, clips: int):
  """Batches up to a number of clips; what is over in the last one is masked."""
  left = clips
  for batch in batches:
    if left <= 0:
      return
    yield {**batch, "_mask": batch["_mask"] & (np.cumsum(batch["_mask"]) <= left)}
    left -= int(batch["_mask"].sum())
