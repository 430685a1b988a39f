"""Budgets that are not the same for every moment of a video."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from vftok.budget import spread
from vftok.budget.reward import check_weight
from vftok.budget.router import Router, find
from vftok.budget.scored import Scored
from vftok.runtime.words import brief, is_number, is_whole
from vftok.tokens import Budget, VideoTokens


@dataclasses.dataclass(frozen=True)
class Auto:
  """A budget that a router spreads over time. Exactly one of the first three is given.

  Attributes:
    mean: tokens per time step; the total over a video (in a stream: over a chunk) is its nearest whole number, exactly.
    total: tokens of a whole video, exactly; not for streams.
    preference: w_q in R = w_q Q - (2 - w_q) L, 0..2: more is better and longer. EVATok's default is 1.2.
    router: (router, params) as `Router.load` gives them; or a directory or the name of a shipped router, which is read
      on first use; None: the shipped one for this tokenizer, likewise.
    first: counts that the first time steps of the video must have; they are part of the mean or total. Of models whose
      ids depend on the counts, the first of every clip.
    tries: how many ways to spread a chunk's tokens are decoded and compared by LPIPS; 0: what the router says is done.
  """

  mean: float | None = None
  total: int | None = None
  preference: float | None = None
  router: str | os.PathLike | tuple[Router, Any] | None = dataclasses.field(default=None, repr=False)  # may hold arrays
  first: tuple[int, ...] = ()
  tries: int = 0

  def __post_init__(self):
    given = {name: value for name in ("mean", "total", "preference") if (value := getattr(self, name)) is not None}
    if len(given) != 1:
      raise ValueError(f"a budget got {brief(given or None)}, expected one of mean, total and preference: pass one.")
    if self.mean is not None and not (is_number(self.mean) and self.mean >= 1):
      raise ValueError(f"budget.mean is {brief(self.mean)}, expected tokens per time step, a number of at least 1.")
    if self.total is not None and not (is_whole(self.total) and self.total >= 1):
      raise ValueError(f"budget.total is {brief(self.total)}, expected tokens of a video, a whole number of 1 or more.")
    if self.preference is not None:
      check_weight(self.preference)
    pair = isinstance(self.router, tuple) and len(self.router) == 2 and isinstance(self.router[0], Router)
    if self.router is not None and not pair and not isinstance(self.router, str | os.PathLike):
      raise ValueError(
        f"budget.router is {brief(self.router)}, expected (router, params), a directory or the name of a shipped one."
      )
    if not isinstance(self.first, tuple | list) or not all(is_whole(k) and k >= 1 for k in self.first):
      raise ValueError(f"budget.first is {brief(self.first)}, expected whole numbers of at least 1.")
    if not is_whole(self.tries) or self.tries < 0 or self.tries == 1:
      raise ValueError(
        f"budget.tries is {brief(self.tries)}, expected 0 or at least 2: of one there is nothing to choose."
      )

  def encode_video(self, tok, params, video, fit: str) -> VideoTokens:
    """What `Tokenizer.encode` gives under this budget."""
    return next(spread.encode(tok, params, [video], fit, self, whole=True))

  def encode_stream(self, tok, params, pieces, fit: str) -> Iterator[VideoTokens]:
    """What `Tokenizer.encode_stream` gives under this budget."""
    return spread.encode(tok, params, pieces, fit, self, whole=False)

  def counts(self, tok, params, video) -> np.ndarray:
    """int32 [B, T] of one clip, before it is encoded: of models whose ids depend on it (`vftok.tokens.Chooser`).

    Raises:
      ValueError: no router, or one that does not read such clips or is not of classes over the model's counts.
    """
    router, weights = find(self.router, tok.fingerprint(params))
    frames, cfg = (tok.chunk_frames, *tok.frame_size, 3), router.cfg
    if (cfg.head, cfg.latents, cfg.levels) != ("classes", frames, tok.counts):
      raise ValueError(
        f"the router has head {cfg.head!r}, levels {brief(cfg.levels)} and reads {cfg.latents}, expected 'classes', "
        f"{brief(tok.counts)} and frames {frames}: train one for this model."
      )
    if self.tries:
      raise ValueError(f"budget.tries is {self.tries}, expected 0 with a router of classes: leave it out.")
    return router.keep(router.predict(weights, video), self)

  @classmethod
  def parse(cls, text: str, router: str | None = None, tries: int = 0) -> Budget:
    """Of the command line: "auto:16" is a mean, "auto:total=80" and "auto:preference=1.2" name the others.

    "scored:256" is no `Auto` but AdapTok's own: `Scored(mean=256)`.

    Raises:
      ValueError: it is none of these.
    """
    if text.startswith("scored:"):
      return Scored.parse(text, router, tries)
    name, _, value = text.removeprefix("auto:").rpartition("=")
    try:
      if not text.startswith("auto:") or name not in ("", "mean", "total", "preference"):
        raise ValueError
      number: Any = int(value) if name == "total" else float(value)
    except ValueError:
      sentence = f"the budget is {brief(text)}, expected auto:16, auto:total=80 or auto:preference=1.2."
      raise ValueError(sentence) from None
    return cls(**{name or "mean": number}, router=router, tries=tries)
