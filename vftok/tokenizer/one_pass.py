"""What tokenizers without a flow share: pixels in, ids, pixels out in one pass, clip after clip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.runtime.words import brief
from vftok.tokenizer import stream
from vftok.tokenizer.checks import check_made, check_options, check_painted, check_tokens, check_video
from vftok.tokenizer.geometry import Geometry
from vftok.tokenizer.identity import sampled
from vftok.tokenizer.programs import to_float
from vftok.tokens import Budget, VideoTokens

FLOW_ONLY = ("steps", "guidance", "solver", "noise", "first_frames", "collapse")


class OnePass(Geometry):
  """Base of such a tokenizer: a frozen dataclass with the sizes of `Geometry` and the three functions below.

  Chunks do not overlap. Letters: B videos, F frames, T time steps of tokens, K tokens of a step.

  Attributes:
    causal: True where ids and frames of a time step follow from that step and those before it, whatever the config.
  """

  one_pass = True
  causal = False
  overlap_frames = 0
  overlap_steps = 0

  # ---- what a family gives

  def ids_of(self, params: Any, video: jax.Array) -> jax.Array:
    """int32 [B, T, K] of one chunk, float [B, chunk_frames, H, W, 3] in [-1, 1]; -1 where z is not finite. Pure."""
    raise NotImplementedError

  def frames_of(self, params: Any, ids: jax.Array, keep: jax.Array) -> jax.Array:
    """Frames float32 [B, chunk_frames, H, W, 3], about [-1, 1] and not clipped, of a chunk's ids [B, T, K]. Pure."""
    raise NotImplementedError

  def codes_of(self, params: Any, ids) -> jax.Array:
    """float32 [B, T, K, c]: the vectors that ids [B, T, K] stand for."""
    raise NotImplementedError

  def decides(self, params: Any) -> tuple[Any, Any]:
    """(plain data, parameters) that decide ids: what the fingerprint is of."""
    raise NotImplementedError

  # ---- encoding

  def encode(self, params: Any, video, *, fit: str = "error", budget=None) -> VideoTokens:
    """Tokens of a video of any length; as `vftok.Tokenizer.encode`."""
    video = check_video(video, self.frame_size)
    if fit == "error":
      self.steps_for(video.shape[1])
    if isinstance(budget, Budget):
      return self._nested(budget).encode_video(self, params, video, fit)
    tokens = VideoTokens.concat(list(self.encode_stream(params, [video], fit=fit)))
    check_made(tokens, "the encoder's features of this video")
    return tokens if budget is None else tokens.truncate(budget)

  def encode_stream(self, params: Any, pieces: Iterable, *, fit: str = "error", budget=None) -> Iterator[VideoTokens]:
    """Encodes frames as they come, one VideoTokens per chunk; as `vftok.Tokenizer.encode_stream`."""
    if fit not in ("error", "pad"):
      raise ValueError(f"fit is {brief(fit)}, expected 'error' or 'pad'.")
    if isinstance(budget, Budget):
      return self._nested(budget).encode_stream(self, params, pieces, fit)
    chunks = stream.encode_chunks(self, lambda chunk: self.ids_of(params, to_float(chunk)), pieces, fit)
    return chunks if budget is None else (tokens.truncate(budget) for tokens in chunks)

  def _nested(self, budget: Budget) -> Budget:
    if not self.nested:
      raise ValueError(f"budget is {brief(budget)}, expected None: this model's tokens have no order to cut them by.")
    return budget

  # ---- decoding

  def decode(self, params: Any, tokens: VideoTokens, key=None, *, clip: bool = True, **sampling) -> jax.Array:
    """Video float32 [B, F, H, W, 3] in [-1, 1]; exactly `tokens.frames` frames. `key` is not needed."""
    check_tokens(tokens, self.registers, self.codebook_size)
    self.frames_for(tokens.ids.shape[1])
    return jnp.concatenate(list(self.decode_stream(params, tokens, key, clip=clip, **sampling)), axis=1)

  def decode_stream(
    self,
    params: Any,
    tokens: VideoTokens | Iterable[VideoTokens],
    key=None,
    *,
    clip: bool = True,
    slots=None,
    **sampling,
  ) -> Iterator[jax.Array]:
    """Like `decode`, chunk by chunk: yields frames [B, f, H, W, 3]. `key` and `slots` change nothing."""
    check_options(sampling, FLOW_ONLY, "decoding")
    for name, value in sampling.items():
      if value is not None:
        raise ValueError(f"{name} is {brief(value)}, expected None: this model decodes in one pass.")
    run = lambda ids, keep, noise, given, slots: self.frames_of(params, ids, keep)
    pieces = [tokens] if isinstance(tokens, VideoTokens) else tokens
    nothing = lambda *of: None
    for frames in stream.decode_chunks(self, run, pieces, nothing, nothing, None):
      check_painted(frames)
      yield jnp.clip(frames, -1.0, 1.0) if clip else frames

  def sampling(self, steps=None, kind: str = "", scale: float = 0.0) -> dict[str, Any]:
    """Options of `decode` that a config asks for: none, whatever it says of a flow."""
    return {}

  # ---- who it is

  def fingerprint(self, params: Any) -> str:
    """16 hex digits of everything that decides ids."""
    config, tensors = self.decides(params)
    digest = hashlib.sha256(json.dumps([type(self).__name__, config], sort_keys=True).encode())
    sampled(digest, nn.unbox(tensors))
    return digest.hexdigest()[:16]

  def describe(self, params: Any) -> dict[str, Any]:
    """What `vftok info` shows: geometry, parameter counts per part, fingerprint."""
    parts = {name: sum(int(np.size(x)) for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    return {
      "frame_size": list(self.frame_size),
      "chunk_frames": self.chunk_frames,
      "steps_per_chunk": self.chunk_steps,
      "tokens_per_step": self.registers,
      "codebook_size": self.codebook_size,
      "nested": self.nested,
      "one_pass": True,
      "parameters": {**parts, "total": sum(parts.values())},
      "dtype": str(jax.tree.leaves(params)[0].dtype),
      "fingerprint": self.fingerprint(params),
    }
