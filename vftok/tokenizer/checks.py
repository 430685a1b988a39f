"""The boundary: bad videos, tokens and settings become one sentence here and never reach a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.io.finite import is_finite
from vftok.models.config import TokenizerConfig
from vftok.models.config_checks import DTYPES
from vftok.models.flow import APG, CFG, GUIDANCES, SOLVERS, Guidance, Sampling, of_model
from vftok.runtime.words import brief, is_whole
from vftok.tokenizer.geometry import TIME_FACTOR
from vftok.tokens import VideoTokens, check_counts, is_concrete


def check_video(video, frame_size: tuple[int, int], name: str = "video", frames: bool = True) -> jax.Array | np.ndarray:
  """[B, F, H, W, 3], uint8 or float in [-1, 1]; values are looked at unless JAX is tracing. Returns the array."""
  h, w = frame_size
  video = _array(video, frame_size, name)
  if video.ndim != 5 or video.shape[-1] != 3:
    raise ValueError(f"{name} has shape {video.shape}, expected [B, F, {h}, {w}, 3], channels last.")
  if video.shape[2:4] != (h, w):
    size = f"{video.shape[2]}x{video.shape[3]}"
    raise ValueError(f"{name} frames are {size}, expected {h}x{w}: resize and crop them first (vftok.io.video does).")
  if video.shape[0] == 0:
    raise ValueError(f"{name} has shape {video.shape}, expected at least one video in the batch.")
  if frames and video.shape[1] == 0:
    raise ValueError(f"{name} has shape {video.shape}, expected at least one frame.")
  if video.dtype == np.uint8:
    return video
  if not jnp.issubdtype(video.dtype, jnp.floating):
    raise ValueError(f"{name} has dtype {video.dtype}, expected uint8, or float in [-1, 1].")
  if is_concrete(video) and video.size:
    xp = jnp if isinstance(video, jax.Array) else np
    low, high = float(xp.min(video)), float(xp.max(video))
    if not (np.isfinite(low) and np.isfinite(high)):
      raise ValueError(f"{name} holds NaN or infinite values, expected float in [-1, 1]: clean it first.")
    if low < -1.001 or high > 1.001:
      hint = "this looks like 0..255, pass uint8 or x / 127.5 - 1" if high > 1.5 and low >= 0 else "rescale it"
      raise ValueError(f"{name} holds values from {low:.4g} to {high:.4g}, expected float in [-1, 1]: {hint}.")
  return video


def check_piece(piece, frame_size: tuple[int, int]) -> jax.Array | np.ndarray:
  """As `check_video` of a piece of a stream, which may be [f, H, W, 3] too. Returns [B, f, H, W, 3]."""
  piece = _array(piece, frame_size, "a piece of the video")
  return check_video(piece[None] if piece.ndim == 4 else piece, frame_size)


def _array(video, frame_size: tuple[int, int], name: str) -> jax.Array | np.ndarray:
  if isinstance(video, jax.Array):
    return video
  try:
    return np.asarray(video)
  except (ValueError, TypeError):
    h, w = frame_size
    raise ValueError(f"{name} is ragged or no array, expected [B, F, {h}, {w}, 3]: stack its frames.") from None


def check_first_frames(frames, frame_size: tuple[int, int], chunk_frames: int) -> jax.Array | np.ndarray:
  """[B, 1 + 4j, H, W, 3], shorter than a chunk; else as `check_video`. Returns the array."""
  if chunk_frames == 1:
    raise ValueError("first_frames are given, expected none: this model makes pictures, leave them out.")
  frames = check_video(frames, frame_size, "first_frames")
  if frames.shape[1] % TIME_FACTOR != 1 or frames.shape[1] >= chunk_frames:
    raise ValueError(f"first_frames has {frames.shape[1]} frames, expected 1 + a multiple of 4 below {chunk_frames}.")
  return frames


def check_latents(latents, of_step: tuple[int, ...]) -> jax.Array:
  """float32 [B, T, h, w, C] where `of_step` is (h, w, C)."""
  shape = getattr(latents, "shape", ())
  if len(shape) != 5 or shape[2:] != of_step:
    raise ValueError(f"latents have shape {shape}, expected [B, T, {', '.join(map(str, of_step))}].")
  return check_array(latents, shape, "latents")


def guidance_of(kind: str, scale: float, cfg: TokenizerConfig) -> Guidance:
  """The decoder guidance that a config asks for: "apg", "cfg" or "none" at `scale`, "" for the tokenizer's own.

  A scale of 1, and a model without a null vector, mean no guidance.

  Raises:
    ValueError: another kind.
  """
  if kind not in ("", *GUIDANCES):
    raise ValueError(f"the decoder's guidance is {kind!r}, expected one of {', '.join(GUIDANCES)}, or '' for its own.")
  kind, scale = (kind, scale) if kind else (cfg.guidance, cfg.scale)
  guidance = GUIDANCES[kind](scale) if scale != 1 and "null" in cfg.decoder.replacements else None
  return of_model(guidance, cfg.apg)


def check_sampling(options: dict[str, Any], cfg: TokenizerConfig) -> Sampling:
  """The options as `Sampling`; ValueError where one is out of range, or guides a model that has no null vector."""
  has_null = "null" in cfg.decoder.replacements
  usual = {"steps": cfg.solver_steps, "guidance": GUIDANCES[cfg.guidance](cfg.scale)}
  check_options(options, [field.name for field in dataclasses.fields(Sampling)], "decoding")
  sampling = Sampling(**usual | options)
  sampling = dataclasses.replace(sampling, guidance=of_model(sampling.guidance, cfg.apg))
  steps, solver, guidance = sampling.steps, sampling.solver, sampling.guidance
  if not is_whole(steps) or steps < 1:
    raise ValueError(f"steps is {brief(steps)}, expected a whole number of solver steps, 1 or more.")
  if not isinstance(solver, str) or solver not in SOLVERS:
    raise ValueError(f"solver is {brief(solver)}, expected one of {', '.join(SOLVERS)}.")
  if guidance is None:
    return sampling
  if not isinstance(guidance, (CFG, APG)):
    raise ValueError(f"guidance is {brief(guidance)}, expected None, vftok.CFG(scale) or vftok.APG(scale).")
  if not has_null:
    raise ValueError("this model has no null vector, so it cannot be guided: pass guidance=None.")
  for name in ("scale",) if isinstance(guidance, CFG) else ("scale", "eta", "momentum", "threshold"):
    value = getattr(guidance, name)
    if not isinstance(value, jax.Array) and not _numbers(value):
      raise ValueError(f"guidance.{name} is {brief(value)}, expected a number.")
    if not is_finite(value):
      raise ValueError(f"guidance.{name} is {brief(value)}, expected finite numbers: change the guidance.")
  scale = jnp.shape(guidance.scale)
  if scale not in ((), (steps,)):
    raise ValueError(f"guidance.scale has shape {scale}, expected one number, or one per step [{steps}].")
  return sampling


def check_options(options: Iterable[str], known: Sequence[str], what: str) -> None:
  """Raises ValueError where one of the options is not known."""
  for name in options:
    if name not in known:
      raise ValueError(f"{brief(name)} is no option of {what}, expected some of {', '.join(known)}.")


def _numbers(value) -> bool:
  try:
    return np.asarray(value).dtype.kind in "iuf"
  except ValueError:  # ragged
    return False


def check_dtype(dtype: str | None) -> None:
  """Raises ValueError unless a model can compute in `dtype`; None stands for its own."""
  if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
    raise ValueError(f"dtype is {brief(dtype)}, expected {' or '.join(map(repr, DTYPES))}.")


def check_key(key, what: str) -> None:
  """Raises ValueError unless `key` is one of JAX's random keys, new style or old."""
  if key is None:
    raise ValueError(f"{what} got neither key nor noise, expected one: pass jax.random.key(seed).")
  new = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
  if not new and not (hasattr(key, "dtype") and key.dtype == np.uint32 and key.ndim == 1):
    raise ValueError(f"key is {brief(key, 42)}, expected one random key: pass jax.random.key(seed).")


def check_painted(frames: jax.Array) -> jax.Array:
  """Raises ValueError where decoded frames are not finite; looked at unless JAX is tracing. Returns the frames."""
  if not is_finite(frames):
    raise ValueError("the decoded frames are not finite, so they make no pictures: use other weights, or float32.")
  return frames


def check_made(tokens: VideoTokens, what: str) -> VideoTokens:
  """The tokens. Raises ValueError where one is -1, which stands for numbers that were not finite."""
  if is_concrete(tokens.ids) and getattr(tokens.ids, "is_fully_addressable", True) and np.min(tokens.ids) < 0:
    raise ValueError(f"{what} are not finite, so they make no tokens: use other weights, or float32.")
  return tokens


def check_array(array, shape: tuple[int, ...], name: str) -> jax.Array:
  try:
    array = jnp.asarray(array)
  except (TypeError, ValueError):
    raise ValueError(f"{name} is {brief(array)}, expected a float array {tuple(shape)}.") from None
  if array.shape != tuple(shape) or not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected float {tuple(shape)}.")
  if not is_finite(array):
    raise ValueError(f"{name} holds NaN or infinite values, expected finite numbers: see where they come from.")
  return array.astype(jnp.float32)


def check_first_latents(first_latents, noise: jax.Array) -> tuple[jax.Array, int]:
  """(given latents of the noise's shape, zeros where none are given; how many time steps of latents are given)."""
  if first_latents is None:
    return jnp.zeros_like(noise), 0
  b, t, *grid = noise.shape
  steps = min(jnp.shape(first_latents)[1], t) if jnp.ndim(first_latents) == 5 else 0
  first_latents = check_array(first_latents, (b, steps, *grid), "first_latents")
  return jnp.zeros_like(noise).at[:, :steps].set(first_latents), steps


def check_tokens(tokens: VideoTokens, registers: int, codebook_size: int) -> None:
  """Raises ValueError with one sentence where `tokens` cannot belong to a model of these sizes."""
  if not isinstance(tokens, VideoTokens):
    raise ValueError(f"tokens are {brief(tokens)}, expected VideoTokens: of encode, or VideoTokens.full(ids).")
  ids, keep = tokens.ids, tokens.keep
  for name, array in (("ids", ids), ("keep", keep)):
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.integer):
      found = getattr(array, "dtype", type(array).__name__)
      raise ValueError(f"tokens.{name} has dtype {found}, expected an integer array: cast it to int32.")
  if ids.ndim != 3 or ids.shape[2] != registers:
    raise ValueError(
      f"tokens.ids has shape {ids.shape}, expected [B, T, {registers}]: keep all {registers} slots "
      "and shorten with truncate()."
    )
  if 0 in ids.shape:
    raise ValueError(f"tokens.ids has shape {ids.shape}, expected at least one video and one time step.")
  if keep.shape != ids.shape[:2]:
    raise ValueError(f"tokens.keep has shape {keep.shape}, expected {ids.shape[:2]}, one count per time step.")
  check_counts(keep, registers)
  if tokens.frames is not None and not (is_whole(tokens.frames) and tokens.frames >= 1):
    raise ValueError(f"tokens.frames is {brief(tokens.frames)}, expected how many frames the video has, 1 or more.")
  if is_concrete(ids) and is_concrete(keep):
    kept = np.arange(registers) < np.asarray(keep)[:, :, None]
    valid = np.asarray(ids)[kept]
    if valid.size and (valid.min() < 0 or valid.max() >= codebook_size):
      bad = int(valid.min()) if valid.min() < 0 else int(valid.max())
      raise ValueError(f"tokens.ids holds {bad}, expected 0..{codebook_size - 1}: these ids are another model's.")
