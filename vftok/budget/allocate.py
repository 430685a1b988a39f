"""From quality curves to tokens per time step: exactly, for any preference or any hard total.

A curve gives what the clip loses by one step's tokens, for each level of them. Steps are taken as separable: a clip
loses the sum, and what one step loses does not depend on what others get. `vftok/budget/search.py` is for rewards of
which that is not known.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vftok.budget.reward import Reward, check_weight, lengths


def at_every_count(curves_TxM, levels) -> np.ndarray:
  """Losses [T, K] of 1..K tokens, K the largest level: linear in log2 of the count between levels, never rising.

  Raises:
    ValueError: levels that do not rise from 1, or curves that are not numbers of that shape.
  """
  levels, curves = np.asarray(levels), np.asarray(curves_TxM, np.float64)
  if levels.ndim != 1 or len(levels) < 2 or levels[0] != 1 or (np.diff(levels) <= 0).any():
    raise ValueError(f"levels are {levels.tolist()}, expected counts that rise from 1.")
  if curves.ndim != 2 or curves.shape[1] != len(levels) or not np.isfinite(curves).all():
    raise ValueError(f"curves have shape {curves.shape}, expected finite numbers [steps, {len(levels)}].")
  falling = np.minimum.accumulate(curves, axis=1)
  counts = np.log2(np.arange(1, levels[-1] + 1))
  return np.stack([np.interp(counts, np.log2(levels), curve) for curve in falling])


def for_total(losses_TxK, total: int) -> np.ndarray:
  """Tokens per step, int32 [T], that add up to `total` exactly and lose least together (dynamic programming).

  Raises:
    ValueError: a total below one per step or above all of them.
  """
  losses = np.asarray(losses_TxK, np.float64)
  steps, most = losses.shape
  if not steps <= total <= steps * most:
    raise ValueError(
      f"the budget is {total} tokens for {steps} time steps, expected {steps}..{steps * most}: one to {most} per step."
    )
  return _traced(_program(losses, total)[1], total)


def _program(losses_TxK, total: int) -> tuple[np.ndarray, list[np.ndarray]]:
  """(the least loss of 0..total tokens, [total + 1]; for each step, its count in the best way to each of these)."""
  most = losses_TxK.shape[1]
  best = np.full(total + 1, np.inf)
  best[0] = 0.0
  choices = []
  for losses in losses_TxK:
    # after[s] = min over k of best[s - k] + losses[k - 1]: a band of shifted copies.
    padded = np.concatenate([np.full(most, np.inf), best])
    before = np.lib.stride_tricks.sliding_window_view(padded[:-1], most)[:, ::-1]  # [s, k - 1] = best[s - k]
    sums = before + losses
    choice = sums.argmin(1)
    best = np.take_along_axis(sums, choice[:, None], 1)[:, 0]
    choices.append(choice + 1)
  return best, choices


def _traced(choices: list[np.ndarray], total: int) -> np.ndarray:
  keep, left = np.empty(len(choices), np.int32), total
  for step in range(len(choices) - 1, -1, -1):
    keep[step] = choices[step][left]
    left -= keep[step]
  return keep


def for_preference(losses_TxK, reward: Reward, weight: float, size=None) -> np.ndarray:
  """Tokens per step, int32 [T], of the highest reward under w_q = `weight`; a clip loses the sum over its steps.

  Args:
    size: float [T K + 1], what is lost beside that by the total alone; None: nothing.
  """
  check_weight(weight)
  losses = np.asarray(losses_TxK, np.float64)
  steps, most = losses.shape
  if size is None:
    return among_levels(losses, np.arange(1, most + 1), reward, weight)
  best, choices = _program(losses, steps * most)
  cost = lengths(np.arange(steps * most + 1)[:, None]) / reward.length_std
  return _traced(choices, int((weight * (best + size) / reward.loss_std + (2 - weight) * cost).argmin()))


def among_levels(curves_xTxM, levels, reward: Reward, weight, xp=np):
  """As `for_preference`, choosing among the levels alone: int32 [..., T]. Also inside a program (xp: jax.numpy).

  Args:
    curves_xTxM: losses that fall from level to level, as a router gives them.
    weight: w_q, a number or, with leading axes, what broadcasts against [..., T, m].
  """
  cost_M = lengths(np.asarray(levels)[:, None]) / reward.length_std
  return xp.asarray(levels)[(weight * curves_xTxM / reward.loss_std + (2 - weight) * cost_M).argmin(-1)].astype(
    np.int32
  )


def by_preference(curves_BxTxm, levels, reward: Reward, weight_B) -> jax.Array:
  """As `for_preference` of many clips inside a program: int32 [B, T], any count from 1 to the largest level.

  Args:
    curves_BxTxm: losses that fall from level to level, as a router gives them.
    weight_B: w_q of each clip.
  """
  counts = np.arange(1, levels[-1] + 1)
  shares_mxK = np.stack([np.interp(np.log2(counts), np.log2(levels), row) for row in np.eye(len(levels))])
  losses_BxTxK = curves_BxTxm @ jnp.asarray(shares_mxK, jnp.float32)
  return among_levels(losses_BxTxK, counts, reward, weight_B[:, None, None], xp=jnp)


def for_mean(losses_NxTxK, mean: float) -> np.ndarray:
  """Tokens per step, int32 [N, T], of many clips that share a total: `mean` tokens per step of all of them together.

  The clips' steps are one long sequence to the program, so that a still clip gives to a busy one; the total is met
  exactly after rounding.
  """
  losses = np.asarray(losses_NxTxK, np.float64)
  n, steps, most = losses.shape
  keep = by_price(losses.reshape(n * steps, most), round(mean * n * steps))
  return keep.reshape(n, steps)


def by_price(losses_SxK, total: int) -> np.ndarray:
  """As `for_total` for thousands of steps: one price per token for all, on the lower convex hull of each curve; what is
  left over goes to the steps that gain most from it.
  """
  losses = np.asarray(losses_SxK, np.float64)
  steps, most = losses.shape
  if not steps <= total <= steps * most:
    raise ValueError(
      f"the budget is {total} tokens for {steps} time steps, expected {steps}..{steps * most}: one to {most} per step."
    )
  counts = np.arange(1, most + 1)
  chosen = lambda price: (losses + price * counts).argmin(1) + 1
  low, high = 0.0, float(np.abs(np.diff(losses, axis=1)).max() + 1e-12) if most > 1 else 1.0
  for _ in range(100):  # the cheapest price that stays within the total
    middle = (low + high) / 2
    low, high = (low, middle) if chosen(middle).sum() <= total else (middle, high)
  keep = chosen(high)
  gains = np.concatenate([losses[:, :-1] - losses[:, 1:], np.full((steps, 1), -np.inf)], 1)
  while keep.sum() < total:
    room = total - keep.sum()
    order = np.argsort(-gains[np.arange(steps), keep - 1], kind="stable")
    keep[order[: min(room, (keep < most).sum())]] += 1
  return keep.astype(np.int32)
