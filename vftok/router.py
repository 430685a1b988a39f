"""How many tokens each moment gets: `tok.encode(params, video, budget=Auto(mean=8))`.

A router predicts what every time step loses at every number of tokens, once; a small exact program turns that into
counts for any mean, any total or any preference, without another network. Ids never change with the budget. Routers of
classes (EVATok's) know one preference.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vftok import allocate, hub, programs, shipped, stream, trial
from vftok.budget import Auto
from vftok.checks import check_made
from vftok.config import FORMAT_ROUTER, router_from_json, router_to_json
from vftok.models.router import RouterConfig, net
from vftok.reward import Reward
from vftok.search import all_assignments
from vftok.types import VideoTokens

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Router:
  """A router's configuration and its functions; it owns no arrays."""

  cfg: RouterConfig

  @staticmethod
  def load(name: str | os.PathLike) -> tuple[Router, Params]:
    """(router, params) of a directory, a shipped name, or a Hub id.

    Raises:
      FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
    """
    from vftok.convert.leaves import leaves_of
    from vftok.convert.load import read_leaves

    checkpoint = hub.open_checkpoint(name)
    kind = checkpoint.config.get("format")
    if kind != FORMAT_ROUTER:
      raise ValueError(f"{checkpoint.path} is no router, its format is {kind!r}: expected {FORMAT_ROUTER}.")
    router = Router(router_from_json(checkpoint.config))
    return router, read_leaves(checkpoint, leaves_of(router.cfg, router.init))

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, whole or not at all."""
    from vftok.convert.load import save_leaves

    save_leaves(params, router_to_json(self.cfg), directory)

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters in boxes that carry their logical axis names."""
    return net(self.cfg).init(key, jnp.zeros((1, *self.cfg.latents)))["params"]

  def predict(self, params: Params, latents_BxTxhxwxC) -> jax.Array:
    """float32 [B, T, m]: what each step loses at each of `cfg.levels`, beside its loss with all tokens.

    Of a router of classes, logits [B, m^T] of a whole chunk.
    """
    shape, most = jnp.shape(latents_BxTxhxwxC), self.cfg.latents[0]
    least = most if self.cfg.head == "classes" else 1
    if len(shape) != 5 or shape[2:] != tuple(self.cfg.latents[1:]) or not least <= shape[1] <= most:
      raise ValueError(f"latents have shape {shape}, expected [B, {least}..{most}, *{self.cfg.latents[1:]}].")
    return _predict(self.cfg, params, latents_BxTxhxwxC)

  def keep(self, predicted, budget: Auto) -> np.ndarray:
    """int32 [B, T]: tokens of each step under a budget, from what `predict` gave.

    Raises:
      ValueError: a budget below one token per step, above all of them, or one that this router does not know.
    """
    predicted = np.asarray(predicted, np.float64)
    if self.cfg.head == "classes":
      return self._likeliest(predicted, budget)
    return np.stack([self._allocated(curve, budget) for curve in predicted])

  def _allocated(self, curve_Txm, budget: Auto) -> np.ndarray:
    losses, first = allocate.at_every_count(curve_Txm, self.cfg.levels), np.array(budget.first, np.int32)
    steps, most = losses.shape
    if len(first) > steps or (first > most).any():
      raise ValueError(f"budget.first is {budget.first}, expected at most {steps} counts of 1..{most}.")
    rest = losses[len(first) :]
    if budget.preference is not None:
      return np.concatenate([first, self._preferred(rest, first, budget.preference)])
    total = budget.total if budget.mean is None else round(budget.mean * steps)
    if not len(rest):
      raise ValueError(f"budget.first is {budget.first}, expected counts of fewer than all {steps} steps.")
    return np.concatenate([first, allocate.for_total(rest, total - int(first.sum()))])

  def _preferred(self, losses_TxK, first, weight: float) -> np.ndarray:
    if not self.cfg.size or not len(losses_TxK):
      return allocate.for_preference(losses_TxK, self.reward(), weight)
    totals = np.arange(losses_TxK.size + 1) + int(first.sum())
    mean = np.maximum(totals / (len(losses_TxK) + len(first)), 1)
    size = np.interp(np.log2(mean), np.log2(self.cfg.levels), self.cfg.size)
    return allocate.for_preference(losses_TxK, self.reward(), weight, size)

  def _likeliest(self, logits_BxA, budget: Auto) -> np.ndarray:
    if budget.preference is None or abs(budget.preference - self.cfg.preference) > 1e-6:
      raise ValueError(
        f"the budget is {budget}, this router of classes knows preference={self.cfg.preference:g} only: pass that, or "
        "take a router of curves."
      )
    keep_AxT, first = all_assignments(self.cfg.levels, self.cfg.steps), list(budget.first)
    allowed = (keep_AxT[:, : len(first)] == first).all(1) if first else np.ones(len(keep_AxT), bool)
    if not allowed.any():
      raise ValueError(f"budget.first is {budget.first}, expected counts among the router's levels {self.cfg.levels}.")
    return keep_AxT[np.where(allowed, logits_BxA, -np.inf).argmax(1)]

  def reward(self) -> Reward:
    """What preferences are weighed by. A longer video is weighed chunk by chunk, so that a stream gets what it gets."""
    cfg = self.cfg
    return Reward.of_router(cfg.levels, cfg.steps, loss_mean=cfg.loss_mean, loss_std=cfg.loss_std)


@functools.partial(jax.jit, static_argnums=0)
def _predict(cfg: RouterConfig, params, latents):
  with programs.exact("float32"):
    out = net(cfg).apply({"params": params}, latents)
  return out if cfg.head == "classes" else out * cfg.drop_scale


def encode(tok, params, pieces, fit: str, budget: Auto, *, whole: bool) -> Iterator[VideoTokens]:
  """One VideoTokens per chunk, with the budget's counts; `whole` spreads it over all chunks, and waits for them."""
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
  known = ()

  def run(video):
    nonlocal known
    latents = programs.vae_encode(tok.cfg, params, video)[0]
    ids = programs.encode_latents(tok.cfg, params, latents, video, tok.dino)
    known = video, ids, np.asarray(router.predict(weights, latents))
    return ids

  for tokens in stream.encode_chunks(tok, run, pieces, fit):
    yield Chunk(check_made(tokens, "the encoder's features of this video"), *known)


def find(name: str | os.PathLike | None, fingerprint: str) -> tuple[Router, Params]:
  """The router `name`, or the shipped one for a tokenizer; it must be of that tokenizer.

  Raises:
    ValueError, FileNotFoundError: none, or one for another tokenizer.
  """
  if name is not None:
    router, params = _loaded(os.fspath(name))
    if router.cfg.fingerprint and router.cfg.fingerprint != fingerprint:
      raise ValueError(
        f"the router {name} is for the tokenizer {router.cfg.fingerprint}, this one is {fingerprint}: train one for it."
      )
    return router, params
  for known in shipped.names():
    config = hub.open_checkpoint(known).config
    if config.get("format") == FORMAT_ROUTER and config.get("fingerprint") == fingerprint:
      return _loaded(known)
  raise ValueError(
    f"no router that comes with vftok is for the tokenizer {fingerprint}: train one (configs/router.py), and pass it "
    "as Auto(router=...)."
  )


@functools.lru_cache(maxsize=8)
def _loaded(name: str) -> tuple[Router, Params]:
  return Router.load(name)
