"""V-JEPA 2 (arXiv 2506.09985): features of video, from an encoder that sees the whole clip at once.

ViT on tubelets of 2 frames x 16 x 16 pixels. There are no learned positions: queries and keys are turned by angles
(RoPE) that depend on time, row and column, each on a third of a head's channels.

One quirk is part of the released weights: the table of d / 2 frequencies is repeated whole ([f0, f1, ..., f0, f1,
...]) while the rotation pairs neighbouring channels, so the two channels of a pair turn by different angles.

Positions are those of the actual grid. transformers numbers tokens by the grid of its config (16 x 16), which is the
same at 256 pixels only; the original code does as is done here.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.frames import GROUP, group_mean
from vftok.frozen.features.vit import Blocks, ViTConfig, ViTNet
from vftok.models.flops import vit_flops
from vftok.models.layers import Linear, patchify


@dataclasses.dataclass(frozen=True)
class VJEPA2(ViTNet):
  """Step 0 is one tubelet, frame 0 twice (as the net takes an image); every later step is two tubelets.

  reduce="first" takes the first tubelet of a step, so its first two frames. The attention is not causal: the
  feature of a step has seen later frames.

  Attributes:
    min_patches: the net never runs on a grid with a side below this; 16 is 256 pixels, the size of its training.
  """

  vit: ViTConfig = ViTConfig()
  patch: int = 16
  tubelet: int = 2
  min_patches: int = 16

  @property
  def resize_method(self) -> str:
    return "linear"

  def flops(self, grid, reduce):
    steps, h, w = grid
    m = self.multiple((h, w), None)
    tubelets = 1 + (steps - 1) * GROUP // self.tubelet
    return vit_flops(self.dim, self.vit.depth, self.vit.hidden, tubelets * h * w * m * m)

  def _steps(self, params, video_BxFxHxWx3, reduce):
    frames = jnp.concatenate([video_BxFxHxWx3[:, :1]] * (self.tubelet - 1) + [video_BxFxHxWx3], axis=1)
    y_BxNxhxwxD = self.apply(params, frames)
    per_step = GROUP // self.tubelet
    if reduce == "mean":
      return group_mean(y_BxNxhxwxD, per_step)
    return y_BxNxhxwxD[:, jnp.asarray([0, *range(1, y_BxNxhxwxD.shape[1], per_step)])]

  def apply(self, params, video_BxFxHxWx3) -> jax.Array:
    """Normalised video, F a multiple of 2, H and W of 16 -> float32 [B, F / 2, H / 16, W / 16, D]."""
    return VJEPA2Module(self).apply({"params": params}, video_BxFxHxWx3)


class VJEPA2Module(nn.Module):
  """The encoder: see `VJEPA2.apply`."""

  net: VJEPA2

  @nn.compact
  def __call__(self, video_BxFxHxWx3):
    net, dim = self.net, self.net.dim
    x = patchify(video_BxFxHxWx3, (net.tubelet, net.patch, net.patch))
    b, *grid, _ = x.shape
    x = Linear(dim, (None, "embed"), dtype=net.vit.dtype, name="patch_in")(x).reshape(b, -1, dim)
    return Blocks(net.vit, name="blocks")(x, rope_tables(grid, net.vit.head_dim)).reshape(b, *grid, dim)


def rope_tables(grid, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
  """(cos, sin), float32 [T * h * w, head_dim]; channels beyond three times `size` are not turned."""
  size = 2 * (head_dim // 3 // 2)
  frequencies = np.tile(10000.0 ** (-np.arange(size // 2) / (size / 2)), 2)
  angles = np.zeros((*grid, head_dim))
  for axis, position in enumerate(np.meshgrid(*map(np.arange, grid), indexing="ij")):
    angles[..., axis * size : (axis + 1) * size] = position[..., None] * frequencies
  angles = angles.reshape(-1, head_dim)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
