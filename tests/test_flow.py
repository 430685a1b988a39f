import jax
import numpy as np

from vftok.models import flow


def test_noise_is_jax_s_own():
  shape = (2, 3, 4, 5, 2)
  np.testing.assert_array_equal(flow.gaussian(jax.random.key(3), shape), jax.random.normal(jax.random.key(3), shape))
