"""What a tokenizer's loss is made of: a function and a row of OBJECTIVES each, weighted by `config.loss.NAME`.

A weight of 0 leaves an objective out. All give float32 [B], an error of each example, and are added in their order;
what a log calls NAME is the mean error times its weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vftok.models.decoder import draft_of
from vftok.models.heads import cosine_similarity
from vftok.models.layers import patchify


class Made(NamedTuple):
  """What a step has made of a batch.

  Attributes:
    latents: float32 [B, T, h, w, C], T from 1 (images). seen: what frozen nets gave, see `frozen_nets.FrozenNets.see`.
    z, codes: float32 [B, T, K, c], before and after FSQ.
    draws: keep counts, noise, flow times: see `draws.draw`.
    flow_B: the flow's error of each example, where `loss.flow` is on; readout: what the REPA head reads of the decoder.
  """

  latents: jax.Array
  seen: Any
  z: jax.Array
  codes: jax.Array
  draws: dict[str, jax.Array]
  flow_B: jax.Array | None = None
  readout: jax.Array | None = None


def flow(task, params, made: Made) -> jax.Array:
  return made.flow_B


def draft(task, params, made: Made) -> jax.Array:
  cfg = task.tok.cfg.decoder
  guess, _ = draft_of(cfg).apply({"params": params["decoder"]["draft"]}, made.codes, made.draws["keep"])
  return jnp.square(guess - patchify(made.latents, cfg.patch)).mean((1, 2, 3, 4))


def repa(task, params, made: Made) -> jax.Array:
  """One minus the cosine of the decoder's own features and a frozen net's."""
  return 1 - cosine_similarity(made.readout, made.seen.patches).mean((1, 2, 3))


def prefix_latents(task, params, made: Made) -> jax.Array:
  guess = _head(task, params, made, "latents")
  return jnp.square(guess - patchify(made.latents, task.tok.cfg.decoder.patch)).mean((1, 2, 3, 4))


def prefix_features(task, params, made: Made) -> jax.Array:
  return _from_features(task.loss_cfg.features_standard, _head(task, params, made, "features"), made.seen.patches)


def prefix_class(task, params, made: Made) -> jax.Array:
  return _from_features(task.loss_cfg.features_standard, _head(task, params, made, "class"), made.seen.classes)


def usage(task, params, made: Made) -> jax.Array:
  return jnp.broadcast_to(_usage(made.z), (len(made.latents),))


OBJECTIVES: dict[str, Callable[[Any, Any, Made], jax.Array]] = {
  "flow": flow,
  "draft": draft,
  "repa": repa,
  "prefix_latents": prefix_latents,
  "prefix_features": prefix_features,
  "prefix_class": prefix_class,
  "usage": usage,
}


def _head(task, params, made: Made, name: str) -> jax.Array:
  """What a head that sees the kept prefix alone predicts (SemanTok)."""
  variables, grid = {"params": params["heads"][name]}, task.queries(name)
  return task.heads[name].apply(variables, made.codes, made.draws["keep"], grid=grid)


def _from_features(standard: bool, guess, targets) -> jax.Array:
  """float32 [B]: one minus the cosine (SemanTok), or the squared error of standardised channels.

  What all clips share (floor, sky) owns the cosine of raw features; standardised over the batch, what differs counts.
  """
  if not standard:
    return 1 - cosine_similarity(guess, targets).mean((1, 2, 3))
  off = targets - targets.mean((0, 1, 2, 3))
  scaled = off * jax.lax.rsqrt(jnp.square(off).mean((0, 1, 2, 3)) + 1e-6)
  return jnp.square(guess - jnp.clip(scaled, -5, 5)).mean((1, 2, 3, 4))


def _usage(z_BxTxKxc) -> jax.Array:
  """How far each register's features are from mean 0 and variance 1 over the batch: 0 when codes are spread.

  Without it the encoder of a short run gives nearly the same code for every video (its own embedding wins).
  """
  spread = jnp.sqrt(z_BxTxKxc.var(0) + 1e-6)
  return jnp.mean(jnp.square(z_BxTxKxc.mean(0)) + jnp.square(spread - 1))


def per_example(velocity, target, valid_BxL) -> jax.Array:
  """float32 [B]: mean squared error over the latents that were not given clean."""
  error_BxL = jnp.square(velocity.astype(jnp.float32) - target).mean((2, 3, 4))
  return (error_BxL * valid_BxL).sum(1) / jnp.maximum(valid_BxL.sum(1), 1)
