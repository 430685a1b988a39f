"""Batches out of sources that give many clips at once: no worker processes, no grain, and arrays may be a device's.

As in `vftok.data.loader`, batch n is a function of (sources, spec, seed, n). Here everything is worked out for whole
batches: which source an example is from, which of its clips, and the seed of its crop.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vftok.data.clip import ClipSpec
from vftok.data.examples import Part

PERIOD = 4096  # the mix of sources repeats after so many examples, so a share is rounded to a multiple of 1 / PERIOD
LISTED = 2**22  # sources up to this long are shuffled as a list
AHEAD = 2  # batches kept ready


class MemoryLoader:
  """As `vftok.data.loader.Loader`, of sources that have `take`; see `sources.Source`.

  "video" of a batch is a jax.Array on the accelerator where one of the sources gives such. A source is always asked for
  the same number of clips, some of which may be left over, so that what it compiles it compiles once.

  Attributes: those of `Loader`.
  """

  def __init__(self, names, sources, weights, spec: ClipSpec, seed: int, train: bool, part: Part):
    self.names, self.wait_seconds = tuple(names), 0.0
    self.label_names = {n: tuple(getattr(s, "label_names", ())) for n, s in zip(names, sources, strict=True)}
    self._sources, self._spec, self._seed, self._part = tuple(sources), spec, seed, part
    self._ends = np.cumsum([len(source) for source in sources])
    self.examples = int(self._ends[-1])
    self._mix = Mix([len(source) for source in sources], weights, seed) if train else None
    self._room = self._mix.most(part.size) if train else [part.size] * len(sources)
    self._running: list[_Ahead] = []

  def __len__(self) -> int:
    """Batches of one pass in evaluation, from `start` on."""
    if self._mix:
      raise TypeError("a loader for training is endless and has no length.")
    if self._part.batches is not None:
      return len(self._part.batches)
    return max(0, -(-(self.examples - self._part.start) // self._part.batch))

  def only(self, batches: Sequence[int], workers: int | None = None) -> MemoryLoader:
    """As `Loader.only`."""
    del workers  # there are none
    other = copy.copy(self)
    other._part, other._running = dataclasses.replace(self._part, batches=np.asarray(batches, np.int64)), []
    return other

  def __iter__(self) -> Iterator[dict[str, Any]]:
    ahead = _Ahead(self.batch, None if self._mix else len(self))  # works from now on: programs compile meanwhile
    self._running = [*(other for other in self._running if other.running), ahead]
    return self._batches(ahead)

  def _batches(self, ahead):
    try:
      while True:
        begin = time.perf_counter()
        batch = ahead.next()
        self.wait_seconds += time.perf_counter() - begin
        if batch is None:
          return
        yield batch
    finally:
      ahead.close()

  def batch(self, n: int) -> dict[str, Any]:
    """This process's part of batch n, counted from `start`."""
    part = self._part
    n = n if part.batches is None else int(part.batches[n])
    numbers = part.start + n * part.batch + part.index * part.size + np.arange(part.size, dtype=np.int64)
    if self._mix:
      source, index = self._mix(numbers)
      seeds = seeds_of(self._seed, numbers)
    else:
      source = np.searchsorted(self._ends, numbers, side="right")
      index = numbers - np.concatenate([[0], self._ends])[source]
      seeds = None
    mask = source < len(self._sources)
    caption, label = np.full(part.size, "", object), np.full(part.size, -1, np.int32)
    parts, rows = [], np.full(part.size, -1, np.int64)  # rows: where an example lies in the parts, one after the other
    for i in np.unique(source[mask]):
      places = np.flatnonzero(source == i)
      rows[places] = sum(map(len, parts)) + np.arange(len(places))
      filled = np.pad(places, (0, self._room[i] - len(places)), mode="edge")
      parts.append(self._take(int(i), index[filled], None if seeds is None else seeds[filled]))
      caption[places], label[places] = _described(self._sources[i], index[places])
    return {
      "video": _in_order(parts, rows, self._spec),
      "_mask": mask,
      "label": label,
      "source": np.where(mask, source, -1).astype(np.int32),
      "index": np.where(mask, index, -1),
      "caption": caption,
    }

  def _take(self, i: int, indices, seeds):
    video = self._sources[i].take(indices, self._spec, seeds)["video"]
    shape = (len(indices), self._spec.frames, *self._spec.size, 3)
    if video.shape != shape or video.dtype != np.uint8:
      raise ValueError(
        f"source {self.names[i]!r} gave video {video.dtype} {video.shape}, expected uint8 {shape}: mend its `take`."
      )
    return video

  def close(self) -> None:
    """Stops the thread that works ahead."""
    while self._running:
      self._running.pop().close()

  def __enter__(self) -> MemoryLoader:
    return self

  def __exit__(self, *_) -> None:
    self.close()


class Mix:
  """Example numbers -> (source, index within it): shares by weight in every window, each source shuffled per epoch."""

  def __init__(self, lengths, weights, seed: int):
    self.lengths, self.seed = np.asarray(lengths, np.int64), seed
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    counts = np.maximum(1, np.rint(shares * PERIOD)).astype(np.int64)
    counts[np.argmax(counts)] += PERIOD - counts.sum()
    # Each source's examples lie evenly over the period; sorted by where they want to be.
    wanted = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    self.source = np.repeat(np.arange(len(counts)), counts)[np.argsort(wanted, kind="stable")]
    self.before = np.stack([np.cumsum(self.source == i) for i in range(len(counts))])  # inclusive
    self.counts = counts

  def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rounds, places = np.divmod(numbers, PERIOD)
    source = self.source[places]
    positions = rounds * self.counts[source] + self.before[source, places] - 1
    epochs, places = np.divmod(positions, self.lengths[source])
    index = np.empty_like(positions)
    for i, epoch in {*zip(source.tolist(), epochs.tolist(), strict=True)}:
      where = (source == i) & (epochs == epoch)
      index[where] = shuffled(int(self.lengths[i]), (self.seed, i, epoch), places[where])
    return source, index

  def most(self, size: int) -> list[int]:
    """The most examples of each source among `size` in a row, wherever they begin."""
    rounds, rest = divmod(size, PERIOD)
    before = np.concatenate([np.zeros_like(self.before[:, :1]), self.before], 1)
    before = np.concatenate([before[:, :-1], before + self.counts[:, None]], 1)
    found = (before[:, rest : rest + PERIOD] - before[:, :PERIOD]).max(1) + rounds * self.counts
    return found.tolist()


def shuffled(length: int, key: tuple[int, ...], places: np.ndarray) -> np.ndarray:
  """int64: which of `length` examples comes at each place, a permutation drawn from `key`."""
  if length <= LISTED:
    return _permutation(length, key)[places]
  # Too long for a list: a Feistel network over the next power of four, gone through until it falls inside.
  half = -(-(length - 1).bit_length() // 2)
  low, rounds = np.uint64(2**half - 1), np.random.default_rng(key).integers(0, 2**63, 4).astype(np.uint64)
  out, left = places.astype(np.uint64), np.arange(len(places))
  while len(left):
    a, b = out[left] >> np.uint64(half), out[left] & low
    for word in rounds:
      a, b = b, a ^ (_mixed(b ^ word) & low)
    out[left] = a << np.uint64(half) | b
    left = left[out[left] >= length]
  return out.astype(np.int64)


@functools.lru_cache(16)
def _permutation(length, key):
  return np.random.default_rng(key).permutation(length)


def seeds_of(seed: int, numbers: np.ndarray) -> np.ndarray:
  """uint64: a seed of its own for every example number."""
  first = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
  return _mixed(_mixed(numbers.astype(np.uint64)) ^ first)


def _mixed(x: np.ndarray) -> np.ndarray:
  """splitmix64: every bit of the result depends on every bit of a number."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def _described(source, indices):
  if describe := getattr(source, "describe", None):
    return describe(indices)
  records = [source[int(i)] for i in indices]
  return [record["caption"] for record in records], [record["label"] for record in records]


def _in_order(parts, rows: np.ndarray, spec: ClipSpec):
  """The rows of all parts in the order of the batch; black where a row is -1."""
  if all(isinstance(part, np.ndarray) for part in parts):
    out = np.zeros((len(rows), spec.frames, *spec.size, 3), np.uint8)
    begin = 0
    for part in parts:
      places = np.flatnonzero((rows >= begin) & (rows < begin + len(part)))
      out[places] = part[rows[places] - begin]
      begin += len(part)
    return out
  import jax

  return _device_rows()(jax.device_put(tuple(parts)), rows.astype(np.int32))


@functools.cache
def _device_rows():
  import jax
  import jax.numpy as jnp

  def run(parts, rows):
    return jnp.where((rows >= 0)[:, None, None, None, None], jnp.concatenate(parts)[rows], 0)

  return jax.jit(run)


class _Ahead:
  """A thread that makes batches 0, 1, ... and keeps a few ready; what it raises, `next` raises."""

  def __init__(self, make, count: int | None):
    self._make, self._count = make, count
    self._ready: queue.Queue = queue.Queue(AHEAD)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
    self._thread.start()

  @property
  def running(self) -> bool:
    return self._thread.is_alive()

  def _run(self):
    n = 0
    while not self._stop.is_set():
      try:
        item = (self._make(n), None) if self._count is None or n < self._count else (None, None)
      except BaseException as error:  # the consumer's to handle
        item = (None, error)
      while not self._stop.is_set():
        try:
          self._ready.put(item, timeout=0.1)
          break
        except queue.Full:
          continue
      if item[0] is None:
        return
      n += 1

  def next(self):
    """The next batch, None after the last one."""
    batch = error = None
    while not self._stop.is_set():
      with contextlib.suppress(queue.Empty):
        batch, error = self._ready.get(timeout=0.5)
        break
    if error is not None:
      raise error
    return batch

  def close(self) -> None:
    self._stop.set()
    if self._thread is not threading.current_thread():
      self._thread.join(60)
