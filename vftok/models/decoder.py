"""Rectified-flow decoder: tokens + noisy latents + flow time -> velocity (spec of VideoFlexTok, section 4).

Registers beyond `keep` of a step are all the same mask vector, with the same modulation and the same visibility, so
they stay equal in every layer: the decoder takes only the first k slots and lets ONE more token stand for the other
K - k. This is exact; k is a shape (a bucket), `keep` stays data.

Without registers (a 3-D grid) the embedded code of each cell is added to the noisy latents of its patches.
"""

from __future__ import annotations

import dataclasses
import math

import chex
import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models import masks
from vftok.models.attention import Layout
from vftok.models.draft import Draft, DraftConfig, draft_velocity
from vftok.models.layers import (
  Linear,
  PositionConfig,
  Positions,
  layer_norm,
  partitioned,
  patchify,
  ranked,
  timestep_features,
  trunc_normal,
  unpatchify,
)
from vftok.models.transformer import Stack, StackConfig


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Attributes:
  replacements: learned vectors that overwrite registers, applied in this order: "mask" beyond keep, "prefix" in steps
    given as clean frames, "null" in samples without condition. A released model may lack any of them.
  registers: 0 where codes are added to the patches that they are of; cell: so many (down, across), see the encoder's.
  head_adaln: whether the output head is modulated by time.
  readout: (depth, out features) of a REPA head stored with the model, or None.
  draft: a direct path from codes to latents that the flow starts from, or None.
  """

  stack: StackConfig
  patch: tuple[int, int, int] = (1, 2, 2)
  channels: int = 16
  code_dim: int = 6
  registers: int = 256
  positions: PositionConfig | None = PositionConfig("learnable_sum", (16, 16, 16))
  register_positions: PositionConfig | None = PositionConfig("learnable_sum", (256, 256))
  replacements: tuple[str, ...] = ("mask", "prefix", "null")
  mask: str = "time_block_causal"
  cross: tuple[str, ...] = ("full",) * 4
  head_adaln: bool = True
  head_bias: bool = True
  time_features: int = 256
  max_timestep: float = 1.0
  readout: tuple[int, int] | None = None
  draft: DraftConfig | None = None
  cell: tuple[int, int] = (1, 1)

  @property
  def collapsible(self) -> bool:
    """Whether dropped registers may be merged: equal content needs a mask vector, equal visibility the right mask."""
    return masks.collapsible(self.mask) and self.registers > 0 and bool({"mask", "null"} & set(self.replacements))


class Decoder(nn.Module):
  """(codes, noisy latents, t) -> velocity float32 [B, T, h, w, C], the model's estimate of noise - clean."""

  cfg: DecoderConfig

  @nn.compact
  def __call__(
    self,
    codes_BxTxkxc,
    keep_BxT,
    noisy_BxTxhxwxC,
    t_B,
    *,
    prefix_BxT=None,
    null_B=None,
    total=None,
    collect=False,
    readout_at: int | None = None,
  ):
    """Velocity at flow time t.

    Args:
      codes_BxTxkxc: FSQ codes of the first k registers of each step. k = 0 is legal with null_B all True.
      keep_BxT: int, codes at and beyond it are replaced by the mask vector. Must not exceed k.
      noisy_BxTxhxwxC: t * noise + (1 - t) * clean latents.
      t_B: float in [0, 1]; 1 is pure noise.
      prefix_BxT: bool, steps given as clean frames. null_B: bool, samples without condition.
      total: registers the k slots and the collapsed one stand for; default the model's. total=k: no collapsed one.
      readout_at: index of the block whose patch tokens the REPA head reads (cfg.readout); then the result is
        (velocity, features [B, T, h', w', F]).
    """
    cfg, dim = self.cfg, self.cfg.stack.dim
    chex.assert_shape(codes_BxTxkxc, (None, None, None, cfg.code_dim))
    chex.assert_shape(noisy_BxTxhxwxC, (None, None, None, None, cfg.channels))
    chex.assert_rank(t_B, 1)
    _, steps, k, _ = codes_BxTxkxc.shape
    total = k if not cfg.registers else cfg.registers if total is None else total
    dropped = total - k
    if dropped < 0 or (dropped and not cfg.collapsible):
      raise ValueError(
        f"the decoder got {k} codes for {total} registers: mask mode {cfg.mask!r} needs all of them, so pass {total}."
      )
    registers = self._registers(codes_BxTxkxc, keep_BxT, bool(dropped), prefix_BxT, null_B)

    x = patchify(noisy_BxTxhxwxC, cfg.patch)
    _, _, h, w, _ = x.shape
    patches = Linear(dim, (None, "embed"), dtype=cfg.stack.dtype, name="patch_in")(x).astype(jnp.float32)
    if cfg.positions is not None:
      patches = patches + ranked(Positions(cfg.positions, dim, name="patch_positions")((steps, h, w)), 5)
    start = 0.0
    if cfg.draft is not None:
      draft, variance = draft_of(cfg, name="draft")(codes_BxTxkxc, self._in_use(keep_BxT, k, prefix_BxT, null_B))
      start = draft_velocity(draft, variance, x, t_B[:, None, None, None, None])
      patches = patches + Linear(dim, (None, "embed"), dtype=cfg.stack.dtype, name="draft_in")(draft)

    features = timestep_features(t_B, cfg.max_timestep, cfg.time_features)
    temb_BxD = nn.silu(Linear(dim, (None, "embed"), name="time_in")(features))
    temb_BxD = Linear(dim, ("embed", "embed_out"), name="time_out")(temb_BxD)

    slots = registers.shape[2] if cfg.registers else 0
    layout = Layout(steps, h * w, slots, cfg.mask, cfg.cross, last_stands_for=max(dropped, 1))
    packed, _ = einops.pack([patches, registers] if slots else [patches], "b t * d")
    packed = packed if slots else packed + self._spread(registers, w)
    packed = einops.rearrange(packed, "b t s d -> b (t s) d")
    patches_of = lambda x: einops.rearrange(x, "b (t s) d -> b t s d", t=steps)[:, :, : h * w]
    stack = Stack(cfg.stack, name="stack")
    blocks = tapped = None
    if collect:
      out, blocks = stack(packed, layout, temb_BxD, collect=True)
    elif readout_at is not None:
      out, tapped = stack(packed, layout, temb_BxD, tap=readout_at)
    else:
      out = stack(packed, layout, temb_BxD)
    velocity = self._head(patches_of(out), temb_BxD)
    velocity = unpatchify(einops.rearrange(velocity, "b t (h w) d -> b t h w d", h=h) + start, cfg.patch)
    if tapped is not None or (self.is_initializing() and cfg.readout is not None):
      if cfg.readout is None:
        raise ValueError("readout_at is set and the decoder has no readout: give its config one, (depth, features).")
      readout = Readout(readout_stack(cfg.stack, cfg.readout[0]), cfg.readout[1], name="readout")
      source = einops.rearrange(patches, "b t h w d -> b t (h w) d") if tapped is None else patches_of(tapped)
      source = einops.rearrange(source, "b t p d -> b (t p) d")
      features = readout(source, Layout(steps, h * w, 0, "time_block_causal"))
      if tapped is not None:
        return velocity, einops.rearrange(features, "b (t h w) d -> b t h w d", t=steps, h=h)
    named = {"patches": patches, "registers": registers, "packed": packed, "blocks": blocks, "temb": temb_BxD}
    return (velocity, named) if collect else velocity

  @staticmethod
  def _in_use(keep_BxT, k: int, prefix_BxT, null_B) -> jax.Array:
    """int32 [B, T]: codes of each step that nothing overwrites."""
    keep_BxT = jnp.minimum(keep_BxT, k)
    if prefix_BxT is not None:
      keep_BxT = jnp.where(prefix_BxT, 0, keep_BxT)
    return keep_BxT if null_B is None else jnp.where(null_B[:, None], 0, keep_BxT)

  def _registers(self, codes_BxTxkxc, keep_BxT, collapsed: bool, prefix_BxT, null_B) -> jax.Array:
    """float32 [B, T, k (+1), D]: embedded codes, of registers or of patches, with the learned vectors put over them."""
    cfg, dim = self.cfg, self.cfg.stack.dim
    b, steps, k, _ = codes_BxTxkxc.shape
    x = Linear(dim, (None, "embed"), dtype=cfg.stack.dtype, name="codes_in")(codes_BxTxkxc).astype(jnp.float32)
    if cfg.register_positions is not None:
      positions = Positions(cfg.register_positions, dim, name="register_positions")
      x = x + ranked(positions((steps, max(k, 1)))[..., :k, :], 4)
    if collapsed:
      x = jnp.concatenate([x, jnp.zeros((b, steps, 1, dim))], axis=2)
    slots = x.shape[2]
    where = {
      "mask": jnp.arange(slots)[None, None] >= jnp.minimum(keep_BxT, k)[:, :, None],
      "prefix": None if prefix_BxT is None else prefix_BxT[:, :, None],
      "null": None if null_B is None else null_B[:, None, None],
    }
    for name in cfg.replacements:
      init = partitioned(trunc_normal, "embed")
      vector = self.param(f"{name}_token", init, (dim,)).astype(jnp.float32)
      if where[name] is not None:
        x = jnp.where(jnp.broadcast_to(where[name], (b, steps, slots))[..., None], ranked(vector, 4), x)
    return x

  def _spread(self, codes_BxTxkxD, across: int) -> jax.Array:
    """[B, T, P, D]: the embedded code of a cell at each of its patches; `across`: patches of a row."""
    if self.cfg.cell == (1, 1):
      return codes_BxTxkxD
    cells = dict(y=self.cfg.cell[0], w=across // self.cfg.cell[1], x=self.cfg.cell[1])
    return einops.repeat(codes_BxTxkxD, "b t (h w) d -> b t (h y w x) d", **cells)

  def _head(self, x_BxTxPxD, temb_BxD) -> jax.Array:
    cfg = self.cfg
    x = layer_norm(x_BxTxPxD)
    if cfg.head_adaln:
      m = Linear(2 * cfg.stack.dim, ("embed", None), zero_init=True, name="head_adaln")(nn.silu(temb_BxD))
      shift, scale = jnp.split(m[:, None, None], 2, axis=-1)
      x = x * (1 + scale) + shift
    out = cfg.channels * math.prod(cfg.patch)
    return Linear(out, ("embed", None), use_bias=cfg.head_bias, zero_init=True, name="head")(x)


def draft_of(cfg: DecoderConfig, **module) -> Draft:
  """The draft of a decoder that has one; its parameters are the decoder's "draft"."""
  assert cfg.draft is not None
  return Draft(cfg.draft, cfg.registers, cfg.channels * math.prod(cfg.patch), **module)


def readout_stack(decoder: StackConfig, depth: int) -> StackConfig:
  """The blocks of a REPA head: of the decoder's width, SwiGLU and QK-norm without biases whatever the decoder has."""
  return StackConfig(decoder.dim, depth, decoder.head_dim, dtype=decoder.dtype, remat=decoder.remat, scan=decoder.scan)


class Readout(nn.Module):
  """REPA head: time-causal blocks over patch tokens, then a projection to features [B, N, F] (spec section 5.1)."""

  stack: StackConfig
  features: int

  @nn.compact
  def __call__(self, patches_BxNxD, layout: Layout):
    x = Stack(self.stack, name="stack")(patches_BxNxD, layout)
    return Linear(self.features, ("embed", None), use_bias=False, zero_init=True, name="out")(x)
