"""Who may attend to whom, as plain boolean arrays: the oracle of every attention path.

The sequence is T time steps, each of P patches followed by R registers. Modes (names of released configs):

  full                    everything sees everything
  causal                  position q sees positions <= q
  time_block_causal       own and earlier time steps
  time_block_causal_last  earlier time steps; own patches; own registers up to the query's own position
  flexible                like time_block_causal_last within a step; earlier steps by four switches
"""

from __future__ import annotations

import numpy as np

MODES = ("full", "causal", "time_block_causal", "time_block_causal_last", "flexible")
CROSS = ("full", "none", "causal")


def dense(mode: str, steps: int, patches: int, registers: int, cross: tuple[str, ...] = ("full",) * 4) -> np.ndarray:
  """bool [N, N] with N = steps * (patches + registers): entry [q, k] is True where q may attend to k.

  `cross` (mode "flexible") says how registers and patches see *earlier* steps, each of "full", "none", "causal":
  (patch to patch, patch to register, register to patch, register to register). "causal" compares positions
  within the step.
  """
  size = patches + registers
  step, slot = np.divmod(np.arange(steps * size), size)
  q_step, k_step, q_slot, k_slot = step[:, None], step[None], slot[:, None], slot[None]
  if mode == "full":
    return np.ones((steps * size,) * 2, bool)
  if mode == "causal":
    return np.arange(steps * size)[:, None] >= np.arange(steps * size)[None]
  if mode == "time_block_causal":
    return k_step <= q_step
  if mode not in ("time_block_causal_last", "flexible"):
    raise ValueError(f"mask mode {mode!r} is not known, expected one of {', '.join(MODES)}.")
  within = (k_step == q_step) & ((k_slot < patches) | (k_slot <= q_slot))
  earlier = k_step < q_step
  if mode == "time_block_causal_last":
    return within | earlier
  allowed = np.zeros_like(earlier)
  kinds = [(q, k) for q in (True, False) for k in (True, False)]
  for how, (q_patch, k_patch) in zip(cross, kinds, strict=True):
    pair = ((q_slot < patches) == q_patch) & ((k_slot < patches) == k_patch)
    seen = {"full": np.ones_like(earlier), "none": np.zeros_like(earlier), "causal": k_slot <= q_slot}
    if how not in seen:
      raise ValueError(f"cross-step attention {how!r} is not known, expected one of {', '.join(CROSS)}.")
    allowed |= pair & seen[how]
  return within | (earlier & allowed)


def collapsible(mode: str) -> bool:
  """True where all registers of a step have the same visibility, so that equal ones stay equal in every layer."""
  return mode in ("full", "time_block_causal")
