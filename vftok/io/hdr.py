"""HDR pictures (PQ or HLG, BT.2020) as 8-bit sRGB: what a screen of ordinary brightness would show.

Diffuse white, 203 cd/m2 (ITU-R BT.2408), becomes nearly white; what is brighter is rolled off above 0.8 of it.
Curves: SMPTE ST 2084 and ITU-R BT.2100 (HLG on a screen of 1000 cd/m2); matrix: ITU-R BT.2087.
"""

from __future__ import annotations

import functools

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics by their numbers in ITU-T H.273
_WHITE, _PEAK, _KNEE = 203.0, 1000.0, 0.8
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
_TO_709 = np.array(
  [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
  np.float32,
)


def to_sdr(codes: np.ndarray, transfer: int) -> np.ndarray:
  """uint8 [..., 3] sRGB from uint16 [..., 3], full-range R'G'B' of BT.2020 by the `transfer` PQ or HLG."""
  light = _linear(transfer)[codes]
  if transfer == HLG:  # scene light to that of the screen: its OOTF, gamma 1.2
    light = light * np.maximum(light @ _LUMINANCE, 1e-9)[..., None] ** np.float32(0.2) * np.float32(_PEAK / _WHITE)
  light = np.maximum(light @ _TO_709.T, 0)
  over = np.maximum(light - _KNEE, 0)
  light = np.where(over > 0, _KNEE + (1 - _KNEE) * (1 - np.exp(-over / (1 - _KNEE))), light)
  srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
  return np.rint(srgb * 255).astype(np.uint8)


@functools.cache
def _linear(transfer: int) -> np.ndarray:
  """float32 [65536]: for PQ light relative to diffuse white, for HLG relative light of the scene, 0..1."""
  signal = np.linspace(0, 1, 1 << 16)
  if transfer == PQ:
    power = signal ** (32 / 2523)
    light = (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)
    return (light * 10_000 / _WHITE).astype(np.float32)
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
