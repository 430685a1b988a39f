"""EVATok's tokenizer (arXiv 2603.12267) behind vftok's interface.

tok, params = vftok.load("dir")
tokens = tok.encode(params, video, budget=128)  # or [128, 32, 32, 512], one for each 4 frames
video = tok.decode(params, tokens)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.evatok import counts, programs, reference, vq
from vftok.families.evatok.config import FORMAT, EvatokConfig
from vftok.io import hub
from vftok.io.layout import read_leaves, save_leaves
from vftok.models.config_json import from_json, to_json
from vftok.runtime.words import brief
from vftok.tokenizer import stream
from vftok.tokenizer.checks import check_dtype, check_made, check_video
from vftok.tokenizer.one_pass import OnePass
from vftok.tokenizer.programs import to_float
from vftok.tokens import Chooser, VideoTokens

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EVATok(OnePass):
  """An EVATok tokenizer: its configuration and its functions; it owns no arrays.

  How many tokens a time step of 4 frames gets is decided before encoding and changes them all, so tokens have no
  order: another budget means to encode again.
  """

  cfg: EvatokConfig

  nested = False
  causal = True

  @property
  def registers(self) -> int:
    return self.cfg.slots

  @property
  def levels(self) -> tuple[int, ...]:
    return (self.cfg.codebook_size,)

  @property
  def counts(self) -> tuple[int, ...]:
    """Numbers of tokens per time step that can be asked for, rising."""
    return self.cfg.counts

  @property
  def budgets(self) -> list[int]:
    return list(self.counts)

  @property
  def frame_size(self) -> tuple[int, int]:
    return self.cfg.frame_size

  @property
  def chunk_frames(self) -> int:
    return self.cfg.frames

  @property
  def chunk_steps(self) -> int:
    return self.cfg.steps

  # ---- making and saving

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    params = programs.init(self.cfg, key)
    return params if boxed else nn.unbox(params)

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes vftok's own layout, whole or not at all: config.json and model.safetensors."""
    save_leaves(params, to_json(self.cfg), directory)

  def export(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes tensors by the names that `vftok/families/evatok/reference.py` has, in PyTorch's shapes."""
    reference.export(self.cfg, nn.unbox(params), directory)

  # ---- encoding

  def encode(self, params: Params, video, *, fit: str = "error", budget=None) -> VideoTokens:
    """Tokens of a video of any length: the same video and budget give the same ids, always.

    Args:
      video: [B, F, H, W, 3], uint8 or float in [-1, 1], of the model's frame size.
      fit: "error", or "pad": fill up by the last frame and remember the true count in `tokens.frames`.
      budget: how many tokens the encoder makes of each time step, each one of `counts`: None for the most, an int, [T],
        [B, T], or a `vftok.tokens.Chooser`, which looks at each clip first.

    Raises:
      ValueError: one sentence, where the video does not fit, or the budget has counts that the model does not know.
    """
    video = check_video(video, self.frame_size)
    steps = self.steps_for(video.shape[1] if fit == "error" else self._fitting(video.shape[1])[1])
    if not isinstance(budget, Chooser):
      counts.check_steps(counts.asked(budget, self.counts), video.shape[0], steps)
    tokens = VideoTokens.concat(list(self.encode_stream(params, [video], fit=fit, budget=budget)))
    return check_made(tokens, "the encoder's features of this video")

  def encode_stream(
    self, params: Params, pieces: Iterable, *, fit: str = "error", budget=None
  ) -> Iterator[VideoTokens]:
    """Encodes frames as they come, one VideoTokens per chunk; as `encode`, whose [T] is of all that will come."""
    if fit not in ("error", "pad"):
      raise ValueError(f"fit is {brief(fit)}, expected 'error' or 'pad'.")
    keep = counts.ByChunk(self, params, budget)

    def run(chunk):
      chunk = to_float(chunk)
      return self.ids_of(params, chunk, keep.following(chunk))

    def chunks():
      for tokens in stream.encode_chunks(self, run, pieces, fit):
        yield tokens.replace(keep=keep.last)
      keep.end()

    return chunks()

  def ids_of(self, params: Params, video: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """int32 [B, T, K] of one chunk, float [B, chunk_frames, H, W, 3] in [-1, 1], with `keep` int32 [B, T] tokens per
    step, None for all: 0 where not kept, -1 where z is not finite. Pure.
    """
    full = jnp.full((video.shape[0], self.chunk_steps), self.registers, jnp.int32)
    return programs.encode_chunk(self.cfg, params, jnp.asarray(video), full if keep is None else keep)

  def frames_of(self, params: Params, ids: jax.Array, keep: jax.Array) -> jax.Array:
    counts.check_known(keep, self.counts)
    return programs.decode_chunk(self.cfg, params, ids, keep)

  def codes_of(self, params: Params, ids) -> jax.Array:
    """float32 [B, T, K, c]: the normalised codes of ids [B, T, K]."""
    return vq.codes_of(jnp.asarray(ids), params["quantizer"]["codebook"])

  # ---- who it is

  def decides(self, params: Params) -> tuple[Any, Any]:
    cfg, encoder = self.cfg, dataclasses.asdict(self.cfg.encoder)
    for name in ("dtype", "remat", "scan"):
      del encoder[name]
    plain = [encoder, cfg.frames, cfg.frame_size, cfg.patch, cfg.counts, cfg.codebook_size, cfg.code_dim]
    return [*plain, cfg.neck, cfg.norm_in], {name: params[name] for name in ("encoder", "quantizer")}

  def describe(self, params: Params) -> dict[str, Any]:
    """What `vftok info` shows: also which counts can be asked for."""
    return {**super().describe(params), "counts": list(self.counts)}


def load(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[EVATok, Params]:
  """(tokenizer, params) of a directory, a safetensors file with its config inside, or a Hub id.

  Reads vftok's own layout, and GigaTok's names (see `vftok/families/evatok/reference.py`).

  Args:
    dtype: compute dtype, "float32" (default) or "bfloat16"; norms, softmax and VQ stay float32.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  check_dtype(dtype)
  checkpoint = hub.open_checkpoint(name)
  if checkpoint.config.get("format") == FORMAT:
    cfg = from_json(EvatokConfig, checkpoint.config)
    params = read_leaves(checkpoint, programs.abstract_params(cfg))
  else:
    cfg, params = reference.load(checkpoint, programs.abstract_params)
  return EVATok(cfg if dtype is None else cfg.with_dtype(dtype)), params
