"""Files of weights <-> trees of parameters: our layout by path, others by a table of rules, strict both ways."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import numpy as np

from vftok.io import hub
from vftok.io.int8 import SCALES


@dataclasses.dataclass(frozen=True)
class Rule:
  """Where one torch tensor goes: our leaf, the part of it (layer, branch), and the two transposes."""

  path: tuple[str, ...]
  index: tuple[int | slice, ...]
  to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  to_theirs: Callable[[np.ndarray], np.ndarray]


def _linear_to_ours(a, shape):
  return a.T.reshape(shape)


def _vector_to_ours(a, shape):
  return a.reshape(shape)


def _linear_to_theirs(inputs: int):
  def convert(a):
    return a.reshape(int(np.prod(a.shape[:inputs])), -1).T

  return convert


def _flatten(a):
  return a.reshape(-1)


LINEAR = (_linear_to_ours, _linear_to_theirs(1))


LINEAR_2IN = (_linear_to_ours, _linear_to_theirs(2))


VECTOR = (_vector_to_ours, _flatten)


SAME = (lambda a, shape: a, lambda a: a)


def save_leaves(params, config: dict[str, Any], directory: str | os.PathLike) -> None:
  """Any model in vftok's layout: one tensor per leaf, named by its path. `read_leaves` is the inverse."""
  flat = traverse.flatten_dict(nn.unbox(params), sep="/")
  hub.save_files(directory, {key: np.asarray(value) for key, value in flat.items()}, config)


def read_leaves(checkpoint: hub.Checkpoint, leaves: dict[tuple[str, ...], jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """The tree of a file in vftok's layout, strict in both directions. Tensors may be int8, see `vftok/io/int8.py`."""
  expected = {"/".join(path): leaf.shape for path, leaf in leaves.items()}
  scales = {key + SCALES for key in expected}  # of tensors in int8; `tensors` reads them along
  found = {key: shape for key, shape in checkpoint.shapes.items() if key not in scales}
  hub.report_keys(checkpoint.path, expected.keys() - found.keys(), found.keys() - expected.keys())
  for key, shape in expected.items():
    hub.report_shape(checkpoint.path, key, found[key], shape)
  # device_put, for jnp.asarray compiles a program per shape.
  flat = {key: jax.device_put(_widened(value)) for key, value in checkpoint.tensors(expected)}
  return traverse.unflatten_dict(flat, sep="/")


def _widened(value: np.ndarray) -> np.ndarray:
  """float16 only saves space in files: nothing is computed in it."""
  return value.astype(np.float32) if value.dtype == np.float16 else value


def converted(rules, sources, leaves, dtypes=None) -> dict[str, Any]:
  """Our tree out of another layout's tensors.

  Args:
    rules: their key -> Rule. sources: their key -> (Checkpoint, name in its file). leaves: path -> shape of our leaf.
    dtypes: path -> dtype to read a leaf in; None: as it is stored.

  Raises:
    ValueError: a tensor of another shape than its leaf.
  """
  slots = {key: np.broadcast_to(np.int8(0), leaves[rule.path].shape)[rule.index] for key, rule in rules.items()}
  for key, rule in rules.items():
    file, name = sources[key]
    hub.report_shape(file.path, key, file.shapes[name], rule.to_theirs(slots[key]).shape)
  flat: dict[tuple[str, ...], np.ndarray] = {}
  for file in {id(file): file for file, _ in sources.values()}.values():
    names_here = {name: key for key, (owner, name) in sources.items() if owner is file}
    for name, value in file.tensors(names_here):
      key = names_here[name]
      path, index = rules[key].path, rules[key].index
      if path not in flat:
        flat[path] = np.empty(leaves[path].shape, dtypes[path] if dtypes else value.dtype)
      if not dtypes and flat[path].dtype != value.dtype:  # tensors of mixed precision share a leaf: keep the finer one
        flat[path] = flat[path].astype(np.promote_types(flat[path].dtype, value.dtype))
      flat[path][index] = rules[key].to_ours(value, slots[key].shape)
  return traverse.unflatten_dict({path: jax.device_put(flat.pop(path)) for path in list(flat)})
