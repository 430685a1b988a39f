"""The Tokenizer: video -> ordered discrete tokens -> video, at any budget. Pure functions, parameters an argument."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok import programs
from vftok.checks import check_array, check_sampling, check_video
from vftok.config import TokenizerConfig
from vftok.models import fsq
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.flow import APG, Guidance
from vftok.models.vae import VAE
from vftok.types import VideoTokens, check_tokens, is_concrete

TIME_FACTOR = 4
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer's configuration and its functions; it owns no arrays.

  Letters: B videos, F frames, T time steps of tokens, K registers per step, h w the VAE's grid.
  """

  cfg: TokenizerConfig

  # ---- loading and saving

  @staticmethod
  def load(name: str | os.PathLike, *, dtype: str | None = None, vae: str | os.PathLike | None = None):
    """(tokenizer, params) of a directory, a safetensors file with its config inside, or a Hub id.

    Reads vftok's own layout, VideoFlexTok's and SemanTok's. Tensors keep the dtype they are stored in.

    Args:
      dtype: compute dtype, "float32" (default) or "bfloat16"; norms, softmax, FSQ and flow time stay float32.
      vae: where to take `vae.*` from if the file has none; default the source its config names.

    Raises:
      FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
    """
    from vftok.convert.load import load

    cfg, params = load(name, vae)
    return Tokenizer(cfg if dtype is None else cfg.with_dtype(dtype)), params

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes vftok's own layout: config.json and model.safetensors, whole or not at all."""
    from vftok.convert.load import save

    save(self.cfg, params, directory)

  def export(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the layout of released VideoFlexTok models, which the PyTorch package reads."""
    from vftok.convert.export import export

    export(self.cfg, params, directory)

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, boxed with their logical axis names (`flax.linen.unbox` gives plain arrays)."""
    h, w = self.cfg.latent_size
    steps, enc, dec = self.chunk_steps, self.cfg.encoder, self.cfg.decoder
    latents = jnp.zeros((1, steps * enc.patch[0], h, w, enc.channels))
    noisy = jnp.zeros((1, steps * dec.patch[0], h, w, dec.channels))
    codes, keep = jnp.zeros((1, steps, self.registers, dec.code_dim)), jnp.zeros((1, steps), jnp.int32)
    keys = jax.random.split(key, 3)
    video = jnp.zeros((1, 1, 8 * self.spatial_factor, 8 * self.spatial_factor, 3))
    return {
      "vae": VAE(self.cfg.vae).init(keys[0], video)["params"],
      "encoder": Encoder(enc).init(keys[1], latents)["params"],
      "decoder": Decoder(dec).init(keys[2], codes, keep, noisy, jnp.zeros((1,)))["params"],
    }

  # ---- geometry

  @property
  def registers(self) -> int:
    return self.cfg.encoder.registers

  @property
  def levels(self) -> tuple[int, ...]:
    return self.cfg.levels

  @property
  def codebook_size(self) -> int:
    return fsq.codebook_size(self.cfg.levels)

  @property
  def spatial_factor(self) -> int:
    return 2 ** (len(self.cfg.vae.ch_mult) - 1)

  @property
  def frame_size(self) -> tuple[int, int]:
    """(H, W) in pixels."""
    return tuple(self.spatial_factor * n for n in self.cfg.latent_size)

  @property
  def chunk_frames(self) -> int:
    return self.cfg.chunk_frames

  @property
  def overlap_frames(self) -> int:
    return self.cfg.overlap_frames

  @property
  def stride(self) -> int:
    return self.chunk_frames - self.overlap_frames

  @property
  def chunk_steps(self) -> int:
    return self._latents(self.chunk_frames) // self.cfg.encoder.patch[0]

  @property
  def overlap_steps(self) -> int:
    return self._latents(self.overlap_frames) // self.cfg.encoder.patch[0]

  @staticmethod
  def _latents(frames: int) -> int:
    return (frames - 1) // TIME_FACTOR + 1 if frames else 0

  def steps_for(self, frames: int) -> int:
    """Time steps of a video whose frames fit: 17 -> 5, 33 -> 9 with one frame of overlap; 34 -> 10 with none."""
    chunks = (frames - self.chunk_frames) // self.stride + 1
    if chunks < 1 or frames != self.chunk_frames + (chunks - 1) * self.stride:
      raise ValueError(self._misfit(frames))
    return self.chunk_steps + (chunks - 1) * (self.chunk_steps - self.overlap_steps)

  def frames_for(self, steps: int) -> int:
    """Inverse of `steps_for`."""
    new = self.chunk_steps - self.overlap_steps
    chunks = (steps - self.chunk_steps) // new + 1
    if chunks < 1 or steps != self.chunk_steps + (chunks - 1) * new:
      more = f"{self.chunk_steps} or {self.chunk_steps} + a multiple of {new}"
      raise ValueError(f"the tokens have {steps} time steps, expected {more}: pass whole chunks.")
    return self.chunk_frames + (chunks - 1) * self.stride

  def _fitting(self, frames: int) -> tuple[int, int]:
    """Nearest fitting frame counts (at or below, at or above)."""
    below = max((frames - self.chunk_frames) // self.stride, 0)
    above = max(-(-(frames - self.chunk_frames) // self.stride), 0)
    return self.chunk_frames + below * self.stride, self.chunk_frames + above * self.stride

  def _misfit(self, frames: int) -> str:
    low, high = self._fitting(frames)
    fitting = f"{high}" if frames < self.chunk_frames else f"{low} or {high}"
    return f"the video has {frames} frames, expected a count that fits chunks such as {fitting}: cut it, or pass fit='pad'."

  # ---- encoding

  def encode(self, params: Params, video, *, fit: str = "error") -> VideoTokens:
    """Tokens of a video of any length, from the VAE's posterior mean: the same video gives the same ids, always.

    Args:
      video: [B, F, H, W, 3], uint8 or float in [-1, 1], of the model's frame size.
      fit: "error", or "pad": fill up by the last frame and remember the true count in `tokens.frames`.
    """
    return VideoTokens.concat(list(self.encode_stream(params, [video], fit=fit)))

  def encode_stream(self, params: Params, pieces: Iterable, *, fit: str = "error") -> Iterator[VideoTokens]:
    """Encodes frames as they come, one VideoTokens per chunk; memory does not grow with length.

    Args:
      pieces: arrays [B, f, H, W, 3] or [f, H, W, 3] of any number of consecutive frames.
      fit: what happens to frames at the end that do not fill a chunk: "error" or "pad".
    """
    if fit not in ("error", "pad"):
      raise ValueError(f"fit is {fit!r}, expected 'error' or 'pad'.")
    return self._encode_chunks(params, pieces, fit)

  def _encode_chunks(self, params, pieces, fit):
    self._refuse_dino()
    seen, buffered, first = 0, None, True
    for piece in pieces:
      if not hasattr(piece, "ndim"):
        piece = np.asarray(piece)
      piece = check_video(piece[None] if piece.ndim == 4 else piece, self.frame_size)
      if fit == "error" and first and seen == 0:
        self._check_whole(piece, pieces)
      seen += piece.shape[1]
      buffered = piece if buffered is None else _join(buffered, piece)
      while buffered.shape[1] >= self.chunk_frames and (buffered.shape[1] >= self.chunk_frames):
        yield self._encode_one(
          params, buffered[:, : self.chunk_frames], first, self.chunk_frames if first else self.stride
        )
        buffered, first = buffered[:, self.stride :], False
    if buffered is None:
      raise ValueError("the video has 0 frames, expected at least one: check where the frames come from.")
    left = buffered.shape[1] - (0 if first else self.overlap_frames)
    if left <= 0:
      return
    if fit == "error":
      raise ValueError(self._misfit(seen))
    padding = [(0, 0)] * 5
    padding[1] = (0, self.chunk_frames - buffered.shape[1])
    xp = jnp if isinstance(buffered, jax.Array) else np
    yield self._encode_one(params, xp.pad(buffered, padding, mode="edge"), first, left)

  def _check_whole(self, piece, pieces) -> None:
    if isinstance(pieces, list) and len(pieces) == 1:
      self.steps_for(piece.shape[1])

  def _encode_one(self, params, chunk, first: bool, frames: int) -> VideoTokens:
    ids, _ = programs.encode_chunk(self.cfg, params, chunk)
    tokens = VideoTokens.full(ids, frames)
    return (
      tokens
      if first
      else tokens.replace(ids=tokens.ids[:, self.overlap_steps :], keep=tokens.keep[:, self.overlap_steps :])
    )

  def _refuse_dino(self) -> None:
    if self.cfg.dino_frames:
      raise ValueError(
        "this model's encoder reads DINOv2 features beside the video: it can decode but not yet encode."
      )

  def encode_latents(self, params: Params, video, key: jax.Array | None = None) -> jax.Array:
    """VAE latents float32 [B, T, h, w, C] of F = 1 + 4m frames: the posterior mean, or a sample of it given a key."""
    video = check_video(video, self.frame_size)
    frames = video.shape[1]
    if frames % TIME_FACTOR != 1:
      low = frames - (frames - 1) % TIME_FACTOR
      raise ValueError(
        f"the video has {frames} frames, expected 1 + a multiple of 4 such as {low} or {low + 4}."
      )
    mean, logvar = programs.vae_encode(self.cfg, params, video)
    return mean if key is None else mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)

  def features(self, params: Params, latents) -> jax.Array:
    """z float32 [B, T, K, c] of VAE latents [B, T, h, w, C]: the register outputs that FSQ rounds, for probing."""
    self._refuse_dino()
    return programs.features(self.cfg, params, latents)

  # ---- decoding

  def decode(
    self,
    params: Params,
    tokens: VideoTokens,
    key: jax.Array | None = None,
    *,
    steps: int = 30,
    guidance: Guidance = APG(scale=20.0),  # noqa: B008 (frozen)
    first_frames=None,
    solver: str = "euler",
    noise=None,
    collapse: bool = True,
    clip: bool = True,
  ) -> jax.Array:
    """Video float32 [B, F, H, W, 3] in [-1, 1]; exactly `tokens.frames` frames.

    Args:
      tokens: any number of chunks, any keep per time step.
      key: noise of chunk i is drawn from fold_in(key, i). Not needed where `noise` is given.
      steps, solver: of the flow; "euler", "heun" (two evaluations a step), "ab2" (second order, one evaluation).
      guidance: None, `vftok.CFG(scale)` or `vftok.APG(scale, eta, momentum, threshold)`.
      first_frames: [B, 1 + 4j, H, W, 3] clean frames the video starts with.
      noise: one array [B, T, h, w, C] per chunk.
      collapse: compute dropped registers as one token (exact and faster); False computes all of them.
      clip: False leaves values as the VAE gives them.
    """
    check_tokens(tokens, self.registers, self.codebook_size)
    self.frames_for(tokens.ids.shape[1])
    options = dict(
      steps=steps, guidance=guidance, first_frames=first_frames, solver=solver, collapse=collapse
    )
    pieces = self.decode_stream(params, tokens, key, noise=noise, clip=clip, **options)
    return jnp.concatenate(list(pieces), axis=1)

  def decode_stream(
    self,
    params: Params,
    tokens: VideoTokens | Iterable[VideoTokens],
    key: jax.Array | None = None,
    *,
    steps: int = 30,
    guidance: Guidance = APG(scale=20.0),  # noqa: B008 (frozen)
    first_frames=None,
    solver: str = "euler",
    noise=None,
    collapse: bool = True,
    clip: bool = True,
  ) -> Iterator[jax.Array]:
    """Like `decode`, chunk by chunk: yields frames [B, f, H, W, 3] with memory that does not grow with length.

    `tokens` may be an iterable of pieces, each a whole number of chunks as `encode_stream` gives them.
    """
    check_sampling(steps, solver, guidance, "null" in self.cfg.decoder.replacements)
    if key is None and noise is None:
      raise ValueError("decode got neither key nor noise, expected one: pass jax.random.key(seed).")
    if first_frames is not None:
      first_frames = self._check_first(first_frames)
    run = functools.partial(
      programs.decode_chunk, self.cfg, params, guidance=guidance, steps=steps, solver=solver
    )
    pieces = [tokens] if isinstance(tokens, VideoTokens) else tokens
    return self._decode_chunks(run, pieces, key, noise, first_frames, collapse, clip)

  def _decode_chunks(self, run, pieces, key, noise, given, collapse, clip):
    i, last_keep = 0, None
    for piece in pieces:
      check_tokens(piece, self.registers, self.codebook_size)
      slots = self.slots(piece.keep, collapse)
      steps = piece.ids.shape[1] + (0 if i == 0 else self.overlap_steps)
      left = self.frames_for(steps) - (0 if i == 0 else self.overlap_frames)
      left = left if piece.frames is None else min(left, piece.frames)
      start = 0
      while start < piece.ids.shape[1]:
        count = self.chunk_steps - (0 if i == 0 else self.overlap_steps)
        ids, keep = piece.ids[:, start : start + count], piece.keep[:, start : start + count]
        start += count
        if i and self.overlap_steps:
          # the overlapped step repeats the end of the chunk before; its ids are made again from decoded frames
          ids = jnp.concatenate([jnp.zeros_like(ids[:, : self.overlap_steps]), ids], axis=1)
          keep = jnp.concatenate([last_keep, keep], axis=1)
        frames = run(ids, keep, self._noise(i, key, noise, ids.shape[0]), given, slots=slots)
        new = frames[:, self.overlap_frames if i else 0 :][:, :left]
        left -= new.shape[1]
        given = frames[:, -self.overlap_frames :] if self.overlap_frames else None
        last_keep = keep[:, -self.overlap_steps :] if self.overlap_steps else None
        i += 1
        if new.shape[1]:
          yield jnp.clip(new, -1.0, 1.0) if clip else new

  def _noise(self, i: int, key, noise, batch: int):
    shape = self._latent_shape(batch, self.chunk_steps)
    if noise is None:
      return jax.random.normal(jax.random.fold_in(key, i), shape)
    if i >= len(noise):
      raise ValueError(f"noise has {len(noise)} entries, expected one array per chunk.")
    return check_array(noise[i], shape, f"noise[{i}]")

  def _latent_shape(self, batch: int, steps: int) -> tuple[int, ...]:
    return (batch, steps * self.cfg.decoder.patch[0], *self.cfg.latent_size, self.cfg.decoder.channels)

  def _check_first(self, frames):
    frames = programs.to_float(jnp.asarray(check_video(frames, self.frame_size, "first_frames")))
    if frames.shape[1] % TIME_FACTOR != 1 or frames.shape[1] >= self.chunk_frames:
      raise ValueError(
        f"first_frames has {frames.shape[1]} frames, expected 1 + a multiple of 4 below {self.chunk_frames}."
      )
    return frames

  def slots(self, keep, collapse: bool = True) -> int | None:
    """How many registers a program must compute one by one for these counts: a power of two, or None for all.

    Programs are compiled per bucket, not per count: all counts inside a bucket share one.
    """
    if "mask" not in self.cfg.decoder.replacements:
      if is_concrete(keep) and int(np.min(keep)) < self.registers:
        raise ValueError("this model has no mask vector for dropped tokens: keep all of them.")
      return self.registers if self.cfg.decoder.collapsible else None
    if not collapse or not self.cfg.decoder.collapsible:
      return None
    largest = int(np.max(keep)) if is_concrete(keep) else self.registers
    return min(1 << max(largest - 1, 0).bit_length(), self.registers)

  def decode_latents(
    self,
    params: Params,
    tokens: VideoTokens,
    key: jax.Array | None = None,
    *,
    steps: int = 30,
    guidance: Guidance = APG(scale=20.0),  # noqa: B008 (frozen)
    noise=None,
    first_latents=None,
    first_mode: str = "clean",
    mask_prefix: bool = True,
    solver: str = "euler",
    collapse: bool = True,
  ) -> jax.Array:
    """VAE latents float32 [B, T, h, w, C] of the tokens of one chunk (T steps or fewer).

    Args:
      noise: float32 [B, T, h, w, C] to start from, else drawn from `key`.
      first_latents: clean latents [B, P, h, w, C] the chunk starts with. first_mode "clean" keeps them, "sdedit"
        gives their noised form before every evaluation; mask_prefix tells the model which steps they are.
    """
    check_tokens(tokens, self.registers, self.codebook_size)
    check_sampling(steps, solver, guidance, "null" in self.cfg.decoder.replacements)
    b, t, _ = tokens.ids.shape
    if t > self.chunk_steps:
      raise ValueError(
        f"the tokens have {t} time steps, expected one chunk of at most {self.chunk_steps}: use decode."
      )
    if first_mode not in ("clean", "sdedit"):
      raise ValueError(f"first_mode is {first_mode!r}, expected 'clean' or 'sdedit'.")
    shape = self._latent_shape(b, t)
    if noise is not None:
      noise = check_array(noise, shape, "noise")
    elif key is None:
      raise ValueError("decode_latents got neither key nor noise, expected one: pass jax.random.key(seed).")
    else:
      noise = jax.random.normal(key, shape)
    if first_latents is not None:
      given = jnp.shape(first_latents)[1] if jnp.ndim(first_latents) == 5 else 0
      first_latents = check_array(first_latents, (b, min(given, shape[1]), *shape[2:]), "first_latents")
    return programs.sample_latents(
      self.cfg,
      params,
      tokens.ids,
      tokens.keep,
      noise,
      first_latents,
      guidance,
      steps=steps,
      solver=solver,
      slots=self.slots(tokens.keep, collapse),
      first_mode=first_mode,
      mask_prefix=mask_prefix,
    )

  def decode_pixels(self, params: Params, latents) -> jax.Array:
    """Frames float32 [B, F, H, W, 3] of VAE latents [B, T, h, w, C]; not clipped."""
    return programs.vae_decode(self.cfg, params, latents)

  def velocity(
    self, params: Params, tokens: VideoTokens, latents, t, *, null=False, prefix=0, collapse=True
  ) -> jax.Array:
    """The flow decoder's velocity [B, T, h, w, C] at noisy `latents` and time t; `prefix` steps are given clean."""
    check_tokens(tokens, self.registers, self.codebook_size)
    given = jnp.broadcast_to(jnp.arange(tokens.ids.shape[1]) < prefix, tokens.keep.shape) if prefix else None
    slots = self.slots(tokens.keep, collapse)
    return programs.velocity(
      self.cfg, params, tokens.ids, tokens.keep, latents, t, given, slots=slots, null=null
    )

  # ---- identity

  def fingerprint(self, params: Params) -> str:
    """16 hex digits of everything that decides ids: VAE encoder, register encoder, levels and chunk geometry.

    A decoder tuned on the same ids keeps the fingerprint, so stored tokens stay valid.
    """
    cfg = dataclasses.asdict(self.cfg.with_dtype("float32"))
    parts = {k: v for k, v in cfg.items() if k != "decoder"}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    encoder = {"vae": params["vae"]["encoder"], "encoder": params["encoder"]}
    for path, value in jax.tree_util.tree_flatten_with_path(encoder)[0]:
      flat = value.reshape(-1)
      sample = np.asarray(flat[:: max(1, flat.size // 64)][:64], np.float32)
      digest.update(f"{jax.tree_util.keystr(path)}{value.shape}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]

  def describe(self, params: Params) -> dict[str, Any]:
    """What `vftok info` shows: geometry, sizes, switches."""
    count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
    parts = {name: count(tree) for name, tree in params.items()}
    enc, dec = self.cfg.encoder, self.cfg.decoder
    return {
      "frame_size": list(self.frame_size),
      "chunk_frames": self.chunk_frames,
      "overlap_frames": self.overlap_frames,
      "steps_per_chunk": self.chunk_steps,
      "tokens_per_step": self.registers,
      "codebook_size": self.codebook_size,
      "levels": list(self.levels),
      "parameters": {**parts, "total": sum(parts.values())},
      "dtype": str(jax.tree.leaves(params)[0].dtype),
      "encoder": {
        "depth": enc.stack.depth,
        "width": enc.stack.dim,
        "mask": enc.mask,
        "patch": list(enc.patch),
      },
      "decoder": {
        "depth": dec.stack.depth,
        "width": dec.stack.dim,
        "mask": dec.mask,
        "patch": list(dec.patch),
      },
      "learned_vectors": list(dec.replacements),
      "collapse": dec.collapsible,
      "fingerprint": self.fingerprint(params),
    }


def _join(a, b):
  xp = jnp if isinstance(a, jax.Array) or isinstance(b, jax.Array) else np
  if a.dtype != b.dtype or a.shape[0] != b.shape[0]:
    raise ValueError(
      f"pieces differ, {a.dtype} {a.shape} then {b.dtype} {b.shape}: pass one dtype and one batch size."
    )
  return xp.concatenate([a, b], axis=1)
