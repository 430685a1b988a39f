"""Which example comes when, and how it is read: what the loader's workers run."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import os
import threading
import traceback
from typing import Any

import numpy as np

from vftok.data import bad_clips
from vftok.data.clip import ClipSpec, ShortClip, load_clip
from vftok.runtime.optional import required

MAX_FAILURES = 32  # clips in a row, drawn at random from one source: past that the source itself is broken
LISTED = 2**14  # sources up to this long are shuffled as a list: of 60 examples, grain's cipher takes 0.4 ms for each
# Kinds of errors that code has and files seldom cause. Before any clip of its source could be used in this process, one
# of these ends the run: the same line would fail for every clip. Later it is one odd file, which must not.
BUGS = (AssertionError, AttributeError, KeyError, NameError, NotImplementedError, TypeError)
_hung: set[tuple[str, int]] = set()  # (source, index) of this process: waiting once is enough
_hung_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Part:
  """Which examples of the whole sequence this process reads."""

  start: int
  batch: int
  index: int
  count: int
  batches: np.ndarray | None = None  # int64: only these, in this order; None: all

  @property
  def size(self) -> int:
    return self.batch // self.count

  def __call__(self, i: int) -> int:
    batch, place = divmod(i, self.size)
    batch = batch if self.batches is None else int(self.batches[batch])
    return self.start + batch * self.batch + self.index * self.size + place


def required_grain():
  """grain, for loaders of clips that are decoded one by one."""
  return required("grain", "grain", "a loader of clips that are not in memory")


def mix(lengths, weights, seed):
  """Example number -> (source, index within it)."""
  grain, orders = required_grain(), []
  for i, length in enumerate(lengths):
    own_seed = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
    if length <= LISTED:
      order = grain.MapDataset.range(2**62).map(_Shuffled(length, own_seed))
    else:
      order = grain.MapDataset.range(length).seed(own_seed).shuffle().repeat()
    orders.append(order.map(functools.partial(_tagged, i)))
  return grain.MapDataset.mix(orders, weights)


@dataclasses.dataclass(frozen=True)
class _Shuffled:
  """Position in the sequence -> index, every epoch in an order of its own."""

  length: int
  seed: int

  def __call__(self, position: int) -> int:
    epoch, place = divmod(int(position), self.length)
    return int(_permutation(self.length, self.seed, epoch)[place])


@functools.lru_cache(64)
def _permutation(length, seed, epoch):
  return np.random.default_rng([seed, epoch]).permutation(length)


def _tagged(source, index):
  return source, int(index)


@dataclasses.dataclass(frozen=True)
class Examples:
  """The i-th example of this process; picklable, for the workers."""

  names: tuple[str, ...]
  sources: tuple
  spec: ClipSpec
  seed: int
  order: Any  # None in evaluation
  part: Part
  log: str | None
  arrays: tuple[tuple[str, tuple[int, ...], str], ...] | None  # (key, shape, dtype) of stored arrays; None: clips

  @functools.cached_property
  def ends(self) -> list[int]:
    return list(itertools.accumulate(len(source) for source in self.sources))

  @functools.cached_property
  def _used(self) -> set[str]:
    """Sources of which this process has used a clip."""
    return set()

  def __call__(self, i: int) -> dict[str, Any]:
    number = self.part(int(i))
    return self._evaluation(number) if self.order is None else self._training(number)

  def _evaluation(self, number):
    if number >= self.ends[-1]:
      return self._padding()
    source = bisect.bisect_right(self.ends, number)
    index = number - (self.ends[source] - len(self.sources[source]))
    example, _ = self._load(source, index, None)
    return example or self._padding()

  def _training(self, number):
    source, index = self.order[number]
    for attempt in range(MAX_FAILURES):
      rng = np.random.default_rng([self.seed, number, attempt])
      if attempt:  # in place of a bad clip: any other of its source
        index = int(rng.integers(len(self.sources[source])))
      example, reason = self._load(source, index, rng)
      if example is not None:
        return example
    raise ValueError(
      f"{MAX_FAILURES} clips in a row of source {self.names[source]!r} could not be used, the last one because: "
      f"{reason} (check the source, or ask for shorter clips)."
    )

  def _load(self, source, index, rng):
    """(example, None) or (None, why not)."""
    name, key = f"number {index}", (self.names[source], index)
    if key in _hung:
      return None, "it took too long before"
    try:
      record = self.sources[source][index]
      name = record["name"]
      if self.arrays is None:
        content = {"video": load_clip(record, self.spec, rng)}
      else:
        content = {key: record[key] for key, _, _ in self.arrays}
    except ImportError:  # no clip's fault
      raise
    except Exception as error:  # whatever is wrong with one file must not end a run of days
      if isinstance(error, TimeoutError):
        with _hung_lock:
          _hung.add(key)
      bug = isinstance(error, BUGS) and not type(error).__module__.startswith("av.")  # PyAV's own are about files
      if bug and self.names[source] not in self._used:
        raise RuntimeError(
          f"source {self.names[source]!r} failed before any clip could be used (at {name}) with {_where(error)}: that "
          "is an error in code and no bad clip; mend it, or leave the source out."
        ) from error
      reason = _where(error) if bug else str(error) or type(error).__name__
      bad_clips.report(self.log, self.names[source], name, reason, short=isinstance(error, ShortClip))
      return None, reason
    self._used.add(self.names[source])
    return {
      **content,
      "_mask": np.bool_(True),
      "label": np.int32(record["label"]),
      "source": np.int32(source),
      "index": np.int64(index),
      "caption": record["caption"],
    }, None

  def _padding(self):
    content = {"video": np.zeros((self.spec.frames, *self.spec.size, 3), np.uint8)}
    if self.arrays is not None:
      content = {key: np.zeros(shape, dtype) for key, shape, dtype in self.arrays}
    return {
      **content,
      "_mask": np.bool_(False),
      "label": np.int32(-1),
      "source": np.int32(-1),
      "index": np.int64(-1),
      "caption": "",
    }


def _where(error: Exception) -> str:
  """An error's kind, words and the line that raised it."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  return f"{type(error).__name__}: {str(error)[:100]} (line {last.lineno} of {os.path.basename(last.filename)})"
