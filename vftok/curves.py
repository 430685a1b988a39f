"""How much a clip loses at each number of tokens per step: by the decoder's own loss, or by sampling it.

The surrogate is the flow loss of the frozen decoder at fixed times under fixed noise, a few passes per assignment
instead of a whole solver: an assignment whose tokens say more makes the velocity easier to guess. All assignments of a
clip see the same noise, so that their differences are those of the tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vftok import programs
from vftok.config import TokenizerConfig


def assignments(levels: Sequence[int], steps: int, random: int = 0, seed: int = 0) -> np.ndarray:
  """int32 [N, T]: every level of every step with the others at the middle level (step by step, level by level), all
  steps at one level, then `random` assignments, each step drawn by itself.
  """
  levels = np.asarray(sorted(levels), np.int32)
  middle = levels[len(levels) // 2]
  single = np.full((steps, len(levels), steps), middle, np.int32)
  for step in range(steps):
    single[step, :, step] = levels
  uniform = np.repeat(levels[:, None], steps, 1)
  drawn = np.random.default_rng(seed).choice(levels, (random, steps)).astype(np.int32)
  return np.concatenate([single.reshape(-1, steps), uniform, drawn])


def curve_table(losses_NxT: np.ndarray, steps: int, levels: int) -> np.ndarray:
  """float [T, m]: the clip's mean loss with step t at level i, out of losses in the order of `assignments`."""
  return np.asarray(losses_NxT)[: steps * levels].mean(-1).reshape(steps, levels)


@functools.partial(jax.jit, static_argnums=(0, 5))
def flow_losses(cfg: TokenizerConfig, params, latents_BxTxhxwxC, ids_BxTxK, keep_NxT, times: tuple[float, ...], key):
  """float32 [B, N, T, times]: squared error of the velocity, of each step of tokens, under each assignment.

  Args:
    latents_BxTxhxwxC: of one chunk, as the VAE's encoder gives them.
    ids_BxTxK: the clip's tokens, all of them.
    keep_NxT: int32, assignments.
    times: flow times in (0, 1], fixed.
    key: of the noise; the same clip gets the same noise whatever else is in the batch where key is the same.
  """
  b, patch = latents_BxTxhxwxC.shape[0], cfg.decoder.patch[0]
  noise = jax.random.normal(key, latents_BxTxhxwxC.shape[1:])[None]
  target = noise - latents_BxTxhxwxC

  def of_assignment(keep_T):
    keep_BxT = jnp.broadcast_to(keep_T, (b, keep_T.shape[0]))

    def at(t):
      x = t * noise + (1 - t) * latents_BxTxhxwxC
      velocity = programs.velocity(cfg, params, ids_BxTxK, keep_BxT, x, t, slots=None)
      error = jnp.square(velocity.astype(jnp.float32) - target).mean((2, 3, 4))
      return error.reshape(b, -1, patch).mean(-1)

    return jnp.stack([at(t) for t in times], axis=-1)

  return jnp.moveaxis(jax.lax.map(of_assignment, keep_NxT), 0, 1)


def spearman(a, b) -> float:
  """Rank correlation of two series, ties averaged.

  Raises:
    ValueError: fewer than three pairs, or a series that is all the same.
  """
  from scipy.stats import rankdata

  a, b = np.asarray(a), np.asarray(b)
  if a.shape != b.shape or a.ndim != 1 or len(a) < 3:
    raise ValueError(f"the series have shapes {a.shape} and {b.shape}, expected two of the same three or more numbers.")
  ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
  scale = np.sqrt(np.square(ranks[0]).sum() * np.square(ranks[1]).sum())
  if scale == 0:
    raise ValueError("one of the series is all the same, so it has no ranks to correlate.")
  return float((ranks[0] * ranks[1]).sum() / scale)
