"""The table of codes: features -> ids -> codes. Pure functions of a table.

Letters: V codes of c channels. The table is a parameter: as stored, it need not be normalised.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vftok.families.query.config import VQConfig
from vftok.models.flow import drawn_ids
from vftok.models.layers import ranked, unit


def compared(cfg: VQConfig, x_xC) -> jax.Array:
  """Features or codes as they are compared: at length 1 where the config says so."""
  return unit(x_xC) if cfg.l2_normalized else x_xC.astype(jnp.float32)


def scores(cfg: VQConfig, table_VxC, z_xC) -> jax.Array:
  """float32 [..., V], highest at the id to take: products with all codes, or negative squared distances less |z|^2."""
  codes = compared(cfg, table_VxC)
  products = compared(cfg, z_xC) @ codes.T
  return products if cfg.stochastic else 2 * products - ranked(jnp.sum(codes * codes, axis=-1), products.ndim)


def ids_of(cfg: VQConfig, table_VxC, z_xC, key=None, inverse_temperature=None) -> jax.Array:
  """int32 [...]: the likeliest ids, or a draw given a key; -1, which is no id, where z is not finite.

  Args:
    inverse_temperature: the learned one, where the config's temperature is below 0.
  """
  found = scores(cfg, table_VxC, z_xC)
  learned = cfg.stochastic and cfg.stochastic_temperature < 0
  if key is not None:
    ids = drawn_ids(key, found * (inverse_temperature if learned else 1 / cfg.stochastic_temperature))
  else:  # the learned one may have gone below 0
    ids = jnp.argmax(found * jnp.sign(inverse_temperature) if learned else found, axis=-1)
  return jnp.where(jnp.isfinite(z_xC).all(-1), ids, -1).astype(jnp.int32)


def codes_of(cfg: VQConfig, table_VxC, ids) -> jax.Array:
  """float32 [..., c] of ids; of what is no id, some code or other."""
  return compared(cfg, jnp.take(table_VxC, ids, axis=0, mode="clip"))
