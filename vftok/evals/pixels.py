"""PSNR and SSIM of videos.

Conventions, the field's usual ones for video tokenizers:
  values: uint8 0..255, or floats in [-1, 1]; both are brought to [0, 1], so the data range is 1.
  PSNR: 10 log10(1 / MSE), one MSE over the whole clip (not the mean of per-frame values); inf where equal.
  SSIM: 11 x 11 Gaussian window of sigma 1.5 without padding, k1 0.01, k2 0.03, each RGB channel by itself,
    mean over positions, channels and frames. Frames must be at least 11 x 11.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW = (_WINDOW / _WINDOW.sum()).tolist()
_C1, _C2 = 0.01**2, 0.03**2
_BLOCK = 8  # frames per call: one program serves pieces of any length


def frame_scores(a_HxWx3, b_HxWx3):
  """(mean squared error, SSIM) of two frames in [0, 1], float32; further leading axes of `b` give as many of each."""
  a = jnp.broadcast_to(a_HxWx3, b_HxWx3.shape)
  return jnp.square(a - b_HxWx3).mean((-3, -2, -1)), _ssim(a, b_HxWx3)


def _ssim(a, b):
  """float32 [...] of frames [..., H, W, 3]: Wang et al. 2004, variances kept at 0 or more."""
  mean_a, mean_b = _blurred(a), _blurred(b)
  var_a = jnp.maximum(_blurred(a * a) - mean_a * mean_a, 0)
  var_b = jnp.maximum(_blurred(b * b) - mean_b * mean_b, 0)
  most = jnp.sqrt(var_a * var_b)  # rounding must not make flat frames more alike than equal ones
  both = jnp.clip(_blurred(a * b) - mean_a * mean_b, -most, most)
  above = (2 * mean_a * mean_b + _C1) * (2 * both + _C2)
  return (above / ((mean_a * mean_a + mean_b * mean_b + _C1) * (var_a + var_b + _C2))).mean((-3, -2, -1))


def _blurred(x):
  """Weighted sums of shifted frames: exact float32 on every device, where a convolution may round its inputs."""
  h, w = x.shape[-3] - 10, x.shape[-2] - 10
  x = sum(weight * x[..., i : i + h, :, :] for i, weight in enumerate(_WINDOW))
  return sum(weight * x[..., i : i + w, :] for i, weight in enumerate(_WINDOW))


@jax.jit
def _scores(a_FxHxWx3, b_FxHxWx3):
  """`frame_scores` of each frame, float32 [F]; on CPU ten times the speed of a call per frame."""
  return jax.lax.map(lambda ab: frame_scores(*ab), (a_FxHxWx3, b_FxHxWx3))


class PixelScores:
  """PSNR and SSIM of one video that comes in pieces; exact, however it is cut."""

  def __init__(self):
    self.frames, self._mse, self._ssim = 0, 0.0, 0.0

  def update(self, reference, video) -> None:
    """Adds frames [F, H, W, 3] of both, uint8 or float in [-1, 1]. Raises ValueError for anything else."""
    reference, video = _unit(reference, "reference"), _unit(video, "video")
    if reference.shape != video.shape:
      raise ValueError(f"video is {video.shape}, expected the reference's {reference.shape}: cut or resize one.")
    for i in range(0, len(video), _BLOCK):
      blocks = [v[i : i + _BLOCK] for v in (reference, video)]
      n = len(blocks[0])
      mse_F, ssim_F = _scores(*(np.pad(v, ((0, _BLOCK - n), (0, 0), (0, 0), (0, 0))) for v in blocks))
      self.frames += n
      self._mse += float(np.asarray(mse_F, np.float64)[:n].sum())
      self._ssim += float(np.asarray(ssim_F, np.float64)[:n].sum())

  @property
  def psnr(self) -> float:
    """Decibels; inf where both videos are equal, nan before the first frame."""
    if not self.frames:
      return math.nan
    return -10 * math.log10(self._mse / self.frames) if self._mse else math.inf

  @property
  def ssim(self) -> float:
    """-1..1, 1 where both are equal; nan before the first frame."""
    return self._ssim / self.frames if self.frames else math.nan


def psnr(reference, video) -> np.ndarray:
  """float64 [B], decibels, of videos [B, F, H, W, 3] uint8 or float in [-1, 1]."""
  return np.array([scores.psnr for scores in _each(reference, video)])


def ssim(reference, video) -> np.ndarray:
  """float64 [B], -1..1, of videos [B, F, H, W, 3] uint8 or float in [-1, 1]."""
  return np.array([scores.ssim for scores in _each(reference, video)])


def _each(reference, video):
  if len(reference) != len(video):
    raise ValueError(f"there are {len(video)} videos, expected {len(reference)} like the references: match them.")
  for one, other in zip(reference, video, strict=True):
    scores = PixelScores()
    scores.update(one, other)
    yield scores


def _unit(frames, name: str) -> np.ndarray:
  """float32 in [0, 1]."""
  frames = np.asarray(frames)
  if frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape[1:3]) < 11 or not len(frames):
    raise ValueError(f"{name} is {frames.shape}, expected [F, H, W, 3] of at least 11 x 11 pixels: reshape it.")
  if frames.dtype == np.uint8:
    return frames.astype(np.float32) / 255
  if frames.dtype.kind != "f" or not np.all(np.abs(frames) <= 1):
    raise ValueError(f"{name} is {frames.dtype} beyond [-1, 1], expected uint8 or floats in [-1, 1]: rescale it.")
  return (frames.astype(np.float32) + 1) / 2
