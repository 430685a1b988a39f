"""What training asks of a family of one-pass tokenizers: one differentiable step, behind a small protocol.

A family of your own is a class with the functions of `Learner` in a file of its folder, and a row in
`vftok.tasks.one_pass.LEARNERS`. Its losses are not its own: they are made of what `step` gives, in
`vftok.tasks.one_pass_objectives`.

Letters: B clips, F frames, T time steps, K tokens of a step, c channels of a code, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

from vftok.tokenizer.one_pass import OnePass


class Predicted(NamedTuple):
  """What a prior learns from.

  Attributes:
    logits: float32 [B, N, V] of each of its rounds. ids: int32 [B, N], what they should say.
    counts: bool [B, N], positions that count.
  """

  logits: tuple[jax.Array, ...]
  ids: jax.Array
  counts: jax.Array


class Made(NamedTuple):
  """What a step has made of clips.

  Attributes:
    frames: float32 [B, F, H, W, 3], about [-1, 1], not clipped.
    z: float32 [B, T, K, c], features as they are compared with codes; codes: those taken, with a gradient for the table
      and none for the features; ids: int32 [B, T, K].
    kept: bool [B, T, K], tokens that the decoder saw.
    predicted: of the prior, None where it does not learn.
    own: what only objectives of this family read, by name, such as encoder outputs or a decoder layer's.
  """

  frames: jax.Array
  z: jax.Array
  codes: jax.Array
  ids: jax.Array
  kept: jax.Array
  predicted: Predicted | None = None
  own: Mapping[str, jax.Array] = {}


class Learner(Protocol):
  """A family in training, made of (`config.model` as a dict, its loss, a `vftok.tasks.one_pass_loss.OnePassLoss`).

  All functions are pure; all noise of a clip comes from its own key.
  """

  tok: OnePass
  dtype: str  # of the matrix products

  def frozen(self) -> Mapping[str, Any]:
    """Weights of other models that the step needs, by name, read from disk once."""
    ...

  def heads(self, key: jax.Array) -> Any:
    """Boxed parameters that only training needs and no tokenizer stores, `params["heads"]` of `step`; or None."""

  def counts(self, frozen, video_BxFxHxWx3, keys_B) -> jax.Array:
    """int32 [B, T]: tokens of each time step that are trained with."""
    ...

  def step(self, params, frozen, video_BxFxHxWx3, keep_BxT, keys_B, done) -> Made:
    """`video` in [-1, 1]; `done`: the share of the run that is over, 0 at its first step."""
    ...

  def flops(self) -> float:
    """Forward FLOPs of one clip, with what only training has."""
    ...

  def coding_flops(self) -> tuple[float, float]:
    """Forward FLOPs of (encoding, decoding) one clip with all tokens."""
    ...
