"""How many tokens each time step gets, decided before a clip is encoded: EVATok's ids depend on it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vftok.runtime.words import brief
from vftok.tokens import Chooser, is_concrete


def check_known(counts, known: tuple[int, ...]) -> None:
  """Raises ValueError where a concrete count is none that the model knows."""
  if is_concrete(counts) and (wrong := np.setdiff1d(np.asarray(counts), known)).size:
    raise ValueError(
      f"the budget asks for {wrong[0]} tokens in a time step, expected one of {', '.join(map(str, known))}: this model "
      "knows no other counts."
    )


def asked(budget, known: tuple[int, ...]):
  """Checked counts, an array of shape (), [T] or [B, T], of a budget that is no object: None asks for all tokens.

  Raises:
    ValueError: no whole numbers, another shape, or counts that the model does not know.
  """
  if budget is None:
    return np.int32(known[-1])
  try:
    counts = budget if hasattr(budget, "dtype") else np.asarray(budget)
  except ValueError:
    counts = np.zeros((), object)  # ragged
  if not hasattr(counts, "ndim") or counts.ndim > 2 or not jnp.issubdtype(counts.dtype, jnp.integer):
    raise ValueError(
      f"budget is {brief(budget)}, expected one of {', '.join(map(str, known))} tokens, one per time step, [T] or "
      "[B, T], or an object with counts(tok, params, video): this model's ids depend on how many there are."
    )
  check_known(counts, known)
  return counts


def check_steps(counts, batch: int, steps: int) -> None:
  """Raises ValueError where counts are not (), [T] or [B, T] of these sizes."""
  shape = np.shape(counts)
  if shape not in ((), (steps,), (batch, steps)):
    raise ValueError(
      f"the budget has shape {shape}, expected an int, [{steps}] (one count per time step) or [{batch}, {steps}]."
    )


class ByChunk:
  """The counts of one chunk after the other, as a budget has them.

  Attributes:
    last: int32 [B, T] of the chunk asked for last.
  """

  def __init__(self, tok, params, budget):
    self.tok, self.params, self.budget, self.last = tok, params, budget, None
    self.counts = None if isinstance(budget, Chooser) else asked(budget, tok.counts)
    self.done = 0  # time steps

  def following(self, chunk) -> jax.Array:
    """int32 [B, T] of the next chunk, float32 [B, F, H, W, 3] in [-1, 1].

    Raises:
      ValueError: the budget has other counts than the model, or none for this chunk.
    """
    batch, steps = chunk.shape[0], self.tok.chunk_steps
    if self.counts is None:
      counts = asked(self.budget.counts(self.tok, self.params, chunk), self.tok.counts)
      check_steps(counts, batch, steps)
    else:
      counts = self.counts[..., self.done : self.done + steps] if self.counts.ndim else self.counts
      if counts.ndim and counts.shape not in ((steps,), (batch, steps)):
        raise ValueError(
          f"the budget has shape {self.counts.shape}, expected an int, or counts for {self.done + steps} time steps or "
          f"more, [T] or [{batch}, T]."
        )
    self.done += steps
    self.last = jnp.broadcast_to(jnp.asarray(counts, jnp.int32), (batch, steps))
    return self.last

  def end(self) -> None:
    """Raises ValueError where there are counts for more time steps than came."""
    if self.counts is not None and self.counts.ndim and self.counts.shape[-1] > self.done:
      raise ValueError(
        f"the budget has counts for {self.counts.shape[-1]} time steps, expected {self.done}, as many as the video has."
      )
