"""What an assignment of tokens is worth: quality against length, both standardised (EVATok, arXiv 2603.12267, eq. 6).

R = w_q Q - w_l L with w_l = 2 - w_q. Q is better when higher: the equation as printed has the sign of the loss.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vftok.runtime.words import brief, is_number


@dataclasses.dataclass(frozen=True)
class Reward:
  """Attributes:
  loss_mean, loss_std: of the loss (LPIPS, flow loss, ...) over random clips and random assignments.
  length_mean, length_std: of an assignment's length over random assignments.
  """

  loss_mean: float
  loss_std: float
  length_mean: float
  length_std: float

  def __post_init__(self):
    if not (self.loss_std > 0 and self.length_std > 0):
      raise ValueError(
        f"the deviations are {self.loss_std} and {self.length_std}, expected more than 0: all clips or all lengths are "
        "the same, so nothing can be weighed."
      )

  @classmethod
  def fitted(cls, loss, levels, steps: int) -> Reward:
    """From losses of random clips under random assignments, and levels that are drawn alike and independently."""
    per_step = lengths(np.asarray(levels)[:, None])
    mean, deviation = steps * per_step.mean(), np.sqrt(steps) * per_step.std()
    return cls(float(np.mean(loss)), float(np.std(loss)), float(mean), float(deviation))

  @classmethod
  def of_router(cls, levels, steps: int, *, loss_mean: float, loss_std: float) -> Reward:
    """What a router's preferences are weighed by: the constants of its training set, lengths in tokens of one chunk."""
    return dataclasses.replace(cls.fitted([0.0, 1.0], levels, steps), loss_mean=loss_mean, loss_std=loss_std)

  def __call__(self, loss, keep_NxT, weight: float, xp=np) -> np.ndarray:
    """R, float64 [..., N], of assignments with these losses under w_q = `weight`, 0..2. In a program (xp: jax.numpy)
    float32.
    """
    check_weight(weight)
    loss = np.asarray(loss, np.float64) if xp is np else loss
    quality = (self.loss_mean - loss) / self.loss_std
    cost = (lengths(keep_NxT) - self.length_mean) / self.length_std
    return weight * quality - (2 - weight) * cost


def check_weight(weight: float) -> None:
  """Raises ValueError unless 0 <= weight <= 2."""
  if not (is_number(weight) and 0 <= weight <= 2):
    raise ValueError(f"the weight of quality is {brief(weight)}, expected 0..2: that of length is 2 minus it.")


def lengths(keep_NxT) -> np.ndarray:
  """Length of each assignment, float64 [N]: its tokens."""
  return np.asarray(keep_NxT, np.float64).sum(-1)


def percentile(chosen, best, worst) -> float:
  """Proxy-reward percentile in percent: how far from the worst to the best assignments the chosen ones get, on average.

  Args:
    chosen, best, worst: rewards [N] of the same clips.
  """
  span = np.mean(best) - np.mean(worst)
  if not span > 0:
    raise ValueError(f"best and worst rewards differ by {span}, expected more than 0: all assignments are alike.")
  return float(100 * ((np.mean(chosen) - np.mean(worst)) / span))  # exactly 100 where the best are chosen
