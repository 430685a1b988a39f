"""DINOv2 (arXiv 2304.07193; with registers arXiv 2309.16588): the image features that REPA aligns to.

ViT with patches of 14 pixels, LayerScale, learned positions of a 37 x 37 grid (518 pixels). On other grids the
positions are interpolated. Three variants exist, which differ by more than rounding:

  plain, offset 0    bicubic with a = -0.75 (PyTorch's, without antialiasing) to the exact size: transformers today.
  plain, offset 0.1  the same kernel sampled at a step of 37 / (n + 0.1) instead of 37 / n: the original torch.hub
                     code, and old releases of transformers. Pass position_offset=0.1 to follow it.
  with registers     bicubic with a = -0.5 and antialiasing, offset 0, in both.

Weights of the kernel are float64 here and float32 in PyTorch, so the last digits of a position may differ (1e-6).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.frames import GROUP, per_frame
from vftok.frozen.features.vit import Blocks, ViTConfig, ViTNet
from vftok.models.flops import vit_flops
from vftok.models.layers import Linear, partitioned, patchify, trunc_normal


@dataclasses.dataclass(frozen=True)
class DINOv2(ViTNet):
  """Attributes:
  table: side of the grid of learned positions. registers: 0, or 4 in the variant that has them.
  position_offset: see the head of this module; without effect where there are registers.
  min_patches: the net never runs on a grid with a side below this; 16 (224 pixels) is the least it does well on.
    Smaller patch grids get the average of several cells. 1 is the cheapest: one cell per patch.
  """

  vit: ViTConfig = ViTConfig(layer_scale=True)
  patch: int = 14
  table: int = 37
  registers: int = 0
  position_offset: float = 0.0
  min_patches: int = 16

  def flops(self, grid, reduce):
    steps, h, w = grid
    m = self.multiple((h, w), None)
    images = GROUP * (steps - 1) + 1 if reduce == "mean" else steps
    return images * vit_flops(self.dim, self.vit.depth, self.vit.hidden, h * w * m * m + 1 + self.registers)

  def _steps(self, params, video_BxFxHxWx3, reduce):
    return per_frame(lambda x: self.apply(params, x)[0], video_BxFxHxWx3, reduce)

  def apply(self, params, images_NxHxWx3) -> tuple[jax.Array, jax.Array]:
    """Normalised images, H and W multiples of the patch -> (patches [N, h, w, D], class [N, D]), float32."""
    return DINOv2Module(self).apply({"params": params}, images_NxHxWx3)

  def targets_with_class(self, params, video_BxFxHxWx3, grid, reduce: str = "mean") -> tuple[jax.Array, jax.Array]:
    """`targets`, and from the same pass the class feature of every step [B, T, D] (SemanTok's global token)."""
    frames = self._prepare(video_BxFxHxWx3, grid, reduce)
    patches, classes = per_frame(lambda x: self.apply(jax.lax.stop_gradient(params), x), frames, reduce)
    return self.pool(patches, grid), classes


class DINOv2Module(nn.Module):
  """Normalised images [N, H, W, 3] -> (patches [N, h, w, D], class [N, D]) after the final norm, float32."""

  net: DINOv2

  @nn.compact
  def __call__(self, images_NxHxWx3):
    net, dim = self.net, self.net.dim
    p = net.patch
    x = patchify(images_NxHxWx3[:, None], (1, p, p))[:, 0]
    n, h, w, _ = x.shape
    x = Linear(dim, (None, "embed"), dtype=net.vit.dtype, name="patch_in")(x).astype(jnp.float32)
    table = self.param("positions", partitioned(trunc_normal, None, "embed"), (1 + net.table**2, dim))
    table = table.astype(jnp.float32)
    x = (x + self._interpolated(table[1:], h, w)).reshape(n, h * w, dim)
    first = self.param("class_token", partitioned(trunc_normal, "embed"), (dim,)) + table[:1]
    if net.registers:
      tokens = self.param("registers", partitioned(trunc_normal, None, "embed"), (net.registers, dim))
      first = jnp.concatenate([first, tokens])  # they have no position
    x = jnp.concatenate([jnp.broadcast_to(first, (n, *first.shape)), x], axis=1)
    x = Blocks(net.vit, name="blocks")(x)
    return x[:, 1 + net.registers :].reshape(n, h, w, dim), x[:, 0]

  def _interpolated(self, table_NxD, h: int, w: int) -> jax.Array:
    net, side = self.net, self.net.table
    grid = table_NxD.reshape(side, side, -1)
    if (h, w) == (side, side):
      return grid
    if net.registers:
      return jax.image.resize(grid, (h, w, net.dim), "cubic")
    rows, columns = (jnp.asarray(cubic_matrix(side, n, net.position_offset), jnp.float32) for n in (h, w))
    return jnp.einsum("hH,wW,HWD->hwD", rows, columns, grid, precision="highest")


def cubic_matrix(size: int, new_size: int, offset: float = 0.0) -> np.ndarray:
  """float64 [new_size, size]: bicubic interpolation of one axis, a = -0.75, edges repeated, not antialiased."""
  a = -0.75
  at = (np.arange(new_size) + 0.5) * (size / (new_size + offset)) - 0.5
  taps = np.floor(at)[:, None] + np.arange(-1, 3)
  x = np.abs(at[:, None] - taps)
  near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
  matrix = np.zeros((new_size, size))
  rows = np.broadcast_to(np.arange(new_size)[:, None], taps.shape)
  np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(int)), np.where(x <= 1, near, far))
  return matrix
