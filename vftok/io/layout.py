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


# Pairs of transposes. A linear layer is theirs [out, in], ours [in, out], and each may be more axes of ours.
SAME = (lambda a, shape: a, lambda a: a)
VECTOR = (lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1))
LEADING = (VECTOR[0], lambda a: a[None])  # theirs has one axis of 1 more, in front
LINEAR = (lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(a.shape[0], -1).T)
LINEAR_2IN = (LINEAR[0], lambda a: a.reshape(a.shape[0] * a.shape[1], -1).T)


def convolution(window: tuple[int, ...]):
  """A convolution of patches: theirs [out, in, *window], ours [prod(window) in, out], channel fastest."""
  n = len(window)
  to_ours = lambda a, shape: a.transpose(*range(2, n + 2), 1, 0).reshape(shape)
  return to_ours, lambda a: a.reshape(*window, -1, a.shape[-1]).transpose(n + 1, n, *range(n))


class Rules(dict[str, Rule]):
  """Name of their tensor -> Rule. `index` is the part of our leaf, such as the layer where it holds all layers."""

  def add(self, key: str, path: tuple[str, ...], how=SAME, index=()) -> None:
    self[key] = Rule(tuple(path), tuple(index), *how)

  def linear(self, key: str, path, index=(), *, how=LINEAR, bias: bool = True) -> None:
    """`key`.weight and .bias of ours "kernel" and "bias" at `path`."""
    self.add(f"{key}.weight", (*path, "kernel"), how, index)
    if bias:
      self.add(f"{key}.bias", (*path, "bias"), VECTOR, index)

  def norm(self, key: str, path, index=(), *, bias: bool = True) -> None:
    """`key`.weight and .bias of ours "scale" and "bias" at `path`."""
    self.add(f"{key}.weight", (*path, "scale"), SAME, index)
    if bias:
      self.add(f"{key}.bias", (*path, "bias"), SAME, index)

  def layer(self, key: str, path, i: int, branch=None, *, how=LINEAR, bias: bool = True) -> None:
    """`key`.weight and .bias of ours `path`_kernel and _bias, of layer i and of the `branch` where some share them."""
    *path, name = path
    self.add(f"{key}.weight", (*path, f"{name}_kernel"), how, (i,) if branch is None else (i, slice(None), branch))
    if bias:
      self.add(f"{key}.bias", (*path, f"{name}_bias"), VECTOR, (i,) if branch is None else (i, branch))


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


def converted(where, rules, sources, leaves, dtypes=None, net: str = "") -> dict[str, Any]:
  """Our tree out of another layout's tensors; what no tensor fills is 0.

  Args:
    where, net: the file, and the kind of net where its config does not say it, that errors name.
    rules: their key -> Rule. sources: their key -> (Checkpoint, name in its file). leaves: path -> shape of our leaf.
    dtypes: path -> dtype to read a leaf in; None: as it is stored.

  Raises:
    ValueError: a tensor that is missing, that no rule knows, or of another shape than its leaf.
  """
  hub.report_keys(where, rules.keys() - sources.keys(), sources.keys() - rules.keys(), net)
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
        flat[path] = np.zeros(leaves[path].shape, dtypes[path] if dtypes else value.dtype)
      if not dtypes and flat[path].dtype != value.dtype:  # tensors of mixed precision share a leaf: keep the finer one
        flat[path] = flat[path].astype(_finer(flat[path].dtype, value.dtype))
      flat[path][index] = rules[key].to_ours(value, slots[key].shape)
  return traverse.unflatten_dict({path: jax.device_put(flat.pop(path)) for path in list(flat)})


def _finer(a: np.dtype, b: np.dtype) -> np.dtype:
  """The dtype that holds values of both: float32 for float16 and bfloat16, which NumPy does not promote."""
  return np.dtype(np.float32) if a != b and a.itemsize == b.itemsize == 2 else np.promote_types(a, b)


def exported(rules, params) -> dict[str, np.ndarray]:
  """Another layout's tensors out of our tree: inverse of `converted`."""
  flat = traverse.flatten_dict(nn.unbox(params))
  return {key: rule.to_theirs(np.asarray(flat[rule.path])[rule.index]) for key, rule in rules.items()}
