"""Weights in a quarter of their room: signed bytes, and one float16 scale for every 64 of them in a row.

In a file a tensor KEY of int8 has a second one beside it, KEY@scales: value i is KEY[i] * scales[i // 64], counted over
the flattened tensor. Of normally distributed weights the error is 0.6 % of their size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

BLOCK = 64
SCALES = "@scales"
SMALL = 1024  # values up to which a tensor stays as it is: norms and biases are few, and matter


def narrowed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Float tensors as they go into a file: int8 with scales, small ones float16.

  Raises:
    ValueError: a value that is not finite or beyond float16's range.
  """
  out = {}
  for key, value in tensors.items():
    with np.errstate(over="ignore"):  # reported below
      half = np.asarray(value, np.float16)
    if not np.isfinite(half).all():
      raise ValueError(f"{key[:100]} has values beyond float16's range: keep the model in float32.")
    if value.size <= SMALL:
      out[key] = half
      continue
    out[key], out[key + SCALES] = _narrow(np.asarray(value, np.float32))
  return out


def _narrow(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  blocks = np.pad(value.ravel(), (0, -value.size % BLOCK)).reshape(-1, BLOCK)
  largest = np.abs(blocks).max(1)
  scales = (largest / 127).astype(np.float16)
  scales = np.where(127 * scales.astype(np.float32) < largest, np.nextafter(scales, np.float16(np.inf)), scales)
  small = np.rint(blocks / np.where(scales > 0, scales, 1).astype(np.float32)[:, None]).astype(np.int8)
  return small.ravel()[: value.size].reshape(value.shape), scales


def widened(value: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """float32 of what `narrowed` made."""
  return (value.ravel() * np.repeat(scales.astype(np.float32), BLOCK)[: value.size]).reshape(value.shape)


def scales_shape(shape: tuple[int, ...]) -> tuple[int]:
  """Shape of the scales of a tensor of `shape`."""
  return (-(-int(np.prod(shape, dtype=np.int64)) // BLOCK),)
