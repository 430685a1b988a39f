"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505): codes without a learned codebook.

Everything here runs in float32 whatever the compute dtype: a rounding edge is no place for bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vftok.models.layers import ranked

EPS = 1e-3


def codebook_size(levels: Sequence[int]) -> int:
  return math.prod(levels)


def basis(levels: Sequence[int]) -> np.ndarray:
  """int32 [c]: place value of each dimension, the first one fastest."""
  return np.cumprod([1, *levels[:-1]]).astype(np.int32)


def bound(z, levels: Sequence[int]) -> jax.Array:
  """Squashes z [..., c] so that rounding gives `levels[j]` values in dimension j. float32 [..., c]."""
  levels_c = ranked(np.asarray(levels), z.ndim)
  half = np.asarray((levels_c - 1) * (1 + EPS) / 2, np.float32)
  offset = np.where(levels_c % 2 == 0, 0.5, 0.0).astype(np.float32)
  shift = np.arctanh(offset / half)
  return jnp.tanh(z.astype(jnp.float32) + shift) * half - offset


def quantize(z, levels: Sequence[int]) -> jax.Array:
  """Codes of z [..., c]: float32 [..., c] in [-1, 1]; the gradient passes straight through the rounding."""
  chex.assert_axis_dimension(z, -1, len(levels))
  y = bound(z, levels)
  rounded = y + jax.lax.stop_gradient(jnp.round(y) - y)
  return rounded / (ranked(np.asarray(levels), z.ndim).astype(np.float32) // 2)


def codes_to_ids(codes, levels: Sequence[int]) -> jax.Array:
  """int32 [...] ids of codes [..., c] made by `quantize`."""
  half_width = ranked(np.asarray(levels), codes.ndim) // 2
  digits = jnp.round(codes.astype(jnp.float32) * half_width.astype(np.float32)).astype(jnp.int32) + half_width
  return jnp.sum(digits * ranked(basis(levels), codes.ndim), axis=-1, dtype=jnp.int32)


def ids_to_codes(ids, levels: Sequence[int]) -> jax.Array:
  """float32 [..., c] codes of ids int [...] in 0..prod(levels)-1."""
  ids = ids[..., None]
  levels_c = ranked(np.asarray(levels, np.int32), ids.ndim)
  half_width = levels_c // 2
  digits = (ids // ranked(basis(levels), ids.ndim)) % levels_c
  return (digits - half_width).astype(jnp.float32) / half_width.astype(np.float32)
