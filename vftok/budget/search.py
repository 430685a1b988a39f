"""The best assignment by looking: every one, or few of them. For rewards that are measured and not predicted.

`evaluate(keep [N, T]) -> losses [N]` measures assignments of one clip; the searches count what they ask for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vftok.budget.reward import Reward

Evaluate = Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
  """Attributes:
  keep: int32 [T], the best assignment seen. reward: of it. evaluations: how many assignments were measured.
  """

  keep: np.ndarray
  reward: float
  evaluations: int


def all_assignments(levels: Sequence[int], steps: int) -> np.ndarray:
  """int32 [m^T, T], in base m with the first step as the highest digit (EVATok's class order is not published)."""
  return np.array(list(itertools.product(levels, repeat=steps)), np.int32)


def greedy_forward(evaluate: Evaluate, reward: Reward, weight: float, levels: Sequence[int], steps: int) -> Found:
  """Step after step, the later ones at the middle level meanwhile: m T measurements. Encoder and decoder are causal."""
  seen = _Seen(evaluate, reward, weight)
  keep = np.full(steps, sorted(levels)[len(levels) // 2], np.int32)
  for step in range(steps):
    keep = seen.best(_varied(keep, step, levels))
  return seen.found()


def marginal_gain(evaluate: Evaluate, reward: Reward, weight: float, levels: Sequence[int], steps: int) -> Found:
  """From the lowest level everywhere raises one step after the other, the one that gains most (or loses least), up to
  the top; then changes single steps around the best that was seen on the way.

  It does not stop where nothing gains: a step whose second token says nothing may need four.
  """
  seen, ordered = _Seen(evaluate, reward, weight), sorted(levels)
  keep = np.full(steps, ordered[0], np.int32)
  seen.rewards(keep[None])
  while raised := [k for step in range(steps) if (k := _next(keep, step, ordered)) is not None]:
    keep = seen.best(np.array(raised))
  keep = seen.found().keep
  for step in range(steps):
    keep = seen.best(_varied(keep, step, ordered))
  return seen.found()


class _Seen:
  """Rewards of assignments, each measured once."""

  def __init__(self, evaluate, reward, weight):
    self._evaluate, self._reward, self._weight, self._known = evaluate, reward, weight, {}

  def rewards(self, keep_NxT) -> np.ndarray:
    new = [keep for keep in dict.fromkeys(map(tuple, keep_NxT.tolist())) if keep not in self._known]
    if new:
      asked = np.array(new, np.int32)
      self._known |= dict(zip(new, self._reward(self._evaluate(asked), asked, self._weight).tolist(), strict=True))
    return np.array([self._known[tuple(keep)] for keep in keep_NxT.tolist()])

  def best(self, keep_NxT) -> np.ndarray:
    return keep_NxT[self.rewards(keep_NxT).argmax()]

  def found(self) -> Found:
    keep = max(self._known, key=lambda keep: self._known[keep])
    return Found(np.array(keep, np.int32), self._known[keep], len(self._known))


def _varied(keep, step: int, levels) -> np.ndarray:
  out = np.repeat(keep[None], len(levels), 0)
  out[:, step] = levels
  return out


def _next(keep, step: int, ordered):
  at = ordered.index(keep[step])
  if at + 1 == len(ordered):
    return None
  out = keep.copy()
  out[step] = ordered[at + 1]
  return out
