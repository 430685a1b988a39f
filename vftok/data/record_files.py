"""Reads records out of any number of ArrayRecord files, of which so many stay open at once."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

import numpy as np

MOST_OPEN = 4096  # files, where the system allows four times as many


class RecordFiles:
  """[index] -> bytes, over parts (path, records to skip, records to take) one after the other.

  A set of 30 million clips has tens of thousands of files, and a process may often open no more than 1,024: those that
  were read last stay open, a quarter of what is allowed.
  """

  def __init__(self, parts: Sequence[tuple[str, int, int]], most_open: int | None = None):
    self._paths, self._skips, takes = [list(column) for column in zip(*parts, strict=True)] or ([], [], [])
    self._ends = np.cumsum(takes)
    self._most_open = most_open or max(1, min(MOST_OPEN, _allowed() // 4))
    self._open, self._lock = collections.OrderedDict(), threading.Lock()

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def path(self, index: int) -> str:
    return self._paths[self._part(index)]

  def __getitem__(self, index: int) -> bytes:
    part = self._part(index)
    first = int(self._ends[part - 1]) if part else 0
    return self._reader(part).read([self._skips[part] + index - first])[0]

  def _part(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    return int(np.searchsorted(self._ends, index, side="right"))

  def _reader(self, part: int):
    from array_record.python.array_record_module import ArrayRecordReader

    path = self._paths[part]
    with self._lock:
      if path in self._open:
        self._open.move_to_end(path)
        return self._open[path]
    reader = ArrayRecordReader(path, "readahead_buffer_size:0")  # may wait for a bucket: others read on meanwhile
    with self._lock:
      self._open[path] = reader
      while len(self._open) > self._most_open:
        self._open.popitem(last=False)  # closed when no thread reads it any more
    return reader

  def __getstate__(self):
    return {**self.__dict__, "_open": None, "_lock": None}  # other processes open their own

  def __setstate__(self, state):
    self.__dict__.update(state, _open=collections.OrderedDict(), _lock=threading.Lock())


def _allowed() -> int:
  """Files that this process may have open."""
  try:
    import resource
  except ImportError:  # Windows
    return 512
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return MOST_OPEN * 4 if soft == resource.RLIM_INFINITY else soft
