"""Weights as bytes and scales: how near they are, and what a file of them must hold."""

import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vftok.cli import commands
from vftok.convert.load import load_vae, save_vae
from vftok.io import hub, weight_index
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


def test_info_describes_a_vae_by_itself(vae, capsys):
  cfg, params, directory = vae
  assert commands.main(["info", str(directory), "--json"]) == 0
  facts = json.loads(capsys.readouterr().out)
  assert facts["strides"] == dict(time=4, height=4, width=4) and facts["channels"] == cfg.z_channels
  clip = jax.ShapeDtypeStruct((1, 17, 64, 64, 3), np.float32)
  mean, _ = jax.eval_shape(lambda p, v: VAE(cfg).apply({"params": p}, v, method="encode"), params, clip)
  assert facts["latents"]["17x64x64"] == list(mean.shape[1:])
  assert facts["parameters"]["total"] == sum(x.size for x in jax.tree.leaves(params)) > 0
  assert facts["parameters"]["total"] == facts["parameters"]["encoder"] + facts["parameters"]["decoder"]


def test_scales_that_do_not_fit_are_refused(vae, tmp_path):
  file = hub.open_checkpoint(vae[2])
  whole = dict(file.tensors(file.shapes))
  tensors = narrowed(whole)
  key = next(k for k, v in tensors.items() if v.dtype == np.int8)
  of_key = key + SCALES
  others = {k: v for k, v in tensors.items() if k != of_key}
  for number, (changed, said) in enumerate(
    [
      (others, "int8, expected a floating-point tensor"),
      (tensors | {of_key: tensors[of_key][:-1]}, f"holds {of_key} with shape"),
      (tensors | {of_key: tensors[of_key].astype(np.int32)}, f"holds {of_key} as int32, expected"),
      (tensors | {key: whole[key]}, f"holds {key} as float32 and scales of it, expected int8"),
      (whole | {f"other{SCALES}": np.ones(3, np.float16)}, f"has unused other{SCALES}"),
    ]
  ):
    hub.save_files(tmp_path / f"bad{number}", changed, file.config)
    with pytest.raises(ValueError, match=re.escape(said)):
      load_vae(tmp_path / f"bad{number}")


def test_scales_may_lie_in_another_file(vae, tmp_path):
  file = hub.open_checkpoint(vae[2])
  tensors = narrowed(dict(file.tensors(file.shapes)))
  hub.save_files(tmp_path / "one", tensors, file.config)
  hub.save_files(tmp_path / "two", {}, file.config)
  (tmp_path / "two" / hub.WEIGHTS).unlink()
  places = {key: f"{'scales' if key.endswith(SCALES) else 'weights'}.safetensors" for key in tensors}
  for name in set(places.values()):
    save_file({key: tensors[key] for key in tensors if places[key] == name}, tmp_path / "two" / name)
  (tmp_path / "two" / weight_index.INDEX).write_text(json.dumps({"weight_map": places}))
  one, two = (load_vae(tmp_path / name)[1] for name in ("one", "two"))
  jax.tree.map(np.testing.assert_array_equal, one, two)
