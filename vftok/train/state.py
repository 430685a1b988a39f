"""What a run carries from step to step: arrays only. Made in place, cut up as the mesh says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vftok.runtime import sharding, target

Tree = Any


@flax.struct.dataclass
class TrainState:
  """Attributes:
  step: int32, steps done.
  params: what is trained. fixed: parameters of the same model that are not (see `config.freeze`).
  opt_state: of optax. ema: running mean of params, or None.
  rng: uint32 key data; the noise of step n comes from fold_in(rng, n), so a resumed run repeats it.
  """

  step: jax.Array
  params: Tree
  fixed: Tree
  opt_state: Tree
  ema: Tree
  rng: jax.Array

  @property
  def model(self) -> Tree:
    """All parameters, the running mean where there is one: what is evaluated and saved."""
    return merge(self.params if self.ema is None else self.ema, self.fixed)


def split(params: Tree, freeze: Sequence[str]) -> tuple[Tree, Tree]:
  """(trained, fixed): paths at or under one of `freeze` ("encoder", "vae/encoder") are fixed.

  Raises:
    ValueError: a prefix that names nothing.
  """
  flat = traverse.flatten_dict(params, sep="/", is_leaf=lambda _, x: not isinstance(x, dict))
  under = lambda key, prefix: key == prefix or key.startswith(prefix + "/")
  for prefix in freeze:
    if not any(under(key, prefix) for key in flat):
      raise ValueError(f"freeze names {prefix!r}, expected a part of the model such as {next(iter(flat))!r}.")
  fixed = {k for k in flat if any(under(k, prefix) for prefix in freeze)}
  part = lambda keep: traverse.unflatten_dict({k: v for k, v in flat.items() if keep(k)}, sep="/")
  return part(lambda k: k not in fixed), part(lambda k: k in fixed)


def merge(trained: Tree, fixed: Tree) -> Tree:
  """Inverse of `split`."""
  if not fixed:
    return trained
  flat = {**traverse.flatten_dict(trained, sep="/"), **traverse.flatten_dict(fixed, sep="/")}
  return traverse.unflatten_dict(flat, sep="/")


def logical_axes(init, freeze: Sequence[str]) -> tuple[Tree, Tree]:
  """(logical axes, shapes) of the trained parameters that `init(key)` makes, without making one."""
  trained, _ = split(jax.eval_shape(init, jax.random.key(0)), freeze)
  return sharding.logical_axes(trained), nn.unbox(trained)


def init_state(
  init, tx: optax.GradientTransformation, mesh: Mesh, *, seed: int, ema: bool, freeze: Sequence[str] = ()
) -> tuple[TrainState, TrainState]:
  """(state, its shardings). `init(key)` gives boxed parameters, which are made where they belong, never whole first.

  The key of the parameters and the key of the noise are both made from `seed`.
  """
  make, key = _maker(init, tx, ema, freeze), jax.random.key(seed)
  shardings = state_shardings(init, tx, mesh, jax.eval_shape(make, key), freeze)
  return target.once(make, out_shardings=shardings)(key), shardings


def planned_state(
  init, tx: optax.GradientTransformation, mesh: Mesh, *, ema: bool, freeze: Sequence[str] = ()
) -> tuple[TrainState, TrainState]:
  """(shapes, dtypes and places of the state that `init_state` makes, its shardings); the mesh need not be at hand."""
  shapes = jax.eval_shape(_maker(init, tx, ema, freeze), jax.random.key(0))
  shardings = state_shardings(init, tx, mesh, shapes, freeze)
  return abstract_state(shapes, shardings), shardings


def _maker(init, tx, ema: bool, freeze: Sequence[str]):
  """key -> TrainState."""

  def make(key) -> TrainState:
    init_key, noise_key = jax.random.split(key)
    trained, fixed = split(nn.unbox(init(init_key)), freeze)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=trained,
      fixed=fixed,
      opt_state=tx.init(trained),
      ema=jax.tree.map(jnp.copy, trained) if ema else None,
      rng=jax.random.key_data(noise_key),
    )

  return make


def state_shardings(init, tx, mesh: Mesh, abstract: TrainState, freeze: Sequence[str]) -> TrainState:
  """Where each array of a state lives; optimizer moments live with their parameters."""
  boxed = split(jax.eval_shape(init, jax.random.key(0)), freeze)
  trained, fixed = (sharding.param_shardings(sharding.logical_axes(b), nn.unbox(b), mesh) for b in boxed)
  whole: Any = sharding.replicated(mesh)
  moments = optax.tree_utils.tree_map_params(
    tx, lambda _, place: place, abstract.opt_state, trained, transform_non_params=lambda _: whole
  )
  return TrainState(
    step=whole,
    params=trained,
    fixed=fixed,
    opt_state=moments,
    ema=None if abstract.ema is None else trained,
    rng=whole,
  )


def abstract_state(state: TrainState, shardings: TrainState) -> TrainState:
  """Shapes, dtypes and places of a state: what a checkpoint is restored onto."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def update_ema(ema: Tree, params: Tree, decay: float, step) -> Tree:
  """Running mean with a short memory at first: decay_n = min(decay, (1 + n) / (10 + n))."""
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda m, p: d * m + (1 - d) * p, ema, params)
