"""EVATok's quantiser: the nearest of V codes, both l2-normalised (its losses: arXiv 2603.12267, section 3.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vftok.models.layers import unit

TEMPERATURE = 0.01  # of the softmax over squared distances in the entropy term
LOG_EPS = 1e-5
COMMIT = 0.25  # weight of the commitment beside the codebook's 1


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


def losses(z_BxTxKxc, codebook_Vxc, kept_BxTxK) -> dict[str, jax.Array]:
  """The quantiser's terms, each a float32 scalar over kept slots only.

  Returns:
    codebook: mean square between sg(z) and the code, both normalised; commit: 0.25 of it with the gradient for z.
    entropy: mean entropy of p less the entropy of the mean p, with p = softmax(-distance^2 / 0.01) over the codes; its
      weight (0.02) is not in it.
  """
  z, table = unit(z_BxTxKxc), unit(codebook_Vxc)
  codes = table[jnp.argmax(z @ table.T, axis=-1)]
  weight_BxTxK = kept_BxTxK / jnp.maximum(kept_BxTxK.sum(), 1)
  mean = lambda x_BxTxK: jnp.sum(jnp.where(kept_BxTxK, x_BxTxK, 0.0) * weight_BxTxK)
  stop = jax.lax.stop_gradient
  square = lambda a, b: mean(jnp.square(a - b).mean(-1))
  return {
    "codebook": square(stop(z), codes),
    "commit": COMMIT * square(z, stop(codes)),
    "entropy": entropy(z, table, kept_BxTxK),
  }


def entropy(z_BxTxKxc, table_Vxc, kept_BxTxK) -> jax.Array:
  """The entropy term of `losses`, of features and codes that are normalised already."""
  cosine_BxTxKxV = z_BxTxKxc @ table_Vxc.T
  weight_BxTxK = kept_BxTxK / jnp.maximum(kept_BxTxK.sum(), 1)
  mean = lambda x_BxTxK: jnp.sum(jnp.where(kept_BxTxK, x_BxTxK, 0.0) * weight_BxTxK)
  log_p = jax.nn.log_softmax((2 * cosine_BxTxKxV - 2) / TEMPERATURE, axis=-1)
  p = jnp.exp(log_p)
  each = mean(-jnp.sum(p * log_p, axis=-1))
  mean_V = jnp.einsum("BTKV,BTK->V", jnp.where(kept_BxTxK[..., None], p, 0.0), weight_BxTxK)
  return each + jnp.sum(mean_V * jnp.log(mean_V + LOG_EPS))
