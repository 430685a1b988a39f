"""What JAX and cuDNN's interface say to our programs for NVIDIA cards: lowered for CUDA on any machine, none compiled.

Shapes, dtypes, head sizes, masks and even lengths are checked then; what cuDNN itself refuses only a card can say.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import c2v, router, t2v
from configs import tokenizer as configs
from vftok.models import attention, cudnn
from vftok.models.attention import Layout
from vftok.models.heads import PrefixHead, PrefixHeadConfig
from vftok.models.layers import layer_norm
from vftok.models.vae_blocks import Attention
from vftok.runtime import sharding, target
from vftok.tasks import make_task
from vftok.tools.aot_tasks import planned_task
from vftok.train import optim
from vftok.train.state import init_state, logical_axes
from vftok.train.step import train_step

CUDNN = re.compile(r"__cudnn\$(\w+)")
COLLAPSED = {"last_stands_for": 240}
LAYOUTS = {
  "encoder": Layout(5, 256, 256, "time_block_causal_last"),
  "encoder, odd": Layout(5, 16, 17, "time_block_causal_last"),
  "decoder": Layout(5, 256, 256, "time_block_causal"),
  "decoder, collapsed": Layout(5, 256, 17, "time_block_causal", **COLLAPSED),
  "full": Layout(5, 256, 256, "full"),
  "full, collapsed": Layout(5, 256, 65, "full", **COLLAPSED),
  "full, null pass": Layout(5, 256, 1, "full", last_stands_for=256),
  "causal": Layout(5, 16, 17, "causal"),
  "router": Layout(5, 16, 1, "time_block_causal"),
}


@pytest.fixture
def on_cuda(monkeypatch):
  """The three things that JAX asks a card, answered as an H100 with cuDNN 9.20 would."""
  monkeypatch.delenv("VFTOK_ATTENTION", raising=False)
  monkeypatch.setattr(target, "COMPILE_FOR", "gpu")
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92000)
  monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
  monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False)


def calls(fn, *args, **jit) -> set[str]:
  """Names of the cuDNN calls in the program."""
  return set(CUDNN.findall(jax.jit(fn, **jit).trace(*args).lower(lowering_platforms=("cuda",)).as_text()))


def both_ways(fn, *args) -> set[str]:
  loss = lambda *a: fn(*a).astype(jnp.float32).sum()
  return calls(fn, *args), calls(jax.grad(loss, argnums=tuple(range(len(args)))), *args)


def qkv(length: int, width: int = 64, batch: int = 2):
  return [jax.ShapeDtypeStruct((batch, 2, length, width), jnp.bfloat16)] * 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokenizer_attention(name, on_cuda):
  """Only registers that are causal within their step bring a bias, where steps are attended to one by one."""
  layout = LAYOUTS[name]
  forward, backward = both_ways(lambda *a: attention.attend(*a, layout), *qkv(layout.length))
  plain = {"fmhaSoftmax"}
  one_by_one = layout.length > attention.FEW_CALLS
  masked = {"fmhaScaleBiasSoftmax"} if layout.mode == "time_block_causal_last" and one_by_one else set()
  assert forward == plain | masked
  assert backward == {f"{kind}{way}" for kind in plain | masked for way in ("", "Backward")}


@pytest.mark.parametrize("length", [160, 165])
def test_generator_attention(length, on_cuda):
  assert both_ways(attention.attend_causal, *qkv(length)) == ({"fmhaSoftmax"}, {"fmhaSoftmax", "fmhaSoftmaxBackward"})
  segments = jax.ShapeDtypeStruct((2, length), jnp.int32)
  assert not calls(attention.attend_causal, *qkv(length), segments)


def published() -> dict[str, tuple]:
  """{what: (attention, shapes)} of each attention over clips in the full-size configs, in their own dtype and width."""
  found = {}
  width = lambda stack: (stack.dim // stack.depth, stack.dtype)
  for make in (configs.d12_d12, configs.d18_d18_stage2, configs.d18_d28, configs.d18_d28_stage2, configs.semantok):
    task = planned_task(make())
    grid = task._grid()
    for name, part in (("encoder", task.tok.cfg.encoder), ("decoder", task.tok.cfg.decoder)):
      layout = Layout(grid[0], grid[1] * grid[2], part.registers, part.mask)
      found[name, layout] = functools.partial(attention.attend, layout=layout), layout.length, *width(part.stack)
    if task.tok.cfg.decoder.readout:
      layout = Layout(grid[0], grid[1] * grid[2], 0, "time_block_causal")
      found["readout", layout] = functools.partial(attention.attend, layout=layout), layout.length, 64, "bfloat16"
    for head in task.heads.values():
      assert (head.cfg.dtype, head.cfg.head_dim) == ("bfloat16", 64)  # see test_prefix_head
  for cfg in (c2v.get_config("2.2b"), t2v.get_config("1.1b"), t2v.get_config("long")):
    ar = planned_task(cfg).gen.cfg.ar
    found["generator", ar.length] = attention.attend_causal, ar.length, ar.head_dim, ar.dtype
  net = router.get_config("d18").model
  rows = 16 * 16 // (net.patch[1] * net.patch[2]) * 4  # of latents at 256 pixels
  layout = Layout(5, rows, 1, "time_block_causal")
  found["router", layout] = functools.partial(attention.attend, layout=layout), layout.length, net.head_dim, net.dtype
  return found


def test_no_attention_of_a_published_config_is_refused(on_cuda):
  """Forward and backward, all by cuDNN; what XLA keeps is packed rows, cross-attention and the VAE's one wide head."""
  for name, (fn, length, head, dtype) in published().items():
    shapes = [jax.ShapeDtypeStruct((1, 2, length, head), jnp.dtype(dtype))] * 3
    text = jax.jit(jax.grad(lambda *a, fn=fn: fn(*a).astype(jnp.float32).sum(), (0, 1, 2))).trace(*shapes)
    text = text.lower(lowering_platforms=("cuda",)).as_text()
    assert any(kind.endswith("Backward") for kind in CUDNN.findall(text)), name
    assert "stablehlo.exponential" not in text, f"{name}: a softmax that XLA computes"


def test_heads_that_cudnn_does_not_take(on_cuda):
  """Wide ones go to XLA; of an odd width, they are filled up."""
  layout = LAYOUTS["router"]
  assert cudnn.fits(120) and not cudnn.fits(128)
  assert not calls(lambda *a: attention.attend(*a, layout), *qkv(layout.length, 128))
  assert calls(lambda *a: attention.attend(*a, layout), *qkv(layout.length, 28))


@pytest.mark.parametrize("causal", [True, False])
def test_prefix_head(causal, on_cuda):
  head = PrefixHead(PrefixHeadConfig(16, dim=64, depth=1, registers=8, causal=causal, dtype="bfloat16"))
  codes, keep = jnp.zeros((2, 5, 8, 6)), jnp.zeros((2, 5), jnp.int32)
  params = nn.unbox(jax.eval_shape(lambda: head.init(jax.random.key(0), codes, keep, (5, 4, 4))))
  run = lambda p: head.apply(p, codes, keep, (5, 4, 4)).sum()
  assert calls(jax.grad(run), params) == {"fmhaSoftmax", "fmhaSoftmaxBackward"}


def test_vae_attention(on_cuda):
  for width, taken in ((56, True), (512, False)):
    net, x = Attention("bfloat16"), jnp.zeros((1, 2, 3, 3, width), jnp.bfloat16)
    params = nn.unbox(jax.eval_shape(lambda net=net, x=x: net.init(jax.random.key(0), x)))
    assert bool(calls(net.apply, params, x)) == taken


@pytest.mark.slow
def test_train_step(on_cuda):
  """The whole step of the paper's model, small: encoder, decoder with remat, and no float32 attention."""
  cfg = configs.d12_d12()
  cfg.vae, cfg.loss.repa, cfg.model.decoder.readout, cfg.batch_size = "", 0.0, None, 2
  cfg.model.latent_size, cfg.data.size, cfg.model.vae.ch = (4, 4), 32, 8
  for part in (cfg.model.encoder, cfg.model.decoder):
    part.stack.dim, part.stack.depth, part.registers = 128, 2, 5
  task, mesh = make_task(cfg), sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "seq": 1})
  axes, shapes = logical_axes(task.init, ())
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, axes, shapes)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(lambda: init_state(task.init, tx, mesh, seed=0, ema=True)[0])
    feed = {"latents": jnp.zeros((2, 5, 4, 4, 16), jnp.float16), "_mask": jnp.ones((2,), bool)}
    step = functools.partial(train_step, task=task, tx=tx, cfg=cfg)
    found = calls(step, state, {}, feed, donate_argnums=0)
  assert {"fmhaSoftmax", "fmhaSoftmaxBackward"} <= found


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_what_a_key_adds_is_not_rounded(dtype, as_cudnn):
  """Weights of keys that stand for up to 100,000 others, by the columns that cuDNN would get; a bias is off by 1 %."""
  many = np.array([1, 2, 3, 240, 241, 255, 12_345, 100_000, 7], np.float32)
  q = k = jnp.zeros((1, 1, 9, 64), dtype)
  one_hot = jnp.eye(9, 64, dtype=jnp.float32)[None, None]  # so that the result is the weights
  with jax.default_matmul_precision("highest"):
    weights = cudnn.attend(*(x.astype(jnp.float32) for x in (q, k)), one_hot, scale=1 / 8, bias_M=np.log(many))
  np.testing.assert_allclose(weights[0, :, 0, :9], np.broadcast_to(many / many.sum(), (9, 9)), rtol=2e-6)
  parts = np.asarray(cudnn._parts(8 * np.log(many), dtype), np.float64).sum(-1)
  np.testing.assert_allclose(parts, 8 * np.log(many), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  "dtype, tolerance", [pytest.param(jnp.float32, 2e-5, marks=pytest.mark.slow), (jnp.bfloat16, 0.02)]
)
def test_what_a_key_adds_fits_between_the_channels(dtype, tolerance, as_cudnn):
  """A collapsed register after QK-norm, also of an odd length, beside the dense form in float32."""
  layout = LAYOUTS["decoder, collapsed"]
  assert layout.block % 2
  q, k, v = (jax.random.normal(key, (2, 2, layout.length, 64)) for key in jax.random.split(jax.random.key(0), 3))
  q, k = layer_norm(q), layer_norm(k)
  with jax.default_matmul_precision("highest"):
    expected = attention.attend_dense(q, k, v, layout)
    half = [x.astype(dtype) for x in (q, k, v)]
    found = attention._attend_cudnn(*half, layout, 8 / 64, normed=True).astype(jnp.float32)
    weights = attention._attend_cudnn(*half[:2], jnp.ones_like(half[2]), layout, 8 / 64, normed=True)
  assert float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)) < tolerance
  np.testing.assert_allclose(np.asarray(weights, np.float32), 1.0, rtol=tolerance)  # no row sees the key put behind


def test_a_collapsed_register_takes_no_columns(on_cuda):
  """cuDNN is slower with heads of 72 channels than with 64."""
  text = jax.jit(lambda *a: attention.attend(*a, LAYOUTS["decoder, collapsed"])).trace(*qkv(5 * 273))
  text = text.lower(lowering_platforms=("cuda",)).as_text()
  assert CUDNN.search(text) and "x72x" not in text


@pytest.mark.parametrize("keys", [8, 9])
def test_hidden_keys_have_no_weight(keys, as_cudnn):
  q, k, v = (jax.random.normal(key, (2, 2, keys, 16)) for key in jax.random.split(jax.random.key(0), 3))
  seen = jnp.arange(keys) < jnp.array([[3], [keys]])
  found = cudnn.attend(q, k, v, scale=0.25, seen_BxM=seen)
  swap = lambda x: x.swapaxes(1, 2)
  expected = jax.nn.dot_product_attention(
    swap(q), swap(k), swap(v), implementation="xla", mask=seen[:, None, None], scale=0.25
  )
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("few_calls", [0, attention.FEW_CALLS])
@pytest.mark.parametrize("mode", ["time_block_causal", "time_block_causal_last"])
def test_all_steps_in_one_call(mode, few_calls, as_cudnn, monkeypatch):
  """Values and gradients beside the dense form, step by step and at once, of a register that stands for others."""
  monkeypatch.setattr(attention, "FEW_CALLS", few_calls)
  layout = Layout(3, 4, 3, mode, last_stands_for=5)
  q, k, v, w = (jax.random.normal(key, (2, 2, layout.length, 16)) for key in jax.random.split(jax.random.key(0), 4))

  def run(attend):
    def weighted(q, k, v):
      out = attend(layer_norm(q), layer_norm(k), v)
      return (out * w.swapaxes(1, 2)).sum(), out

    return jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)

  with jax.default_matmul_precision("highest"):
    ours = run(lambda *a: attention._attend_cudnn(*a, layout, 8 / 16, normed=True))
    dense = run(lambda *a: attention.attend_dense(*a, layout))
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4), ours, dense)


@pytest.mark.parametrize("causal", [True, False])
def test_prefix_head_by_cudnn(causal, as_cudnn, monkeypatch):
  head = PrefixHead(PrefixHeadConfig(16, dim=128, depth=1, registers=3, causal=causal))
  codes = jax.random.normal(jax.random.key(0), (2, 3, 3, 6))
  keep, grid = jnp.array([[1, 3, 0], [2, 2, 3]]), (3, 2, 2)
  rng = np.random.default_rng(0)
  shapes = nn.unbox(jax.eval_shape(lambda: head.init(jax.random.key(1), codes, keep, grid)))
  params = jax.tree.map(lambda x: np.float32(0.2) * rng.standard_normal(x.shape, np.float32), shapes)
  run = lambda: jax.jit(lambda p: head.apply(p, codes, keep, grid))(params)
  plain = run()
  monkeypatch.setattr(target, "attention", lambda dtype: "cudnn")
  np.testing.assert_allclose(run(), plain, atol=2e-4)
