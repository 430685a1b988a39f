"""The analytic FLOPs are the denominator of every speed we print."""

import jax
import jax.numpy as jnp
import pytest

from vftok.models.attention import Layout
from vftok.models.transformer import Stack, StackConfig
from vftok.models.vae import VAEConfig
from vftok.perf import stack_flops, vae_flops


def test_vae_flops_of_the_released_size():
  encode, decode = vae_flops(VAEConfig(), 17, 64, 64)
  assert encode / 1e9 == pytest.approx(364, abs=1)
  assert decode / 1e9 == pytest.approx(929, abs=1)


def test_stack_flops_agree_with_the_compiler_on_one_block():
  """One unrolled block under the full mask, small enough that XLA counts every product."""
  cfg = StackConfig(dim=128, depth=1, head_dim=32)
  layout = Layout(1, 160, 96, "full")
  x = jax.ShapeDtypeStruct((1, layout.length, cfg.dim), jnp.float32)
  params = jax.eval_shape(lambda: Stack(cfg).init(jax.random.key(0), jnp.zeros(x.shape), layout))
  compiled = jax.jit(lambda p, x: Stack(cfg).apply(p, x, layout)).lower(params, x).compile()
  counted = compiled.cost_analysis()["flops"]
  assert stack_flops(cfg, layout.length) == pytest.approx(counted, rel=0.03)
