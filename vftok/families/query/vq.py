"""The table of codes: features -> ids -> codes, and the losses that train both. Pure functions of a table.

Letters: V codes of c channels. The table is a parameter: as stored, it need not be normalised.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vftok.families.query.config import VQConfig
from vftok.models.flow import drawn_ids
from vftok.models.layers import unit


def compared(cfg: VQConfig, x_xC) -> jax.Array:
  """Features or codes as they are compared: at length 1 where the config says so."""
  return unit(x_xC) if cfg.l2_normalized else x_xC.astype(jnp.float32)


def scores(cfg: VQConfig, table_VxC, z_xC) -> jax.Array:
  """float32 [..., V], highest at the id to take: products with all codes, or negative squared distances less |z|^2."""
  codes = compared(cfg, table_VxC)
  products = compared(cfg, z_xC) @ codes.T
  return products if cfg.stochastic else 2 * products - jnp.sum(codes * codes, axis=-1)


def ids_of(cfg: VQConfig, table_VxC, z_xC, key=None, inverse_temperature=None) -> jax.Array:
  """int32 [...]: the likeliest ids, or a draw given a key; -1, which is no id, where z is not finite.

  Args:
    inverse_temperature: the learned one, where the config's temperature is below 0.
  """
  found = scores(cfg, table_VxC, z_xC)
  if key is None:
    ids = jnp.argmax(found, axis=-1)
  else:
    learned = cfg.stochastic_temperature < 0
    ids = drawn_ids(key, found * (inverse_temperature if learned else 1 / cfg.stochastic_temperature))
  return jnp.where(jnp.isfinite(z_xC).all(-1), ids, -1).astype(jnp.int32)


def codes_of(cfg: VQConfig, table_VxC, ids) -> jax.Array:
  """float32 [..., c] of ids; of what is no id, some code or other."""
  return compared(cfg, jnp.take(table_VxC, ids, axis=0, mode="clip"))


def straight_through(cfg: VQConfig, table_VxC, z_xC, ids) -> jax.Array:
  """Codes whose gradient is the features': u + stop(e - u)."""
  u = compared(cfg, z_xC)
  return u + jax.lax.stop_gradient(codes_of(cfg, table_VxC, ids) - u)


def losses(cfg: VQConfig, table_VxC, z_BxNxC, ids_BxN, kept_BxN=None) -> dict[str, jax.Array]:
  """Scalars "commit" and "codebook", mean squared distances of features to their codes, and "loss", their weighted sum.

  Only features learn from "commit" and only codes from "codebook" (LARP section 5). kept_BxN: tokens that count.
  """
  u, codes = compared(cfg, z_BxNxC), codes_of(cfg, table_VxC, ids_BxN)
  kept = jnp.ones(ids_BxN.shape, bool) if kept_BxN is None else kept_BxN

  def mean(a, b):
    per_token = jnp.mean((a - b) ** 2, axis=-1)
    return jnp.sum(jnp.where(kept, per_token, 0)) / jnp.maximum(kept.sum(), 1)

  commit, codebook = mean(u, jax.lax.stop_gradient(codes)), mean(codes, jax.lax.stop_gradient(u))
  weighted = cfg.commitment_loss_weight * commit + cfg.codebook_loss_weight * codebook
  return {"commit": commit, "codebook": codebook, "loss": weighted}
