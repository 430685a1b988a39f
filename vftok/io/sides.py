"""Which split each of many clips is of: stated, or by a hash of its name, the same on every machine, for ever."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable

import numpy as np

SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validate", "validation"), "val")


class NoSuchSplit(ValueError):
  """The set is sound and has no split of that name."""


@dataclasses.dataclass(frozen=True)
class Sides:
  """Attributes:
  names: stated splits; None where names are hashed.
  values: int32 places in `names`, or uint64 hashes, one per clip.
  """

  names: tuple[str, ...] | None
  values: np.ndarray

  @classmethod
  def stated(cls, splits: Iterable[str]) -> Sides:
    """Of the split that each clip says; "valid" and the like are "val"."""
    places: dict[str, int] = {}
    values = array("i", (places.setdefault(SPLITS.get(name.lower(), name), len(places)) for name in splits))
    return cls(tuple(places), np.array(values, np.int32))

  @classmethod
  def by_name(cls, names: Iterable[str]) -> Sides:
    return cls(None, np.array(array("Q", map(name_hash, names)), np.uint64))

  def chosen(self, split: str, holdout: float, where: str) -> np.ndarray:
    """int64: positions of the clips of a split, "all" for everything; hashed ones go by the share `holdout` to "val".

    Raises:
      NoSuchSplit: there is none; `where` names the set.
    """
    wanted = SPLITS.get(split, split)
    known = ["train", "val"] if self.names is None else sorted(self.names)
    if wanted not in (*known, "all"):
      shown = ", ".join([*(name[:60] for name in known[:5]), *(["..."] if len(known) > 5 else []), "all"])
      raise NoSuchSplit(f"split is {split[:60]!r}, expected one of {shown} of {where}: choose one.")
    if wanted == "all":
      return np.arange(len(self.values))
    if self.names is None:
      return np.flatnonzero((self.values / 2.0**64 < holdout) == (wanted == "val"))
    return np.flatnonzero(self.values == self.names.index(wanted))


def name_hash(name: str) -> int:
  """64 bits of a file's name as written."""
  digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
  return int.from_bytes(digest, "big")
