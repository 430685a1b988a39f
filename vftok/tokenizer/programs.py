"""The jitted programs behind the Tokenizer, all pure: config and shapes static, parameters and keep counts data."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp

from vftok.frozen.features.dino_inputs import dino_inputs
from vftok.frozen.features.dinov2 import DINOv2
from vftok.models import flow, fsq
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.tokens import kept_slots


def reads(part: str, leaves=None):
  """Of a program (config, params, ...): parameters that are another model's become one sentence when it fails.

  `part`: of them, "" for all. `leaves`: config -> path -> shape of what it asks for; None: of this module's.
  """

  def decorate(program):
    @functools.wraps(program)
    def run(cfg, params, *inputs, **options):
      try:
        return program(cfg, params, *inputs, **options)
      except Exception:
        from vftok.convert.load import abstract_params
        from vftok.io.leaves import check_params

        check_params(lambda: (leaves or abstract_params)(cfg), params, part)
        raise  # of something else

    vars(run).update(_cache_size=program._cache_size, trace=program.trace)
    return run

  return decorate


def exact(dtype: str):
  """What ids, latents and budgets are computed under: a float32 model's products are float32 on every platform.

  By default a GPU rounds them to TF32 and a TPU to bfloat16, convolutions too, and ids of the same video would differ.
  """
  return jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext()


def to_float(video) -> jax.Array:
  """uint8 [0, 255] or float [-1, 1] -> float32 [-1, 1]."""
  if video.dtype == jnp.uint8:
    return video.astype(jnp.float32) / 127.5 - 1.0
  return video.astype(jnp.float32)


@reads("vae")
@functools.partial(jax.jit, static_argnums=0, static_argnames="quick")
def vae_encode(cfg: TokenizerConfig, params, video_BxFxHxWx3, *, quick: bool = False):
  """(mean, logvar) float32 [B, T, h, w, C] of the VAE's posterior; `quick` for training, where no id is kept."""
  with contextlib.nullcontext() if quick else exact(cfg.vae.dtype):
    return cfg.vae.module().apply({"params": params["vae"]}, to_float(video_BxFxHxWx3), method="encode")


@reads("vae")
@functools.partial(jax.jit, static_argnums=0)
def vae_decode(cfg: TokenizerConfig, params, latents_BxTxhxwxC):
  """Frames float32 [B, F, H, W, 3], not clipped."""
  return cfg.vae.module().apply({"params": params["vae"]}, latents_BxTxhxwxC, method="decode")


@reads("encoder")
@functools.partial(jax.jit, static_argnums=0)
def features(cfg: TokenizerConfig, params, latents_BxTxhxwxC, class_BxTxG=None):
  """z float32 [B, T, K, c] of what the encoder reads: what FSQ rounds."""
  with exact(cfg.encoder.stack.dtype):
    return Encoder(cfg.encoder).apply({"params": params["encoder"]}, latents_BxTxhxwxC, class_BxTxG)


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_dino(cfg: TokenizerConfig, dino: DINOv2, params, video_BxFxHxWx3, latents_BxTxhxwxC):
  """What an encoder with DINOv2 features reads: see `dino_inputs`."""
  with exact(dino.vit.dtype):
    return dino_inputs(cfg, dino, params["dino"], to_float(video_BxFxHxWx3), latents_BxTxhxwxC)


@functools.partial(jax.jit, static_argnums=0)
def ids_of(cfg: TokenizerConfig, z_BxTxKxc) -> jax.Array:
  """int32 [B, T, K] of register features; -1, which is no id, where they are not finite."""
  ids = fsq.codes_to_ids(fsq.quantize(z_BxTxKxc, cfg.levels), cfg.levels)
  return jnp.where(jnp.isfinite(z_BxTxKxc).all(-1), ids, -1)


def encode_chunk(cfg: TokenizerConfig, params, video_BxFxHxWx3, dino: DINOv2 | None = None) -> jax.Array:
  """ids int32 [B, T, K] of one chunk, from the posterior mean and, where the encoder reads it, the net `dino`."""
  latents = vae_encode(cfg, params, video_BxFxHxWx3)[0]
  return encode_latents(cfg, params, latents, video_BxFxHxWx3, dino)


def encode_latents(cfg: TokenizerConfig, params, latents_BxTxhxwxC, video_BxFxHxWx3, dino: DINOv2 | None) -> jax.Array:
  """As `encode_chunk`, where the chunk's latents are known."""
  latents, vector = latents_BxTxhxwxC, None
  if dino is not None:
    latents, vector = with_dino(cfg, dino, params, video_BxFxHxWx3, latents)
  return ids_of(cfg, features(cfg, params, latents, vector))


@reads("decoder")
@functools.partial(jax.jit, static_argnums=0)
def soft_tokens(cfg: TokenizerConfig, params, ids_BxTxk, keep_BxT):
  """(float32 [B, T, k, D], bool [B, T, k]): codes as the decoder's `codes_in` projects them, 0 where not kept; kept."""
  into = {name: value.astype(jnp.float32) for name, value in params["decoder"]["codes_in"].items()}
  x = fsq.ids_to_codes(ids_BxTxk, cfg.levels) @ into["kernel"] + into.get("bias", 0.0)
  kept = kept_slots(keep_BxT, ids_BxTxk.shape[2])
  return jnp.where(kept[..., None], x, 0.0), kept


@reads("decoder")
@functools.partial(jax.jit, static_argnums=0, static_argnames=("slots", "null"))
def velocity(cfg: TokenizerConfig, params, ids_BxTxK, keep_BxT, x_BxTxhxwxC, t, prefix_BxT=None, *, slots, null=False):
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


@reads("decoder")
@functools.partial(jax.jit, static_argnums=0, static_argnames=("steps", "solver", "slots", "first_mode", "mask_prefix"))
def sample_latents(
  cfg: TokenizerConfig,
  params,
  ids_BxTxK,
  keep_BxT,
  noise_BxTxhxwxC,
  first_latents_BxTxhxwxC,
  first_steps,
  guidance: flow.Guidance,
  *,
  steps: int,
  solver: str,
  slots: int | None,
  first_mode: str = "clean",
  mask_prefix: bool = True,
):
  """Latents [B, T, h, w, C] painted from tokens: the whole solver, guidance included, in one program.

  The first `first_steps` (data, may be 0) latents are given. first_mode "clean" puts them over x before every
  evaluation and at the end; "sdedit" puts their noised form and leaves the end alone.
  """
  given_T = jnp.arange(noise_BxTxhxwxC.shape[1]) < first_steps
  given_1xTx1x1x1 = given_T[None, :, None, None, None]
  prefix_BxT = None
  if mask_prefix and "prefix" in cfg.decoder.replacements:
    prefix_BxT = jnp.broadcast_to(given_T[:: cfg.decoder.patch[0]], keep_BxT.shape)

  def constrain(x, t):
    if first_mode == "clean":
      return jnp.where(given_1xTx1x1x1, first_latents_BxTxhxwxC, x)
    noised = t * noise_BxTxhxwxC + (1 - t) * first_latents_BxTxhxwxC
    return jnp.where(given_1xTx1x1x1 & (t > 0), noised, x)

  def both(x, t):
    run = functools.partial(velocity, cfg, params, ids_BxTxK, keep_BxT, x, t, prefix_BxT, slots=slots)
    return run() if guidance is None else (run(), run(null=True))

  return flow.sample(both, noise_BxTxhxwxC, steps, solver=solver, guidance=guidance, constrain=constrain)


def decode_chunk(cfg: TokenizerConfig, params, ids_BxTxK, keep_BxT, noise_BxTxhxwxC, first_frames, guidance, **options):
  """Frames float32 [B, F, H, W, 3], not clipped, of one chunk: two or four programs that every chunk shares.

  `first_frames` [B, 1 + 4j, H, W, 3] (or None) are given clean: their own tokens take the first places of the chunk's.
  """
  first_latents, first_steps = jnp.zeros_like(noise_BxTxhxwxC), 0
  if first_frames is not None:
    latents = vae_encode(cfg, params, first_frames)[0]
    first_steps = latents.shape[1]
    first_latents = first_latents.at[:, :first_steps].set(latents)
    ids = ids_of(cfg, features(cfg, params, latents))
    ids_BxTxK = jnp.concatenate([ids, ids_BxTxK[:, ids.shape[1] :]], axis=1)
  latents = sample_latents(
    cfg, params, ids_BxTxK, keep_BxT, noise_BxTxhxwxC, first_latents, first_steps, guidance, **options
  )
  return vae_decode(cfg, params, latents)
