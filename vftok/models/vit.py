"""Plain ViT blocks: pre-norm, GELU (erf), MLP of four times the width, as timm has them; groups say who sees whom.

LARP, AdapTok and the critic of their adversarial term are made of them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models.attention import Layout, attend, attend_causal, attend_seen
from vftok.models.flow import chosen
from vftok.models.layers import layer_norm, matmul, partitioned, parts, ranked, repeated, xavier
from vftok.runtime.sharding import constrain


class Group(NamedTuple):
  """Rows first..last-1 see the keys of all spans (first, last), and no others."""

  first: int
  last: int
  spans: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class BlocksConfig:
  """Attributes:
  hidden: of the MLP. qkv_bias: only the AR prior has them. causal: own and earlier positions are seen, else by groups.
  dropout: of causal attention and of what each half adds, where a "dropout" key is given.
  remat: "none", or the name of a policy for what the backward pass keeps.
  """

  dim: int
  heads: int
  depth: int
  hidden: int
  qkv_bias: bool = False
  causal: bool = False
  dtype: str = "float32"
  dropout: float = 0.0
  remat: str = "none"


class Norm(nn.Module):
  """LayerNorm with scale and bias over the last axis, or the axes of `over`; float32."""

  eps: float = 1e-5
  over: tuple[int, ...] = (-1,)

  @nn.compact
  def __call__(self, x):
    x = x.astype(jnp.float32)
    shape = tuple(x.shape[axis] for axis in self.over)
    axes = ("embed",) if len(shape) == 1 else (None,) * len(shape)
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, axes), shape)
    bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, axes), shape)
    if self.eps == 1e-5 and self.over == (-1,):
      return layer_norm(x) * ranked(scale, x.ndim) + ranked(bias, x.ndim)
    centered = x - x.mean(axis=self.over, keepdims=True)
    variance = jnp.mean(centered * centered, axis=self.over, keepdims=True)
    return centered * jax.lax.rsqrt(variance + self.eps) * ranked(scale, x.ndim) + ranked(bias, x.ndim)


class Blocks(nn.Module):
  """x [B, N, D] through all blocks, without a norm at the end; float32.

  `groups`: who sees whom. `kept_BxN`: keys that count, None for all; those that do not count see themselves alone.
  collect=True gives (x, [depth, B, N, D]), the sequence after each block.
  """

  cfg: BlocksConfig
  groups: tuple[Group, ...] = ()

  @nn.compact
  def __call__(self, x_BxNxD, kept_BxN=None, *, collect: bool = False):
    blocks = repeated(Block, self.cfg.depth, remat=self.cfg.remat)(self.cfg, self.groups, collect, name="layers")
    x_BxNxD, each = blocks(x_BxNxD.astype(jnp.float32), kept_BxN)
    return (x_BxNxD, each) if collect else x_BxNxD


class Block(nn.Module):
  """x += Proj(Attn(norm1 x)); x += Down(GELU(Up(norm2 x)))."""

  cfg: BlocksConfig
  groups: tuple[Group, ...]
  collect: bool = False

  @nn.compact
  def __call__(self, x_BxNxD, kept_BxN):
    drop = functools.partial(dropped, self, self.cfg.dropout)
    x_BxNxD = x_BxNxD + drop(self._attention(Norm(name="norm1")(x_BxNxD), kept_BxN).astype(jnp.float32))
    x_BxNxD = x_BxNxD + drop(self._mlp(Norm(name="norm2")(x_BxNxD)).astype(jnp.float32))
    x_BxNxD = constrain(x_BxNxD, "batch", "length", None)
    return x_BxNxD, x_BxNxD if self.collect else None

  def _attention(self, x_BxNxD, kept_BxN):
    d, n = self.cfg.dim, self.cfg.heads
    e = d // n
    kernel = self._param("qkv_kernel", (d, 3, n, e), ("embed", None, "heads", "head_dim"), xavier(d, 3 * d))
    qkv = matmul(x_BxNxD.astype(self.cfg.dtype), kernel)
    if self.cfg.qkv_bias:
      qkv += self._param("qkv_bias", (3, n, e), (None, "heads", "head_dim"), nn.initializers.zeros)[None, None]
    q, k, v = (part.swapaxes(1, 2) for part in parts(qkv, 2))
    if not self.cfg.causal:
      out = attend_groups(q, k, v, self.groups, kept_BxN)
    elif self.cfg.dropout and self.has_rng("dropout"):
      out = attend_dropped(q, k, v, self.make_rng("dropout"), self.cfg.dropout).swapaxes(1, 2)
    else:
      out = attend_causal(q, k, v).swapaxes(1, 2)
    kernel = self._param("proj_kernel", (n, e, d), ("heads", "head_dim", "embed"), xavier(d, d))
    bias = self._param("proj_bias", (d,), ("embed",), nn.initializers.zeros)
    return jnp.tensordot(out, kernel, axes=2) + bias[None, None]

  def _mlp(self, x_BxNxD):
    d, h = self.cfg.dim, self.cfg.hidden
    up = x_BxNxD.astype(self.cfg.dtype) @ self._param("up_kernel", (d, h), ("embed", "mlp"), xavier(d, h))
    up += self._param("up_bias", (h,), ("mlp",), nn.initializers.zeros)[None, None]
    down = self._param("down_kernel", (h, d), ("mlp", "embed"), xavier(h, d))
    bias = self._param("down_bias", (d,), ("embed",), nn.initializers.zeros)
    return jax.nn.gelu(up, approximate=False) @ down + bias[None, None]

  def _param(self, name, shape, axes, init):
    return self.param(name, partitioned(init, *axes), shape).astype(self.cfg.dtype)


def dropped(module: nn.Module, rate: float, x) -> jax.Array:
  """x with a share `rate` of it at 0 and the rest larger by as much, where the module is given a "dropout" key."""
  if not rate or not module.has_rng("dropout"):
    return x
  kept = chosen(module.make_rng("dropout"), 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)


@functools.partial(jax.checkpoint, static_argnums=4)  # L^2 weights a head are made again, not stored
def attend_dropped(q_BxnxLxe, k_BxnxLxe, v_BxnxLxe, key, rate: float) -> jax.Array:
  """As `attend_causal`, with a share `rate` of the weights at 0 and the others larger by as much."""
  length, e = q_BxnxLxe.shape[2:]
  logits = jnp.einsum("Bnle,Bnme->Bnlm", q_BxnxLxe, k_BxnxLxe, preferred_element_type=jnp.float32) * e**-0.5
  weights = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool)[None, None], logits, -1e30), axis=-1)
  kept = chosen(key, 1 - rate, weights.shape)
  weights = jnp.where(kept, weights / (1 - rate), 0.0).astype(v_BxnxLxe.dtype)
  return jnp.einsum("Bnlm,Bnme->Bnle", weights, v_BxnxLxe)


def attend_groups(q_BxnxNxe, k_BxnxNxe, v_BxnxNxe, groups: tuple[Group, ...], kept_BxN=None) -> jax.Array:
  """Softmax attention [B, N, n, e], logits scaled by 1 / sqrt(e), a group of rows at a time over the keys it sees.

  Where kept_BxN is False a key is not seen, and its own row sees nothing but itself.
  """
  if kept_BxN is None and len(groups) == 1:
    e = q_BxnxNxe.shape[-1]
    # `attend` scales by 8 / e; what is wanted here is 1 / sqrt(e), the same at e = 64.
    layout = Layout(1, q_BxnxNxe.shape[2], 0, "full")
    return attend(q_BxnxNxe * (e**0.5 / 8), k_BxnxNxe, v_BxnxNxe, layout, bounded=False)
  kept = jnp.ones((1, q_BxnxNxe.shape[2]), bool) if kept_BxN is None else kept_BxN
  join = lambda x, spans, axis: jnp.concatenate([jax.lax.slice_in_dim(x, *span, axis=axis) for span in spans], axis)
  out = jnp.concatenate(
    [
      attend_seen(
        q_BxnxNxe[:, :, first:last],
        join(k_BxnxNxe, spans, 2),
        join(v_BxnxNxe, spans, 2),
        join(kept, spans, 1)[:, None],
      )
      for first, last, spans in groups
    ],
    axis=2,
  )
  out = out if kept_BxN is None else jnp.where(kept[:, None, :, None], out, v_BxnxNxe)
  return out.swapaxes(1, 2)
