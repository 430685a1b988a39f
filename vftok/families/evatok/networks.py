"""EVATok's encoder and decoder (arXiv 2603.12267, section 3 and supplement K): Q-Formers, causal from step to step.

Queries read references: in the encoder K slots of every time step read the places of the pixel grid, in the decoder
the other way round. Dropped slots are masked as keys, so how many there are is data.

Letters: B clips, T time steps, P places and K slots of a step, N queries, M references, c channels of a code.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.evatok.config import EvatokConfig, QFormerConfig, pooled_grid
from vftok.models.attention import attend_seen
from vftok.models.layers import Linear, Weights, matmul, patchify, repeated, trunc_normal, unpatchify
from vftok.models.vit import Norm
from vftok.runtime.sharding import constrain
from vftok.tokens import kept_slots


class Layer(Weights):
  """Queries read each other, then the references, then an MLP. Positions are added to queries and keys, not to values.

  References are neither normalised here nor changed.
  """

  cfg: QFormerConfig
  steps: int
  collect: bool = False

  @nn.compact
  def __call__(self, x_BxNxD, place_NxD, refs_BxMxD, ref_keys_BxMxD, seen_BxN, seen_BxM):
    a = Norm(name="norm1")(x_BxNxD)
    placed = a + place_NxD[None]
    x_BxNxD = x_BxNxD + self._attention("self", placed, placed, a, seen_BxN)
    a = Norm(name="norm2")(x_BxNxD)
    x_BxNxD = x_BxNxD + self._attention("cross", a + place_NxD[None], ref_keys_BxMxD, refs_BxMxD, seen_BxM)
    x_BxNxD = x_BxNxD + self._mlp_gelu(Norm(name="norm3")(x_BxNxD))
    return x_BxNxD, (x_BxNxD if self.collect else None)

  def _attention(self, name: str, queries_BxNxD, keys_BxMxD, values_BxMxD, seen_BxM):
    d, n = self.cfg.dim, self.cfg.heads
    kernel = self._param(f"{name}_qkv_kernel", (d, 3, n, d // n), ("embed", None, "heads", "head_dim"), trunc_normal)
    bias = self._param(f"{name}_qkv_bias", (3, n, d // n), (None, "heads", "head_dim"), nn.initializers.zeros)
    q, k, v = (
      (matmul(x.astype(self.cfg.dtype), kernel[:, i]) + bias[None, None, i]).swapaxes(1, 2)
      for i, x in enumerate((queries_BxNxD, keys_BxMxD, values_BxMxD))
    )
    out_BxnxNxe = attend_blocks(q, k, v, self.steps, seen_BxM)
    kernel = self._param(f"{name}_out_kernel", (n, d // n, d), ("heads", "head_dim", "embed"), trunc_normal)
    y = jnp.einsum("BnNE,nED->BND", out_BxnxNxe, kernel)
    return y + self._param(f"{name}_out_bias", (d,), ("embed",), nn.initializers.zeros)[None, None]

  def _mlp_gelu(self, x_BxNxD):
    d, h = self.cfg.dim, self.cfg.dim * self.cfg.mlp_ratio
    up = matmul(x_BxNxD.astype(self.cfg.dtype), self._param("up_kernel", (d, h), ("embed", "mlp"), trunc_normal))
    up = nn.gelu(up + self._param("up_bias", (h,), ("mlp",), nn.initializers.zeros)[None, None], approximate=False)
    down = matmul(up, self._param("down_kernel", (h, d), ("mlp", "embed"), trunc_normal))
    return down + self._param("down_bias", (d,), ("embed",), nn.initializers.zeros)[None, None]


def attend_blocks(q_BxnxNxd, k_BxnxMxd, v_BxnxMxd, steps: int, seen_BxM) -> jax.Array:
  """Softmax attention [B, n, N, d], logits scaled by 1 / sqrt(d): rows of step t read what is seen of steps 0..t."""
  rows, keys = q_BxnxNxd.shape[2] // steps, k_BxnxMxd.shape[2] // steps
  out = []
  for t in range(steps):  # the part of the mask that no row sees is never computed
    own, until = slice(t * rows, (t + 1) * rows), slice((t + 1) * keys)
    q, k, v = q_BxnxNxd[:, :, own], k_BxnxMxd[:, :, until], v_BxnxMxd[:, :, until]
    out.append(attend_seen(q, k, v, seen_BxM[:, None, until]))
  return jnp.concatenate(out, axis=2)


class QFormer(nn.Module):
  """Queries [B, T, p, D] and references [B, T, r, D] -> queries after all layers and a LayerNorm, [B, T, p, D].

  `seen`: bool [B, T, p] and [B, T, r], which of them count as keys. With collect=True also every layer's output,
  [L, B, T*p, D].
  """

  cfg: QFormerConfig

  @nn.compact
  def __call__(self, queries_BxTxpxD, refs_BxTxrxD, seen_BxTxp, seen_BxTxr, *, collect: bool = False):
    cfg, (_, t, p, d) = self.cfg, queries_BxTxpxD.shape
    flat = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
    refs_BxMxD = flat(refs_BxTxrxD)
    place_NxD = _table(self, "query_places", t * p, d)
    place_MxD = _table(self, "ref_places", refs_BxMxD.shape[1], d)
    x_BxNxD = constrain(flat(queries_BxTxpxD), "batch", "length", None)
    layers = repeated(Layer, cfg.depth, scan=cfg.scan, remat=cfg.remat)(cfg, t, collect, name="layers")
    seen = flat(seen_BxTxp), flat(seen_BxTxr)
    x_BxNxD, outputs = layers(x_BxNxD, place_NxD, refs_BxMxD, refs_BxMxD + place_MxD[None], *seen)
    x_BxTxpxD = Norm(name="norm")(x_BxNxD).reshape(queries_BxTxpxD.shape)
    return (x_BxTxpxD, outputs) if collect else x_BxTxpxD


class Encoder(nn.Module):
  """(video float32 [B, F, H, W, 3] in [-0.5, 0.5], keep int32 [B, T]) -> z float32 [B, T, K, c], what VQ rounds.

  z of slots that are not kept means nothing. With collect=True also what stands in between, by name.
  """

  cfg: EvatokConfig

  @nn.compact
  def __call__(self, video_BxFxHxWx3, keep_BxT, *, collect: bool = False):
    cfg, half = self.cfg, self.cfg.encoder
    patches = _into("patch_in", half.dim, half.dtype)(patchify(video_BxFxHxWx3, cfg.patch)).astype(jnp.float32)
    grid_BxTxhxwxD = Norm(name="norm_in")(patches) if cfg.norm_in else patches
    pooled_BxTxKxD = nested_means(grid_BxTxhxwxD, cfg.slots.bit_length() - 1)
    queries = _out_of("pool_out", half.dim, half.dtype)(pooled_BxTxKxD).astype(jnp.float32)
    refs = einops.rearrange(grid_BxTxhxwxD, "b t h w d -> b t (h w) d")
    kept = kept_slots(keep_BxT, cfg.slots)
    out = QFormer(half, name="qformer")(queries, refs, kept, jnp.ones(refs.shape[:3], bool), collect=collect)
    out, layers = out if collect else (out, None)
    z = _out_of("neck", cfg.neck, half.dtype)(out) if cfg.neck else out
    z = _out_of("head", cfg.code_dim, half.dtype)(z).astype(jnp.float32)
    named = dict(patches=patches, pooled=pooled_BxTxKxD, queries=queries, layers=layers, out=out)
    return (z, named) if collect else z


class Decoder(nn.Module):
  """(codes float32 [B, T, K, c], keep int32 [B, T]) -> frames float32 [B, F, H, W, 3], about [-0.5, 0.5].

  All places of a step start as its first code. With collect=True also what stands in between, by name.
  """

  cfg: EvatokConfig

  @nn.compact
  def __call__(self, codes_BxTxKxc, keep_BxT, *, collect: bool = False):
    cfg, half = self.cfg, self.cfg.decoder
    kept = kept_slots(keep_BxT, cfg.slots)
    refs = _into("codes_in", cfg.neck or half.dim, half.dtype)(codes_BxTxKxc).astype(jnp.float32)
    if cfg.neck:
      refs = _into("neck", half.dim, half.dtype)(refs).astype(jnp.float32)
    refs = Norm(name="norm_in")(refs) if cfg.norm_in else refs
    queries = jnp.broadcast_to(refs[:, :, :1], (*refs.shape[:2], cfg.places, half.dim))
    out = QFormer(half, name="qformer")(queries, refs, jnp.ones(queries.shape[:3], bool), kept, collect=collect)
    out, layers = out if collect else (out, None)
    pt, ph, pw = cfg.patch
    pixels = _out_of("head", pt * ph * pw * 3, half.dtype)(out).astype(jnp.float32)
    pixels = einops.rearrange(pixels, "b t (h w) d -> b t h w d", h=cfg.grid[0])
    frames = unpatchify(pixels, cfg.patch)
    return (frames, dict(refs=refs, queries=queries, layers=layers, out=out)) if collect else frames


def nested_means(x_BxTxhxwxD, levels: int) -> jax.Array:
  """[B, T, 2^levels, D]: means of each step's map over ever finer grids, coarse to fine: 1, 1, 2, 4, ... of them.

  The mean of all comes twice. So the first 2^n are the same for every number of levels.
  """
  groups = [x_BxTxhxwxD.mean((2, 3))[:, :, None]]
  for level in range(levels):
    rows, columns = pooled_grid(level)
    groups.append(einops.reduce(x_BxTxhxwxD, "b t (i h) (j w) d -> b t (i j) d", "mean", i=rows, j=columns))
  return jnp.concatenate(groups, axis=2)


def _into(name: str, features: int, dtype: str) -> Linear:
  """From whatever to a width."""
  return Linear(features, (None, "embed"), kernel_init=trunc_normal, dtype=dtype, name=name)


def _out_of(name: str, features: int, dtype: str) -> Linear:
  """From a width to whatever."""
  return Linear(features, ("embed", None), kernel_init=trunc_normal, dtype=dtype, name=name)


def _table(module: nn.Module, name: str, rows: int, dim: int) -> jax.Array:
  init = nn.with_logical_partitioning(nn.initializers.normal(dim**-0.5), (None, "embed"))
  return module.param(name, init, (rows, dim)).astype(jnp.float32)
