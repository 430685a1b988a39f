"""Encoder and decoder of LARP and AdapTok. Letters: T blocks of P patches and K tokens, D channels, c of a code."""

from __future__ import annotations

from collections.abc import Mapping

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.query import masks
from vftok.families.query.config import QueryConfig
from vftok.models.layers import Linear, patchify, ranked, unpatchify
from vftok.models.vit import Blocks, BlocksConfig, Norm, dropped
from vftok.tokens import kept_slots

HEAD_EPS = 1e-6


def encoder_blocks(cfg: QueryConfig) -> BlocksConfig:
  d = cfg.encoder_hidden_size
  return BlocksConfig(d, cfg.encoder_num_heads, cfg.encoder_depth, 4 * d, dtype=cfg.dtype, remat=cfg.remat)


def decoder_blocks(cfg: QueryConfig) -> BlocksConfig:
  d = cfg.decoder_hidden_size
  return BlocksConfig(d, cfg.decoder_num_heads, cfg.decoder_depth, 4 * d, dtype=cfg.dtype, remat=cfg.remat)


def prior_blocks(cfg: QueryConfig) -> BlocksConfig:
  p = cfg.prior
  return BlocksConfig(p.dim, p.heads or 1, p.depth, p.hidden, True, True, cfg.dtype, p.dropout, cfg.remat)


def encoder_groups(cfg: QueryConfig) -> tuple[masks.Group, ...]:
  return masks.groups(cfg.encoder_attn_type, cfg.groups, cfg.group_patches, cfg.group_tokens, patches_first=True)


def decoder_groups(cfg: QueryConfig, tokens: int) -> tuple[masks.Group, ...]:
  """With `tokens` of each block."""
  return masks.groups(cfg.decoder_attn_type, cfg.groups, cfg.group_patches, tokens, patches_first=False)


class Part(nn.Module):
  """Base of modules with tables: learned ones are parameters, fixed ones are given under `fixed`."""

  cfg: QueryConfig

  def _table(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    axes = (*(None,) * (len(shape) - 1), "embed")
    init = nn.with_logical_partitioning(nn.initializers.normal(self.cfg.query_init_std), axes)
    return self.param(name, init, shape).astype(jnp.float32)

  def _of_grid(self, name: str, learned: bool, fixed: Mapping[str, jax.Array], dim: int) -> jax.Array:
    """float32 [T P, D] of the patches that are read: the first ones where a clip is short."""
    t, h, w = self.cfg.grid
    if learned:
      sums = self._table(f"{name}_t", (t, 1, 1, dim)) + self._table(f"{name}_h", (1, h, 1, dim))
      table = (sums + self._table(f"{name}_w", (1, 1, w, dim))).reshape(-1, dim)
    else:
      table = jax.lax.stop_gradient(fixed[name].astype(jnp.float32))
    return table[: self.cfg.read_grid[0] * h * w]


class Encoder(Part):
  """Frames [B, F, H, W, 3] in [0, 1] -> float32 [B, N, D] of the queries, T K of them, as the last block leaves them.

  collect=True gives also what the tests compare, by name.
  """

  @nn.compact
  def __call__(self, video_BxFxHxWx3, fixed, *, collect: bool = False):
    cfg, d = self.cfg, self.cfg.encoder_hidden_size
    patches = einops.rearrange(patchify(video_BxFxHxWx3, cfg.patch), "b t h w d -> b (t h w) d")
    patches = Linear(d, (None, "embed"), dtype=cfg.dtype, name="patch_in")(patches).astype(jnp.float32)
    placed = patches + self._of_grid("patch_positions", cfg.learned_encoder_patch_pe, fixed, d)[None]
    if cfg.use_encoder_patch_token_type_embed:
      placed = placed + ranked(self._table("patch_type", (d,)), 3)
    if cfg.learned_encoder_latent_query_embed:
      queries = self._table("queries", (cfg.bottleneck_token_num, d))
    else:
      queries = jax.lax.stop_gradient(fixed["queries"].astype(jnp.float32))
    if cfg.use_encoder_latent_query_token_type_embed:
      queries = queries + self._table("query_type", (d,))[None]
    x = jnp.concatenate([placed, jnp.broadcast_to(queries, (len(placed), *queries.shape))], axis=1)
    run = Blocks(encoder_blocks(cfg), encoder_groups(cfg), name="blocks")
    if not collect:
      return run(x)[:, placed.shape[1] :]
    x, each = run(x, collect=True)
    return x[:, placed.shape[1] :], {"patches": patches, "placed": placed, "blocks": each}


class CodesIn(nn.Module):
  """Encoder outputs [..., D] -> what is quantised, float32 [..., c]."""

  cfg: QueryConfig

  @nn.compact
  def __call__(self, x_BxNxD):
    z = Linear(self.cfg.vq.bottleneck_dim, ("embed", None), name="in")(x_BxNxD.astype(jnp.float32))
    if self.cfg.vq.norm == "none":
      return z
    return Norm(over=(-1,) if self.cfg.vq.norm == "ln_d" else (-2, -1), name="norm")(z)


class Decoder(Part):
  """Codes float32 [B, T, k, c], the first k tokens of each block, -> frames float32 [B, F, H, W, 3], about [0, 1].

  keep_BxT: how many of them count; None: all. collect=True gives also what the tests compare, by name.
  """

  def setup(self):
    cfg, d = self.cfg, self.cfg.decoder_hidden_size
    self.codes_in = Linear(d, (None, "embed"))
    if cfg.learned_decoder_latent_pe:
      self.latent_positions = self._table("latent_positions", (cfg.bottleneck_token_num, d))
    if cfg.use_decoder_latent_token_type_embed:
      self.latent_type = self._table("latent_type", (d,))
    if cfg.use_decoder_patch_query_token_type_embed:
      self.query_type = self._table("query_type", (d,))
    self.norm = Norm(HEAD_EPS)
    t, h, w = cfg.patch
    self.head = Linear(t * h * w * 3, ("embed", None), zero_init=True, dtype=cfg.dtype)

  def project(self, codes_xC) -> jax.Array:
    """float32 [..., D] of codes, as the decoder and the scorer read them."""
    return self.codes_in(codes_xC.astype(jnp.float32))

  @nn.compact
  def __call__(self, codes_BxTxkxC, fixed, keep_BxT=None, *, collect: bool = False):
    cfg, d = self.cfg, self.cfg.decoder_hidden_size
    b, steps, k, _ = codes_BxTxkxC.shape
    projected = self.project(codes_BxTxkxC)
    kept = None if keep_BxT is None else kept_slots(keep_BxT, k)
    if kept is not None:
      projected = jnp.where(kept[..., None], projected, 0.0)
    table = self.latent_positions if cfg.learned_decoder_latent_pe else fixed["latent_positions"]
    table = table.astype(jnp.float32)
    table = table if cfg.learned_decoder_latent_pe else jax.lax.stop_gradient(table)
    latents = (projected + table.reshape(1, steps, -1, d)[:, :, :k]).reshape(b, steps * k, d)
    if cfg.use_decoder_latent_token_type_embed:
      latents = latents + ranked(self.latent_type, 3)
    queries = self._of_grid("patch_queries", cfg.learned_decoder_patch_query_embed, fixed, d)
    if cfg.use_decoder_patch_query_token_type_embed:
      queries = queries + self.query_type[None]
    queries = jnp.broadcast_to(queries, (b, *queries.shape))
    if kept is not None:
      kept = jnp.concatenate([kept.reshape(b, -1), jnp.ones(queries.shape[:2], bool)], axis=1)
    run = Blocks(decoder_blocks(cfg), decoder_groups(cfg, k), name="blocks")
    x = run(jnp.concatenate([latents, queries], axis=1), kept)[:, steps * k :]
    t, h, w = cfg.read_grid
    out = self.head(self.norm(x)).astype(jnp.float32).reshape(b, t, h, w, -1)
    frames = unpatchify(out, cfg.patch)
    named = {"projected": projected, "latents": latents, "queries": queries, "out": x}
    return (frames, named) if collect else frames


class Scorer(Part):
  """What a block loses by few tokens: (encoder outputs, projected codes) [B, N, D] -> float32 [B, T, K / step].

  Entry j of a block: its normalised LPIPS if it keeps (j + 1) step tokens (AdapTok section 2).
  """

  @nn.compact
  def __call__(self, features_BxNxD, projected_BxNxD, keep_BxT):
    cfg, d = self.cfg, self.cfg.scorer_hidden_size
    kept_BxN = kept_slots(keep_BxT, cfg.group_tokens).reshape(len(keep_BxT), -1)
    x = jnp.concatenate([features_BxNxD, projected_BxNxD], axis=-1)
    x = Linear(d, (None, "embed"), name="project")(jnp.where(kept_BxN[..., None], x, 0.0))
    x = x + self._table("latent_positions", (cfg.bottleneck_token_num, d))[None]
    everything = masks.groups("none", 1, 0, cfg.bottleneck_token_num, patches_first=True)
    blocks = BlocksConfig(d, cfg.scorer_num_heads, cfg.scorer_depth, 4 * d, dtype=cfg.dtype)
    x = Norm(name="norm")(Blocks(blocks, everything, name="blocks")(x, kept_BxN))
    x = jnp.tanh(Linear(2 * d, ("embed", "mlp"), name="hidden")(x))
    losses = Linear(1, ("mlp", None), name="out")(x)[..., 0]
    return losses[:, cfg.scorer_step - 1 :: cfg.scorer_step].reshape(*keep_BxT.shape, -1)


class Prior(nn.Module):
  """Codes [B, L, c] -> predictions of the next code, [B, L, c], as they come out of the last linear layer.

  Given a "dropout" key, as in training, with dropout.
  """

  cfg: QueryConfig

  @nn.compact
  def __call__(self, codes_BxLxC, positions_BxL=None):
    prior, c = self.cfg.prior, codes_BxLxC.shape[-1]
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
    table = self.param("positions", init, (prior.length, prior.dim)).astype(jnp.float32)
    x = Linear(prior.dim, (None, "embed"), name="in")(codes_BxLxC.astype(jnp.float32))
    x = x + (table[None, : x.shape[1]] if positions_BxL is None else jnp.take(table, positions_BxL, axis=0))
    x = Norm(name="norm")(Blocks(prior_blocks(self.cfg), name="blocks")(dropped(self, prior.dropout, x)))
    return Linear(c, ("embed", None), name="out")(x)
