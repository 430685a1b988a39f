"""The token contract: what an encoder returns, a decoder takes and a generator makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vftok.runtime.words import brief


def is_concrete(x) -> bool:
  """True where values can be looked at (not while JAX traces a program)."""
  return not isinstance(x, jax.core.Tracer)


NO_ORDER = "these tokens have no order, so none can be left out: encode again with a budget, if the model takes one."


@flax.struct.dataclass
class VideoTokens:
  """Ordered tokens of a batch of videos; any prefix of each time step decodes.

  Attributes:
    ids: int32 [B, T, K], codebook indices, coarse to fine along K.
    keep: int32 [B, T], how many of the K ids count in each time step (0..K). Length is data, never a shape.
    frames: true number of frames where the video was padded to fit (static), or None: as many as T stands for.
    nested: whether a step's first ids are a whole, coarser code of it (static). False for grids and other sets, which
      are all read, or as many as the encoder was asked for: those cannot be cut afterwards.
  """

  ids: jax.Array
  keep: jax.Array
  frames: int | None = flax.struct.field(pytree_node=False, default=None)
  nested: bool = flax.struct.field(pytree_node=False, default=True)

  @classmethod
  def full(cls, ids, frames: int | None = None, *, nested: bool = True) -> VideoTokens:
    """Tokens that keep every id of `ids` int [B, T, K]."""
    ids = jnp.asarray(ids, jnp.int32)
    return cls(ids, jnp.full(ids.shape[:2], ids.shape[2], jnp.int32), frames, nested)

  def truncate(self, keep) -> VideoTokens:
    """Keeps at most `keep` tokens: an int, one count per time step [T], or [B, T]. Counts never grow.

    Raises:
      ValueError: a count outside 0..K, a shape that is none of the three, or a count below what tokens without an
        order have.
    """
    b, t, k = self.ids.shape
    try:
      counts = keep if hasattr(keep, "dtype") else np.asarray(keep)
    except ValueError:
      raise ValueError(f"keep is ragged, expected an int, [{t}] or [{b}, {t}]: one count per time step.") from None
    if not jnp.issubdtype(counts.dtype, jnp.integer):
      raise ValueError(
        f"keep is {brief(keep)} of dtype {counts.dtype}, expected whole numbers of tokens: pass an int or int32."
      )
    if counts.shape not in ((), (t,), (b, t)):
      raise ValueError(
        f"keep has shape {counts.shape}, expected an int, [{t}] (one count per time step) or [{b}, {t}]."
      )
    check_counts(counts, k)
    if not self.nested and (not is_concrete(counts) or not is_concrete(self.keep) or np.any(self.keep > counts)):
      raise ValueError(NO_ORDER)
    return self.replace(keep=jnp.minimum(self.keep, jnp.broadcast_to(counts.astype(jnp.int32), (b, t))))

  def widen(self, slots: int) -> VideoTokens:
    """The same tokens among `slots` per step, at least K: a generator may know fewer than its tokenizer."""
    return self.replace(ids=jnp.pad(self.ids, ((0, 0), (0, 0), (0, slots - self.ids.shape[2]))))

  def split(self, steps: int) -> tuple[VideoTokens, VideoTokens]:
    """(the first time steps, the rest); of neither is it known how many frames were filled in."""
    cut = lambda part: self.replace(ids=self.ids[:, part], keep=self.keep[:, part], frames=None)
    return cut(slice(None, steps)), cut(slice(steps, None))

  def total(self) -> jax.Array:
    """int32 [B]: tokens kept in each video."""
    return self.keep.sum(axis=1)

  def flatten(self) -> tuple[jax.Array, jax.Array]:
    """(ids int32 [B, K*T], kept bool [B, K*T]) coarse first: register 0 of every step, then register 1, ..."""
    b, t, k = self.ids.shape
    kept_BxTxK = kept_slots(self.keep, k)
    return self.ids.swapaxes(1, 2).reshape(b, k * t), kept_BxTxK.swapaxes(1, 2).reshape(b, k * t)

  @staticmethod
  def concat(pieces: Sequence[VideoTokens]) -> VideoTokens:
    """Joins consecutive pieces of the same videos along time."""
    if not pieces:
      raise ValueError("there are no token pieces to join: pass at least one VideoTokens.")
    first = pieces[0].ids.shape
    if len({p.nested for p in pieces}) > 1:
      raise ValueError("some pieces are nested and some have no order, expected one kind: they are two models'.")
    for shape in (p.ids.shape for p in pieces):
      if (shape[0], shape[2]) != (first[0], first[2]):
        raise ValueError(f"the pieces have ids {first} and {shape}, expected one batch size and one K.")
    frames = [p.frames for p in pieces]
    return VideoTokens(
      ids=jnp.concatenate([p.ids for p in pieces], axis=1),
      keep=jnp.concatenate([p.keep for p in pieces], axis=1),
      frames=None if any(f is None for f in frames) else sum(frames),
      nested=pieces[0].nested,
    )


def check_counts(counts, k: int) -> None:
  """Raises ValueError where a concrete keep count lies outside 0..k."""
  if not is_concrete(counts) or np.size(counts) == 0:
    return
  low, high = int(np.min(counts)), int(np.max(counts))
  if low < 0 or high > k:
    raise ValueError(f"keep is {low if low < 0 else high}, expected 0..{k} tokens per time step.")


@runtime_checkable
class Budget(Protocol):
  """Who says how many tokens each time step of a video gets; `vftok.Auto` does, and anything with these two methods.

  Ids must not depend on it: call `tok.encode` or `tok.encode_stream` without a budget and `truncate` what comes to
  counts [B, T]; `vftok.budget.scored` is one in full. A stream and the whole video should get the same counts. In
  VideoFlexTok the first time step of a video stands for one frame, each other for four; later chunks of a long video
  leave out the steps that they share with the one before.
  """

  def encode_video(self, tok: Any, params: Any, video: Any, fit: str) -> VideoTokens:
    """Tokens of a whole video [B, F, H, W, 3]; `fit` as `Tokenizer.encode` has it."""
    ...

  def encode_stream(self, tok: Any, params: Any, pieces: Any, fit: str) -> Iterator[VideoTokens]:
    """One VideoTokens [B, chunk_steps, K] per chunk, in order. `pieces`: an iterable of videos [B, f, H, W, 3], cut
    anywhere, as `Tokenizer.encode_stream` takes them."""
    ...


@runtime_checkable
class Chooser(Protocol):
  """A budget of models whose ids depend on how many there are (EVATok's): it decides before a clip is encoded."""

  def counts(self, tok: Any, params: Any, video: Any) -> Any:
    """Tokens of each time step, whole numbers that the model knows: one for all, [T] or [B, T].

    `video` is one clip, float32 [B, chunk_frames, H, W, 3] in [-1, 1]; of a longer video this is asked for one clip
    after the other, so streams get what whole videos do.
    """
    ...


def kept_slots(keep_BxT, slots: int) -> jax.Array:
  """bool [B, T, K], True for the first `keep` of each step."""
  return jnp.arange(slots)[None, None] < keep_BxT[..., None]
