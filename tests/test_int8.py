"""Weights as bytes and scales: how near they are, and what a file of them must hold."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from vftok.convert.load import load_vae, save_vae
from vftok.io import hub
from vftok.io.int8 import BLOCK, SCALES, SMALL, narrowed, widened
from vftok.models.vae import VAE, VAEConfig
from vftok.tools import ship


@pytest.mark.parametrize("shape", [(SMALL + 1,), (3, 7, 65), (64, 32)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0])
def test_error_is_half_a_step_of_the_largest_of_a_block(shape, size):
  x = size * np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  out = narrowed({"w": x})
  assert {k: v.dtype.name for k, v in out.items()} == {"w": "int8", f"w{SCALES}": "float16"}
  back, scales = widened(out["w"], out[f"w{SCALES}"]), out[f"w{SCALES}"].astype(np.float32)
  steps = np.repeat(scales, BLOCK)[: x.size].reshape(shape)
  assert back.dtype == np.float32 and (np.abs(back - x) <= 0.5001 * steps).all()
  if size >= 1e-2:  # below, float16 has few bits left for a scale
    assert np.linalg.norm(back - x) < 0.008 * np.linalg.norm(x)


def test_zeros_and_small_tensors():
  out = narrowed({"zero": np.zeros((40, 40), np.float32), "bias": np.linspace(-1, 1, SMALL)})
  assert not widened(out["zero"], out[f"zero{SCALES}"]).any()
  assert out["bias"].dtype == np.float16 and f"bias{SCALES}" not in out
  with pytest.raises(ValueError, match="w has values beyond float16's range: keep"):
    narrowed({"w": np.full(2 * SMALL, 1e6)})


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """(config, parameters, directory) of a small VAE in float32."""
  cfg = VAEConfig(ch=16, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, time_levels=(0, 1), stem=2)
  rng, start = np.random.default_rng(0), lambda: VAE(cfg).init(jax.random.key(0), np.zeros((1, 1, 4, 4, 3)))
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), nn.unbox(jax.eval_shape(start))["params"])
  directory = tmp_path_factory.mktemp("vae") / "model"
  save_vae(cfg, params, directory)
  return *load_vae(directory), directory


def test_a_shipped_vae_loads(vae, tmp_path):
  cfg, params, source = vae
  assert ship.main([str(source), str(tmp_path / "small"), "--int8"]) == 0
  found, small = load_vae(tmp_path / "small")
  assert found == cfg
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.006 * float(np.abs(b).max()) + 1e-6), small, params)
  sizes = [(path / hub.WEIGHTS).stat().st_size for path in (tmp_path / "small", source)]
  assert sizes[0] < 0.4 * sizes[1]


def test_bytes_without_fitting_scales_are_refused(vae, tmp_path):
  source = vae[2]
  file = hub.open_checkpoint(source)
  tensors = narrowed(dict(file.tensors(file.shapes)))
  key = next(k for k, v in tensors.items() if v.dtype == np.int8)
  for damaged in (None, tensors[key + SCALES][:-1]):
    left = {k: v for k, v in tensors.items() if k != key + SCALES}
    hub.save_files(tmp_path / "bad", left if damaged is None else {**left, key + SCALES: damaged}, file.config)
    with pytest.raises(ValueError, match="int8, expected a floating-point tensor"):
      load_vae(tmp_path / "bad")
  stray = {**dict(file.tensors(file.shapes)), f"other{SCALES}": np.ones(3, np.float16)}
  hub.save_files(tmp_path / "stray", stray, file.config)
  with pytest.raises(ValueError, match="other@scales"):
    load_vae(tmp_path / "stray")
