"""Time-causal register encoder: VAE latents -> FSQ input per register (spec of VideoFlexTok, section 3).

Without registers it is the control of VideoFlexTok's claim, a 3-D grid: the input of FSQ is read off the patches, or
off the mean of those of a cell where a token is of several.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models.attention import Layout
from vftok.models.layers import (
  Linear,
  PositionConfig,
  Positions,
  layer_norm,
  partitioned,
  patchify,
  ranked,
  trunc_normal,
  xavier,
)
from vftok.models.transformer import Stack, StackConfig


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Attributes:
  channels: of the input grid: the VAE's, plus 1024 where DINO features come first (SemanTok).
  t_max, registers: the register table [t_max, registers, D]; steps beyond t_max are an error. 0 registers: a grid.
  cell: of a grid, how many patches (down, across) share a token.
  cross: for mask "flexible" only, see `masks.dense`.
  global_token: features of a per-frame vector that is projected and added to register 0 (SemanTok), 0 for none.
  linear: z starts as a linear map of all latents of its step (one for the first step, one for the others), which a tiny
    network takes long to find; the network then starts at zero and learns what the map misses.
  net: False leaves the linear map alone.
  """

  stack: StackConfig
  patch: tuple[int, int, int] = (1, 2, 2)
  channels: int = 16
  positions: PositionConfig | None = PositionConfig("learnable_sum", (16, 16, 16))
  t_max: int = 5
  registers: int = 256
  out_dim: int = 6
  mask: str = "time_block_causal_last"
  cross: tuple[str, ...] = ("full",) * 4
  global_token: int = 0
  head_bias: bool = True
  linear: bool = False
  net: bool = True
  cell: tuple[int, int] = (1, 1)


class Encoder(nn.Module):
  """latents [B, T, h, w, C] -> z float32 [B, T', K, c], T' = T / patch[0]: what FSQ rounds.

  K is the registers, or the cells of a step in raster order where there are none.
  """

  cfg: EncoderConfig

  @nn.compact
  def __call__(self, latents_BxTxhxwxC, global_BxTxG=None, *, collect: bool = False) -> Any:
    """With collect=True also a dict of named intermediates."""
    cfg, dim = self.cfg, self.cfg.stack.dim
    chex.assert_shape(latents_BxTxhxwxC, (None, None, None, None, cfg.channels))
    x = patchify(latents_BxTxhxwxC, cfg.patch)
    b, t, h, w, _ = x.shape
    if t > cfg.t_max:
      raise ValueError(f"the encoder got {t} time steps, expected at most {cfg.t_max}: encode in chunks.")
    linear = self._linear(x) if cfg.linear else 0.0
    if not cfg.net:
      return (linear, {}) if collect else linear
    patches = Linear(dim, (None, "embed"), dtype=cfg.stack.dtype, name="patch_in")(x).astype(jnp.float32)
    if cfg.positions is not None:
      patches = patches + ranked(Positions(cfg.positions, dim, name="patch_positions")((t, h, w)), 5)

    registers = jnp.zeros((b, t, 0, dim))
    if cfg.registers:
      init = partitioned(trunc_normal, None, None, "embed")
      table = self.param("registers", init, (cfg.t_max, cfg.registers, dim)).astype(jnp.float32)
      registers = jnp.broadcast_to(table[:t], (b, t, cfg.registers, dim))
    if cfg.global_token:
      project = Linear(dim, (None, "embed"), dtype=cfg.stack.dtype, name="global_in")
      vector = jnp.zeros((b, t, cfg.global_token)) if global_BxTxG is None else global_BxTxG
      registers = registers.at[:, :, 0].add(project(vector).astype(jnp.float32))

    layout = Layout(t, h * w, cfg.registers, cfg.mask, cfg.cross)
    packed, _ = einops.pack([patches, registers] if cfg.registers else [patches], "b t * d")
    packed = einops.rearrange(packed, "b t s d -> b (t s) d")
    out, blocks = _run(Stack(cfg.stack, name="stack"), packed, layout, None, collect)
    registers_out = einops.rearrange(out, "b (t s) d -> b t s d", t=t)[:, :, h * w if cfg.registers else 0 :]
    if cfg.cell != (1, 1):
      cells = dict(y=cfg.cell[0], w=w // cfg.cell[1], x=cfg.cell[1])
      registers_out = einops.reduce(registers_out, "b t (h y w x) d -> b t (h w) d", "mean", **cells)
    z = Linear(cfg.out_dim, ("embed", None), use_bias=cfg.head_bias, zero_init=True, name="head")(
      layer_norm(registers_out)
    )
    named = {"patches": patches, "packed": packed, "blocks": blocks, "registers_out": registers_out}
    z = z + linear
    return (z, named) if collect else z

  def _linear(self, x_BxTxhxwxD) -> jax.Array:
    cfg = self.cfg
    h, w, d = x_BxTxhxwxD.shape[2:]
    init = partitioned(xavier(h * w * d, cfg.registers * cfg.out_dim), None, None, None)
    kernel = self.param("linear_kernel", init, (2, h * w * d, cfg.registers * cfg.out_dim)).astype(jnp.float32)
    zeros = partitioned(nn.initializers.zeros, None, None)
    bias = self.param("linear_bias", zeros, (2, cfg.registers * cfg.out_dim)).astype(jnp.float32)
    x = x_BxTxhxwxD.astype(jnp.float32)
    x = einops.rearrange(x, "b t h w d -> b t (h w d)")
    z = jnp.concatenate([x[:, :1] @ kernel[0] + bias[None, :1], x[:, 1:] @ kernel[1] + bias[None, 1:]], axis=1)
    return einops.rearrange(z, "b t (k c) -> b t k c", k=cfg.registers)


def _run(stack: Stack, packed, layout: Layout, cond, collect: bool) -> tuple[jax.Array, Any]:
  return stack(packed, layout, cond, collect=True) if collect else (stack(packed, layout, cond), None)
