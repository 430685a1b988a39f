"""Prefix-only heads: what they see, what they must not see, and that they learn."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.models.heads import PrefixHead, PrefixHeadConfig, cosine_similarity

# Each program runs a few times on a handful of numbers: compiling it is all the cost.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
GRID, K = (3, 2, 4), 5
CFG = PrefixHeadConfig(features=7, dim=32, depth=2, head_dim=16, code_dim=6, registers=8, max_grid=(4, 4, 4))


@functools.partial(fast_jit, static_argnums=(0, 4))
def apply(head, params, codes, keep, grid):
  return head.apply(params, codes, keep, grid)


def build(cfg=CFG, grid=GRID, k=K, b=2, seed=0):
  """(head, params with every leaf random, codes, keep = k everywhere)."""
  rng = np.random.default_rng(seed)
  codes = jnp.asarray(rng.uniform(-1, 1, (b, grid[0], k, cfg.code_dim)), jnp.float32)
  keep = jnp.full((b, grid[0]), k)
  head = PrefixHead(cfg)
  shapes = nn.unbox(jax.eval_shape(lambda: head.init(jax.random.key(0), codes, keep, grid)))
  params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
  return head, params, codes, keep


def test_codes_beyond_keep_have_no_influence_and_kept_ones_have():
  head, params, codes, _ = build()
  keep = jnp.asarray([[2, 0, 5], [1, 3, 4]])
  out = apply(head, params, codes, keep, GRID)
  assert out.shape == (2, *GRID, 7) and out.dtype == jnp.float32
  beyond = jnp.arange(K)[None, None] >= keep[:, :, None]
  np.testing.assert_array_equal(apply(head, params, jnp.where(beyond[..., None], 9.0, codes), keep, GRID), out)
  for b, t in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]:  # the last kept code of each step that keeps any
    other = apply(head, params, codes.at[b, t, keep[b, t] - 1].multiply(-1), keep, GRID)
    assert np.all(np.any(np.asarray(other != out)[b, t], axis=-1))
    np.testing.assert_array_equal(other[1 - b], out[1 - b])


def test_steps_see_no_later_step():
  head, params, codes, keep = build()
  out = apply(head, params, codes, keep, GRID)
  for t in range(3):
    changed = apply(head, params, codes.at[:, t].multiply(-0.5), keep, GRID) != out
    assert not np.any(changed[:, :t]) and np.all(np.any(changed[:, t:], axis=-1))
  free = PrefixHead(dataclasses.replace(CFG, causal=False))
  changed = apply(free, params, codes.at[:, 2].multiply(-0.5), keep, GRID) != apply(free, params, codes, keep, GRID)
  assert np.all(np.any(changed, axis=-1))


def test_nothing_kept_gives_the_null_key_alone():
  head, params, codes, keep = build()
  out = apply(head, params, codes, 0 * keep, GRID)
  assert np.all(np.isfinite(out))
  np.testing.assert_allclose(apply(head, params, codes[:, :, :0], 0 * keep, GRID), out, atol=1e-5)
  params["params"]["null_key"] *= -1
  assert np.any(apply(head, params, codes, 0 * keep, GRID) != out)


def test_attention_is_that_of_the_written_out_mask():
  """One block against float64 NumPy over all keys."""
  cfg = dataclasses.replace(CFG, depth=1)
  head, params, codes, _ = build(cfg)
  keep = np.asarray([[2, 0, 5], [1, 3, 4]])
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
  norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  table = lambda p, *n: sum(
    p["table"][i, :m].reshape([m if i == j else 1 for j in range(len(n))] + [-1]) for i, m in enumerate(n)
  )
  keys = np.asarray(codes, np.float64) @ p["codes_in"]["kernel"] + p["codes_in"]["bias"]
  keys = norm(keys + table(p["register_positions"], 3, K)).reshape(2, 3 * K, 32)
  x = np.broadcast_to(table(p["positions"], *GRID).reshape(24, 32), (2, 24, 32))
  w = {name: value[0] for name, value in p["blocks"].items()}
  null = norm(p["null_key"])
  out = np.zeros((2, 24, 2, 16))
  for b in range(2):
    for q in range(24):
      seen = [null] + [keys[b, s * K + j] for s in range(q // 8 + 1) for j in range(keep[b, s])]
      for n in range(2):
        k = norm(np.stack(seen) @ w["kv_kernel"][:, 0, n])
        logits = k @ norm(norm(x[b, q]) @ w["q_kernel"][:, n]) * 8 / 16
        weights = np.exp(logits) / np.exp(logits).sum()
        out[b, q, n] = weights @ (np.stack(seen) @ w["kv_kernel"][:, 1, n])
  x = x + np.einsum("bqne,ned->bqd", out, w["proj_kernel"])
  gate, value = (norm(x) @ w["up_kernel"][:, i] for i in range(2))
  x = x + (gate / (1 + np.exp(-gate)) * value) @ w["down_kernel"]
  expected = (norm(x) @ p["out"]["kernel"] + p["out"]["bias"]).reshape(2, *GRID, 7)
  np.testing.assert_allclose(apply(head, params, codes, jnp.asarray(keep), GRID), expected, atol=2e-5)


def test_one_query_per_step_for_a_class_feature():
  head, params, codes, keep = build(grid=(3, 1, 1))
  assert apply(head, params, codes, keep, (3, 1, 1)).shape == (2, 3, 1, 1, 7)


def test_the_cosine_and_its_gradient():
  x, y = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]), jnp.asarray([[4.0, 3.0], [1.0, 0.0]])
  np.testing.assert_allclose(cosine_similarity(x, y), [0.96, 0.0], rtol=1e-5)
  chex.assert_tree_all_finite(jax.grad(lambda x: cosine_similarity(x, y).sum())(x))


def test_every_parameter_names_its_axes_and_all_learn():
  grid = (2, 2, 3)
  head, params, codes, keep = build(grid=grid)
  boxed = jax.eval_shape(lambda: head.init(jax.random.key(0), codes, keep, grid))["params"]
  leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
  assert all(isinstance(x, nn.Partitioned) and len(x.names) == x.value.ndim for x in leaves)
  target = jax.random.normal(jax.random.key(1), (2, *grid, 7))

  @fast_jit
  def step(params):
    value, grad = jax.value_and_grad(
      lambda p: jnp.square(head.apply({"params": p}, codes, keep, grid) - target).mean()
    )(params)
    return value, grad, jax.tree.map(lambda p, g: p - 0.01 * jnp.sign(g), params, grad)

  params = params["params"] | {"out": jax.tree.map(jnp.zeros_like, params["params"]["out"])}  # as it is initialised
  first, _, params = step(params)
  for _ in range(60):
    value, grad, params = step(params)
  assert float(value) < 0.5 * float(first)
  assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grad))


def test_a_grid_that_does_not_fit_is_one_sentence():
  head, params, codes, keep = build()
  with pytest.raises(ValueError, match=r"the grid \(2, 2, 4\) has 2 steps, expected 3"):
    apply(head, params, codes, keep, (2, 2, 4))
  with pytest.raises(ValueError, match="does not fit the position table"):
    apply(head, params, codes, keep, (3, 5, 4))
