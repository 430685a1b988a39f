"""The VAE against the reference's numbers, and the fast convolutions against plain ones."""

import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax
from safetensors.numpy import load_file

from vftok.convert import vidtok
from vftok.models import conv
from vftok.models.vae import VAE, VAEConfig, kl, sample
from vftok.models.vae_blocks import silu

SMALL = pathlib.Path(__file__).parent / "data" / "small.safetensors"
PREFIX = "w.video_tokenizer.vae.vidtok."


def channels_last(x):
  return np.moveaxis(x, 1, -1)


def relative_l2(a, b):
  assert a.shape == b.shape
  return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def small():
  tensors = load_file(SMALL)
  weights = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
  cfg = vidtok.infer_config({k: v.shape for k, v in weights.items()})
  table = vidtok.rules(cfg)
  assert set(table) == set(weights)
  flat = {rule.path: rule.to_ours(weights[key], weights[key].shape) for key, rule in table.items()}
  params = {"params": traverse_util.unflatten_dict(flat)}
  vae = VAE(cfg)
  encode = jax.jit(lambda x: vae.apply(params, x, method=VAE.encode))
  decode = jax.jit(lambda z: vae.apply(params, z, method=VAE.decode))
  return tensors, weights, cfg, params, encode, decode


@pytest.mark.slow
def test_parity_with_reference(small):
  tensors, _, cfg, _, encode, decode = small
  assert cfg == VAEConfig(ch=8)
  mean, logvar = encode(channels_last(tensors["in.video"]))
  assert mean.dtype == logvar.dtype == jnp.float32
  assert relative_l2(mean, channels_last(tensors["in.latents"])) < 1e-5
  video = decode(channels_last(tensors["samp4.cfg3"]))
  assert relative_l2(video, channels_last(tensors["out.video_cfg3"])) < 1e-5


def test_rules_are_a_bijection_onto_our_tree(small):
  _, weights, cfg, params, _, _ = small
  shapes = jax.eval_shape(VAE(cfg).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
  ours = traverse_util.flatten_dict(nn.unbox(shapes)["params"])
  table = vidtok.rules(cfg)
  assert sorted(rule.path for rule in table.values()) == sorted(ours)
  flat = traverse_util.flatten_dict(params["params"])
  for key, rule in table.items():
    assert flat[rule.path].shape == ours[rule.path].shape, key
    np.testing.assert_array_equal(rule.to_theirs(flat[rule.path]), weights[key])


def test_infer_config_names_the_missing_tensor():
  with pytest.raises(ValueError, match=r"encoder\.conv_in"):
    vidtok.infer_config({"encoder.weight": (1,)})


def test_every_parameter_has_logical_axes():
  boxed = jax.eval_shape(VAE(VAEConfig(ch=8)).init, jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)))
  for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim


def test_full_size_parameter_counts():
  cfg = VAEConfig()
  shapes = jax.eval_shape(VAE(cfg).init, jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))["params"]

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree)) / 1e6

  assert count(shapes) == pytest.approx(157.9, rel=3e-3)
  assert count(shapes["encoder"]) == pytest.approx(69.6, rel=3e-3)
  assert count(shapes["decoder"]) == pytest.approx(88.4, rel=3e-3)
  theirs = {
    key: rule.to_theirs(np.broadcast_to(np.float32(0), shapes_at(shapes, rule.path))).shape
    for key, rule in vidtok.rules(cfg).items()
  }
  assert len(theirs) == 416
  assert vidtok.infer_config(theirs) == cfg
  assert theirs["encoder.down_temporal.2.downsample.conv.conv.weight"] == (512, 512, 3, 3, 3)


def shapes_at(tree, path):
  for name in path:
    tree = tree[name]
  return nn.unbox(tree).shape


@pytest.mark.parametrize(("frames", "steps", "back"), [(17, 5, 17), (1, 1, 1), (16, 4, 13), (18, 5, 17)])
def test_lengths(small, frames, steps, back):
  vae, params = VAE(VAEConfig(ch=8)), small[3]
  video = jax.ShapeDtypeStruct((2, frames, 16, 24, 3), jnp.float32)
  mean, logvar = jax.eval_shape(partial(vae.apply, method=VAE.encode), params, video)
  assert mean.shape == logvar.shape == (2, steps, 2, 3, 16)
  assert jax.eval_shape(partial(vae.apply, method=VAE.decode), params, mean).shape == (2, back, 16, 24, 3)


def test_causality(small):
  tensors, *_, encode, decode = small
  video = channels_last(tensors["in.video"])
  changed = video.copy()
  changed[:, 13:] = 0.5
  mean, other = encode(video)[0], encode(changed)[0]
  np.testing.assert_array_equal(mean[:, :4], other[:, :4])
  assert np.abs(mean[:, 4] - other[:, 4]).max() > 1e-3
  z = np.asarray(mean)
  np.testing.assert_allclose(decode(z)[:, :13], decode(np.asarray(other))[:, :13], atol=1e-6)


def test_bad_shapes_are_refused():
  vae, key = VAE(VAEConfig(ch=8)), jax.random.key(0)
  with pytest.raises(ValueError, match="multiples of 8"):
    jax.eval_shape(vae.init, key, jnp.zeros((1, 1, 12, 8, 3)))
  with pytest.raises(ValueError, match="B, F, H, W, 3"):
    jax.eval_shape(vae.init, key, jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match="levels"):
    VAEConfig(ch_mult=(1, 2))


# --- the fast convolutions against one lax.conv_general_dilated each ------------------------------------


def plain_conv3d(x, kernel, front=2, stride=1):
  return lax.conv_general_dilated(
    x,
    kernel.transpose(2, 0, 1, 3, 4),
    (stride, 1, 1),
    ((front, 0), (1, 1), (1, 1)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def plain_frames(x, kernel, stride=1, padding=((1, 1), (1, 1))):
  return lax.conv_general_dilated(
    x, kernel[None], (1, stride, stride), ((0, 0), *padding), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


def nearest_space(x):
  return x.repeat(2, 2).repeat(2, 3)


def plain_causal_conv1d(x, kernel):
  return lax.conv_general_dilated(
    x,
    kernel[:, None, None],
    (1, 1, 1),
    ((2, 0), (0, 0), (0, 0)),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def plain_downsample_space(x, kernel):
  return plain_frames(x, kernel, 2, ((0, 1), (0, 1)))


CONVS = {
  "conv2d": (conv.conv2d, plain_frames, (3, 3, 6, 5)),
  "downsample_space": (conv.downsample_space, plain_downsample_space, (3, 3, 6, 5)),
  "upsample_space": (conv.upsample_space, lambda x, k: plain_frames(nearest_space(x), k), (3, 3, 6, 5)),
  "causal_conv1d": (conv.causal_conv1d, plain_causal_conv1d, (3, 6, 5)),
  "conv3d": (conv.conv3d, plain_conv3d, (3, 3, 3, 6, 5)),
  "conv3d_few_out": (conv.conv3d, plain_conv3d, (3, 3, 3, 6, 1)),
  "conv3d_valid": (partial(conv.conv3d, front=0), partial(plain_conv3d, front=0), (3, 3, 3, 6, 1)),
  "downsample_time": (
    conv.downsample_time,
    partial(plain_conv3d, front=1, stride=2),
    (3, 3, 3, 6, 5),
  ),
  "upsample_time": (conv.upsample_time, lambda x, k: plain_conv3d(x.repeat(2, 1), k), (3, 3, 3, 6, 5)),
}


@pytest.mark.parametrize(
  ("name", "backend", "size"),
  [
    *((name, "cpu", (6, 8)) for name in CONVS),
    *((name, "cpu", (2, 2)) for name in ("conv2d", "conv3d", "downsample_space")),
    *((name, "tpu", (6, 8)) for name in ("conv2d", "conv3d", "downsample_time")),
  ],
)
def test_fast_convolutions_are_plain_ones(name, backend, size, monkeypatch):
  monkeypatch.setattr(conv, "on_cpu", lambda: backend == "cpu")
  fast, plain, shape = CONVS[name]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 4, *size, 6), np.float32)
  kernel = rng.standard_normal(shape, np.float32)
  weight = rng.standard_normal(jax.eval_shape(plain, x, kernel).shape, np.float32)

  def run(f):
    return jax.jit(jax.value_and_grad(lambda x, k: (f(x, k) * weight).sum(), (0, 1)))

  np.testing.assert_allclose(jax.jit(fast)(x, kernel), plain(x, kernel), rtol=1e-5, atol=2e-5)
  for a, b in zip(run(fast)(x, kernel)[1], run(plain)(x, kernel)[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_mean_time_counts_the_zero_frame():
  x = jnp.arange(1.0, 5.0).reshape(1, 4, 1, 1, 1)
  np.testing.assert_allclose(conv.mean_time(x).ravel(), [(0 + 1 + 2) / 3, (2 + 3 + 4) / 3], rtol=1e-6)


def test_silu_and_its_derivative_at_the_extremes():
  x = jnp.array([-1e4, -200.0, -89.0, -1.0, 0.0, 1.0, 200.0, 1e4])
  np.testing.assert_allclose(silu(x), jax.nn.silu(x), rtol=1e-6, atol=1e-30)
  np.testing.assert_allclose(jax.vmap(jax.grad(silu))(x), jax.vmap(jax.grad(jax.nn.silu))(x), atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_returns_float32(small):
  vae, params = VAE(VAEConfig(ch=8, dtype="bfloat16")), small[3]
  program, out = jax.make_jaxpr(vae.apply, return_shape=True)(params, jnp.zeros((1, 5, 8, 8, 3)))
  assert out.dtype == jnp.float32
  convs = [e for e in program.eqns if e.primitive is lax.conv_general_dilated_p]
  assert convs
  assert all(v.aval.dtype == jnp.bfloat16 for e in convs for v in e.invars)


def test_posterior():
  mean, logvar = jnp.full((2, 1, 1, 1, 3), 2.0), jnp.full((2, 1, 1, 1, 3), np.log(4.0))
  np.testing.assert_allclose(sample(mean, logvar, jnp.ones_like(mean)), 4.0, rtol=1e-6)
  np.testing.assert_allclose(kl(mean, logvar), 3 * 0.5 * (4 + 4 - 1 - np.log(4)), rtol=1e-6)
