"""LARP's released generators behind the interface of `vftok.Generator`: a class or first frames -> a whole clip."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from vftok.families.query.larp_ar import LarpGenerator, load_larp_ar
from vftok.generator.api import Generator, Params
from vftok.generator.request import Adaptive, Fixed, request
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.runtime.words import brief
from vftok.tokenizer.checks import check_video
from vftok.tokens import VideoTokens

PUBLISHED_GUIDANCE = 1.25  # LARP section 6
OFF = {"top_k": 0, "top_p": 1}


@dataclasses.dataclass(frozen=True)
class Larp(Generator):
  """A LARP generator's configuration and its functions; it owns no arrays.

  A clip is one time step of L tokens without an order, so it is made whole: no budgets, no lengths, no editing, and
  nothing else between the likeliest ids and a draw at a temperature. `net` is the model itself; `cfg` says of it what
  requests are checked against.
  """

  net: LarpGenerator = dataclasses.field(kw_only=True)

  @classmethod
  def of(cls, net: LarpGenerator) -> Larp:
    cfg, frames = net.cfg, net.cfg.frame_prediction
    ar = ARConfig(
      vocab=cfg.vocab_size,
      steps=1,
      slots=cfg.max_seq_len,
      depth=cfg.n_layer,
      width=cfg.dim,
      head_dim=cfg.head_dim,
      n_classes=0 if frames else cfg.num_classes,
      positions="flat",
      dtype=cfg.dtype,
    )
    guidance = ((cfg.max_seq_len, 1.0 if frames else PUBLISHED_GUIDANCE),)
    return cls(GeneratorConfig(ar, guidance=guidance, nested=False), net=net)

  @property
  def remakes(self) -> bool:
    return self.net.cfg.frame_prediction

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the released layout, whole or not at all: config.json and model.safetensors."""
    self.net.save(params, directory)

  export = save

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    return self.net.init(key, boxed=boxed)

  # ---- likelihood and sampling

  def logits(self, params: Params, ids, cond=None, *, given=None, guidance: float = 1.0) -> jax.Array:
    """float32 [B, l, V] of clips' first ids int [B, l]: position i given the condition and the ids before it.

    Args:
      cond: None or {"label": ...}, of class-to-video models. given: tokens of given frames, of frame prediction.
      guidance: s in u + s (c - u), applied above 1.
    """
    asked = request(self.cfg, cond, batch=len(ids) if cond is None else None)
    return self.net.logits(params, ids, **self._of(asked, given), guidance=guidance)

  def generate(self, params: Params, key: jax.Array | None = None, cond=None, *, given=None, **options) -> VideoTokens:
    """Tokens of whole clips, ids int32 [B, 1, L] without an order; see `Generator.generate`.

    Args:
      key: not needed at temperature 0. cond, batch, guidance, temperature: as there; guidance is that of a class, by
        default the published one, applied above 1. given: tokens of given frames as `first_tokens` makes them, of
        frame prediction, which makes the whole clip again.

    Raises:
      ValueError: a text, a class of frame prediction, frames of class-to-video, or options that cut or edit tokens.
    """
    if given is not None and cond is None:
      options.setdefault("batch", len(given.ids if isinstance(given, VideoTokens) else given))
    asked = request(self.cfg, cond, **options)
    for name, off in OFF.items():
      if options.get(name) not in (None, off):
        raise ValueError(f"{name} is {brief(options[name])}, expected {off}: LARP's generators draw from all codes.")
    if options.get("forced") is not None:
      raise ValueError("forced is given, expected None: LARP's generators make whole clips.")
    scale, temperature = float(asked.plan.guidance_B[0]), float(asked.plan.temperature)
    return self.net.generate(params, key, **self._of(asked, given), guidance=scale, temperature=temperature)

  def stream(self, params: Params, key: jax.Array, cond=None, *, every: int = 0, **options) -> Iterator[VideoTokens]:
    """The whole clip at once: its tokens have no coarse ones to show first."""
    if every != 0:
      raise ValueError(f"every is {brief(every)}, expected 0: these tokens show nothing before all are there.")
    yield self.generate(params, key, cond, **options)

  def first_tokens(self, tok, tok_params, frames, keep: int | None = None) -> VideoTokens:
    """Tokens of a clip that starts with `frames` [B, f, H, W, 3] and then holds the last of them (LARP section 6)."""
    if not self.remakes:
      raise ValueError("this generator makes clips of a class and goes on from no frames: leave first frames out.")
    frames, most = np.asarray(check_video(frames, tok.frame_size, "first_frames")), tok.chunk_frames
    if not 0 < frames.shape[1] < most:
      raise ValueError(f"first_frames has {frames.shape[1]} frames, expected 1..{most - 1} of the clip's {most}.")
    return tok.encode(tok_params, np.pad(frames, ((0, 0), (0, most - frames.shape[1]), *((0, 0),) * 3), mode="edge"))

  def _of(self, asked: Fixed | Adaptive, given) -> dict[str, Any]:
    """The condition as the model takes it."""
    if self.net.cfg.frame_prediction:
      if given is None:
        raise ValueError("this generator predicts frames, expected some to go on from: give it first frames.")
      return {"given": given}
    if given is not None:
      raise ValueError("this generator makes clips of a class and goes on from no frames: leave first frames out.")
    label = asked.cond.label_BxG
    return {"labels": np.full(len(asked.cond.null_BxG), -1) if label is None else label[:, 0]}


def load(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[Larp, Params]:
  """(generator, params) of LARP's released class-to-video and frame prediction models.

  Args:
    dtype: compute dtype, "float32" (default) or "bfloat16".

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  net, params = load_larp_ar(name, dtype=dtype)
  return Larp.of(net), params
