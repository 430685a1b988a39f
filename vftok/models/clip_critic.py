"""The critic of one-pass tokenizers: a ViT over a whole clip (LARP, arXiv 2410.21264, section 5 of our notes on it)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from vftok.models.config_checks import DTYPES
from vftok.models.layers import Linear, partitioned, patchify
from vftok.models.sincos import sincos_3d
from vftok.models.vit import Blocks, BlocksConfig, Group, Norm
from vftok.runtime.words import brief

HEAD_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Attributes:
  dim, heads, depth: width, attention heads and blocks; the released run's, the code's own default is 384, 12 and 8.
  patch: (frames, rows, columns). per_patch: a number for each patch in place of one for the clip.
  """

  dim: int = 512
  heads: int = 8
  depth: int = 12
  patch: tuple[int, int, int] = (4, 8, 8)
  per_patch: bool = False
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    for name in ("dim", "heads", "depth", "patch"):
      value = getattr(self, name)
      if min(value if isinstance(value, tuple) else (value,)) < 1:
        raise ValueError(f"critic.{name} is {brief(value)}, expected 1 or more.")
    if self.dim % self.heads or self.dim % 4:
      raise ValueError(f"critic.dim is {self.dim}, expected a multiple of its {self.heads} heads, and of 4 for places.")
    if self.dtype not in DTYPES:
      raise ValueError(f"critic.dtype is {brief(self.dtype)}, expected {' or '.join(DTYPES)}.")

  def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(t, h, w) patches of a clip. Raises ValueError where they are not whole."""
    sizes = (frames, height, width)
    if any(n % p for n, p in zip(sizes, self.patch, strict=True)):
      raise ValueError(f"critic.patch is {self.patch}, expected divisors of the clips' frames and size {sizes}.")
    t, h, w = (n // p for n, p in zip(sizes, self.patch, strict=True))
    return t, h, w


class ClipCritic(nn.Module):
  """Clips [B, F, H, W, 3] in [0, 1] -> float32 [B, 1], or [B, P] of all patches: high for real ones."""

  cfg: CriticConfig

  @nn.compact
  def __call__(self, video_BxFxHxWx3):
    cfg, d = self.cfg, self.cfg.dim
    grid, b = cfg.grid(*video_BxFxHxWx3.shape[1:4]), len(video_BxFxHxWx3)
    patches = patchify(video_BxFxHxWx3, cfg.patch).reshape(b, grid[0] * grid[1] * grid[2], -1)
    x = Linear(d, (None, "embed"), dtype=cfg.dtype, name="patch_in")(patches).astype(jnp.float32)
    x = x + sincos_3d(grid, d)[None]
    if not cfg.per_patch:
      init = partitioned(nn.initializers.normal(0.02), "embed")
      cls = jnp.broadcast_to(self.param("cls", init, (d,)).astype(jnp.float32), (b, 1, d))
      x = jnp.concatenate([cls, x], axis=1)
    n = x.shape[1]
    blocks = BlocksConfig(d, cfg.heads, cfg.depth, 4 * d, dtype=cfg.dtype, remat=cfg.remat)
    x = jnp.asarray(Blocks(blocks, (Group(0, n, ((0, n),)),), name="blocks")(x))
    x = Norm(HEAD_EPS, name="norm")(x if cfg.per_patch else x[:, :1])
    return Linear(1, ("embed", None), name="head")(x)[..., 0]
