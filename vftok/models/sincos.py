"""Sines and cosines of places, sines first, float64 rounded once (LARP section 2.4)."""

from __future__ import annotations

import numpy as np


def sincos(positions, dim: int, base: float = 10000.0) -> np.ndarray:
  """float64 [..., dim]: sin then cos of positions at base^(-j / (dim/2))."""
  half = dim // 2
  angles = np.asarray(positions, np.float64)[..., None] * base ** (-np.arange(half) / half)
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def sincos_1d(length: int, dim: int, base: float = 10000.0) -> np.ndarray:
  """float32 [length, dim]."""
  return sincos(np.arange(length), dim, base).astype(np.float32)


def sincos_3d(grid: tuple[int, int, int], dim: int) -> np.ndarray:
  """float32 [t*h*w, dim]: column in the first half of the channels, row in the second, time added to all."""
  t, y, x = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
  of_space = np.concatenate([sincos(x, dim // 2), sincos(y, dim // 2)], axis=-1)
  return (of_space + sincos(t, dim)).astype(np.float32).reshape(-1, dim)
