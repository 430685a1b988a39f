"""EVATok's quantiser: the nearest of V codes, both l2-normalised (its losses: arXiv 2603.12267, section 3.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vftok.models.layers import unit

TEMPERATURE = 0.01  # of the softmax over squared distances in the entropy term
LOG_EPS = 1e-5


def cosines(z_xc, codebook_Vxc) -> jax.Array:
  """[..., V]: of features and all codes. The nearest code is the one of the largest."""
  return unit(z_xc) @ unit(codebook_Vxc).T


def ids_of(z_xc, codebook_Vxc) -> jax.Array:
  """int32 [...] of features [..., c]; -1, which is no id, where they are not finite."""
  ids = jnp.argmax(cosines(z_xc, codebook_Vxc), axis=-1).astype(jnp.int32)
  return jnp.where(jnp.isfinite(z_xc).all(-1), ids, -1)


def codes_of(ids, codebook_Vxc) -> jax.Array:
  """Normalised codes float32 [..., c] of ids [...]; of ids out of range those of the nearest one in it."""
  return unit(jnp.take(codebook_Vxc, ids, axis=0, mode="clip"))


def passed_on(z_xc, codes_xc, *, rotate: bool = True) -> jax.Array:
  """The codes, with a gradient for z: turned and stretched as z is by the code (arXiv 2410.06424), or as it comes.

  Both are normalised already.
  """
  if not rotate:
    return z_xc + jax.lax.stop_gradient(codes_xc - z_xc)
  e, q = jax.lax.stop_gradient((z_xc, codes_xc))
  r = unit(e + q)
  dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)
  return z_xc - 2 * dot(z_xc, r) * r + 2 * dot(z_xc, e) * q


def entropy(z_BxTxKxc, table_Vxc, kept_BxTxK) -> jax.Array:
  """Scalar: mean entropy of p less the entropy of the mean p, with p = softmax(-distance^2 / 0.01) over the codes.

  Over kept slots only; features and codes are normalised already.
  """
  cosine_BxTxKxV = z_BxTxKxc @ table_Vxc.T
  weight_BxTxK = kept_BxTxK / jnp.maximum(kept_BxTxK.sum(), 1)
  mean = lambda x_BxTxK: jnp.sum(jnp.where(kept_BxTxK, x_BxTxK, 0.0) * weight_BxTxK)
  log_p = jax.nn.log_softmax((2 * cosine_BxTxKxV - 2) / TEMPERATURE, axis=-1)
  p = jnp.exp(log_p)
  each = mean(-jnp.sum(p * log_p, axis=-1))
  mean_V = jnp.einsum("BTKV,BTK->V", jnp.where(kept_BxTxK[..., None], p, 0.0), weight_BxTxK)
  return each + jnp.sum(mean_V * jnp.log(mean_V + LOG_EPS))
