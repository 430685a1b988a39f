"""Where arrays live: one mesh, one table from logical axis names to mesh axes. No other file names a mesh axis.

Parameters name their logical axes where they are made; activations are pinned by `constrain`. A mesh axis of size 1
costs nothing, and a dimension that its mesh axis does not divide stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor", "seq")

# data: copies of the model. fsdp: as data, with parameters cut up too. tensor: heads and hidden widths. seq: positions.
RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "length": ("seq",),
  "embed": ("fsdp",),
  "embed_out": ("tensor",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "vocab": ("tensor",),
  "conv_out": ("fsdp",),
  "head_dim": (),
  "layers": (),
  "conv_in": (),
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over all devices of all processes, or over `devices`; one axis may be -1, which takes what is left.

  Raises:
    ValueError: an unknown axis, or sizes whose product is not the number of devices or that a TPU's torus cannot have.
  """
  available = jax.device_count() if devices is None else len(devices)
  unknown = sorted(set(sizes) - set(MESH_AXES))
  if unknown:
    raise ValueError(f"the mesh has an axis {unknown[0]!r}, expected some of {', '.join(MESH_AXES)}.")
  shape = [sizes.get(axis, 1) for axis in MESH_AXES]
  if shape.count(-1) > 1 or any(n == 0 or n < -1 for n in shape):
    raise ValueError(f"the mesh has sizes {dict(sizes)}, expected whole numbers of 1 or more and at most one -1.")
  known = math.prod(n for n in shape if n > 0)
  shape = [available // known if n == -1 else n for n in shape]
  if math.prod(shape) != available:
    raise ValueError(
      f"the mesh {dict(sizes)} does not fill the {available} devices here: set one axis to -1, the others to divisors."
    )
  # Auto: the compiler places what is not pinned. Explicit, JAX's default, would type-check every operation.
  try:
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
  except NotImplementedError as error:  # a TPU slice is a torus, and axes are made of whole sides of it
    raise ValueError(
      f"the mesh {dict(zip(MESH_AXES, shape, strict=True))} does not lie on the torus of these {available} chips: make "
      "every axis a product of some of its sides (4x4x4: 4, 16 or 64)."
    ) from error


def spec_for(names, shape: tuple[int, ...], mesh) -> P:
  """The partition of an array whose dimensions have these logical names (None: whole)."""
  entries, taken = [], set()
  for name, size in zip(names, shape, strict=True):
    if name is not None and name not in RULES:
      raise ValueError(f"the logical axis {name!r} is not in the sharding table: add it to RULES.")
    axes = tuple(a for a in RULES.get(name or "", ()) if mesh.shape[a] > 1 and a not in taken)
    fits = size % math.prod(mesh.shape[a] for a in axes) == 0
    axes = axes if fits else ()
    taken |= set(axes)
    entries.append(axes if len(axes) > 1 else (axes[0] if axes else None))
  return P(*entries)


def logical_axes(boxed):
  """Tree of logical names, one tuple per parameter of a boxed tree; () where a parameter names none."""
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  return jax.tree.map(lambda x: Names(x.names) if is_box(x) else Names(()), boxed, is_leaf=is_box)


class Names(tuple):
  """Logical names of one parameter; a type of its own so that trees of them keep it as a leaf."""

  __slots__ = ()


def is_names(x) -> bool:
  return isinstance(x, Names)


def param_shardings(axes, abstract, mesh: Mesh):
  """NamedSharding of every parameter, from its logical names and its shape."""
  place = lambda names, leaf: NamedSharding(mesh, spec_for(names or (None,) * leaf.ndim, leaf.shape, mesh))
  return jax.tree.map(place, axes, abstract, is_leaf=is_names)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def frozen_shardings(frozen, mesh: Mesh, least: int = 2**20):
  """NamedSharding of weights that other models brought and that name no axes.

  Of feature nets ("features", "dino"), arrays of `least` numbers or more are cut along the longest dimension that the
  parameters' axis divides; a VAE's kernels stay whole, for convolutions over cut channels send activations around.
  """
  cut = RULES["embed"]
  pieces = math.prod(mesh.shape[a] for a in cut)

  def place(path, leaf):
    entries: list[str | None] = [None] * len(leaf.shape)
    fits = [n for n in leaf.shape if n % (8 * pieces) == 0]
    if pieces > 1 and fits and math.prod(leaf.shape) >= least and getattr(path[0], "key", "") in ("features", "dino"):
      entries[leaf.shape.index(max(fits))] = cut[0]
    return NamedSharding(mesh, P(*entries))

  return jax.tree_util.tree_map_with_path(place, frozen)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins an activation by the logical names of its dimensions; does nothing where no mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec_for(names, x.shape, mesh))


def batch_size_multiple(mesh: Mesh) -> int:
  """The global batch must be a multiple of this."""
  return math.prod(mesh.shape[a] for a in RULES["batch"])


def to_devices(host_batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's part of a batch -> global arrays cut along their first axis."""
  sharding = NamedSharding(mesh, P(RULES["batch"]))

  def place(v):
    if sharding.is_fully_addressable:  # what was made on an accelerator stays there
      return jax.device_put(v, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(v))

  return {k: place(v) for k, v in host_batch.items()}


HOST_KEYS = ("_mask", "label", "source", "index", "caption")  # of a batch: small, and read by the host


def spread(batch: Mapping[str, np.ndarray | jax.Array]) -> dict[str, np.ndarray | jax.Array]:
  """A batch with its large arrays cut over the devices of the mesh that is set, for programs that run on numpy too.

  As it is where there is one device, or where the devices do not divide it. One process alone may call it.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty or mesh.size == 1 or len(batch["_mask"]) % batch_size_multiple(mesh):
    return dict(batch)
  return {**batch, **to_devices({k: v for k, v in batch.items() if k not in HOST_KEYS}, mesh)}
