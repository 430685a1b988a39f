"""How many tokens each moment gets: `tok.encode(params, video, budget=Auto(mean=8))`.

A router predicts what every time step loses at every number of tokens, once; a small exact program turns that into
counts for any mean, any total or any preference, without another network. Ids never change with the budget. Routers of
classes (EVATok's) know one preference.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.budget import allocate
from vftok.budget.reward import Reward
from vftok.budget.search import all_assignments
from vftok.io import hub, shipped
from vftok.models.config_json import FORMAT_ROUTER, from_json, to_json
from vftok.models.layers import applied, fresh
from vftok.models.router import RouterConfig, net
from vftok.runtime.words import brief, cut
from vftok.tokenizer import programs

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
    from vftok.io.layout import read_leaves
    from vftok.io.leaves import leaves_of

    checkpoint = hub.open_checkpoint(name)
    kind = checkpoint.config.get("format")
    if kind != FORMAT_ROUTER:
      raise ValueError(
        f"{cut(checkpoint.path, 150)} is no router, its format is {brief(kind)}: expected {FORMAT_ROUTER}."
      )
    router = Router(from_json(RouterConfig, checkpoint.config))
    return router, read_leaves(checkpoint, leaves_of(router.cfg, router.init))

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes config.json and model.safetensors, whole or not at all."""
    from vftok.io.layout import save_leaves

    save_leaves(params, to_json(self.cfg), directory)

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters in boxes that carry their logical axis names."""
    return fresh(net(self.cfg), key, jnp.zeros((1, *self.cfg.latents)))

  def predict(self, params: Params, latents_BxTxhxwxC) -> jax.Array:
    """float32 [B, T, m]: what each step loses at each of `cfg.levels`, beside its loss with all tokens.

    Of a router of classes, logits [B, m^T] of a whole chunk.
    """
    shape, most = jnp.shape(latents_BxTxhxwxC), self.cfg.latents[0]
    least = most if self.cfg.head == "classes" else 1
    if len(shape) != 5 or shape[2:] != tuple(self.cfg.latents[1:]) or not least <= shape[1] <= most:
      raise ValueError(f"latents have shape {shape}, expected [B, {least}..{most}, *{self.cfg.latents[1:]}].")
    return _predict(self.cfg, params, latents_BxTxhxwxC)

  def keep(self, predicted, budget) -> np.ndarray:
    """int32 [B, T]: tokens of each step under a budget (`vftok.Auto`), from what `predict` gave.

    Raises:
      ValueError: a budget below one token per step, above all of them, or one that this router does not know.
    """
    predicted = np.asarray(predicted, np.float64)
    if self.cfg.head == "classes":
      return self._likeliest(predicted, budget)
    return np.stack([self._allocated(curve, budget) for curve in predicted])

  def _allocated(self, curve_Txm, budget) -> np.ndarray:
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

  def _likeliest(self, logits_BxA, budget) -> np.ndarray:
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
    out = applied(net(cfg), params, latents)
  return out if cfg.head == "classes" else out * cfg.drop_scale


def find(name: str | os.PathLike | tuple[Router, Params] | None, fingerprint: str) -> tuple[Router, Params]:
  """The router `name`, itself or read, or the shipped one for a tokenizer; it must be of that tokenizer.

  Raises:
    ValueError, FileNotFoundError: none, or one for another tokenizer.
  """
  if name is not None:
    router, params = name if isinstance(name, tuple) else _loaded(os.fspath(name))
    if router.cfg.fingerprint and router.cfg.fingerprint != fingerprint:
      which = "the router" if isinstance(name, tuple) else f"the router {name}"
      raise ValueError(
        f"{which} is for the tokenizer {router.cfg.fingerprint}, this one is {fingerprint}: train one for it."
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
