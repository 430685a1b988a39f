"""The Tokenizer: video -> ordered discrete tokens -> video, at any budget. Pure functions, parameters an argument."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.dino_inputs import check_dino, load_dino, reads_dino
from vftok.frozen.features.dinov2 import DINOv2
from vftok.models import fsq
from vftok.models.config import TokenizerConfig
from vftok.models.flow import gaussian
from vftok.models.init import init_tokenizer
from vftok.runtime.words import brief
from vftok.tokenizer import families, identity, programs, stream
from vftok.tokenizer.checks import (
  check_array,
  check_dtype,
  check_first_frames,
  check_first_latents,
  check_key,
  check_latents,
  check_made,
  check_painted,
  check_sampling,
  check_tokens,
  check_video,
  guidance_of,
)
from vftok.tokenizer.geometry import FlowGeometry
from vftok.tokens import Budget, VideoTokens, is_concrete

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokenizer(FlowGeometry):
  """A tokenizer's configuration and its functions; it owns no arrays. `dino`: the net its encoder reads, if any.

  Letters: B videos, F frames, T time steps of tokens, K registers per step, h w the VAE's grid.
  """

  cfg: TokenizerConfig
  dino: DINOv2 | None = None

  # ---- loading and saving

  load = staticmethod(families.load)  # any family: `vftok.load`

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes vftok's own layout, whole or not at all: config.json and model.safetensors, without the net `dino`."""
    from vftok.convert.load import save

    save(self.cfg, {name: tree for name, tree in params.items() if name != "dino"}, directory)

  def export(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the layout of released VideoFlexTok models, which the PyTorch package reads."""
    from vftok.convert.export import export

    export(self.cfg, params, directory)

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    params = init_tokenizer(self.cfg, key)
    return params if boxed else nn.unbox(params)

  # ---- encoding

  def encode(self, params: Params, video, *, fit: str = "error", budget=None) -> VideoTokens:
    """Tokens of a video of any length, from the VAE's posterior mean: the same video gives the same ids, always.

    Args:
      video: [B, F, H, W, 3], uint8 or float in [-1, 1], of the model's frame size.
      fit: "error", or "pad": fill up by the last frame and remember the true count in `tokens.frames`.
      budget: tokens kept per time step: None for all, counts as `VideoTokens.truncate` takes them, or
        `vftok.Auto(mean=8)`, which gives every moment what it needs, or a
        `vftok.tokens.Budget` of your own. Ids are the same whatever it is.
    """
    video = check_video(video, self.frame_size)
    if fit == "error":
      self.steps_for(video.shape[1])
    if isinstance(budget, Budget):
      check_dino(self.cfg, self.dino)
      return budget.encode_video(self, params, video, fit)
    tokens = VideoTokens.concat(list(self.encode_stream(params, [video], fit=fit)))
    check_made(tokens, "the encoder's features of this video")
    return tokens if budget is None else tokens.truncate(budget)

  def encode_stream(
    self, params: Params, pieces: Iterable, *, fit: str = "error", budget=None
  ) -> Iterator[VideoTokens]:
    """Encodes frames as they come, one VideoTokens per chunk; memory does not grow with length.

    Args:
      pieces: arrays [B, f, H, W, 3] or [f, H, W, 3] of any number of consecutive frames.
      fit: what happens to frames at the end that do not fill a chunk: "error" or "pad".
      budget: None, one count for all steps, `vftok.Auto` by mean (of each chunk) or preference, or any `Budget`.
    """
    if fit not in ("error", "pad"):
      raise ValueError(f"fit is {brief(fit)}, expected 'error' or 'pad'.")
    check_dino(self.cfg, self.dino)
    if isinstance(budget, Budget):
      return budget.encode_stream(self, params, pieces, fit)
    run = lambda chunk: programs.encode_chunk(self.cfg, params, chunk, self.dino)
    chunks = stream.encode_chunks(self, run, pieces, fit)
    return chunks if budget is None else (tokens.truncate(budget) for tokens in chunks)

  def encode_latents(self, params: Params, video, key: jax.Array | None = None) -> jax.Array:
    """VAE latents float32 [B, T, h, w, C] of F = 1 + 4m frames: the posterior mean, or a sample of it given a key."""
    video = check_video(video, self.frame_size)
    self.check_latent_frames(video.shape[1])
    mean, logvar = programs.vae_encode(self.cfg, params, video)
    return mean if key is None else mean + jnp.exp(0.5 * logvar) * gaussian(key, mean.shape)

  def features(self, params: Params, latents) -> jax.Array:
    """z float32 [B, T, K, c] of VAE latents [B, T, h, w, C]: the register outputs that FSQ rounds, for probing."""
    if reads_dino(self.cfg):
      raise ValueError("this model's encoder reads DINOv2 features beside latents, which have none: use encode.")
    return programs.features(self.cfg, params, check_latents(latents, self.latent_shape(1, 1)[2:]))

  def codes_of(self, params: Params, ids) -> jax.Array:
    """float32 [B, T, K, c] in [-1, 1]: the FSQ codes of ids [B, T, K]."""
    return fsq.ids_to_codes(jnp.asarray(ids), self.levels)

  def soft_tokens(self, params: Params, tokens: VideoTokens) -> tuple[jax.Array, jax.Array]:
    """(features float32 [B, T, k, D], mask bool [B, T, k]) for a video LLM or a classifier, k the largest keep.

    Codes of the first k registers, projected to the decoder's width D as it reads them, without positions. Features
    are zero beyond a step's keep, where the mask is False. While JAX traces, keep is unknown and k is K.
    """
    check_tokens(tokens, self.registers, self.codebook_size)
    k = int(np.max(tokens.keep)) if is_concrete(tokens.keep) else self.registers
    return programs.soft_tokens(self.cfg, params, tokens.ids[:, :, :k], tokens.keep)

  # ---- decoding

  def decode(
    self,
    params: Params,
    tokens: VideoTokens,
    key: jax.Array | None = None,
    *,
    first_frames=None,
    noise=None,
    clip: bool = True,
    **sampling,
  ) -> jax.Array:
    """Video float32 [B, F, H, W, 3] in [-1, 1]; exactly `tokens.frames` frames.

    Args:
      tokens: any number of chunks, any keep per time step.
      key: noise of chunk i is drawn from fold_in(key, i). Not needed where `noise` is given.
      first_frames: [B, 1 + 4j, H, W, 3] clean frames the video starts with.
      noise: one array [B, T, h, w, C] per chunk.
      clip: False leaves values as the VAE gives them.
      sampling: steps, guidance, solver="euler", collapse=True; see `vftok.models.flow.Sampling`. The first two are
        by default what the model's config says (released models: 30 and APG(20)).
    """
    check_tokens(tokens, self.registers, self.codebook_size)
    self.frames_for(tokens.ids.shape[1])
    pieces = self.decode_stream(params, tokens, key, first_frames=first_frames, noise=noise, clip=clip, **sampling)
    return jnp.concatenate(list(pieces), axis=1)

  def sampling(self, steps: int | None, kind: str = "", scale: float = 0.0) -> dict[str, Any]:
    """Options of `decode` that a config asks for: solver steps (None: its own) and guidance, see `guidance_of`."""
    return {"steps": steps or self.cfg.solver_steps, "guidance": guidance_of(kind, scale, self.cfg)}

  def decode_stream(
    self,
    params: Params,
    tokens: VideoTokens | Iterable[VideoTokens],
    key: jax.Array | None = None,
    *,
    first_frames=None,
    noise=None,
    clip: bool = True,
    slots: int | None = None,
    **sampling,
  ) -> Iterator[jax.Array]:
    """Like `decode`, chunk by chunk: yields frames [B, f, H, W, 3] with memory that does not grow with length.

    `tokens` may be an iterable of pieces, each a whole number of chunks as `encode_stream` gives them.
    `slots`: registers of a step that the program computes one by one, from the largest keep to K; default by keep, so
    few tokens are quick. One number for many keeps is one program.
    """
    how = check_sampling(sampling, self.cfg)
    if first_frames is not None:
      first_frames = check_first_frames(first_frames, self.frame_size, self.chunk_frames)
      first_frames = programs.to_float(jnp.asarray(first_frames))
    if noise is None:
      check_key(key, "decode")
    run = functools.partial(
      programs.decode_chunk, self.cfg, params, guidance=how.guidance, steps=how.steps, solver=how.solver
    )
    noise_of = stream.chunk_noise(key, noise, lambda batch: self.latent_shape(batch, self.chunk_steps))
    pieces = [tokens] if isinstance(tokens, VideoTokens) else tokens
    slots_of = functools.partial(self.slots, collapse=how.collapse, least=slots)
    chunks = stream.decode_chunks(self, run, pieces, noise_of, slots_of, first_frames)
    painted = map(check_painted, chunks)
    return (jnp.clip(frames, -1.0, 1.0) if clip else frames for frames in painted)

  def latent_shape(self, batch: int, steps: int) -> tuple[int, ...]:
    """[B, T, h, w, C] of the latents, and of the noise, of so many time steps of tokens."""
    return (batch, steps * self.cfg.decoder.patch[0], *self.cfg.latent_size, self.cfg.decoder.channels)

  def decode_latents(
    self,
    params: Params,
    tokens: VideoTokens,
    key: jax.Array | None = None,
    *,
    noise=None,
    first_latents=None,
    first_mode: str = "clean",
    mask_prefix: bool = True,
    **sampling,
  ) -> jax.Array:
    """VAE latents float32 [B, T, h, w, C] of the tokens of one chunk (T steps or fewer).

    Args:
      noise: float32 [B, T, h, w, C] to start from, else drawn from `key`.
      first_latents: clean latents [B, P, h, w, C] the chunk starts with. first_mode "clean" keeps them, "sdedit"
        gives their noised form before every evaluation; mask_prefix tells the model which steps they are.
      sampling: as `decode`'s.
    """
    check_tokens(tokens, self.registers, self.codebook_size)
    how = check_sampling(sampling, self.cfg)
    b, t, _ = tokens.ids.shape
    shape = self.latent_shape(b, t)
    if t > self.chunk_steps:
      raise ValueError(f"the tokens have {t} time steps, expected one chunk of at most {self.chunk_steps}: use decode.")
    if first_mode not in ("clean", "sdedit"):
      raise ValueError(f"first_mode is {brief(first_mode)}, expected 'clean' or 'sdedit'.")
    if noise is None:
      check_key(key, "decode_latents")
    noise = gaussian(key, shape) if noise is None else check_array(noise, shape, "noise")
    given, first_steps = check_first_latents(first_latents, noise)
    return programs.sample_latents(
      self.cfg,
      params,
      tokens.ids,
      tokens.keep,
      noise,
      given,
      first_steps,
      how.guidance,
      steps=how.steps,
      solver=how.solver,
      slots=self.slots(tokens.keep, how.collapse),
      first_mode=first_mode,
      mask_prefix=mask_prefix,
    )

  def decode_pixels(self, params: Params, latents) -> jax.Array:
    """Frames float32 [B, F, H, W, 3] of VAE latents [B, T, h, w, C]; not clipped."""
    return programs.vae_decode(self.cfg, params, check_latents(latents, self.latent_shape(1, 1)[2:]))

  def velocity(
    self, params: Params, tokens: VideoTokens, latents, t, *, null=False, prefix=0, collapse=True
  ) -> jax.Array:
    """The flow decoder's velocity [B, T, h, w, C] at noisy `latents` and time t; `prefix` steps are given clean."""
    check_tokens(tokens, self.registers, self.codebook_size)
    if null and "null" not in self.cfg.decoder.replacements:
      raise ValueError("this model has no null vector, so it has no null velocity: pass null=False.")
    latents = check_latents(latents, self.latent_shape(1, 1)[2:])
    given = jnp.broadcast_to(jnp.arange(tokens.ids.shape[1]) < prefix, tokens.keep.shape) if prefix else None
    slots = self.slots(tokens.keep, collapse)
    return programs.velocity(self.cfg, params, tokens.ids, tokens.keep, latents, t, given, slots=slots, null=null)

  def fingerprint(self, params: Params) -> str:
    """16 hex digits of everything that decides ids: VAE encoder, register encoder, levels and chunk geometry.

    A decoder tuned on the same ids keeps the fingerprint, so stored tokens stay valid.
    """
    return identity.fingerprint(self.cfg, params)

  def describe(self, params: Params) -> dict[str, Any]:
    """What `vftok info` shows: geometry, parameter counts per part, switches, fingerprint."""
    return identity.describe(self, params)


def load(
  name: str | os.PathLike,
  *,
  dtype: str | None = None,
  vae: str | os.PathLike | None = None,
  dino: str | os.PathLike | None = None,
):
  """(tokenizer, params) of a directory, a safetensors file with its config inside, a shipped name, or a Hub id.

  Reads vftok's own layout, VideoFlexTok's and SemanTok's. Tensors keep the dtype they are stored in, but float16 in
  vftok's own layout becomes float32.

  Args:
    dtype: compute dtype, "float32" (default) or "bfloat16"; norms, softmax, FSQ and flow time stay float32.
    vae: where to take `vae.*` from if the file has none; default the source its config names.
    dino: DINOv2 weights (a path or Hub id), which SemanTok's encoders read; without them such a model only decodes.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  from vftok.convert.load import load

  check_dtype(dtype)
  cfg, params = load(name, vae)
  net = None
  if dino is not None:
    net, params["dino"] = load_dino(cfg, dino)
  return Tokenizer(cfg if dtype is None else cfg.with_dtype(dtype), net), params
