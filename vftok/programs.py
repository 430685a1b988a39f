"""The jitted programs behind the Tokenizer, all pure: config and shapes static, parameters and keep counts data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vftok.config import TokenizerConfig
from vftok.models import flow, fsq
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.vae import VAE


def to_float(video) -> jax.Array:
  """uint8 [0, 255] or float [-1, 1] -> float32 [-1, 1]."""
  if video.dtype == jnp.uint8:
    return video.astype(jnp.float32) / 127.5 - 1.0
  return video.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def vae_encode(cfg: TokenizerConfig, params, video_BxFxHxWx3):
  """(mean, logvar) float32 [B, T, h, w, C] of the VAE's posterior."""
  return VAE(cfg.vae).apply({"params": params["vae"]}, to_float(video_BxFxHxWx3), method=VAE.encode)


@functools.partial(jax.jit, static_argnums=0)
def vae_decode(cfg: TokenizerConfig, params, latents_BxTxhxwxC):
  """Frames float32 [B, F, H, W, 3], not clipped."""
  return VAE(cfg.vae).apply({"params": params["vae"]}, latents_BxTxhxwxC, method=VAE.decode)


@functools.partial(jax.jit, static_argnums=0)
def features(cfg: TokenizerConfig, params, latents_BxTxhxwxC):
  """z float32 [B, T, K, c] of latents: what FSQ rounds."""
  return Encoder(cfg.encoder).apply({"params": params["encoder"]}, latents_BxTxhxwxC)


@functools.partial(jax.jit, static_argnums=0)
def encode_chunk(cfg: TokenizerConfig, params, video_BxFxHxWx3):
  """(ids int32 [B, T, K], z float32 [B, T, K, c]) of one chunk, from the posterior mean."""
  z = features(cfg, params, vae_encode(cfg, params, video_BxFxHxWx3)[0])
  return fsq.codes_to_ids(fsq.quantize(z, cfg.levels), cfg.levels), z


@functools.partial(jax.jit, static_argnums=0, static_argnames=("slots", "null"))
def velocity(
  cfg: TokenizerConfig, params, ids_BxTxK, keep_BxT, x_BxTxhxwxC, t, prefix_BxT=None, *, slots, null=False
):
  """The decoder's velocity at flow time t (a scalar or [B]).

  `slots` (static) is how many registers of each step are computed one by one, at least the largest keep; the others
  are one token. None computes all K, in the null pass too.
  """
  b = ids_BxTxK.shape[0]
  if null and slots is not None and cfg.decoder.replacements[-1] == "null":
    slots = 0  # the null vector has the last word, so all K registers are equal
  codes = fsq.ids_to_codes(ids_BxTxK[:, :, :slots], cfg.levels)
  return Decoder(cfg.decoder).apply(
    {"params": params["decoder"]},
    codes,
    keep_BxT,
    x_BxTxhxwxC,
    jnp.broadcast_to(jnp.asarray(t, jnp.float32), (b,)),
    prefix_BxT=prefix_BxT,
    null_B=jnp.ones((b,), bool) if null else None,
  )


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=("steps", "solver", "slots", "first_mode", "mask_prefix")
)
def sample_latents(
  cfg: TokenizerConfig,
  params,
  ids_BxTxK,
  keep_BxT,
  noise_BxTxhxwxC,
  first_latents_BxPxhxwxC,
  guidance: flow.Guidance,
  *,
  steps: int,
  solver: str,
  slots: int | None,
  first_mode: str = "clean",
  mask_prefix: bool = True,
):
  """Latents [B, T, h, w, C] painted from tokens: the whole solver, guidance included, in one program.

  `first_latents` (or None) are clean latents of the first P steps. first_mode "clean" puts them over x before every
  evaluation and at the end, "sdedit" puts their noised form and leaves the end alone.
  """
  b, latent_steps = noise_BxTxhxwxC.shape[:2]
  first, prefix_BxT = 0, None
  if first_latents_BxPxhxwxC is not None:
    first = first_latents_BxPxhxwxC.shape[1]
    if mask_prefix:
      given = jnp.arange(latent_steps // cfg.decoder.patch[0]) < first // cfg.decoder.patch[0]
      prefix_BxT = jnp.broadcast_to(given, (b, given.shape[0]))

  def constrain(x, t):
    if not first:
      return x
    if first_mode == "clean":
      return x.at[:, :first].set(first_latents_BxPxhxwxC)
    noised = t * noise_BxTxhxwxC[:, :first] + (1 - t) * first_latents_BxPxhxwxC
    return x.at[:, :first].set(jnp.where(t > 0, noised, x[:, :first]))

  def both(x, t):
    run = functools.partial(velocity, cfg, params, ids_BxTxK, keep_BxT, x, t, prefix_BxT, slots=slots)
    return run() if guidance is None else (run(), run(null=True))

  return flow.sample(both, noise_BxTxhxwxC, steps, solver=solver, guidance=guidance, constrain=constrain)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "solver", "slots"))
def decode_chunk(
  cfg: TokenizerConfig,
  params,
  ids_BxTxK,
  keep_BxT,
  noise_BxTxhxwxC,
  first_frames,
  guidance,
  *,
  steps,
  solver,
  slots,
):
  """Frames float32 [B, F, H, W, 3], not clipped, of one chunk.

  `first_frames` [B, 1 + 4j, H, W, 3] (or None) are given clean: their own tokens take the first places of the chunk's.
  """
  first_latents = None
  if first_frames is not None:
    first_latents = vae_encode(cfg, params, first_frames)[0]
    z = features(cfg, params, first_latents)
    ids = fsq.codes_to_ids(fsq.quantize(z, cfg.levels), cfg.levels)
    ids_BxTxK = jnp.concatenate([ids, ids_BxTxK[:, ids.shape[1] :]], axis=1)
  latents = sample_latents(
    cfg,
    params,
    ids_BxTxK,
    keep_BxT,
    noise_BxTxhxwxC,
    first_latents,
    guidance,
    steps=steps,
    solver=solver,
    slots=slots,
  )
  return vae_decode(cfg, params, latents)
