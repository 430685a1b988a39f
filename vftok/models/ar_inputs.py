"""What the autoregressive model reads beside ids: where tokens stand, what they are about, which they may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp


class Places(NamedTuple):
  """Where the tokens to predict stand, and where those before them do: int32 [B, L] each (or [1, L]).

  `segment` tells packed sequences of one row apart (-1: padding), or is None.
  """

  time_BxL: Any
  slot_BxL: Any
  last_time_BxL: Any
  last_slot_BxL: Any
  segment_BxL: Any = None

  @classmethod
  def of(cls, time_BxL, slot_BxL, segment_BxL=None) -> Places:
    """Of whole sequences: each token comes after its neighbour."""
    before = lambda a: jnp.pad(jnp.asarray(a, jnp.int32), ((0, 0), (1, 0)))[:, :-1]
    return cls(time_BxL, slot_BxL, before(time_BxL), before(slot_BxL), segment_BxL)


class Condition(NamedTuple):
  """What a sequence is about. All but `null` may be None; where it is True there is no condition, whatever they say.

  Attributes:
    label_BxG: int32, a class for each of the G sequences packed into a row (G = 1 without packing).
    text_BxSxC, text_mask_BxS: features of a text and which of them count. No feature that counts: no text.
    text_segment_BxS: to which of a row's sequences each feature belongs, or None without packing.
    null_BxG: bool.
  """

  label_BxG: Any = None
  text_BxSxC: Any = None
  text_mask_BxS: Any = None
  text_segment_BxS: Any = None
  null_BxG: Any = None


class Context(NamedTuple):
  """What cross-attention reads: vectors [B, M, D], which of them each query sees [B, L or 1, M]."""

  vectors_BxMxD: Any
  seen_BxLxM: Any


def shifted(ids_BxL, places: Places):
  """The token before each position; -1 where a sequence starts."""
  last = jnp.pad(ids_BxL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  if places.segment_BxL is None:
    return last
  same = jnp.pad(places.segment_BxL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1] == places.segment_BxL
  return jnp.where(same, last, -1)


def of_segment(value_BxG, places: Places, shape):
  """[B, L] (or [B, 1] without packing): the value of the sequence that each position belongs to."""
  if places.segment_BxL is None:
    return jnp.broadcast_to(value_BxG[:, :1], (shape[0], 1))
  return jnp.take_along_axis(value_BxG, jnp.clip(places.segment_BxL, 0, value_BxG.shape[1] - 1), axis=1)
