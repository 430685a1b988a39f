"""In which order the tokens of a video are written down, for models that generate them one after the other.

A token's place is (time step, slot); slot 0 is the coarsest. "time_first" writes slot 0 of every step, then slot 1 of
every step, ...: any budget is a prefix, so one model serves all budgets. "depth_first" writes all of step 0, then all
of step 1. Given steps (first frames, the past of a long video) come before all others, in the same order among them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ORDERS = ("time_first", "depth_first")


class Sequence(NamedTuple):
  """Places of a batch of sequences, padded at the end to one length L.

  Attributes:
    time_BxL, slot_BxL: int32; 0 where there is no token.
    valid_BxL: bool, whether there is a token.
    given_BxL: bool, whether the token belongs to a given step: known, not to be predicted.
  """

  time_BxL: Any
  slot_BxL: Any
  valid_BxL: Any
  given_BxL: Any

  @property
  def lengths(self):
    """int [B]: tokens of each sequence."""
    return self.valid_BxL.sum(1)


def sequence(keep_BxT, given_B=0, *, order: str = "time_first", length: int | None = None) -> Sequence:
  """Places of the tokens that `keep` counts.

  Args:
    keep_BxT: int [B, T], tokens of each time step; 0 leaves a step out.
    given_B: int or [B]; the first so many steps are given. In canonical order (0) every step waits its turn.
    length: L; None is that of the longest.

  Raises:
    ValueError: an unknown order, negative counts, or sequences longer than `length`.
  """
  keep_BxT = np.asarray(keep_BxT)
  if keep_BxT.ndim != 2 or (keep_BxT < 0).any():
    raise ValueError(f"keep has shape {keep_BxT.shape}, expected counts of 0 or more [B, T].")
  seq = arrange(keep_BxT, given_B, int(keep_BxT.max(initial=0)), order=order, xp=np)
  longest = int(seq.lengths.max(initial=0))
  length = longest if length is None else length
  if longest > length:
    raise ValueError(f"a sequence has {longest} tokens, expected at most {length}: keep fewer.")
  pad = lambda x: np.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1]))))
  return Sequence(*map(pad, seq))


def arrange(keep_BxT, given_B, slots: int, *, order: str, xp) -> Sequence:
  """As `sequence`, unchecked and at the full length T * slots; `xp` is numpy or, inside a program, jax.numpy."""
  if order not in ORDERS:
    raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}.")
  b, t = keep_BxT.shape
  given_BxTx1 = _given(t, xp.broadcast_to(xp.asarray(given_B), (b,)), xp)
  time, slot = xp.arange(t)[None, :, None], xp.arange(slots)[None, None]
  kept_BxTxK = slot < keep_BxT[:, :, None]
  # One sort does it all: given tokens first, tokens beyond `keep` last.
  rank = ranks(t, slots, given_B=given_B, order=order, xp=xp) + xp.where(kept_BxTxK, 0, 2 * t * slots)
  places = xp.argsort(rank.reshape(b, -1), axis=1)
  valid = xp.arange(t * slots)[None] < kept_BxTxK.sum((1, 2))[:, None]
  pick = lambda grid: xp.take_along_axis(xp.broadcast_to(grid, kept_BxTxK.shape).reshape(b, -1), places, 1)
  return Sequence(
    (pick(time) * valid).astype(np.int32), (pick(slot) * valid).astype(np.int32), valid, pick(given_BxTx1) & valid
  )


def ranks(steps: int, slots: int, given_B=0, *, order: str, xp):
  """int [B or 1, T, K]: which place comes before which other; all different, not consecutive. `xp` as in `arrange`."""
  time, slot = xp.arange(steps)[None, :, None], xp.arange(slots)[None, None]
  rank = slot * steps + time if order == "time_first" else time * slots + slot
  return rank + xp.where(_given(steps, xp.atleast_1d(xp.asarray(given_B)), xp), 0, steps * slots)


def _given(steps: int, given_B, xp):
  """bool [B, T, 1]."""
  return (xp.arange(steps)[None] < given_B[:, None])[:, :, None]


def write(ids_BxTxK: np.ndarray, seq: Sequence) -> np.ndarray:
  """Ids int [B, T, K] -> int32 [B, L] in the sequence's order, 0 where there is no token."""
  rows = np.arange(len(seq.time_BxL))[:, None]
  return (np.asarray(ids_BxTxK)[rows, seq.time_BxL, seq.slot_BxL] * seq.valid_BxL).astype(np.int32)


def read(ids_BxL: np.ndarray, seq: Sequence, steps: int, slots: int) -> np.ndarray:
  """Inverse of `write`: int32 [B, T, K], 0 where the sequence has no token."""
  out = np.zeros((len(ids_BxL), steps, slots), np.int32)
  rows, columns = np.nonzero(seq.valid_BxL)
  out[rows, seq.time_BxL[rows, columns], seq.slot_BxL[rows, columns]] = np.asarray(ids_BxL)[rows, columns]
  return out
