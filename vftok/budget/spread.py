"""Tokens of a video whose counts a router spreads over time: what `vftok.Auto` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vftok.budget import trial
from vftok.budget.router import Router, find
from vftok.tokenizer import programs, stream
from vftok.tokenizer.checks import check_made
from vftok.tokens import VideoTokens


def encode(tok, params, pieces, fit: str, budget, *, whole: bool) -> Iterator[VideoTokens]:
  """One VideoTokens per chunk, with the counts of an `Auto`; `whole` spreads it over all chunks, and waits for them."""
  if tok.one_pass:
    raise ValueError("budget is spread by a router of a VAE's latents, which this model lacks, expected counts.")
  if budget.total is not None and not whole:
    raise ValueError("budget.total is of a whole video, expected mean or preference where frames come as a stream.")
  router, weights = find(budget.router, tok.fingerprint(params))
  if budget.tries and router.cfg.head == "classes":
    raise ValueError(f"budget.tries is {budget.tries}, expected 0 with a router of classes: take one of curves.")
  routed = _predicted(tok, params, pieces, fit, router, weights)
  overlap, later = tok.overlap_steps, dataclasses.replace(budget, first=())

  def kept(i: int, predicted) -> np.ndarray:
    """Counts of chunk i by itself, without the steps that it shares with the one before."""
    shared, asked = (overlap, later) if i else (0, budget)
    if router.cfg.head == "classes":
      return router.keep(predicted, asked)[:, shared:]
    return router.keep(predicted[:, shared:], asked)

  def tried(i: int, chunk: Chunk, keep, before) -> np.ndarray:
    """The same, spread by trial; a later chunk is decoded with the counts `before` of the steps that it shares."""
    first = overlap if i else len(budget.first)
    if not budget.tries or first == tok.chunk_steps:
      return keep
    fixed = np.concatenate([before[:, -overlap:], keep], 1) if i and overlap else keep
    how = (chunk.video, chunk.ids, chunk.predicted, router.cfg.levels, fixed, first, budget.tries)
    return trial.best(tok, params, *how)[:, overlap if i else 0 :]

  if not whole:
    before = None
    for i, chunk in enumerate(routed):
      before = tried(i, chunk, kept(i, chunk.predicted), before)
      yield chunk.tokens.truncate(before)
    return
  chunks = [chunk if budget.tries else chunk._replace(video=None) for chunk in routed]
  if router.cfg.head == "classes" or budget.preference is not None:  # weighed chunk by chunk, as a stream is
    keep = [kept(i, chunk.predicted) for i, chunk in enumerate(chunks)]
  else:
    new = [chunk.predicted[:, overlap if i else 0 :] for i, chunk in enumerate(chunks)]
    ends = np.cumsum([part.shape[1] for part in new])[:-1]
    keep = np.split(router.keep(np.concatenate(new, axis=1), budget), ends, axis=1)
  for i, chunk in enumerate(chunks):
    keep[i] = tried(i, chunk, keep[i], keep[i - 1])
  yield VideoTokens.concat([chunk.tokens for chunk in chunks]).truncate(np.concatenate(keep, axis=1))


def encode_with_curves(
  tok, params, pieces, fit: str, router: Router, weights
) -> Iterator[tuple[VideoTokens, np.ndarray]]:
  """(all tokens, curves [B, T, m] of their steps) of each chunk. Raises ValueError for a router of classes."""
  if router.cfg.head != "curves":
    raise ValueError(f"the router's head is {router.cfg.head!r}, expected 'curves': classes fit one preference only.")
  for i, chunk in enumerate(_predicted(tok, params, pieces, fit, router, weights)):
    yield chunk.tokens, chunk.predicted[:, tok.overlap_steps if i else 0 :]


class Chunk(NamedTuple):
  """What is known of a chunk: its new tokens, all of them; its frames, ids and what a router says, shared steps too."""

  tokens: VideoTokens
  video: Any
  ids: Any
  predicted: np.ndarray


def _predicted(tok, params, pieces, fit, router, weights) -> Iterator[Chunk]:
  known: Any = None

  def run(video):
    nonlocal known
    latents = programs.vae_encode(tok.cfg, params, video)[0]
    ids = programs.encode_latents(tok.cfg, params, latents, video, tok.dino)
    known = video, ids, np.asarray(router.predict(weights, latents))
    return ids

  for tokens in stream.encode_chunks(tok, run, pieces, fit):
    yield Chunk(check_made(tokens, "the encoder's features of this video"), *known)
