"""Frechet distance between two sets of features, from statistics gathered batch by batch in float64.

rFVD as this project reports it: features are the 400 Kinetics logits of I3D (`nets.i3d`) for every frame of a clip,
resized as said there, one vector per clip; the distance is between real clips and their reconstructions
(Unterthiner et al. 2018, arXiv 1812.01717, section 3). It falls with the number of clips, so numbers compare only at
the same count, which therefore always stands beside them; below 2048 clips they are called indicative.
"""

from __future__ import annotations

import numpy as np

INDICATIVE_BELOW = 2048  # clips


class Statistics:
  """Number, mean and covariance of feature vectors; exact however the set is cut into batches (Chan et al. 1979)."""

  def __init__(self):
    self.n, self.mean, self.scatter = 0, np.zeros(()), np.zeros(())

  def update(self, features, mask=None) -> None:
    """Adds vectors [B, D]; those whose `mask` [B] is False do not count.

    Raises:
      ValueError: another shape, another D than before, or values that are not finite.
    """
    x_BxD = np.asarray(features, np.float64)
    if x_BxD.ndim != 2:
      raise ValueError(f"features have shape {x_BxD.shape}, expected [B, D]: one vector per example.")
    if mask is not None:
      mask = np.asarray(mask, bool)
      if mask.shape != x_BxD.shape[:1]:
        raise ValueError(f"mask has shape {mask.shape}, expected [{len(x_BxD)}]: one value per example.")
      x_BxD = x_BxD[mask]
    if not np.isfinite(x_BxD).all():
      raise ValueError("features hold NaN or infinite values, expected finite ones: check the videos they come from.")
    if not len(x_BxD):
      return
    part = Statistics()
    part.n, part.mean = len(x_BxD), x_BxD.mean(0)
    part.scatter = (x_BxD - part.mean).T @ (x_BxD - part.mean)
    self.merge(part)

  def merge(self, other: Statistics) -> None:
    """Adds what `other` has gathered."""
    if not other.n:
      return
    if not self.n:
      self.n, self.mean, self.scatter = other.n, other.mean, other.scatter
      return
    if other.mean.shape != self.mean.shape:
      raise ValueError(f"features have {other.mean.size} dimensions, expected {self.mean.size} like those before.")
    n, step = self.n + other.n, other.mean - self.mean
    self.scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n)
    self.mean, self.n = self.mean + step * (other.n / n), n

  @property
  def covariance(self) -> np.ndarray:
    """float64 [D, D], divided by n - 1. Raises ValueError where there are fewer than two vectors."""
    if self.n < 2:
      raise ValueError(f"there are {self.n} feature vectors, expected at least 2: evaluate more clips.")
    return self.scatter / (self.n - 1)


def distance(a: Statistics, b: Statistics) -> float:
  """Frechet distance of two sets, >= 0; 0 for a set and itself. Raises ValueError below two vectors each."""
  return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def gaussian_distance(mean_a, covariance_a, mean_b, covariance_b) -> float:
  """|m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2) of two Gaussians (Dowson and Landau 1982, eq. 16).

  The last trace is the sum of the singular values of A^1/2 B^1/2: the same number, but rounding in directions without
  variance (there are many when clips are fewer than dimensions) is not magnified by a square root. The roots come from
  symmetric eigen-decompositions, eigenvalues below D * 2.2e-16 of the largest count as zero. Exact to about 1e-12
  of the larger trace; a result below zero by rounding is 0.
  """
  mean_a, mean_b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
  a, b = np.asarray(covariance_a, np.float64), np.asarray(covariance_b, np.float64)
  if a.shape != b.shape or mean_a.shape != mean_b.shape or a.shape != mean_a.shape * 2:
    shapes = f"{mean_a.shape}, {a.shape} and {mean_b.shape}, {b.shape}"
    raise ValueError(f"means and covariances are {shapes}, expected [D] and [D, D] of one D: use the same features.")
  root_a, root_b = _root(a), _root(b)
  cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
  result = float(((mean_a - mean_b) ** 2).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross)
  # What is left where both are equal is rounding, and a distance of 3e-13 would be read as one.
  floor = 1e-12 * (np.trace(a) + np.trace(b))
  return result if result > floor else 0.0


def _root(covariance_DxD) -> np.ndarray:
  values, vectors = np.linalg.eigh((covariance_DxD + covariance_DxD.T) / 2)
  values = np.where(values > len(values) * np.finfo(np.float64).eps * values[-1], values, 0.0)
  return (vectors * np.sqrt(values)) @ vectors.T
