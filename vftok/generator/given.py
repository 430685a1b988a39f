"""What models that go on from given frames read before a clip: these frames' own tokens (EVATok section 6.5).

The frames are filled up to a clip by the last one and encoded by themselves, under counts that are always the same; a
causal encoder's first steps are those of fewer frames. The clip that is generated has them again.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from vftok.runtime.words import cut
from vftok.tokens import VideoTokens


def given_tokens(tok: Any, params: Any, frames, counts: tuple[int, ...]) -> VideoTokens:
  """Tokens [B, len(counts), K] of first frames.

  Args:
    frames: [B, f, H, W, 3], uint8 or float in [-1, 1]; f at most those of so many time steps.
    counts: tokens of each of their time steps, that the model knows.

  Raises:
    ValueError: frames that do not fit these steps, or counts that the tokenizer does not know.
  """
  shape, steps = np.shape(frames), len(counts)
  most = steps * tok.chunk_frames // tok.chunk_steps
  if len(shape) != 5 or not 0 < shape[1] <= most or not 0 < steps < tok.chunk_steps:
    wanted = f"[B, 1..{most}, H, W, 3] for {steps} of the {tok.chunk_steps} time steps of a clip"
    raise ValueError(f"the given frames have shape {cut(shape)}, expected {wanted}.")
  frames = jnp.asarray(frames)
  rest = jnp.repeat(frames[:, -1:], tok.chunk_frames - shape[1], axis=1)
  keep = [*counts, *[tok.budgets[0]] * (tok.chunk_steps - steps)]
  tokens = tok.encode(params, jnp.concatenate([frames, rest], axis=1), budget=keep)
  return VideoTokens(tokens.ids[:, :steps], tokens.keep[:, :steps], nested=tok.nested)
