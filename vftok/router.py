"""How many tokens each moment gets: `tok.encode(params, video, budget=Auto(mean=8))`.

A router predicts what every time step loses at every number of tokens, once; a small exact program turns that into
counts for any mean, any total or any preference, without another network. Ids never change with the budget.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from vftok import allocate, hub, programs, shipped, stream
from vftok.budget import Auto
from vftok.config import FORMAT_ROUTER, router_from_json, router_to_json
from vftok.models.router import RouterConfig, RouterNet
from vftok.reward import Reward
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
    from vftok.convert.load import read_leaves

    checkpoint = hub.open_checkpoint(name)
    kind = checkpoint.config.get("format")
    if kind != FORMAT_ROUTER:
      raise ValueError(f"{checkpoint.path} is no router, its format is {kind!r}: expected {FORMAT_ROUTER}.")
    router = Router(router_from_json(checkpoint.config))
    shapes = traverse.flatten_dict(nn.unbox(jax.eval_shape(router.init, jax.random.key(0))))
    return router, read_leaves(checkpoint, shapes)

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, whole or not at all."""
    from vftok.convert.load import save_leaves

    save_leaves(params, router_to_json(self.cfg), directory)

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters in boxes that carry their logical axis names."""
    return RouterNet(self.cfg).init(key, jnp.zeros((1, *self.cfg.latents)))["params"]

  def curves(self, params: Params, latents_BxTxhxwxC) -> jax.Array:
    """float32 [B, T, m]: what each step loses at each of `cfg.levels`, beside its loss with all tokens."""
    shape = jnp.shape(latents_BxTxhxwxC)
    if len(shape) != 5 or shape[2:] != tuple(self.cfg.latents[1:]) or not 0 < shape[1] <= self.cfg.latents[0]:
      raise ValueError(f"latents have shape {shape}, expected [B, 1..{self.cfg.latents[0]}, *{self.cfg.latents[1:]}].")
    return _curves(self.cfg, params, latents_BxTxhxwxC)

  def keep(self, curves_BxTxm, budget: Auto) -> np.ndarray:
    """int32 [B, T]: tokens of each step under a budget.

    Raises:
      ValueError: a budget below one token per step, or above all of them.
    """
    out = []
    for curve in np.asarray(curves_BxTxm, np.float64):
      losses = allocate.at_every_count(curve, self.cfg.levels)
      if budget.preference is not None:
        out.append(allocate.for_preference(losses, self.reward(), budget.preference))
        continue
      out.append(allocate.for_total(losses, budget.total if budget.mean is None else round(budget.mean * len(losses))))
    return np.stack(out)

  def reward(self) -> Reward:
    """What preferences are weighed by. A longer video is weighed chunk by chunk, so that a stream gets what it gets."""
    cfg = self.cfg
    return Reward.of_router(cfg.levels, cfg.steps, loss_mean=cfg.loss_mean, loss_std=cfg.loss_std)


@functools.partial(jax.jit, static_argnums=0)
def _curves(cfg: RouterConfig, params, latents):
  return RouterNet(cfg).apply({"params": params}, latents) * cfg.drop_scale


def encode(tok, params, pieces, fit: str, budget: Auto, *, whole: bool) -> Iterator[VideoTokens]:
  """One VideoTokens per chunk, with the budget's counts; `whole` spreads it over all chunks, and waits for them."""
  if budget.total is not None and not whole:
    raise ValueError("budget.total is of a whole video, expected mean or preference where frames come as a stream.")
  router, weights = find(budget.router, tok.fingerprint(params))
  routed = encode_with_curves(tok, params, pieces, fit, router, weights)
  if whole:
    chunks, curves = zip(*routed, strict=True)
    yield VideoTokens.concat(chunks).truncate(router.keep(np.concatenate(curves, axis=1), budget))
    return
  for tokens, curves in routed:
    yield tokens.truncate(router.keep(curves, budget))


def encode_with_curves(
  tok, params, pieces, fit: str, router: Router, weights
) -> Iterator[tuple[VideoTokens, jax.Array]]:
  """(all tokens, curves [B, T, m]) of each chunk."""
  curves = None

  def run(chunk):
    nonlocal curves
    latents = programs.vae_encode(tok.cfg, params, chunk)[0]
    predicted = router.curves(weights, latents)
    curves = predicted if curves is None else predicted[:, tok.overlap_steps :]
    return programs.encode_latents(tok.cfg, params, latents, chunk, tok.dino)

  for tokens in stream.encode_chunks(tok, run, pieces, fit):
    yield tokens, curves


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
