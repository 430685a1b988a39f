"""Parameters that tests start from."""

import jax
import numpy as np


def started(init, seed=0):
  """What `init` gives, by the kind of random numbers of which a program is compiled fastest."""
  return jax.jit(init)(jax.random.key(seed, impl="rbg"))


def moved(params, scale=0.2, seed=0):
  """Well away from zeros and symmetry, by normal numbers that nothing is compiled for."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: np.asarray(x) + np.float32(scale) * rng.standard_normal(x.shape, np.float32), params)
