"""VideoMAE as a frozen net, against itself in NumPy, and the heads that judge clips by it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_files import layer_norm, write

from vftok.frozen.features import videomae
from vftok.frozen.features.frames import IMAGENET_MEAN, IMAGENET_STD
from vftok.models.semantic_critic import Heads, largest_singular, local_norm

DIM, DEPTH, HEADS, PATCH = 8, 2, 2, 4


def tensors(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  out = {"embeddings.patch_embeddings.projection.weight": normal(DIM, 3, 2, PATCH, PATCH)}
  out["embeddings.patch_embeddings.projection.bias"] = normal(DIM)
  for i in range(DEPTH):
    at = f"encoder.layer.{i}"
    for name in ("layernorm_before", "layernorm_after"):
      out |= {f"{at}.{name}.weight": 1 + normal(DIM), f"{at}.{name}.bias": normal(DIM)}
    out |= {f"{at}.attention.attention.{name}.weight": normal(DIM, DIM) for name in ("query", "key", "value")}
    out |= {f"{at}.attention.attention.{name}_bias": normal(DIM) for name in "qv"}
    for name, o, n in (("attention.output", DIM, DIM), ("intermediate", 16, DIM), ("output", DIM, 16)):
      out |= {f"{at}.{name}.dense.weight": normal(o, n), f"{at}.{name}.dense.bias": normal(o)}
  return out


def oracle(video_FxHxWx3, w):
  """Features after 0, 1 and 2 blocks of one normalised clip, head by head."""
  w = {key: value.astype(np.float64) for key, value in w.items()}
  kernel, rows = w["embeddings.patch_embeddings.projection.weight"], []
  for t, i, j in np.ndindex(len(video_FxHxWx3) // 2, 2, 2):
    window = video_FxHxWx3[2 * t : 2 * t + 2, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)]
    rows.append((kernel * window.transpose(3, 0, 1, 2)).sum((1, 2, 3, 4)))
  x = np.stack(rows) + w["embeddings.patch_embeddings.projection.bias"]
  for n in range(len(x)):
    for c in range(DIM):
      angle = n / 10000 ** (2 * (c // 2) / DIM)
      x[n, c] += math.cos(angle) if c % 2 else math.sin(angle)
  found, e = [x], DIM // HEADS
  for layer in range(DEPTH):
    at = f"encoder.layer.{layer}"
    y, qkv = layer_norm(x, w, f"{at}.layernorm_before"), []
    for name in ("query", "key", "value"):
      bias = w.get(f"{at}.attention.attention.{name[0]}_bias", 0.0)
      qkv.append(y @ w[f"{at}.attention.attention.{name}.weight"].T + bias)
    outs = []
    for n in range(HEADS):
      q, k, v = (part[:, n * e : (n + 1) * e] for part in qkv)
      p = np.exp(q @ k.T / math.sqrt(e))
      outs.append(p / p.sum(-1, keepdims=True) @ v)
    dense = lambda y, name, at=at: y @ w[f"{at}.{name}.dense.weight"].T + w[f"{at}.{name}.dense.bias"]
    x = x + dense(np.concatenate(outs, -1), "attention.output")
    y = dense(layer_norm(x, w, f"{at}.layernorm_after"), "intermediate")
    x = x + dense(0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))), "output")
    found.append(x)
  return found


def test_features_are_those_of_the_formula(tmp_path):
  w = tensors()
  stored = {f"videomae.{key}": value for key, value in w.items()} | {"classifier.weight": np.ones((2, 2), np.float32)}
  net, params = videomae.load(write(stored, tmp_path / "a.safetensors"), heads=HEADS, size=8, taps=(0, 1, 2))
  video = np.random.default_rng(1).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
  found = jax.jit(net.apply)(params, video)
  for row in range(2):
    normalised = (video[row] / 2 + 0.5 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    for mine, theirs in zip(found, oracle(normalised, w), strict=True):
      np.testing.assert_allclose(mine[row], theirs, atol=2e-4)


def test_other_files_are_refused(tmp_path):
  w = tensors()
  assert videomae.load(write(w, tmp_path / "whole.safetensors"), heads=HEADS)[0].taps == (0, 0, 1, 1, 2)
  key = "encoder.layer.1.output.dense.bias"
  cases = [
    ({k: v for k, v in w.items() if k != key}, f"lacks {key}"),
    (
      w | {"encoder.layer.0.attention.attention.k_bias": w[key]},
      "has the unknown encoder.layer.0.attention.attention.k_",
    ),
    (w | {key: np.ones(3, np.float32)}, f"holds {key} with shape (3,), expected (8,)"),
    ({"x": w[key]}, "lacks embeddings.patch_embeddings.projection.weight"),
  ]
  for i, (stored, names) in enumerate(cases):
    with pytest.raises(ValueError) as caught:
      videomae.load(write(stored, tmp_path / f"{i}.safetensors"), heads=HEADS)
    assert names in str(caught.value)


def test_published_size():
  shapes = videomae.abstract_params(videomae.VideoMAE())
  assert sum(np.prod(x.shape) for x in shapes.values()) == pytest.approx(86.2e6, rel=0.01)  # 87 M with norm and keys
  assert videomae.positions(1568, 768).shape == (1568, 768)


@pytest.mark.slow
def test_heads_judge_every_token():
  taps = [jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((2, 4, 12, 6)).astype(np.float32)]
  params = nn.unbox(Heads().init(jax.random.key(0), taps))["params"]
  run = jax.jit(lambda p, taps: Heads().apply({"params": p}, taps))
  found = run(params, taps)
  assert found.shape == (4, 24) and set(params) == {"head_0", "head_1"}
  turned = run(params, [jnp.roll(x, 5, axis=1) for x in taps])  # tokens stand in a circle
  np.testing.assert_allclose(turned[:, :12], jnp.roll(found[:, :12], 5, axis=1), atol=1e-4)
  scaled = jax.tree_util.tree_map_with_path(lambda path, x: x * 3 if path[-1].key == "kernel" else x, params)
  np.testing.assert_allclose(run(scaled, taps), found, atol=1e-4)  # kernels have the largest singular value 1
  w = np.random.default_rng(1).standard_normal((9, 5)).astype(np.float32)
  assert largest_singular(w) == pytest.approx(np.linalg.svd(w)[1][0], rel=0.02)
  y = np.asarray(local_norm(np.random.default_rng(2).normal(3, 2, (16, 5, 4)).astype(np.float32)))
  assert np.abs(y[:8].mean((0, 1))).max() < 1e-5 and np.abs(y[8:].std((0, 1)) - 1).max() < 1e-3
  grads = jax.grad(lambda p: jnp.square(run(p, taps)).sum())(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
