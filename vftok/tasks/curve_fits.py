"""What stands for the losses of a clip's assignments: a sum over its steps, and a part that only the total decides.

Without that part a step that often comes with many others would get the credit for them.
"""

from __future__ import annotations

import numpy as np


def summed(table_BxTxm, level_BxNxT, xp):
  """[B, N]: what the steps lose together."""
  return xp.take_along_axis(table_BxTxm[:, None], level_BxNxT[..., None], axis=3)[..., 0].sum(2)


def centred(loss_BxN):
  return loss_BxN - loss_BxN.mean(1, keepdims=True)


def sizes(level_BxNxT, size, levels, xp):
  """[B, N]: what is lost by the mean count alone, linear in its log2 between levels; 0 where there is no such part."""
  if not size:
    return xp.zeros(level_BxNxT.shape[:2])
  mean_BxN = xp.asarray(levels)[level_BxNxT].mean(2)
  return xp.interp(xp.log2(mean_BxN), xp.log2(xp.asarray(levels)), xp.asarray(size))


def expected(table_BxTxm, size, level_BxNxT, levels) -> np.ndarray:
  """[B, N]: the losses that curves (of each clip, or one for all) and size stand for."""
  table = np.broadcast_to(table_BxTxm, (len(level_BxNxT), *table_BxTxm.shape[1:]))
  return summed(table, level_BxNxT, np) + sizes(level_BxNxT, size, levels, np)


def one_for_all(level_BxNxT, loss_BxN, levels, *, with_size: bool) -> tuple[np.ndarray, tuple[float, ...]]:
  """(table [1, T, m], size) that fit all clips alike best, by least squares on these very clips."""
  steps, m = level_BxNxT.shape[2], len(levels)
  parts = [np.eye(m)[level_BxNxT].reshape(*loss_BxN.shape, steps * m)]
  if with_size:
    parts.append(np.stack([sizes(level_BxNxT, row, levels, np) for row in np.eye(m).tolist()], -1))
  known = np.concatenate(parts, -1)
  known, loss = (known - known.mean(1, keepdims=True)).reshape(-1, known.shape[-1]), centred(loss_BxN).reshape(-1)
  # A trace of ridge: what the two parts share is split evenly between them.
  found = np.linalg.solve(known.T @ known + 1e-6 * len(known) * np.eye(known.shape[1]), known.T @ loss)
  table, size = found[: steps * m].reshape(1, steps, m), found[steps * m :]
  return table - table[..., -1:], tuple(float(x) for x in size - size[-1:])


def explained(predicted_BxTxm, level_BxNxT, loss_BxN, levels, size) -> dict[str, float]:
  """Shares of the variance between a clip's assignments that are explained; "r2": of what one table for all leaves."""
  loss = centred(loss_BxN)
  error = lambda table, size: np.square(centred(expected(table, size, level_BxNxT, levels)) - loss).sum()
  same = error(*one_for_all(level_BxNxT, loss_BxN, levels, with_size=bool(size)))
  routed, whole = error(predicted_BxTxm, size), np.square(loss).sum()
  return {"r2": 1 - routed / same, "explained/router": 1 - routed / whole, "explained/one for all": 1 - same / whole}
