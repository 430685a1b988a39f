"""The plain vision transformer inside DINOv2 and V-JEPA 2: pre-norm, biases everywhere, GELU (erf), scanned layers."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.frozen.features.frames import FeatureNet, smallest_multiple
from vftok.models.attention import Layout, attend
from vftok.models.layers import partitioned, trunc_normal
from vftok.models.vit import Norm

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Attributes:
  layer_scale: a learned factor per channel on every residual branch (DINOv2).
  dtype: of the matrix products; norms and softmax stay float32.
  """

  dim: int = 1024
  depth: int = 24
  heads: int = 16
  hidden: int = 4096
  layer_scale: bool = False
  dtype: str = "float32"

  @property
  def head_dim(self) -> int:
    return self.dim // self.heads


class ViTNet(FeatureNet):
  """A feature net that is a ViT. Its fields: `vit`, `patch` (pixels) and `min_patches` (the least side of its grid)."""

  @property
  def dim(self) -> int:
    return self.vit.dim

  @property
  def stride(self) -> int:
    return self.patch

  def multiple(self, grid, size):
    return smallest_multiple(grid, self.min_patches)


class Blocks(nn.Module):
  """x [B, N, D] through all layers, then the final norm; float32. `rope`: None, or (cos, sin) [N, head_dim]."""

  cfg: ViTConfig

  @nn.compact
  def __call__(self, x_BxNxD, rope=None):
    scanned = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=self.cfg.depth,
      in_axes=nn.broadcast,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x_BxNxD, _ = scanned(self.cfg, name="layers")(x_BxNxD.astype(jnp.float32), rope)
    return Norm(EPS, name="norm")(x_BxNxD)


class Block(nn.Module):
  """x += s1 * Attn(LN x); x += s2 * MLP(LN x), with s1 = s2 = 1 where there is no LayerScale."""

  cfg: ViTConfig

  @nn.compact
  def __call__(self, x_BxNxD, rope):
    for name, branch in (("1", lambda x: self._attention(x, rope)), ("2", self._mlp)):
      y = branch(Norm(EPS, name=f"norm{name}")(x_BxNxD)).astype(jnp.float32)
      if self.cfg.layer_scale:
        y = y * self.param(f"scale{name}", partitioned(nn.initializers.ones, "embed"), (self.cfg.dim,))
      x_BxNxD = x_BxNxD + y
    return x_BxNxD, None

  def _attention(self, x_BxNxD, rope):
    d, n, e = self.cfg.dim, self.cfg.heads, self.cfg.head_dim
    kernel, bias = self._affine("qkv", (d, 3, n, e), ("embed", None, "heads", "head_dim"), 1)
    qkv_BxNx3xnxe = jnp.einsum("BND,DxnE->BNxnE", x_BxNxD.astype(bias.dtype), kernel) + bias
    q_BxnxNxe, k_BxnxNxe, v_BxnxNxe = (qkv_BxNx3xnxe[:, :, i].swapaxes(1, 2) for i in range(3))
    if rope is not None:
      q_BxnxNxe, k_BxnxNxe = rotate(q_BxnxNxe, *rope), rotate(k_BxnxNxe, *rope)
    # `attend` scales by 8 / e; what is wanted here is 1 / sqrt(e), the same at e = 64.
    out_BxNxnxe = attend(
      q_BxnxNxe * (e**0.5 / 8), k_BxnxNxe, v_BxnxNxe, Layout(1, x_BxNxD.shape[1], 0, "full"), bounded=False
    )
    kernel, bias = self._affine("proj", (n, e, d), ("heads", "head_dim", "embed"), 2)
    return jnp.einsum("BNnE,nED->BND", out_BxNxnxe, kernel) + bias

  def _mlp(self, x_BxNxD):
    d, h = self.cfg.dim, self.cfg.hidden
    kernel, bias = self._affine("up", (d, h), ("embed", "mlp"), 1)
    hidden = jax.nn.gelu(x_BxNxD.astype(kernel.dtype) @ kernel + bias, approximate=False)
    kernel, bias = self._affine("down", (h, d), ("mlp", "embed"), 1)
    return hidden @ kernel + bias

  def _affine(self, name, shape, axes, inputs):
    """(kernel, bias) in the compute dtype; the first `inputs` axes of the kernel are summed over."""
    kernel = self.param(f"{name}_kernel", partitioned(trunc_normal, *axes), shape)
    bias = self.param(f"{name}_bias", partitioned(nn.initializers.zeros, *axes[inputs:]), shape[inputs:])
    return kernel.astype(self.cfg.dtype), bias.astype(self.cfg.dtype)


def rotate(x_BxnxNxe, cos_Nxe, sin_Nxe) -> jax.Array:
  """x * cos + x' * sin, where x' holds (-b, a) for every neighbouring pair (a, b) of channels."""
  pairs = x_BxnxNxe.reshape(*x_BxnxNxe.shape[:-1], -1, 2)
  turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x_BxnxNxe.shape)
  return (x_BxnxNxe * cos_Nxe + turned * sin_Nxe).astype(x_BxnxNxe.dtype)
