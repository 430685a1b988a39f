"""Sums and statistics behind a table of reconstructions: one row per (name, seed), batch by batch."""

from __future__ import annotations

import hashlib
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from vftok.evals import frechet
from vftok.evals.pixels import frame_scores
from vftok.frozen.metrics.i3d import i3d_logits
from vftok.frozen.metrics.vgg import distances
from vftok.models.conv import on_cpu

METRICS = ("psnr", "ssim", "lpips", "cosine", "rfvd")
_AT_ONCE = 128 * 128  # pixels of frames that LPIPS sees together
_MOST_KNOWN = 1024  # batches whose features are remembered: 26 MB of 16 clips each
_known: dict[Any, np.ndarray] = {}
_MAX_PSNR = 100.0  # dB: a still clip equals its first frame, and the mean over clips must stay finite


class Scores:
  """Sums over clips of every (row, seed), and the feature statistics of each; nothing else is kept."""

  def __init__(self, perceptual, inception):
    self.perceptual, self.inception = perceptual, inception
    self.clips, self.shape = 0, None
    self.sums: dict[tuple[str, int], np.ndarray] = {}
    self.statistics: dict[Any, frechet.Statistics] = {}

  def features(self, name, seed, video_BxFxHxWx3, mask) -> None:
    if self.inception is not None:
      logits = known_logits(self.inception, video_BxFxHxWx3)
      self.statistics.setdefault((name, seed), frechet.Statistics()).update(logits, mask)

  def frames(self, video, videos, mask) -> None:
    self.features("real", 0, video, mask)
    scores = clip_scores(self.perceptual, video, np.stack(list(videos.values())))
    mse_MxB, *others = (np.asarray(s, np.float64) for s in scores)
    psnr_MxB = np.minimum(-10 * np.log10(np.maximum(mse_MxB, 1e-30)), _MAX_PSNR)
    sums_Mx4 = np.stack([np.where(mask, s, 0).sum(1) for s in (psnr_MxB, *others)], axis=1)
    for key, sums in zip(videos, sums_Mx4, strict=True):
      self.sums[key] = self.sums.get(key, 0) + sums
    self.clips, self.shape = self.clips + int(mask.sum()), video.shape[1:]

  def table(self):
    """Yields (row name, numbers): the mean over seeds, their standard deviation (None for one seed), each seed's."""
    for name in dict.fromkeys(name for name, _ in self.sums):
      per_seed: dict[str, list] = {m: [] for m in METRICS}
      for key in (key for key in self.sums if key[0] == name):
        values = [*(self.sums[key] / self.clips).tolist(), None]
        if self.perceptual is None:
          values[2:4] = [None, None]
        if self.inception is not None and self.clips > 1:
          values[4] = frechet.distance(self.statistics[key], self.statistics["real", 0])
        for metric, value in zip(METRICS, values, strict=True):
          per_seed[metric].append(value)
      known = {m: v for m, v in per_seed.items() if None not in v}
      numbers = {m: float(np.mean(known[m])) if m in known else None for m in METRICS}
      spread = {m: float(np.std(v, ddof=1)) if len(v) > 1 else None for m, v in known.items()}
      yield name, dict(**numbers, spread=spread, per_seed=known)


@jax.jit
def video_logits(params, video_BxFxHxWx3):
  """I3D's logits [B, 400] of uint8 videos; on a CPU clip by clip, whose first layers alone are 0.4 GB."""
  logits = lambda video_BxFxHxWx3: i3d_logits(params, video_BxFxHxWx3.astype(jnp.float32) / 127.5 - 1)
  if not on_cpu():
    return logits(video_BxFxHxWx3)
  return jax.lax.map(lambda clip: logits(clip[None])[0], video_BxFxHxWx3)


def known_logits(params, video_BxFxHxWx3) -> np.ndarray:
  """`video_logits`, remembered: real clips and reconstructions come again with every model that is judged."""
  video = np.ascontiguousarray(video_BxFxHxWx3)
  key = (video_logits, video.shape, hashlib.blake2b(video).digest())
  if key not in _known:
    _known[key] = np.asarray(video_logits(params, video))
    if len(_known) > _MOST_KNOWN:
      del _known[next(iter(_known))]
  return _known[key]


@jax.jit
def clip_scores(params, video_BxFxHxWx3, videos_MxBxFxHxWx3):
  """(MSE, SSIM, LPIPS, cosine of the net's last features) float32 [M, B] each, means over frames.

  One frame with its M reconstructions at a time, or as many small ones as have its 128x128 pixels: the net's weights
  are read once for all of them.
  """
  f, h, w = videos_MxBxFxHxWx3.shape[2:5]

  def one(frames):
    real, others = (x.astype(jnp.float32) / 255 for x in frames)
    mse, ssim = frame_scores(real, others)
    if params is None:
      return mse, ssim, jnp.zeros_like(mse), jnp.zeros_like(mse)
    lpips, apart = distances(params, real[None] * 2 - 1, others[:, None] * 2 - 1)
    return mse, ssim, lpips[:, 0], 1 - apart[:, 0]

  real_N = einops.rearrange(video_BxFxHxWx3, "b f h w c -> (b f) h w c")
  others_N = einops.rearrange(videos_MxBxFxHxWx3, "m b f h w c -> (b f) m h w c")
  scores = jax.lax.map(one, (real_N, others_N), batch_size=max(1, _AT_ONCE // (h * w)))
  return tuple(einops.reduce(s, "(b f) m -> m b", "mean", f=f) for s in scores)
