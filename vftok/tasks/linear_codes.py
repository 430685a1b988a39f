"""Principal components as a start: what tiny networks would take most of their training to find."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from vftok.models.layers import patchify
from vftok.models.vae import TIME_STRIDE


def patch_code(clips: list[np.ndarray], patch, channels: int, whiten: float) -> dict[str, dict[str, Any]]:
  """The best linear code of space-time patches (PCA) as parameters of the VAE's linear branch.

  Args:
    clips: uint8 [b, F, H, W, 3] each.
    whiten: 0 keeps the components' own scale (an error in latents is then an error in pixels), 1 gives all of them
      variance 1, values between compress their spread. The mean square over channels is 1 in any case.
  """
  size = int(np.prod(patch)) * 3
  count, total, second = 0, np.zeros(size), np.zeros((size, size))
  for clip in clips:
    front = np.repeat(clip[:, :1], TIME_STRIDE - 1, axis=1)  # as the encoder fills up the first step
    video = np.concatenate([front, clip], axis=1).astype(np.float32) / 127.5 - 1
    patches = np.asarray(patchify(video, patch), np.float64).reshape(-1, size)
    count, total, second = count + len(patches), total + patches.sum(0), second + patches.T @ patches
  middle = total / count
  values, vectors = principal(second / count - np.outer(middle, middle), channels)
  scale = values ** (-whiten / 2)
  scale /= np.sqrt(np.mean(values * scale**2))
  encode, decode = vectors * scale, (vectors / scale).T
  as_params = lambda kernel, bias: {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
  return {"encoder": as_params(encode, -middle @ encode), "decoder": as_params(decode, middle)}


def step_code(latents_NxTxP: np.ndarray, size: int) -> dict[str, Any]:
  """The best linear code of a time step's latents as parameters of the encoder's linear map.

  One map for the first step, one for all others; every component has variance 1, as FSQ wants it.

  Raises:
    ValueError: fewer clips than components.
  """
  count, steps, _ = latents_NxTxP.shape
  if count < size:
    raise ValueError(f"a linear start of {size} components got {count} clips, expected more: raise loss.fit_batches.")
  kernels, biases = [], []
  for some in (latents_NxTxP[:, :1], latents_NxTxP[:, 1:] if steps > 1 else latents_NxTxP):
    x = some.reshape(-1, some.shape[-1]).astype(np.float32)
    middle = x.mean(0)
    values, vectors = principal(np.cov(x - middle, rowvar=False), size)
    kernel = vectors / np.sqrt(values)
    kernels.append(kernel)
    biases.append(-middle @ kernel)
  as_array = lambda parts: jnp.asarray(np.stack(parts), jnp.float32)
  return {"linear_kernel": as_array(kernels), "linear_bias": as_array(biases)}


def principal(covariance: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """(variances [count], components [D, count]), the largest first; no variance is zero, so all can be divided by."""
  values, vectors = np.linalg.eigh(covariance)
  return np.maximum(values[::-1][:count], 1e-8), vectors[:, ::-1][:, :count]
