"""Frozen feature nets against plain NumPy, and their sizes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from feature_files import (
  DEPTH,
  DIM,
  GRID,
  HEADS,
  HIDDEN,
  PATCH,
  REGISTERS,
  TABLE,
  apply,
  cubic,
  oracle_dinov2,
  oracle_vjepa2,
  resample,
)
from safetensors.numpy import load_file

from vftok.frozen import features
from vftok.frozen.features import convert
from vftok.frozen.features.dinov2 import DINOv2, cubic_matrix
from vftok.frozen.features.vit import ViTConfig
from vftok.frozen.features.vjepa2 import VJEPA2


@pytest.mark.parametrize(
  "size,registers,offset",
  [(GRID, 0, 0.0), ((TABLE, TABLE), 0, 0.1), ((7, 6), 0, 0.1), (GRID, REGISTERS, 0.0), ((7, 6), REGISTERS, 0.0)],
)
def test_dinov2_equals_the_oracle(weights, size, registers, offset):
  path = weights["registers" if registers else "dinov2"]
  net, params = features.load("dinov2", path, heads=HEADS, position_offset=offset)
  assert net == DINOv2(ViTConfig(DIM, DEPTH, HEADS, HIDDEN, True), PATCH, TABLE, registers, offset)
  images = np.random.default_rng(1).normal(size=(2, size[0] * PATCH, size[1] * PATCH, 3))
  patches, classes = apply(net, params, jnp.asarray(images, jnp.float32))
  assert patches.shape == (2, *size, DIM) and classes.shape == (2, DIM)
  for n in range(2):
    expected_patches, expected_class = oracle_dinov2(images[n], load_file(path), registers, offset)
    np.testing.assert_allclose(patches[n], expected_patches, atol=1e-4)
    np.testing.assert_allclose(classes[n], expected_class, atol=1e-4)


def test_vjepa2_equals_the_oracle(weights):
  net, params = features.load("vjepa2", weights["vjepa2"], heads=HEADS)
  assert net == VJEPA2(ViTConfig(DIM, DEPTH, HEADS, HIDDEN), PATCH, 2)
  video = np.random.default_rng(1).normal(size=(2, 6, GRID[0] * PATCH, GRID[1] * PATCH, 3))
  out = apply(net, params, jnp.asarray(video, jnp.float32))
  for n in range(2):
    np.testing.assert_allclose(out[n], oracle_vjepa2(video[n], load_file(weights["vjepa2"])), atol=1e-4)


def test_bfloat16_is_close_and_returns_float32(weights):
  images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 12, 16, 3)), jnp.float32)
  outputs = []
  for dtype in ("float32", "bfloat16"):
    net, params = features.load("dinov2", weights["dinov2"], heads=HEADS, dtype=dtype)
    outputs.append(np.asarray(apply(net, params, images)[0]))
  assert outputs[1].dtype == np.float32 and np.any(outputs[0] != outputs[1])
  np.testing.assert_allclose(outputs[1], outputs[0], atol=0.1 * np.abs(outputs[0]).max())


def test_position_interpolation():
  np.testing.assert_allclose(cubic_matrix(37, 37), np.eye(37), atol=1e-12)
  for n in (16, 40):
    matrix = cubic_matrix(37, n)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, resample(np.eye(37), n), atol=1e-12)
  # PyTorch samples 37 -> 16 at every 2.3125; the first output sits 0.65625 beyond entry 0.
  row = cubic_matrix(37, 16)[0]
  x = 0.65625
  np.testing.assert_allclose(
    row[:4], [cubic(1 + x, -0.75) + cubic(x, -0.75), cubic(1 - x, -0.75), cubic(2 - x, -0.75), 0], atol=1e-12
  )


# ---- sizes


@pytest.mark.parametrize("dim,heads,published", [(384, 6, 22_056_576), (768, 12, 86_580_480), (1024, 16, 304_368_640)])
def test_dinov2_has_the_published_number_of_parameters(dim, heads, published):
  net = DINOv2(ViTConfig(dim, 24 if dim == 1024 else 12, heads, 4 * dim, True))
  count = sum(math.prod(leaf.shape) for leaf in convert.abstract_params(net).values())
  assert count + dim == published  # the mask token is theirs alone


def test_vjepa2_large_has_303_9_million_parameters():
  d = 1024
  layer = 4 * (d * d + d) + 2 * 4 * d * d + 5 * d + 4 * d
  assert sum(math.prod(leaf.shape) for leaf in convert.abstract_params(VJEPA2()).values()) == (
    24 * layer + 2 * d + 2 * 16 * 16 * 3 * d + d
  )
