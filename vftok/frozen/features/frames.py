"""What all feature nets share: which frames belong to a latent step, input sizes, normalisation.

A clip of F = 4 (T - 1) + 1 frames has T latent steps. Step 0 is frame 0; step t is frames 4t-3..4t. A net gives one
feature per step and patch of the decoder: it runs on frames resized so that its own grid is a whole multiple m of
the patch grid (h, w), and every m x m cells are averaged.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

GROUP = 4  # frames per latent step after the first
REDUCTIONS = ("mean", "first")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class FeatureNet:
  """A frozen net: hashable, without parameters. Subclasses say the rest."""

  @property
  def dim(self) -> int:
    """Width D of a feature."""
    raise NotImplementedError

  @property
  def stride(self) -> int:
    """Pixels per cell of the net's own grid."""
    raise NotImplementedError

  @property
  def resize_method(self) -> str:
    """How frames come to the input size: a method of `jax.image.resize`."""
    return "cubic"

  def multiple(self, grid: tuple[int, int], size: tuple[int, int]) -> int:
    """m: cells of the net's own grid per side of a patch of `grid` (h, w), for frames of `size` (H, W)."""
    raise NotImplementedError

  def flops(self, grid: tuple[int, int, int], reduce: str) -> float:
    """Forward FLOPs of `targets` on one clip; 0 where nobody has written them out (VGG16)."""
    del grid, reduce
    return 0.0

  def _steps(self, params, video_BxFxHxWx3, reduce: str) -> jax.Array:
    """Normalised frames of the net's own input size -> [B, T, H / stride, W / stride, D]."""
    raise NotImplementedError

  def grid(self, latent_shape, patch=(1, 2, 2)) -> tuple[int, int, int]:
    """(T, h, w) of the decoder's patches over latents of shape [..., T, h, w, C]: what `targets` is asked for."""
    steps, height, width = latent_shape[-4:-1]
    return steps // patch[0], height // patch[1], width // patch[2]

  def targets(self, params, video_BxFxHxWx3, grid: tuple[int, int, int], reduce: str = "mean") -> jax.Array:
    """Features of every latent step and patch, without gradient: float32 [B, T, h, w, D].

    Args:
      params: as `features.load` gave them.
      video_BxFxHxWx3: float in [-1, 1], F = 4 (T - 1) + 1, any H and W.
      grid: static (T, h, w).
      reduce: over the frames of a step: their "mean", or the "first" alone (both are used with DINOv2 by SemanTok).

    Raises:
      ValueError: the video is no [B, F, H, W, 3] of floats, F does not fit T, or reduce is not known.
    """
    frames = self._prepare(video_BxFxHxWx3, grid, reduce)
    return self.pool(self._steps(jax.lax.stop_gradient(params), frames, reduce), grid)

  def _prepare(self, video_BxFxHxWx3, grid, reduce: str) -> jax.Array:
    """Checks the arguments of `targets`; normalised frames of the net's own input size."""
    (steps, h, w), shape = grid, video_BxFxHxWx3.shape
    if len(shape) != 5 or shape[-1] != 3 or not jnp.issubdtype(video_BxFxHxWx3.dtype, jnp.floating):
      raise ValueError(
        f"video is {video_BxFxHxWx3.dtype} {shape}, expected floats [B, F, H, W, 3] in [-1, 1]: convert it first."
      )
    if shape[1] != GROUP * (steps - 1) + 1:
      expected = GROUP * (steps - 1) + 1
      raise ValueError(f"video has {shape[1]} frames, expected {expected} for {steps} latent steps: cut it.")
    if reduce not in REDUCTIONS:
      raise ValueError(f"reduce is {reduce!r}, expected one of {', '.join(REDUCTIONS)}.")
    m = self.multiple((h, w), shape[2:4])
    frames = jax.lax.stop_gradient(video_BxFxHxWx3.astype(jnp.float32))
    return self._normalise(resize(frames, (h * m * self.stride, w * m * self.stride), self.resize_method))

  def _normalise(self, frames) -> jax.Array:
    """[-1, 1] -> ImageNet's mean 0 and deviation 1."""
    return (frames * 0.5 + 0.5 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)

  def pool(self, cells_BxTxmhxmwxD, grid) -> jax.Array:
    """The mean of the m x m cells of every patch."""
    (steps, h, w), shape = grid, cells_BxTxmhxmwxD.shape
    cells = cells_BxTxmhxmwxD.astype(jnp.float32).reshape(shape[0], steps, h, shape[2] // h, w, shape[3] // w, -1)
    return cells.mean(axis=(3, 5))


def resize(frames_BxFxHxWx3, size: tuple[int, int], method: str) -> jax.Array:
  """Antialiased as in Pillow and torchvision ("cubic" has a = -0.5), clipped to [-1, 1]."""
  b, f, h, w, c = frames_BxFxHxWx3.shape
  if (h, w) == tuple(size):
    return frames_BxFxHxWx3
  return jnp.clip(jax.image.resize(frames_BxFxHxWx3, (b, f, *size, c), method), -1.0, 1.0)


def per_frame(fn, video_BxFxHxWx3, reduce: str) -> jax.Array:
  """A net of single images over a video: [N, H, W, 3] -> [N, ...] gives [B, T, ...]. "first" runs it T times only."""
  video = video_BxFxHxWx3 if reduce == "mean" else video_BxFxHxWx3[:, first_frames(video_BxFxHxWx3.shape[1])]
  b, f = video.shape[:2]
  unfold = lambda y: y.reshape(b, f, *y.shape[1:])
  outputs = jax.tree.map(unfold, fn(video.reshape(b * f, *video.shape[2:])))
  return jax.tree.map(lambda y: group_mean(y, GROUP), outputs) if reduce == "mean" else outputs


def first_frames(frames: int) -> jax.Array:
  """Indices of the first frame of every step: 0, 1, 5, 9, ..."""
  return jnp.asarray([0, *range(1, frames, GROUP)])


def group_mean(x_BxNx, size: int) -> jax.Array:
  """[B, 1 + size * n, ...] -> [B, 1 + n, ...]: the first entry, then means of `size` each."""
  rest = x_BxNx[:, 1:]
  rest = rest.reshape(rest.shape[0], rest.shape[1] // size, size, *rest.shape[2:]).mean(axis=2)
  return jnp.concatenate([x_BxNx[:, :1], rest], axis=1)


def smallest_multiple(grid: tuple[int, int], at_least: float) -> int:
  """The smallest m with m * h and m * w at least `at_least`."""
  return max(1, math.ceil(at_least / min(grid)))
