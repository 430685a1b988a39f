"""Which clips an evaluation saw, in which order, and a hash of their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vftok.runtime.words import brief


class Clips:
  """Batches as a loader gives them, and which clips they had: `indices` and `sha256`, once they were all read.

  Args:
    batches: of `names`' sources, with "_mask", "source" and "index".
    wanted: {source: indices in order} that count, no others; None: all.

  Raises:
    ValueError: while they are read, where one that is wanted is missing.
  """

  def __init__(self, batches, names: Sequence[str], wanted: Mapping[str, Sequence[int]] | None = None):
    self._batches, self.names = batches, tuple(names)
    self._wanted = None if wanted is None else [(name, i) for name, indices in wanted.items() for i in indices]
    self._seen: list[tuple[str, int]] = []
    self._pixels = hashlib.sha256()

  def __iter__(self) -> Iterator[dict[str, Any]]:
    known = None if self._wanted is None else set(self._wanted)
    for batch in self._batches:
      mask, source, index = (np.asarray(batch[key]) for key in ("_mask", "source", "index"))
      clips = [(self.names[s] if m else "", int(i)) for s, i, m in zip(source, index, mask, strict=True)]
      mask = mask.astype(bool) & np.array([known is None or clip in known for clip in clips], bool)
      self._seen += [clip for clip, counts in zip(clips, mask, strict=True) if counts]
      self._check()
      if "video" in batch:
        self._pixels.update(np.ascontiguousarray(np.asarray(batch["video"])[mask]))
      yield {**batch, "_mask": mask}
      if self._wanted is not None and len(self._seen) == len(self._wanted):
        return
    if self._wanted is not None and len(self._seen) < len(self._wanted):
      self._missing(len(self._seen))

  def _check(self) -> None:
    if self._wanted is None:
      return
    for at, (seen, wanted) in enumerate(zip(self._seen, self._wanted, strict=False)):
      if seen != wanted:
        self._missing(at)

  def _missing(self, at: int) -> None:
    name, index = self._wanted[at]
    raise ValueError(
      f"clip {index} of source {brief(name)} is missing or cannot be read, expected the protocol's "
      f"{len(self._wanted)} clips in their order: use the data that it was made with."
    )

  @property
  def indices(self) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for name, index in self._seen:
      out.setdefault(name, []).append(index)
    return out

  @property
  def sha256(self) -> str:
    return self._pixels.hexdigest()
