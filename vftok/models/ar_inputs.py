"""What the autoregressive model reads beside ids: where tokens stand, what they are about, which they may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Places(NamedTuple):
  """Where the tokens to predict stand, and where those before them do: int32 [B, L] each (or [1, L]).

  `segment` tells packed sequences of one row apart (-1: padding), or is None. `index` is how many tokens of the
  sequence come before; models with positions "sequence" read it.
  """

  time_BxL: Any
  slot_BxL: Any
  last_time_BxL: Any
  last_slot_BxL: Any
  segment_BxL: Any = None
  index_BxL: Any = None

  @classmethod
  def of(cls, time_BxL, slot_BxL, segment_BxL=None) -> Places:
    """Of whole sequences: each token comes after its neighbour."""
    before = lambda a: jnp.pad(jnp.asarray(a, jnp.int32), ((0, 0), (1, 0)))[:, :-1]
    index = jnp.arange(jnp.shape(time_BxL)[1], dtype=jnp.int32)[None]
    if segment_BxL is not None:
      begins = before(segment_BxL + 1) != segment_BxL + 1
      index = index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return cls(time_BxL, slot_BxL, before(time_BxL), before(slot_BxL), segment_BxL, index)


class Drop(NamedTuple):
  """Dropout: rates of token embeddings, of what attention adds and of what MLPs add; a random key for each row [B].

  A row's mask comes from its own key alone, mixed with that of the module where it is drawn.
  """

  keys_B: Any
  token: float = 0.0
  residual: float = 0.0
  ffn: float = 0.0

  def tokens(self, rng, x_BxLxD):
    return self._dropped(rng, x_BxLxD, self.token)

  def attended(self, rng, x_BxLxD):
    return self._dropped(rng, x_BxLxD, self.residual)

  def mlp(self, rng, x_BxLxD):
    return self._dropped(rng, x_BxLxD, self.ffn)

  def _dropped(self, rng, x_BxLxD, rate):
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, jax.random.bits(rng))
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BxLxD.shape[1:]))(keys_B)
    return jnp.where(kept, x_BxLxD / (1 - rate), 0.0)


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
