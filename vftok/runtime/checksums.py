"""Two numbers per array that say whether it is still what was saved, whatever devices it lies on.

Sums of the bits as whole numbers mod 2^32, plain and weighted by position: exact in any order, so one device, many, and
NumPy find the same, and a flipped bit or swapped blocks do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PIECE = 2**22  # numbers at a time in NumPy


def checksums(tree: Any) -> dict[str, list[int]]:
  """{path of an array: [sum, weighted sum]} of a tree; all processes must call it."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  names, arrays = [jax.tree_util.keystr(path) for path, _ in leaves], [jnp.asarray(x) for _, x in leaves]
  on_cpu = all(x.is_fully_addressable and _platform(x) == "cpu" for x in arrays)
  sums = [_host(np.asarray(x)) for x in arrays] if on_cpu else jax.device_get(_on_devices(arrays))
  return {name: [int(n) for n in pair] for name, pair in zip(names, sums, strict=True)}


def differing(saved: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> str | None:
  """The first array that both know and that is another now; None where all agree."""
  return next((name for name in found if name in saved and list(saved[name]) != found[name]), None)


def _platform(x: jax.Array) -> str:
  return next(iter(x.devices())).platform


def _host(x: np.ndarray) -> tuple[int, int]:
  width = min(x.dtype.itemsize, 4)
  bits = np.ascontiguousarray(x).reshape(-1).view(f"u{width}")
  plain = weighted = 0
  for start in range(0, len(bits), PIECE):
    piece = bits[start : start + PIECE].astype(np.uint32)
    weights = 2 * np.arange(start, start + len(piece), dtype=np.uint32) + np.uint32(1)
    plain += int(piece.sum(dtype=np.uint32))
    weighted += int((piece * weights).sum(dtype=np.uint32))
  return plain % 2**32, weighted % 2**32


@jax.jit
def _on_devices(arrays: list[jax.Array]) -> list[jax.Array]:
  return [_sums(x) for x in arrays]


def _sums(x: jax.Array) -> jax.Array:
  kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
  place = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):  # counted per axis: nothing has to move between devices
    place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.stack([bits.sum(dtype=jnp.uint32), (bits * (2 * place + 1)).sum(dtype=jnp.uint32)])
