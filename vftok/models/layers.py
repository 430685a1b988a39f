"""Small parts shared by encoder and decoder. Every parameter names its logical axes where it is made.

Logical axes: "embed" (width), "heads", "head_dim", "mlp" (hidden width), "layers" (scan); None is never sharded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from vftok.runtime import target

NORM_EPS = 1e-5
UNROLLED = 8  # layers at most that a CPU trains one by one
trunc_normal = nn.initializers.truncated_normal(0.02)


def partitioned(init: Callable[..., Any], *axes: str | None) -> Callable[..., Any]:
  """An initializer whose arrays carry their logical axes (in a box, until `nn.unbox`)."""
  return nn.with_logical_partitioning(init, axes)


def fresh(module: nn.Module, key, *inputs) -> Any:
  """A module's parameters as training starts, in boxes that carry their logical axes."""
  return module.init(key, *inputs)["params"]


def applied(module: nn.Module, params, *inputs, **options) -> Any:
  """What a module makes of its inputs with these parameters."""
  return module.apply({"params": params}, *inputs, **options)


def ranked(x, rank: int):
  """x with axes of 1 in front of its own, `rank` in all: ranks are never promoted in silence."""
  return x.reshape((1,) * (rank - x.ndim) + x.shape)


def layer_norm(x) -> jax.Array:
  """LayerNorm over the last axis without affine, eps 1e-5; computed and returned in float32."""
  x = x.astype(jnp.float32)
  centered = x - x.mean(axis=-1, keepdims=True)
  return centered * jax.lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True) + NORM_EPS)


def xavier(fan_in: int, fan_out: int):
  """Xavier-uniform with given fans: fused and headed kernels start as their single matrices would."""
  limit = (6.0 / (fan_in + fan_out)) ** 0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


def as_trained(cfg):
  """A config with `depth` and `scan` in the form that trains fastest here; its numbers are the same up to rounding.

  A CPU copies what a loop over layers stores for the backward pass in and out: from 3 to 8 layers are unrolled, which
  costs it no more to compile.
  """
  if target.platform() != "cpu" or not 3 <= cfg.depth <= UNROLLED:
    return cfg
  return dataclasses.replace(cfg, scan=False)


def repeated(block, depth: int, *, scan: bool = True, remat: str = "none") -> Callable[..., Any]:
  """`block(...)(carry, *static)` -> (carry, out), `depth` times, each with parameters of its own: leaves get a first
  axis "layers".

  Args:
    scan: False unrolls the layers. remat: "none", or the name of a policy for what the backward pass keeps.

  Raises:
    ValueError: no policy of that name.
  """
  if remat != "none":
    policy = getattr(jax.checkpoint_policies, remat, None)
    if policy is None:
      raise ValueError(f"remat is {remat!r}, expected 'none' or a name from jax.checkpoint_policies.")
    block = nn.remat(block, policy=policy, prevent_cse=not scan)
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=depth,
    unroll=1 if scan else depth,
    in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] (Flax takes it, its annotation does not)
    metadata_params={nn.PARTITION_NAME: "layers"},
  )


def parts(x: jax.Array, axis: int) -> list[jax.Array]:
  """The slices along an axis. The backward pass joins their gradients; indexing would pad each and add them up."""
  return [part.squeeze(axis) for part in jnp.split(x, x.shape[axis], axis)]


def unit(x_xC: jax.Array) -> jax.Array:
  """x / |x| over the last axis in float32; zeros stay zeros."""
  x = x_xC.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def matmul(x_xD: jax.Array, w_Dxo: jax.Array, dtype=None) -> jax.Array:
  """[..., D] by [D, ...] -> [..., ...], accumulated and returned in `dtype`, None: theirs.

  A CPU gets two matrices: then XLA writes the gradient of w as w lies, otherwise it transposes the gradient of the
  result for it, which is larger than x. Elsewhere axes stay apart: a sharded one cannot be joined to another for free.
  """
  if target.platform() != "cpu":
    return jnp.tensordot(x_xD, w_Dxo, 1, preferred_element_type=dtype)
  d = len(w_Dxo)
  flat = jnp.matmul(x_xD.reshape(-1, d), w_Dxo.reshape(d, -1), preferred_element_type=dtype)
  return flat.reshape(*x_xD.shape[:-1], *w_Dxo.shape[1:])


class Weights(nn.Module):
  """Base of blocks whose `cfg` names a compute dtype; it makes their parameters and their MLP."""

  def _param(self, name, shape, axes, init):
    """A parameter with its logical axes, in the compute dtype."""
    return self.param(name, partitioned(init, *axes), shape).astype(self.cfg.dtype)

  def _mlp(self, x_xD, hidden: int, *, gated: bool = True, bias: bool = False):
    """[..., D] -> [..., D] in the compute dtype: SwiGLU of `hidden` channels, or SiLU where it is not gated."""
    d, h, branches = x_xD.shape[-1], hidden, 2 if gated else 1
    kernel = self._param("up_kernel", (d, branches, h), ("embed", None, "mlp"), xavier(d, h))
    up_x2xH = matmul(x_xD.astype(self.cfg.dtype), kernel)
    if bias:
      up_x2xH += ranked(self._param("up_bias", (branches, h), (None, "mlp"), nn.initializers.zeros), up_x2xH.ndim)
    hidden_xH, *gate_xH = parts(up_x2xH, -2)
    hidden_xH = checkpoint_name(nn.silu(hidden_xH) * gate_xH[0] if gated else nn.silu(hidden_xH), "mlp_up")
    y = hidden_xH @ self._param("down_kernel", (h, d), ("mlp", "embed"), xavier(h, d))
    return y + ranked(self._param("down_bias", (d,), ("embed",), nn.initializers.zeros), y.ndim) if bias else y


class Linear(nn.Module):
  """x [..., in] -> [..., out]: kernel [in, out], Xavier-uniform unless told otherwise, and an optional bias [out]."""

  features: int
  axes: tuple[str | None, str | None]
  use_bias: bool = True
  zero_init: bool = False
  dtype: str = "float32"
  kernel_init: Callable | None = None

  @nn.compact
  def __call__(self, x):
    fan_in = x.shape[-1]
    init = nn.initializers.zeros if self.zero_init else self.kernel_init or xavier(fan_in, self.features)
    kernel = self.param("kernel", partitioned(init, *self.axes), (fan_in, self.features))
    y = x.astype(self.dtype) @ kernel.astype(self.dtype)
    if self.use_bias:
      bias = self.param("bias", partitioned(nn.initializers.zeros, *self.axes[1:]), (self.features,))
      y = y + ranked(bias.astype(self.dtype), y.ndim)
    return y


@dataclasses.dataclass(frozen=True)
class PositionConfig:
  """kind: "learnable_sum", "learnable_prod" or (2-D only) "sincos"; max_sizes: the grid the table covers."""

  kind: str
  max_sizes: tuple[int, ...]


POSITION_KINDS = ("learnable_sum", "learnable_prod", "sincos")


class Positions(nn.Module):
  """The embedding of a grid's positions: float32 [*sizes, D], sizes cropped from the table's.

  A table of fewer axes is of a grid whose first ones are 1, and leaves them out.
  """

  cfg: PositionConfig
  dim: int

  @nn.compact
  def __call__(self, sizes: Sequence[int]) -> jax.Array:
    cfg, first = self.cfg, len(sizes) - len(self.cfg.max_sizes)
    if first > 0 and set(sizes[:first]) == {1}:
      sizes = sizes[first:]
    if len(sizes) != len(cfg.max_sizes) or any(s > m for s, m in zip(sizes, cfg.max_sizes, strict=True)):
      raise ValueError(f"the grid {tuple(sizes)} does not fit the position table {cfg.max_sizes}: use a smaller one.")
    if cfg.kind == "sincos":
      init = partitioned(lambda *_: jnp.asarray(sincos_2d(cfg.max_sizes, self.dim)), None, None, "embed")
      table = self.param("table", init, (*cfg.max_sizes, self.dim))
      return jax.lax.stop_gradient(table.astype(jnp.float32))[: sizes[0], : sizes[1]]
    init = partitioned(trunc_normal, None, None, "embed")
    table = self.param("table", init, (len(cfg.max_sizes), max(cfg.max_sizes), self.dim)).astype(jnp.float32)
    rank = len(sizes)
    axes = [table[i, :n].reshape([n if i == j else 1 for j in range(rank)] + [self.dim]) for i, n in enumerate(sizes)]
    total = axes[-1]
    for axis in axes[-2::-1]:
      total = total * axis if cfg.kind == "learnable_prod" else total + axis
    return total


def sincos_2d(sizes: Sequence[int], dim: int) -> np.ndarray:
  """float32 [h, w, dim]: sin and cos of the row index, then of the column index, at 10000^(-j / (dim/4))."""
  quarter = dim // 4
  omega = 10000.0 ** (-np.arange(quarter) / quarter)
  row = np.arange(sizes[0])[:, None, None] * omega + np.zeros((1, sizes[1], 1))
  col = np.arange(sizes[1])[None, :, None] * omega + np.zeros((sizes[0], 1, 1))
  return np.concatenate([np.sin(row), np.cos(row), np.sin(col), np.cos(col)], axis=-1).astype(np.float32)


def patchify(x_BxTxHxWxC, patch: tuple[int, int, int]) -> jax.Array:
  """[B, T, H, W, C] -> [B, T/pt, H/ph, W/pw, pt*ph*pw*C], channel fastest."""
  pt, ph, pw = patch
  return einops.rearrange(x_BxTxHxWxC, "b (t i) (h j) (w k) c -> b t h w (i j k c)", i=pt, j=ph, k=pw)


def unpatchify(x_BxTxHxWxD, patch: tuple[int, int, int]) -> jax.Array:
  """Inverse of `patchify`."""
  pt, ph, pw = patch
  return einops.rearrange(x_BxTxHxWxD, "b t h w (i j k c) -> b (t i) (h j) (w k) c", i=pt, j=ph, k=pw)


def timestep_features(t_B, max_timestep: float, dim: int = 256) -> jax.Array:
  """float32 [B, dim]: cos then sin of t at frequencies 1000/max_timestep * 256^(-i / (dim/2))."""
  half = dim // 2
  freqs = np.exp(-np.log(256.0) * np.arange(half) / half) * (1000.0 / max_timestep)
  angles = t_B.astype(jnp.float32)[:, None] * freqs.astype(np.float32)[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
