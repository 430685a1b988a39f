"""How much a clip loses at each number of tokens per step: by the decoder's own loss, or by sampling it.

The surrogate is the flow loss of the frozen decoder at fixed times under fixed noise, a few passes per assignment
instead of a whole solver: an assignment whose tokens say more makes the velocity easier to guess. What is sampled is
LPIPS and the cosine of VGG16 features. All assignments of a clip see the same noise, so that their differences are
those of the tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vftok.data.curves import MEASURES
from vftok.models.config import TokenizerConfig
from vftok.models.flow import gaussian
from vftok.tokenizer import programs
from vftok.tokenizer.geometry import TIME_FACTOR


def assignments(levels: Sequence[int], steps: int, random: int = 0, seed: int = 0) -> np.ndarray:
  """int32 [N, T]: every level of every step with the others at the middle level (step by step, level by level), all
  steps at one level, then `random` assignments, each step drawn by itself.
  """
  levels_m = np.asarray(sorted(levels), np.int32)
  middle = levels_m[len(levels_m) // 2]
  single = np.full((steps, len(levels_m), steps), middle, np.int32)
  for step in range(steps):
    single[step, :, step] = levels_m
  uniform = np.repeat(levels_m[:, None], steps, 1)
  drawn = np.random.default_rng(seed).choice(levels_m, (random, steps)).astype(np.int32)
  return np.concatenate([single.reshape(-1, steps), uniform, drawn])


def curve_table(losses_xNxT, steps: int, levels: int):
  """float [..., T, m]: the clip's mean loss with step t at level i, out of losses in the order of `assignments`."""
  return losses_xNxT[..., : steps * levels, :].mean(-1).reshape(*losses_xNxT.shape[:-2], steps, levels)


def drawn(levels: Sequence[int], steps: int, count: int, seed: int, number: int) -> np.ndarray:
  """int32 [count, T]: assignments of clip `number`, half of them each step by itself, half around one level."""
  rng, levels_m = np.random.default_rng([seed, number]), np.asarray(sorted(levels), np.int32)
  free = rng.integers(len(levels), size=(count, steps))
  around = rng.integers(len(levels), size=(count, 1)) + rng.integers(-1, 2, size=(count, steps))
  return levels_m[np.where(np.arange(count)[:, None] % 2, np.clip(around, 0, len(levels) - 1), free)]


@functools.partial(jax.jit, static_argnums=(0, 5))
def flow_losses(cfg: TokenizerConfig, params, latents_BxTxhxwxC, ids_BxTxK, keep_NxT, times: tuple[float, ...], key):
  """float32 [B, N, T, times]: squared error of the velocity, of each step of tokens, under each assignment.

  Args:
    latents_BxTxhxwxC: of one chunk, as the VAE's encoder gives them.
    ids_BxTxK: the clip's tokens, all of them.
    keep_NxT: int32, assignments; [B, N, T] where each clip has its own.
    times: flow times in (0, 1], fixed.
    key: of the noise; the same clip gets the same noise whatever else is in the batch where key is the same.
  """
  b, patch = latents_BxTxhxwxC.shape[0], cfg.decoder.patch[0]
  noise = gaussian(key, latents_BxTxhxwxC.shape[1:])[None]
  target = noise - latents_BxTxhxwxC

  def of_assignment(keep):
    keep_BxT = jnp.broadcast_to(keep, (b, keep.shape[-1]))

    def at(t):
      x = t * noise + (1 - t) * latents_BxTxhxwxC
      velocity = programs.velocity(cfg, params, ids_BxTxK, keep_BxT, x, t, slots=None)
      error = jnp.square(velocity.astype(jnp.float32) - target).mean((2, 3, 4))
      return error.reshape(b, -1, patch).mean(-1)

    return jnp.stack([at(t) for t in times], axis=-1)

  return jnp.moveaxis(jax.lax.map(of_assignment, jnp.moveaxis(keep_NxT, -2, 0)), 0, 1)


def sampled_losses(tok, params, net, video, tokens, keep_BxMxT, noise_1xTxhxwxC, **sampling) -> np.ndarray:
  """float32 [B, M, T, 2]: LPIPS and 1 - cosine of what is decoded under each assignment, both of VGG16.

  A step has the sum over its frames times T / F, so that the mean over steps is the clip's.

  Args:
    net: of `frozen.metrics.weights.load_lpips("vgg")`.
    video: [B, F, H, W, 3], uint8 or float in [-1, 1], one chunk; tokens: of it, all of them.
    noise_1xTxhxwxC: the same for every clip and assignment.
    sampling: of `Tokenizer.decode`.
  """
  noise = [np.repeat(noise_1xTxhxwxC, len(video), 0)]
  decode = lambda m: tok.decode(params, tokens.truncate(keep_BxMxT[:, m]), noise=noise, collapse=False, **sampling)
  decoded = jnp.stack([decode(m) for m in range(keep_BxMxT.shape[1])], 1)
  losses_BxMxFx2 = np.asarray(_frame_losses(net, video, decoded))
  frames, patch = video.shape[1], tok.cfg.decoder.patch[0]
  step_F = -(-np.arange(frames) // TIME_FACTOR) // patch  # frame 0 is a latent of its own, then four share one
  of_step_FxT = (step_F[:, None] == np.arange(keep_BxMxT.shape[2])) * (keep_BxMxT.shape[2] / frames)
  return np.einsum("BMFx,FT->BMTx", losses_BxMxFx2, of_step_FxT).astype(np.float32)


def sampled_lpips(tok, params, net, video, tokens, keep_BxMxT, seed: int, **sampling) -> np.ndarray:
  """float32 [B, M]: LPIPS of `sampled_losses` under the noise of `seed`, the same for all clips."""
  noise = gaussian(jax.random.key(seed), tok.latent_shape(1, keep_BxMxT.shape[2]))
  losses = sampled_losses(tok, params, net, video, tokens, keep_BxMxT, noise, **sampling)
  return losses[..., MEASURES.index("lpips") - 1].mean(2)


@jax.jit
def _frame_losses(net, video_BxFxHxWx3, decoded_BxMxFxHxWx3):
  """float32 [B, M, F, 2], after rounding to 8 bits as a viewer gets it; the features of a clip are made once."""
  from vftok.frozen.metrics.vgg import distances

  def of_clip(real_and_decoded):
    real, decoded = real_and_decoded
    rounded = jnp.round((decoded + 1) * 127.5) / 127.5 - 1
    return jnp.stack(distances(net, programs.to_float(real), rounded), -1)

  return jax.lax.map(of_clip, (video_BxFxHxWx3, decoded_BxMxFxHxWx3))


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
