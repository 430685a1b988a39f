"""One update of a model's parameters: what the loop compiles, and what benches and plans look at."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vftok.train import optim
from vftok.train.state import TrainState, merge, update_ema


def train_step(state: TrainState, frozen, batch, *, task, tx, cfg: ConfigDict) -> tuple[TrainState, dict[str, Any]]:
  """One update. Pure; jitted by the loop with the state donated. Metrics are (sum, weight) pairs and scalars."""
  batch = dict(batch)
  slower = batch.pop(optim.SLOWER, None)
  key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  keys_B = jax.random.split(key, batch["_mask"].shape[0])

  def loss(params, batch, keys_B):
    return task.loss(merge(params, state.fixed), frozen, batch, keys_B, state.step)

  grad = jax.value_and_grad(loss, has_aux=True)
  if cfg.accumulate == 1:
    (value, metrics), grads = grad(state.params, batch, keys_B)
  else:
    value, metrics, grads = _accumulated(grad, state.params, batch, keys_B, cfg.accumulate)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  if slower is not None:  # AdamW's updates are linear in the rate
    updates = jax.tree.map(lambda u: u * slower, updates)
  params = optax.apply_updates(state.params, updates)
  ema = None if state.ema is None else update_ema(state.ema, params, cfg.ema, state.step)
  new = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
  return new, {"loss": value, "grad_norm": optax.tree.norm(grads), "parts": metrics}


def _accumulated(grad, params, batch, keys_B, parts: int):
  """Mean over `parts` slices of the batch, one after the other: the memory of one slice, the result of the whole."""
  # Strided slices: each device's own examples are spread over all parts, so nothing moves between devices.
  cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
  batch, keys_B = jax.tree.map(cut, batch), cut(keys_B)

  def add(total, part):
    (value, metrics), grads = grad(params, *part)
    return jax.tree.map(jnp.add, total, (value, metrics, grads)), None

  first = jax.tree.map(lambda x: x[0], (batch, keys_B))
  (value, metrics), grads = jax.eval_shape(grad, params, *first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, metrics, grads))
  (value, metrics, grads), _ = jax.lax.scan(add, zeros, (batch, keys_B))
  return value / parts, metrics, jax.tree.map(lambda g: g / parts, grads)
