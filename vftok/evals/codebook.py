"""How much of its codebook a tokenizer uses: shares of codes, entropies, bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vftok.tokens import VideoTokens


class CodebookUsage:
  """Counts ids per register, batch by batch.

  Args:
    registers: K, registers per time step.
    codebook_size: V, ids are 0..V-1.
  """

  def __init__(self, registers: int, codebook_size: int):
    self.counts_KxV = np.zeros((registers, codebook_size), np.int64)
    self.clips = 0

  def update(self, tokens: VideoTokens, mask=None) -> None:
    """Adds the kept tokens of a batch; clips whose `mask` [B] is False do not count.

    Raises:
      ValueError: another K, or an id that is not in the codebook.
    """
    ids_BxTxK, keep_BxT = np.asarray(tokens.ids), np.asarray(tokens.keep)
    registers, size = self.counts_KxV.shape
    if ids_BxTxK.shape[2] != registers:
      raise ValueError(f"the tokens have {ids_BxTxK.shape[2]} registers, expected {registers}: pass one model's.")
    if mask is not None:
      ids_BxTxK, keep_BxT = ids_BxTxK[np.asarray(mask, bool)], keep_BxT[np.asarray(mask, bool)]
    self.clips += len(ids_BxTxK)
    kept = np.arange(registers) < keep_BxT[:, :, None]
    flat = (ids_BxTxK + np.arange(registers) * size)[kept]
    ids = ids_BxTxK[kept]
    if ids.size and (ids.min() < 0 or ids.max() >= size):
      raise ValueError(f"the tokens hold ids {ids.min()}..{ids.max()}, expected 0..{size - 1}: pass one model's.")
    # Few of the K * V places are touched by a batch.
    places, counts = np.unique(flat, return_counts=True)
    self.counts_KxV.reshape(-1)[places] += counts

  def summary(self) -> dict[str, Any]:
    """Plain numbers.

    used: share of the codebook seen at least once, overall and per register.
    entropy_bits: of the empirical distribution of ids, overall (all registers pooled) and per register. It cannot
      exceed log2 of the number of tokens it is estimated from, which `tokens_per_register` states: with few clips it
      is an underestimate.
    bits_per_clip: tokens kept times log2 V; entropy_bits_per_clip: what an ideal code per register would need.
    """
    counts_K, size = self.counts_KxV.sum(1), self.counts_KxV.shape[1]
    pooled_V = self.counts_KxV.sum(0)
    entropy_K = np.array([_entropy(row) for row in self.counts_KxV])
    clips = max(self.clips, 1)
    return {
      "clips": self.clips,
      "codebook_size": size,
      "tokens_per_register": counts_K.tolist(),
      "used": float((pooled_V > 0).mean()),
      "used_codes": int((pooled_V > 0).sum()),
      "used_per_register": (self.counts_KxV > 0).mean(1).tolist(),
      "entropy_bits": _entropy(pooled_V),
      "entropy_bits_per_register": entropy_K.tolist(),
      "bits_per_clip": float(counts_K.sum() / clips * math.log2(size)),
      "entropy_bits_per_clip": float((counts_K * entropy_K).sum() / clips),
    }


def _entropy(counts) -> float:
  """Bits; 0 where nothing was counted."""
  p = counts[counts > 0] / max(counts.sum(), 1)
  return float(max(0.0, -(p * np.log2(p)).sum()))
