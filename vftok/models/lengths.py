"""How a generator says the length of each time step: formats of adaptive sequences, as grids of tokens.

"length_first": a length token LEN stands in slot 0 of every step, its content one slot further. LEN ids are vocab + the
index of a level, the numbers of tokens that steps may have. "end_of_step": content stays where it is and END (id vocab)
takes the slot after the last token of a step; a step with all K tokens has none. "none": counts are not said.

An extended grid is a grid like any other to `order.py`, so both formats come in both orders: in "time_first" all
LEN come first, in "depth_first" each before its step's content.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np

from vftok.models.layers import ranked

FORMATS = ("none", "length_first", "end_of_step")


class LengthFormat(Protocol):
  """What a model's config says about lengths (`ARConfig` does): one of FORMATS, the levels it knows, and its sizes."""

  @property
  def lengths(self) -> str: ...
  @property
  def levels(self) -> tuple[int, ...]: ...
  @property
  def positions(self) -> str: ...
  @property
  def vocab(self) -> int: ...
  @property
  def slots(self) -> int: ...
  @property
  def total_vocab(self) -> int: ...


def check_format(cfg: LengthFormat) -> None:
  """Raises ValueError where a model's format, levels and positions do not fit together."""
  if cfg.lengths not in FORMATS:
    raise ValueError(f"lengths are {cfg.lengths!r}, expected one of {', '.join(FORMATS)}.")
  if cfg.lengths != "none" and cfg.positions == "flat":
    expected = f"expected 'time_slot' or 'sequence' where lengths are {cfg.lengths!r}"
    raise ValueError(f"positions are {cfg.positions!r}, {expected}.")
  if cfg.lengths != "length_first":
    if cfg.levels:
      raise ValueError(f"levels are {cfg.levels}, expected () where lengths are {cfg.lengths!r}: leave them out.")
    return
  rising = all(a < b for a, b in itertools.pairwise(cfg.levels))
  if not cfg.levels or cfg.levels[0] < 1 or not rising or cfg.levels[-1] != cfg.slots:
    raise ValueError(f"levels are {cfg.levels}, expected counts that rise from 1 or more to all {cfg.slots} slots.")


def extra_ids(cfg: LengthFormat) -> int:
  """Ids beside the tokenizer's."""
  return {"none": 0, "length_first": len(cfg.levels), "end_of_step": 1}[cfg.lengths]


def first_slot(cfg: LengthFormat) -> int:
  """Where the content of a step begins."""
  return int(cfg.lengths == "length_first")


def check_counts(cfg: LengthFormat, keep_BxT) -> None:
  """Raises ValueError where counts [B, T] are none that the format can say."""
  keep = np.asarray(keep_BxT)
  known = cfg.levels if cfg.lengths == "length_first" else range(1, cfg.slots + 1)
  unknown = keep[~np.isin(keep, known)]
  if unknown.size:
    what = f"one of the levels {cfg.levels}" if cfg.levels else f"1..{cfg.slots}"
    raise ValueError(f"keep is {unknown[0]}, expected {what}: this model says every step's length itself.")


def extended_counts(cfg: LengthFormat, keep_BxT, xp: Any = np):
  """Tokens of each step with those that say its length, [B, T]."""
  if cfg.lengths == "none":
    return keep_BxT
  return keep_BxT + 1 if cfg.lengths == "length_first" else xp.minimum(keep_BxT + 1, cfg.slots)


def extend(cfg: LengthFormat, ids_BxTxK, keep_BxT, xp: Any = np):
  """(ids int32 [B, T, K'], keep int32 [B, T]) with lengths said, K' = cfg.total_slots; ids that do not count are 0.

  Args:
    ids_BxTxK: K or more content ids of each step.
    keep_BxT: counts that the format can say (`check_counts`), or 0 where lengths are "none".
    xp: numpy or, inside a program, jax.numpy.
  """
  ids_BxTxK, slot = ids_BxTxK[:, :, : cfg.slots].astype(np.int32), xp.arange(cfg.slots)[None, None]
  ids_BxTxK = xp.where(slot < keep_BxT[:, :, None], ids_BxTxK, 0)
  if cfg.lengths == "length_first":
    level_BxT = (keep_BxT[:, :, None] > xp.asarray(cfg.levels)[None, None]).sum(-1).astype(np.int32)
    ids_BxTxK = xp.concatenate([cfg.vocab + level_BxT[:, :, None], ids_BxTxK], axis=2)
  elif cfg.lengths == "end_of_step":
    ids_BxTxK = xp.where(slot == keep_BxT[:, :, None], cfg.vocab, ids_BxTxK)
  return ids_BxTxK.astype(np.int32), extended_counts(cfg, keep_BxT, xp).astype(np.int32)


def strip(cfg: LengthFormat, ids_BxTxK, keep_BxT, xp: Any = np):
  """Inverse of `extend`: (ids int32 [B, T, K], keep int32 [B, T]) of content alone."""
  if cfg.lengths == "length_first":
    ids_BxTxK, keep_BxT = ids_BxTxK[:, :, 1:], xp.maximum(keep_BxT - 1, 0)
  elif cfg.lengths == "end_of_step":
    counts = xp.arange(cfg.slots)[None, None] < keep_BxT[:, :, None]
    keep_BxT = keep_BxT - (counts & (ids_BxTxK == cfg.vocab)).any(2)
  kept = xp.arange(cfg.slots)[None, None] < keep_BxT[:, :, None]
  return xp.where(kept, ids_BxTxK, 0).astype(np.int32), keep_BxT.astype(np.int32)


def says_length(cfg: LengthFormat, ids):
  """bool: which ids say a length."""
  return ids >= cfg.vocab


def allowed(cfg: LengthFormat, slot, xp: Any = np):
  """bool [..., V']: which ids can stand in slots int [...]; the rest get no probability, in training as in sampling."""
  first = (slot == 0)[..., None]
  content = ranked(xp.arange(cfg.total_vocab) < cfg.vocab, first.ndim)
  if cfg.lengths == "length_first":
    return xp.where(first, ~content, content)
  return content | ~first  # END needs a token before it; without lengths all ids are content
