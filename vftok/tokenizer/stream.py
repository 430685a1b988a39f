"""Long video chunk by chunk: one chunk of frames alive at a time, whatever the length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.models.flow import gaussian
from vftok.tokenizer.checks import check_array, check_piece, check_tokens
from vftok.tokenizer.geometry import Geometry
from vftok.tokens import VideoTokens


def encode_chunks(tok: Geometry, run: Callable, pieces: Iterable, fit: str) -> Iterator[VideoTokens]:
  """One VideoTokens per chunk of the frames in `pieces`; run(chunk [B, F, H, W, 3]) -> ids [B, T, K].

  The first time steps of every later chunk stand for the overlap and are dropped.
  """
  seen, buffered, first = 0, None, True

  def tokens(chunk, frames: int) -> VideoTokens:
    ids = run(chunk)
    return VideoTokens.full(ids if first else ids[:, tok.overlap_steps :], frames, nested=tok.nested)

  for piece in pieces:
    piece = check_piece(piece, tok.frame_size)
    seen += piece.shape[1]
    buffered = piece if buffered is None else _join(buffered, piece)
    while buffered.shape[1] >= tok.chunk_frames:
      yield tokens(buffered[:, : tok.chunk_frames], tok.chunk_frames if first else tok.stride)
      buffered, first = buffered[:, tok.stride :], False
  if buffered is None:
    raise ValueError("the video has 0 frames, expected at least one: check where the frames come from.")
  left = buffered.shape[1] - (0 if first else tok.overlap_frames)
  if left <= 0:
    return
  if fit == "error":
    raise ValueError(tok.misfit(seen))
  padding = [(0, 0), (0, tok.chunk_frames - buffered.shape[1]), (0, 0), (0, 0), (0, 0)]
  xp = jnp if isinstance(buffered, jax.Array) else np
  yield tokens(xp.pad(buffered, padding, mode="edge"), left)


def decode_chunks(
  tok: Geometry,
  run: Callable,
  pieces: Iterable[VideoTokens],
  noise_of: Callable[[int, int], jax.Array | None],
  slots_of: Callable[[jax.Array], int | None],
  first_frames: jax.Array | None,
) -> Iterator[jax.Array]:
  """Frames of each chunk; every later chunk is given the last decoded frames of the one before it.

  run(ids, keep, noise, given frames, slots=) -> frames [B, F, H, W, 3]; noise_of(chunk index, batch);
  slots_of(keep) once per piece, so that a video passed whole runs one program.
  """
  i, given = 0, first_frames
  last_keep: Any = None
  for piece in pieces:
    check_tokens(piece, tok.registers, tok.codebook_size)
    if given is not None and given.shape[0] != piece.ids.shape[0]:
      name = "the piece before it" if i else "first_frames"
      raise ValueError(f"the tokens are of {piece.ids.shape[0]} videos and {name} of {given.shape[0]}: pass as many.")
    slots = slots_of(piece.keep)
    new_frames = tok.frames_for(piece.ids.shape[1] + (tok.overlap_steps if i else 0)) - (tok.overlap_frames if i else 0)
    left = new_frames if piece.frames is None else min(new_frames, piece.frames)
    start = 0
    while start < piece.ids.shape[1]:
      repeated = tok.overlap_steps if i else 0
      end = start + tok.chunk_steps - repeated
      ids, keep = piece.ids[:, start:end], piece.keep[:, start:end]
      if repeated:  # the overlap's ids are made again from the decoded frames it stands for
        ids = jnp.concatenate([jnp.zeros_like(ids[:, :repeated]), ids], axis=1)
        keep = jnp.concatenate([last_keep, keep], axis=1)
      frames = run(ids, keep, noise_of(i, ids.shape[0]), given, slots=slots)
      new = frames[:, tok.overlap_frames if i else 0 :][:, :left]
      if tok.overlap_frames:
        given, last_keep = frames[:, -tok.overlap_frames :], keep[:, -tok.overlap_steps :]
      else:
        given = None
      left, start, i = left - new.shape[1], end, i + 1
      if new.shape[1]:
        yield new


def chunk_noise(key: Any, noise, shape_of: Callable[[int], tuple[int, ...]]):
  """(chunk index, batch) -> noise: the caller's array for that chunk, or a draw from fold_in(key, index)."""

  def noise_of(i: int, batch: int) -> jax.Array:
    if noise is None:
      return gaussian(jax.random.fold_in(key, i), shape_of(batch))
    if i >= len(noise):
      raise ValueError(f"noise has {len(noise)} entries, expected one array per chunk.")
    return check_array(noise[i], shape_of(batch), f"noise[{i}]")

  return noise_of


def _join(a, b):
  if a.dtype != b.dtype or a.shape[0] != b.shape[0]:
    raise ValueError(f"pieces differ, {a.dtype} {a.shape} then {b.dtype} {b.shape}: pass one dtype and one batch size.")
  xp = jnp if isinstance(a, jax.Array) or isinstance(b, jax.Array) else np
  return xp.concatenate([a, b], axis=1)
