"""The transformer of encoder and decoder: pre-norm blocks, QK-norm, SwiGLU, optional adaLN; scanned over layers.

Spec of the released models: all norms float32 without affine, no biases but adaLN's, logits scaled by 8 / head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vftok.models.attention import Layout, attend
from vftok.models.layers import Weights, layer_norm, matmul, parts, repeated, xavier
from vftok.runtime.sharding import constrain


@dataclasses.dataclass(frozen=True)
class StackConfig:
  """Attributes:
  adaln: vectors of modulation per block: 0 none, 1 shared, 2 one for patches and one for registers.
  remat: "none" or a name from `jax.checkpoint_policies`; scan=False unrolls the layers for debugging.
  """

  dim: int
  depth: int
  head_dim: int = 64
  mlp_ratio: float = 4.0
  gated_mlp: bool = True
  qk_norm: bool = True
  qkv_bias: bool = False
  proj_bias: bool = False
  mlp_bias: bool = False
  adaln: int = 0
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True

  @property
  def heads(self) -> int:
    return self.dim // self.head_dim

  @property
  def hidden(self) -> int:
    full = int(self.mlp_ratio * self.dim)
    return int(2 * full / 3) if self.gated_mlp else full


class Stack(nn.Module):
  """x [B, N, D] through `depth` blocks. With collect=True also the output of every block, [L, B, N, D]; with `tap`
  (the index of a block) that block's output alone, [B, N, D].
  """

  cfg: StackConfig

  @nn.compact
  def __call__(self, x_BxNxD, layout: Layout, cond_BxD=None, *, collect: bool = False, tap: int | None = None) -> Any:
    cfg = self.cfg
    if tap is not None and not 0 <= tap < cfg.depth:
      raise ValueError(f"tap is {tap}, expected the index of a block, 0..{cfg.depth - 1}.")
    scanned = repeated(Block, cfg.depth, scan=cfg.scan, remat=cfg.remat)
    carry = (
      constrain(x_BxNxD, "batch", "length", None),
      *((x_BxNxD, jnp.int32(0)) if tap is not None else (None, None)),
    )
    (x, tapped, _), outputs = scanned(cfg, layout, collect, tap, name="blocks")(carry, cond_BxD)
    if tap is not None:
      return x, tapped
    return (x, outputs) if collect else x


class Block(Weights):
  """x += gate * Attn(mod(LN x)); x += gate * MLP(mod(LN x)).

  The carry is (x, output of block `tap` so far, index of this block), the last two None without a tap.
  """

  cfg: StackConfig
  layout: Layout
  collect: bool = False
  tap: int | None = None

  @nn.compact
  def __call__(self, carry, cond_BxD=None):
    x_BxNxD, tapped, index = carry
    x_BxNxD = self._block(x_BxNxD, cond_BxD)
    if self.tap is not None:  # a select in the carry: stacking all outputs would cost depth times the memory
      tapped, index = jnp.where(index == self.tap, x_BxNxD, tapped), index + 1
    return (x_BxNxD, tapped, index), (x_BxNxD if self.collect else None)

  def _block(self, x_BxNxD, cond_BxD):
    cfg = self.cfg
    mlp = functools.partial(self._mlp, hidden=cfg.hidden, gated=cfg.gated_mlp, bias=cfg.mlp_bias)
    if cfg.adaln:
      gate_att, gate_mlp, shift_att, scale_att, shift_mlp, scale_mlp = self._modulation(cond_BxD)
      y = self._attention(self._per_step(lambda x: layer_norm(x) * (1 + scale_att) + shift_att, x_BxNxD))
      x_BxNxD = self._per_step(lambda x, y: x + y * gate_att, x_BxNxD, y)
      y = mlp(self._per_step(lambda x: layer_norm(x) * (1 + scale_mlp) + shift_mlp, x_BxNxD))
      x_BxNxD = self._per_step(lambda x, y: x + y * gate_mlp, x_BxNxD, y)
    else:
      x_BxNxD = x_BxNxD + self._attention(layer_norm(x_BxNxD))
      x_BxNxD = x_BxNxD + mlp(layer_norm(x_BxNxD))
    return x_BxNxD

  def _modulation(self, cond_BxD):
    """Six of [B, 1, 1 or S, D]: a vector per kind of token, chosen by the slot in the step, never expanded to N."""
    cfg, d = self.cfg, self.cfg.dim
    kernel = self._param(
      "adaln_kernel", (d, cfg.adaln, 6, d), ("embed", None, None, "embed_out"), nn.initializers.zeros
    )
    bias = self._param("adaln_bias", (cfg.adaln, 6, d), (None, None, None), nn.initializers.zeros)
    m_BxEx6xD = jnp.einsum("BD,DExF->BExF", nn.silu(cond_BxD).astype(cfg.dtype), kernel) + bias[None]
    # Left to itself XLA gives some devices the vectors of others' samples: E = 1 on a mesh of data, fsdp and tensor.
    m_BxEx6xD = constrain(m_BxEx6xD, "batch", None, None, None)
    return [by_kind(part, self.layout) for part in parts(m_BxEx6xD, 2)]

  def _per_step(self, fn, *xs_BxNxD):
    """Applies fn to the sequences seen as [B, T, S, D], where the modulation of a slot repeats in every step."""
    folded = [einops.rearrange(x, "b (t s) d -> b t s d", t=self.layout.steps) for x in xs_BxNxD]
    return einops.rearrange(fn(*folded), "b t s d -> b (t s) d")

  def _attention(self, x_BxNxD):
    cfg = self.cfg
    d, n, e = cfg.dim, cfg.heads, cfg.head_dim
    kernel = self._param("qkv_kernel", (d, 3, n, e), ("embed", None, "heads", "head_dim"), xavier(d, d))
    qkv_BxNx3xnxe = matmul(x_BxNxD.astype(cfg.dtype), kernel)
    if cfg.qkv_bias:
      qkv_BxNx3xnxe += self._param("qkv_bias", (3, n, e), (None, "heads", "head_dim"), nn.initializers.zeros)
    q, k, v = (part.swapaxes(1, 2) for part in parts(qkv_BxNx3xnxe, 2))
    if cfg.qk_norm:
      q, k = layer_norm(q).astype(cfg.dtype), layer_norm(k).astype(cfg.dtype)
    out_BxNxnxe = checkpoint_name(attend(q, k, v, self.layout, bounded=cfg.qk_norm), "attn_out")
    kernel = self._param("proj_kernel", (n, e, d), ("heads", "head_dim", "embed"), xavier(d, d))
    y = jnp.einsum("BNnE,nED->BND", out_BxNxnxe, kernel)
    return y + self._param("proj_bias", (d,), ("embed",), nn.initializers.zeros) if cfg.proj_bias else y


def by_kind(m_BxExD, layout: Layout) -> jax.Array:
  """One vector per kind of token [B, E, D] -> [B, 1, S or 1, D], to be broadcast over the steps."""
  if m_BxExD.shape[1] == 1:
    return m_BxExD[:, None]
  is_register = (jnp.arange(layout.block) >= layout.patches)[None, None, :, None]
  return jnp.where(is_register, m_BxExD[:, None, None, 1], m_BxExD[:, None, None, 0])
