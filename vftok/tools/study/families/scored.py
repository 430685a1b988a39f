"""A tokenizer as the study scores it: by the same first frames, whatever its own clips are."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vftok.tasks.high_noise import HighNoise
from vftok.tokens import VideoTokens


@dataclasses.dataclass(frozen=True)
class Scored:
  """`tok` for clips of `frames` frames, at most a chunk: encoding repeats the last one, decoding leaves the rest out.

  What it does not do itself is the tokenizer's own.
  """

  tok: Any
  frames: int

  def __getattr__(self, name: str) -> Any:
    return getattr(self.tok, name)

  def steps_for(self, frames: int) -> int:
    return self.tok.chunk_steps if frames == self.frames else self.tok.steps_for(frames)

  def encode(self, params, video, *, budget=None) -> VideoTokens:
    return self.tok.encode(params, video, fit="pad", budget=budget)

  def decode(self, params, tokens: VideoTokens, key=None, **options) -> jax.Array:
    return self.tok.decode(params, tokens, key, **options)[:, : self.frames]

  def encode_latents(self, params, video) -> jax.Array:
    return self.tok.encode_latents(params, _filled(video, self.tok.chunk_frames))

  def decode_pixels(self, params, latents) -> jax.Array:
    return self.tok.decode_pixels(params, latents)[:, : self.frames]


def high_noise(tok: Scored, params, batches) -> dict[str, float]:
  """A flow decoder's errors where only tokens can tell, see `HighNoise`: {"high/null", "high/k1", ...}."""
  watch = HighNoise(tok, params)
  clips = ({**batch, "video": _filled(batch["video"], tok.chunk_frames)} for batch in batches)
  for _ in watch.watch(clips):
    pass
  return watch.scalars()


def _filled(video, frames: int):
  video = np.asarray(video)
  return np.concatenate([video, np.repeat(video[:, -1:], frames - video.shape[1], axis=1)], axis=1)


def cost(tok, params, video, options: dict) -> dict[str, float]:
  """{"encode_seconds", "decode_seconds"} of clips [B, F, H, W, 3] at all tokens: the median of five calls, each clip's
  share, after the first call, which compiles.
  """
  tokens = tok.encode(params, video)
  runs = {
    "encode_seconds": lambda: tok.encode(params, video).ids,
    "decode_seconds": lambda: tok.decode(params, tokens, jax.random.key(0), **options),
  }
  return {name: _seconds(run) / len(video) for name, run in runs.items()}


def _seconds(call: Callable[[], Any]) -> float:
  jax.block_until_ready(call())
  seen = []
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready(call())
    seen.append(time.perf_counter() - began)
  return float(np.median(seen))
