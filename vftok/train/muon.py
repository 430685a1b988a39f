"""Muon: orthogonalised momentum for hidden matrices (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982), by optax.

Hidden matrices go from one width of the model to another: qkv, projections, MLPs, adaLN of every layer, each by itself,
q, k and v too. What reads inputs, writes outputs or is no matrix has Adam's update, and so has a part in turns
(`optim.every`). Nesterov's momentum is Adam's own first moment, so the optimizer's state, and with it every checkpoint
and sharding, is Adam's.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from vftok.runtime.sharding import is_names

WIDTHS = ("embed", "heads", "mlp")  # logical axes that grow with the model
_INNER = (*WIDTHS, "head_dim", "embed_out")


def matrix_of(names: tuple[str | None, ...]) -> MuonDimensionNumbers | None:
  """Which axes of a parameter are the input and the output of a hidden matrix, the others count matrices; or None."""
  named = [(i, name) for i, name in enumerate(names) if name not in (None, "layers")]
  split = 2 if [name for _, name in named[:2]] == ["heads", "head_dim"] else 1
  if len(named) <= split or any(name not in _INNER for _, name in named):
    return None
  places = [i for i, _ in named]
  return MuonDimensionNumbers(tuple(places[:split]), tuple(places[split:]))


def of_hidden_matrices(
  adam: optax.GradientTransformation, rms: float, b1: float, axes: Any, turns: Any
) -> optax.GradientTransformation:
  """`adam`, but hidden matrices take steps along their orthogonalised momentum.

  Args:
    rms: root mean square of such a step, in units of the learning rate. An Adam step's is 0.2 to 0.4.
    b1: of Adam's first moment.
    axes: logical axes of every parameter. turns: of every parameter, 1 where it is updated at every step.
  """
  matrices = [matrix_of(names) for names in jax.tree.leaves(axes, is_leaf=is_names)]
  every = jax.tree.leaves(turns)
  found = {i: dim for i, (dim, n) in enumerate(zip(matrices, every, strict=True)) if dim is not None and n == 1}
  hidden, dims = list(found), list(found.values())
  orthogonal = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=dims)

  def update(grads, state, params=None):
    steps, new = adam.update(grads, state, params)
    steps, tree = jax.tree.flatten(steps)
    grads, means = jax.tree.leaves(grads), jax.tree.leaves(new.mu)
    ahead = [b1 * means[i].astype(jnp.float32) + (1 - b1) * grads[i] for i in hidden]
    ways, _ = orthogonal.update(ahead, orthogonal.init(ahead))
    for i, step, dim in zip(hidden, ways, dims, strict=True):
      sides = (math.prod(step.shape[axis] for axis in side) for side in dim)
      steps[i] = rms * math.sqrt(max(sides)) * step
    return jax.tree.unflatten(tree, steps), new

  return optax.GradientTransformation(adam.init, update)
