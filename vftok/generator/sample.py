"""From a prompt to video: a generator's tokens painted by a tokenizer's decoder, in one piece or without end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vftok.io.video_writer import to_uint8
from vftok.runtime.words import brief, cut, is_whole
from vftok.tokens import VideoTokens


@dataclasses.dataclass(frozen=True)
class Piece:
  """Some more frames of B videos.

  Attributes:
    video: uint8 [B, f, H, W, 3].
    tokens: what was painted, given steps included.
    made: tokens that were made for it, all videos together; seconds: what making them took.
  """

  video: np.ndarray
  tokens: VideoTokens
  made: int
  seconds: float


def check_pair(gen, tok, tok_params) -> None:
  """Raises ValueError where a generator and a tokenizer do not belong together."""
  if gen.cfg.ar.vocab != tok.codebook_size or gen.cfg.ar.slots > tok.registers:
    raise ValueError(
      f"the generator knows {gen.cfg.ar.vocab} ids and {gen.cfg.ar.slots} slots, the tokenizer has "
      f"{tok.codebook_size} and {tok.registers}: load the tokenizer it was trained with."
    )
  gen.check_tokenizer(tok.fingerprint(tok_params))


def sample(
  gen,
  gen_params,
  tok,
  tok_params,
  key: jax.Array,
  cond: Any = None,
  *,
  frames: int | None = None,
  keep: int | None = None,
  first_frames=None,
  context: int = 5,
  context_keep: int | None = None,
  decode: dict[str, Any] | None = None,
  **options,
) -> Iterator[Piece]:
  """Videos as they are made; with frames=0 they never end. Frames given are part of what is yielded.

  What one sequence of the generator holds is made in one go. Longer videos go on from their own last frames: these
  are encoded again, and their tokens (of each step the first `context_keep`) are given to the next sequence.

  Args:
    cond: as in `Generator.generate`; its rows are the videos.
    frames: 1 + a multiple of 4; None: as many as one sequence holds. 0: no end.
    keep: tokens made per time step; None: all, or as many as the model wants where it says lengths.
    first_frames: [B, 1 + 4j, H, W, 3] or [1, ...], uint8 or float in [-1, 1]; what the videos start with.
      Of a model that goes on from given frames, these: they are made again with the rest of the clip.
    context: frames, 1 + 4j, that a longer video goes on from; context_keep: their tokens per step, None for all.
    decode: options of `Tokenizer.decode`. options: of `Generator.generate`; `mean_length` is for all models that say
      lengths, by `Generator.aimed` without regard to first frames.

  Raises:
    ValueError: a tokenizer that does not belong to the generator, or frames that do not fit.
  """
  check_pair(gen, tok, tok_params)
  most = gen.cfg.steps
  window = tok.frames_for(most)
  total = window if frames is None else frames
  if not is_whole(total):
    raise ValueError(f"frames is {brief(frames)}, expected 1 + a multiple of 4, or 0 for no end.")
  if first_frames is not None and len(np.shape(first_frames)) != 5:
    raise ValueError(f"first_frames have shape {cut(np.shape(first_frames))}, expected [B, 1 + 4j, H, W, 3].")
  shape = () if first_frames is None else np.shape(first_frames)
  if gen.cfg.condition and shape[1:2] != (gen.cfg.condition_frames,):
    raise ValueError(f"first_frames are {cut(shape)}, expected {gen.cfg.condition_frames} frames.")
  at_once = tok.one_pass or tok.chunk_frames == 1  # pictures do not go on
  if at_once and (total != window or (first_frames is not None and not gen.remakes)):
    raise ValueError(f"this tokenizer decodes {window} frames at once: leave out frames and first frames.")
  if not tok.one_pass and total and (total < 1 or total % 4 != 1):
    raise ValueError(f"frames is {brief(frames)}, expected 1 + a multiple of 4, or 0 for no end.")
  for name, count in (("context", context), ("first_frames", 1 if first_frames is None else np.shape(first_frames)[1])):
    if at_once:
      continue  # neither is used
    if not is_whole(count) or count % 4 != 1 or not 0 < count < window:
      raise ValueError(f"{name} has {brief(count)} frames, expected 1 + a multiple of 4 below {window}.")
  mean_length = options.pop("mean_length", None)
  if mean_length is not None:
    cond, options["batch"] = _rows(gen, cond, options.get("batch"), first_frames)
    options |= gen.aimed(gen_params, key, cond, mean_length=mean_length, keep=keep, **options)
  shown, number = 0, 0
  while not total or shown < total:
    left = total - shown + (context if number else 0)
    steps = min(most, _steps(tok, left)) if total else most
    piece, first_frames = _one(
      gen,
      gen_params,
      tok,
      tok_params,
      jax.random.fold_in(key, number),
      cond,
      steps,
      keep,
      first_frames,
      context_keep if number else None,
      decode or {},
      options,
    )
    fresh = piece.video[:, context if number else 0 :]
    fresh = fresh[:, : total - shown] if total else fresh
    yield dataclasses.replace(piece, video=fresh)
    shown, number, first_frames = shown + fresh.shape[1], number + 1, piece.video[:, -context:]


def _steps(tok, frames: int) -> int:
  """Time steps of the fewest whole chunks that hold `frames`."""
  more = max(0, -(-(frames - tok.chunk_frames) // tok.stride))
  return tok.chunk_steps + more * (tok.chunk_steps - tok.overlap_steps)


def _one(
  gen, gen_params, tok, tok_params, key, cond, steps, keep, first_frames, context_keep, decode, options
) -> tuple[Piece, Any]:
  """One sequence of the generator, painted."""
  given, gen_key, paint_key = None, *jax.random.split(key)
  cond, batch = _rows(gen, cond, options.get("batch"), first_frames)
  if first_frames is not None:
    first_frames = np.broadcast_to(first_frames, (batch, *first_frames.shape[1:]))
    given = gen.first_tokens(tok, tok_params, first_frames, context_keep)
    steps += len(gen.cfg.condition)  # they stand before the clip
  began = time.monotonic()
  tokens = gen.generate(gen_params, gen_key, cond, **options | dict(batch=batch, keep=keep, steps=steps, given=given))
  jax.block_until_ready(tokens.ids)
  seconds = time.monotonic() - began
  made = int(tokens.total().sum()) - (0 if given is None or gen.remakes else int(given.total().sum()))
  tokens = tokens.widen(tok.registers)
  shown = None if gen.remakes else first_frames
  video = to_uint8(tok.decode(tok_params, tokens, paint_key, first_frames=shown, **decode))
  return Piece(video, tokens, made, seconds), first_frames


def _rows(gen, cond, batch, first_frames):
  """(checked condition, rows)."""
  from vftok.generator.conditions import condition

  if cond is None and batch is None and first_frames is not None:
    batch = len(first_frames)
  cond = condition(gen.cfg, cond, batch)
  return cond, len(cond.null_BxG)
