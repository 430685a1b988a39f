"""The kernels that other platforms use, against the dense mask: values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.models import attention, splash
from vftok.models.ar import ARConfig
from vftok.models.attention import Layout, attend, attend_dense
from vftok.models.layers import layer_norm
from vftok.runtime import target

MODES = ("full", "causal", "time_block_causal", "time_block_causal_last")


@pytest.fixture(params=["splash", "cudnn"])
def kernel(request, monkeypatch, as_cudnn):
  """Splash interpreted; cuDNN's interface on XLA."""
  monkeypatch.setenv("VFTOK_ATTENTION", request.param)
  original = splash.attend_up_to
  monkeypatch.setattr(splash, "attend_up_to", lambda *a, **k: original(*a, **k, interpret=True))
  return request.param


def qkv(batch, heads, length, width=64, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  make = lambda: jnp.asarray(rng.standard_normal((batch, heads, length, width)), dtype)
  return make(), make(), make()


def gradients(fn, arrays):
  """Values, and gradients of a sum that weighs every element differently: one program."""

  @jax.jit
  def run(*arrays):
    out, back = jax.vjp(fn, *arrays)
    return out, *back(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

  return run(*arrays)


@functools.cache
def by_dense_mask(layout):
  """(q, k, v, what `gradients` makes of them by the dense mask), once for all kernels."""
  arrays = qkv(2, 2, layout.length)
  return arrays, gradients(lambda q, k, v: attend_dense(layer_norm(q), layer_norm(k), v, layout), arrays)


def same(mine, theirs, tolerance=1e-5):
  for a, b in zip(mine, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
  "layout",
  [
    *(Layout(3, 30, 20, mode) for mode in MODES),
    *(Layout(3, 10, 5, mode) for mode in MODES),
    Layout(2, 96, 32, "causal"),
    *(Layout(3, 20, 9, mode, (), 200) for mode in ("full", "time_block_causal")),
  ],
  ids=lambda layout: f"{layout.mode}-{layout.length}-{layout.last_stands_for}",
)
def test_tokenizer_masks(layout, kernel):
  """Lengths that are and are not whole tiles, odd ones; a register that stands for 200 equal ones."""
  arrays, expected = by_dense_mask(layout)
  same(gradients(lambda q, k, v: attend(layer_norm(q), layer_norm(k), v, layout), arrays), expected)


def test_generator_with_packed_rows(kernel, monkeypatch):
  arrays, segments = qkv(2, 2, 70), np.repeat([[0, 0, 1, 1, 1, 2, -1], [0, 1, 1, 1, 1, 1, 1]], 10, axis=1)
  for segment in (None, jnp.asarray(segments, jnp.int32)):
    mine = gradients(lambda *a, s=segment: attention.attend_causal(*a, s), arrays)
    with monkeypatch.context() as patch:
      patch.setenv("VFTOK_ATTENTION", "xla")
      theirs = gradients(lambda *a, s=segment: attention.attend_causal(*a, s), arrays)
    same(mine, theirs)


def test_multiplicity_in_half_precision(kernel):
  """log 200 rounds to 8 bits by 0.02 in bfloat16; the kernel must see more of it than that."""
  layout = Layout(2, 20, 9, "time_block_causal", (), 200)
  q, k, v = qkv(1, 2, layout.length)
  arrays = [x.astype(jnp.bfloat16) for x in (layer_norm(q), layer_norm(k), v)]
  exact = attend_dense(*(x.astype(jnp.float32) for x in arrays), layout)
  error = np.abs(np.asarray(attend(*arrays, layout), np.float32) - np.asarray(exact)).max()
  assert error < (0.01 if kernel == "splash" else 0.014)  # 0.0128 by a float32 bias, 0.0158 by a bfloat16 one


def test_masks_are_computed_and_not_stored():
  last = Layout(21, 256, 32, "time_block_causal_last").last_visible()
  padded = np.pad(last, (0, -len(last) % splash.LANES), constant_values=len(last) - 1)
  kernel = splash._kernel(padded.tobytes(), 4, 1, 1, True)
  for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
    assert info.partial_mask_blocks is None
    assert sum(np.size(x) for x in jax.tree.leaves(info)) < 4 * len(padded)


def test_choice_of_kernel(monkeypatch):
  monkeypatch.delenv("VFTOK_ATTENTION", raising=False)
  assert target.attention(jnp.bfloat16) == "xla"  # this machine's
  for platform, dtype, chosen in (
    ("tpu", jnp.float32, "splash"),
    ("gpu", jnp.bfloat16, "cudnn"),
    ("gpu", jnp.float32, "xla"),
    ("cpu", jnp.bfloat16, "xla"),
  ):
    monkeypatch.setattr(target, "COMPILE_FOR", platform)
    assert target.attention(dtype) == chosen
  monkeypatch.setenv("VFTOK_ATTENTION", "flash")
  with pytest.raises(ValueError, match="VFTOK_ATTENTION is 'flash', expected one of xla, splash, cudnn"):
    target.attention(jnp.float32)


@pytest.mark.slow
def test_whole_generator_by_the_kernel(kernel, monkeypatch):
  """The scanned and rematerialised network, so that kernels work inside both."""
  from vftok.models.ar import AR
  from vftok.models.ar_inputs import Condition, Places

  cfg = ARConfig(vocab=50, steps=3, slots=4, depth=2, n_classes=3, remat="nothing_saveable")
  time, slot = np.divmod(np.arange(12), 4)
  places = Places.of(*(jnp.asarray(np.broadcast_to(a, (2, 12)), jnp.int32) for a in (time, slot)))
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 12)), jnp.int32)
  cond = Condition(label_BxG=jnp.zeros((2, 1), jnp.int32), null_BxG=jnp.zeros((2, 1), bool))
  params = nn.unbox(AR(cfg).init(jax.random.key(0), ids, places, cond)["params"])
  loss = lambda params: jnp.square(AR(cfg).apply({"params": params}, ids, places, cond)).sum()
  mine = jax.grad(loss)(params)
  monkeypatch.setenv("VFTOK_ATTENTION", "xla")
  for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(jax.grad(loss)(params)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max() + 1e-9))


def test_short_sequences_take_one_product_under_a_mask(monkeypatch):
  """Two products instead of two per group of rows, which is what most of compiling a small model goes into."""
  layout = Layout(5, 16, 4, "time_block_causal_last")
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 2, layout.length, 8)), jnp.float32) for _ in range(3))
  run = jax.jit(lambda q, k, v: attend(layer_norm(q), layer_norm(k), v, layout))
  count = lambda: run.lower(q, k, v).as_text().count("stablehlo.dot_general")
  short, products = run(q, k, v), count()
  monkeypatch.setattr(attention, "SHORT", 0)
  jax.clear_caches()
  assert (products, count()) == (2, 20)
  np.testing.assert_allclose(run(q, k, v), short, atol=1e-6)
