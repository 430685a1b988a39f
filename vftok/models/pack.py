"""Ragged sequences side by side in rows of one length, inside a program: shapes never depend on the counts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Packing(NamedTuple):
  """Where the positions of R rows come from, G sequences to a row.

  Attributes:
    segment_RxL: int32, which of the row's sequences a position belongs to; -1: padding.
    source_RxL: int32, which of the row's G * L padded positions it was.
    fits_RxG: bool; sequences that do not fit are left out whole.
  """

  segment_RxL: jax.Array
  source_RxL: jax.Array
  fits_RxG: jax.Array

  def __call__(self, x_BxL: jax.Array) -> jax.Array:
    """[B, L] of sequences, B = R * G -> [R, L] of rows; padding gets what is at position 0."""
    return jnp.take_along_axis(x_BxL.reshape(len(self.source_RxL), -1), self.source_RxL, axis=1)


def pack(lengths_B, group: int, length: int) -> Packing:
  """Every `group` neighbours share a row of `length` positions, in their order; who comes too late is left out.

  Args:
    lengths_B: int, at most `length` each; B is a multiple of `group`.
  """
  lengths_RxG = lengths_B.reshape(-1, group)
  starts, fits, used_R = [], [], jnp.zeros_like(lengths_RxG[:, 0])
  for own_R in lengths_RxG.T:
    starts.append(used_R)
    fits.append(used_R + own_R <= length)
    used_R = used_R + jnp.where(fits[-1], own_R, 0)
  starts_RxG, fits_RxG, at = jnp.stack(starts, 1), jnp.stack(fits, 1), jnp.arange(length)[None]
  first, last = starts_RxG[:, :, None], (starts_RxG + lengths_RxG)[:, :, None]
  inside_RxGxL = fits_RxG[:, :, None] & (at[None] >= first) & (at[None] < last)
  segment_RxL = jnp.where(inside_RxGxL.any(1), inside_RxGxL.argmax(1), -1).astype(jnp.int32)
  whose_RxL = jnp.maximum(segment_RxL, 0)
  source_RxL = whose_RxL * length + at - jnp.take_along_axis(starts_RxG, whose_RxL, axis=1)
  return Packing(segment_RxL, jnp.where(segment_RxL < 0, 0, source_RxL).astype(jnp.int32), fits_RxG)
