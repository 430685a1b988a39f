"""AdapTok's budget: counts per block of time from its own scorer, by the exact allocator (AdapTok section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from vftok.budget import allocate
from vftok.families.query.tokenizer import AdapTok
from vftok.runtime.words import brief, is_number
from vftok.tokenizer import stream
from vftok.tokenizer.checks import check_made
from vftok.tokenizer.programs import to_float
from vftok.tokens import VideoTokens


@dataclasses.dataclass(frozen=True)
class Scored:
  """A budget of `mean` tokens per block of time, met by every chunk of every video as nearly as the scorer's steps do.

  Blocks are decided in the order of time. Each time the scorer sees the counts chosen so far and all tokens of what
  follows, and what is left is spread over the rest so that the sum of predicted losses is least. Unlike in the
  reference, a clip's counts depend on no other clip of the batch.
  """

  mean: float

  def __post_init__(self):
    if not is_number(self.mean) or self.mean <= 0:
      raise ValueError(f"budget.mean is {brief(self.mean)}, expected tokens per block of time, a number above 0.")

  @classmethod
  def parse(cls, text: str, router: str | None = None, tries: int = 0) -> Scored:
    """Of the command line: "scored:256" is a mean.

    Raises:
      ValueError: another text, or options of `vftok.Auto` beside it.
    """
    if router is not None or tries:
      raise ValueError(f"the budget is {brief(text)} with --router or --tries, expected neither: its scorer decides.")
    try:
      return cls(float(text.removeprefix("scored:")))
    except ValueError:
      raise ValueError(f"the budget is {brief(text)}, expected tokens per block of time such as scored:256.") from None

  def encode_video(self, tok: AdapTok, params: Any, video: Any, fit: str) -> VideoTokens:
    """What `AdapTok.encode` gives under this budget."""
    tokens = VideoTokens.concat(list(self.encode_stream(tok, params, [video], fit)))
    return check_made(tokens, "the encoder's features of this video")

  def encode_stream(self, tok: AdapTok, params: Any, pieces: Any, fit: str) -> Iterator[VideoTokens]:
    """What `AdapTok.encode_stream` gives under this budget."""
    if not isinstance(tok, AdapTok) or not tok.score_counts:
      raise ValueError(
        f"budget is {brief(self)}, expected of an AdapTok model with a scorer: use vftok.Auto, or counts."
      )
    step, most = tok.cfg.scorer_step, tok.registers
    if not step <= self.mean <= most:
      raise ValueError(f"budget.mean is {brief(self.mean)}, expected {step} to {most} tokens per block of time.")
    return self._chunks(tok, params, pieces, fit)

  def _chunks(self, tok: AdapTok, params: Any, pieces: Any, fit: str) -> Iterator[VideoTokens]:
    seen = []

    def run(chunk):
      ids, features = tok.ids_and_features(params, to_float(chunk))
      seen.append((ids, features))
      return ids

    for tokens in stream.encode_chunks(tok, run, pieces, fit):
      ids, features = seen.pop()
      yield tokens.truncate(counts(tok, params, ids, features, self.mean))


def counts(tok: AdapTok, params: Any, ids, features, mean: float) -> np.ndarray:
  """Tokens per block int32 [B, T] of one chunk's ids [B, T, K] and encoder outputs."""
  step, (b, t, k) = tok.cfg.scorer_step, ids.shape
  keep = np.full((b, t), k, np.int32)
  left = np.full(b, min(max(round(mean * t / step), t), t * (k // step)))
  for block in range(t):
    losses = np.asarray(tok.scores_of(params, ids, features, keep))
    for row in range(b):
      chosen = allocate.for_total(losses[row, block:], int(left[row]))[0]
      keep[row, block], left[row] = chosen * step, left[row] - chosen
  return keep
