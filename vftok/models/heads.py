"""Prefix-only heads: features of every position from the kept registers alone (SemanTok, arXiv 2610.00686).

REPA aligns a decoder layer, which also sees the noisy latents and so needs the registers little. These heads see
nothing but the kept prefix, so every register gets a gradient of its own from the first step. Their targets are the
nets of `vftok.frozen.features`, or whitened latents where there is no net: the error over `keep` is then a quality
curve that needs no sampling. They are training only: no tokenizer stores them.
"""

from __future__ import annotations

import dataclasses

import chex
import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models import cudnn
from vftok.models.layers import (
  Linear,
  PositionConfig,
  Positions,
  Weights,
  layer_norm,
  partitioned,
  parts,
  repeated,
  trunc_normal,
  xavier,
)
from vftok.runtime import target
from vftok.tokens import kept_slots


@dataclasses.dataclass(frozen=True)
class PrefixHeadConfig:
  """Attributes:
  features: width of the target: 1024 of DINOv2-L, 16 of a latent.
  dim, depth: 768 and 2 in SemanTok.
  code_dim, registers: of the tokenizer. max_grid: the largest (T, h, w) of the queries.
  causal: whether step t sees registers of steps <= t only.
  """

  features: int
  dim: int = 768
  depth: int = 2
  head_dim: int = 64
  mlp_ratio: float = 4.0
  code_dim: int = 6
  registers: int = 256
  max_grid: tuple[int, int, int] = (16, 16, 16)
  causal: bool = True
  dtype: str = "float32"
  scan: bool = True


class PrefixHead(nn.Module):
  """(codes, keep) -> features float32 [B, T, h, w, F] of every grid position.

  A head for one vector per step (SemanTok's class feature) is one of its own, called with grid (T, 1, 1).
  """

  cfg: PrefixHeadConfig

  @nn.compact
  def __call__(self, codes_BxTxKxc, keep_BxT, grid: tuple[int, int, int]) -> jax.Array:
    """Features of the grid (T, h, w).

    Args:
      codes_BxTxKxc: FSQ codes in [-1, 1] of the first K registers of each step, K <= cfg.registers; 0 is legal.
      keep_BxT: int, 0..K. Codes at and beyond it have no influence; at 0 only the learned null key is seen.
      grid: static; T is that of the codes.

    Raises:
      ValueError: grid and codes disagree on T, or the grid or K is larger than the head's tables.
    """
    cfg = self.cfg
    b, steps, k, _ = codes_BxTxKxc.shape
    if grid[0] != steps:
      raise ValueError(f"the grid {tuple(grid)} has {grid[0]} steps, expected {steps} as in the codes: change one.")
    chex.assert_equal_shape_prefix([codes_BxTxKxc, keep_BxT], 2)
    keys = Linear(cfg.dim, (None, "embed"), dtype=cfg.dtype, name="codes_in")(codes_BxTxKxc).astype(jnp.float32)
    slots = PositionConfig("learnable_sum", (cfg.max_grid[0], cfg.registers))
    keys = keys + Positions(slots, cfg.dim, name="register_positions")((steps, max(k, 1)))[None, :, :k]
    null = self.param("null_key", partitioned(trunc_normal, "embed"), (cfg.dim,))
    null = jnp.broadcast_to(null.astype(jnp.float32), (b, 1, cfg.dim))
    keys_BxMxD = jnp.concatenate([null, einops.rearrange(keys, "b t k d -> b (t k) d")], axis=1)
    kept = einops.rearrange(kept_slots(keep_BxT, k), "b t k -> b (t k)")
    seen_BxM = jnp.concatenate([jnp.ones((b, 1), bool), kept], axis=1)

    queries = Positions(PositionConfig("learnable_sum", cfg.max_grid), cfg.dim, name="positions")(grid)
    x_BxTxPxD = einops.repeat(queries, "t h w d -> b t (h w) d", b=b)
    blocks = repeated(CrossBlock, cfg.depth, scan=cfg.scan)
    x_BxTxPxD, _ = blocks(cfg, k, name="blocks")(x_BxTxPxD, layer_norm(keys_BxMxD), seen_BxM)
    out = Linear(cfg.features, ("embed", None), zero_init=True, name="out")(layer_norm(x_BxTxPxD))
    return einops.rearrange(out, "b t (h w) d -> b t h w d", h=grid[1])


class CrossBlock(Weights):
  """x += CrossAttn(LN x, keys); x += SwiGLU(LN x). QK-norm, logits times 8 / head_dim, no biases, as in the decoder."""

  cfg: PrefixHeadConfig
  registers: int  # keys of a step

  @nn.compact
  def __call__(self, x_BxTxPxD, keys_BxMxD, seen_BxM):
    x_BxTxPxD = x_BxTxPxD + self._attention(layer_norm(x_BxTxPxD), keys_BxMxD, seen_BxM)
    hidden = int(2 * self.cfg.mlp_ratio * self.cfg.dim / 3)
    return x_BxTxPxD + self._mlp(layer_norm(x_BxTxPxD), hidden).astype(jnp.float32), None

  def _attention(self, x_BxTxPxD, keys_BxMxD, seen_BxM):
    cfg, d, e = self.cfg, self.cfg.dim, self.cfg.head_dim
    n = d // e
    q_kernel = self._param("q_kernel", (d, n, e), ("embed", "heads", "head_dim"), xavier(d, d))
    kv_kernel = self._param("kv_kernel", (d, 2, n, e), ("embed", None, "heads", "head_dim"), xavier(d, d))
    q_BxTxPxnxe = layer_norm(jnp.einsum("BTPD,DnE->BTPnE", x_BxTxPxD.astype(cfg.dtype), q_kernel)).astype(cfg.dtype)
    kv_BxMx2xnxe = jnp.einsum("BMD,DxnE->BMxnE", keys_BxMxD.astype(cfg.dtype), kv_kernel)
    k_BxMxnxe, v_BxMxnxe = parts(kv_BxMx2xnxe, 2)
    k_BxMxnxe = layer_norm(k_BxMxnxe).astype(cfg.dtype)
    steps, positions = x_BxTxPxD.shape[1:3]
    q = einops.rearrange(q_BxTxPxnxe, "b t p n e -> b (t p) n e")
    if target.attention(cfg.dtype) == "cudnn" and cudnn.fits(e):
      out = self._by_cudnn(q, k_BxMxnxe, v_BxMxnxe, seen_BxM, steps)
    else:
      mask_Bx1x1xM = seen_BxM[:, None, None]
      if cfg.causal:  # dense over all steps: the keys are few, and one program per step compiles slowly
        step_M = (jnp.arange(k_BxMxnxe.shape[1]) - 1) // max(self.registers, 1)
        mask_Bx1x1xM = mask_Bx1x1xM & (step_M[None] <= jnp.repeat(jnp.arange(steps), positions)[:, None])[None, None]
      out = jax.nn.dot_product_attention(q, k_BxMxnxe, v_BxMxnxe, mask=mask_Bx1x1xM, scale=8.0 / e)
    out_BxTxPxnxe = einops.rearrange(out, "b (t p) n e -> b t p n e", t=steps)
    kernel = self._param("proj_kernel", (n, e, d), ("heads", "head_dim", "embed"), xavier(d, d))
    return jnp.einsum("BTPnE,nED->BTPD", out_BxTxPxnxe, kernel).astype(jnp.float32)

  def _by_cudnn(self, q_BxQxnxe, k_BxMxnxe, v_BxMxnxe, seen_BxM, steps: int):
    """[B, Q, n, e]. Where it is causal a sample's steps are samples of their own, for each sees other keys."""
    b, rows, n, e = q_BxQxnxe.shape
    q, k, v = (x.swapaxes(1, 2) for x in (q_BxQxnxe, k_BxMxnxe, v_BxMxnxe))
    if self.cfg.causal:
      step_M = (jnp.arange(seen_BxM.shape[1]) - 1) // max(self.registers, 1)
      q = einops.rearrange(q_BxQxnxe, "b (t p) n e -> (b t) n p e", t=steps)
      k, v = (cudnn.for_each_step(x, steps) for x in (k, v))
      seen_BxM = (seen_BxM[:, None] & (step_M <= jnp.arange(steps)[:, None])).reshape(b * steps, -1)
    return cudnn.attend(q, k, v, scale=8.0 / e, seen_BxM=seen_BxM).reshape(b, rows, n, e)


def cosine_similarity(features_xF, targets_xF) -> jax.Array:
  """Cosine over the last axis, float32 [x]; 0 where the features are zero."""
  a, b = jnp.asarray(features_xF, jnp.float32), jnp.asarray(targets_xF, jnp.float32)
  # The squared norms get an eps per entry: the gradient at a zero-initialised output stays finite.
  square = lambda x: jnp.mean(x * x, axis=-1) + 1e-6
  return jnp.mean(a * b, axis=-1) * jax.lax.rsqrt(square(a) * square(b))
