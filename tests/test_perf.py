"""The analytic FLOPs are the denominator of every speed we print."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.frozen.features.dinov2 import DINOv2
from vftok.frozen.features.vit import Blocks, ViTConfig
from vftok.models import flops
from vftok.models.ar import AR, ARConfig
from vftok.models.ar_inputs import Condition, Places
from vftok.models.attention import Layout
from vftok.models.flops import stack_flops, vae_flops
from vftok.models.transformer import Stack, StackConfig
from vftok.models.vae import VAE, VAEConfig
from vftok.runtime import memory, target
from vftok.train import meter


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


def counted(fn, *shapes) -> float:
  """FLOPs by the compiler, which sees everything where nothing is scanned."""
  return jax.jit(fn).lower(*shapes).compile().cost_analysis()["flops"]


def test_generator_flops_agree_with_the_compiler_on_one_block():
  """The dense program computes both halves of the causal mask, the formula counts one."""
  cfg = ARConfig(vocab=512, steps=8, slots=16, depth=1, width=256, ctx_dim=64, n_ctx_null=1, scan=False)
  length, text = cfg.length, 32
  places = Places.of(*(jnp.asarray(a[None], jnp.int32) for a in np.divmod(np.arange(length), cfg.slots)))
  ids, null = jnp.zeros((1, length), jnp.int32), jnp.zeros((1, 1), bool)
  cond = Condition(text_BxSxC=jnp.zeros((1, text - 1, 64)), text_mask_BxS=jnp.ones((1, text - 1), bool), null_BxG=null)
  params = jax.eval_shape(lambda: AR(cfg).init(jax.random.key(0), ids, places, cond))
  found = counted(lambda p, i: AR(cfg).apply(p, i, places, cond), params, ids)
  formula = flops.ar_flops(cfg.dim, 1, cfg.hidden, cfg.vocab, length, text)
  assert formula + 2 * length**2 * cfg.dim == pytest.approx(found, rel=0.03)


@pytest.mark.slow
def test_vae_flops_agree_with_the_compiler(monkeypatch):
  """Without the zeros of padding, which the compiler leaves out, and with what our upsampling saves."""
  monkeypatch.setattr(target, "COMPILE_FOR", "tpu")  # plain convolutions: the spread ones of the CPU count zeros
  cfg, frames, size = VAEConfig(ch=32, ch_mult=(1, 2, 2)), 65, 64
  vae, video = VAE(cfg), jax.ShapeDtypeStruct((1, frames, size, size, 3), jnp.float32)
  params = jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3))))
  encode, decode = (lambda p, x, m=m: vae.apply(p, x, method=m) for m in (VAE.encode, VAE.decode))
  latents = jax.eval_shape(encode, params, video)[0]
  for_encode, for_decode = vae_flops(cfg, frames, size, size)
  saved, area, time = 0.0, (size // cfg.space_stride) ** 2, (frames + 3) // 4
  for level in reversed(range(len(cfg.ch_mult))):
    c = cfg.ch * cfg.ch_mult[level]
    if level - 1 in cfg.halves_space:
      area *= 4
      saved += 5 / 9 * time * area * 18 * c * c
    if level in cfg.time_levels:
      time *= 2
      saved += 1 / 3 * time * area * 54 * c * c
  assert for_encode == pytest.approx(counted(encode, params, video), rel=0.03)
  assert for_decode - saved == pytest.approx(counted(decode, params, latents), rel=0.03)


def test_feature_net_flops_agree_with_the_compiler():
  cfg, length = ViTConfig(dim=512, depth=1, heads=8, hidden=2048), 4 * 64 + 1
  net, x = DINOv2(cfg, min_patches=8), jax.ShapeDtypeStruct((1, length, cfg.dim), jnp.float32)
  params = jax.eval_shape(lambda: Blocks(cfg).init(jax.random.key(0), jnp.zeros(x.shape)))
  found = counted(lambda p, x: Blocks(cfg).apply(p, x), params, x)
  assert flops.vit_flops(cfg.dim, cfg.depth, cfg.hidden, length) == pytest.approx(found, rel=0.03)
  one = flops.vit_flops(cfg.dim, cfg.depth, cfg.hidden, 8 * 8 + 1)
  assert (net.flops((2, 4, 4), "mean"), net.flops((2, 4, 4), "first")) == (5 * one, 2 * one)


class Card:
  def __init__(self, kind):
    self.device_kind = kind


@pytest.mark.parametrize(
  "kind, half, full",
  [
    ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
    ("NVIDIA H200", 989e12, 494e12),
    ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
    ("NVIDIA L4", 121e12, 60e12),
    ("TPU v5 lite", 197e12, 197e12),
  ],
)
def test_peak_of_known_devices(kind, half, full, monkeypatch):
  monkeypatch.setattr(meter.jax, "devices", lambda: [Card(kind)])
  assert (meter.machine_flops(), meter.machine_flops("float32")) == (half, full)


def test_peak_of_an_unknown_card_is_measured(monkeypatch):
  monkeypatch.setattr(meter.jax, "devices", lambda: [Card("NVIDIA L40S")])
  assert meter.machine_flops() not in meter.PEAKS.values()


def test_memory_is_kept_where_the_cpu_computes(monkeypatch):
  set_to = []
  monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: type("C", (), {"mallopt": lambda *a: set_to.append(a[-2:])})())
  monkeypatch.setattr(memory.sys, "platform", "linux")
  monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
  before = jax.config.jax_platforms
  try:
    for platforms, times in (("cpu", 1), ("cuda,cpu", 0)):
      jax.config.update("jax_platforms", platforms)
      set_to.clear()
      said = []
      with monkeypatch.context() as patch:
        patch.setattr(type(jax.config), "update", lambda _, *option, said=said: said.append(option))
        memory.keep_memory()
      assert set_to.count((-8, 5)) == set_to.count((-4, 0)) == times  # arenas; large blocks stay
      assert said.count(("jax_cpu_enable_async_dispatch", False)) == times
  finally:
    jax.config.update("jax_platforms", before)


@pytest.mark.slow
def test_the_step_that_is_timed_is_the_one_that_trains(tmp_path):
  from configs import vae
  from vftok.tools import bench_step
  from vftok.train import loop
  from vftok.train.writer import read_metrics

  cfg = vae.get_config("smoke")
  cfg.steps = 1
  found = bench_step.measured(cfg, steps=1)
  assert found["step_s"] > 0 and found["batch"] == cfg.batch_size
  loop.run(cfg, tmp_path)
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] != pytest.approx(found["loss"], rel=1e-6), "three steps on"
  again = bench_step.measured(cfg, steps=1)
  assert again["loss"] == found["loss"] and again["parameters"] == found["parameters"]


@pytest.mark.slow
def test_rows_of_the_bench_by_name(capsys):
  from vftok.tools import bench

  assert bench.main(["tokenizer", "--skip-vae", "--repeats", "1", "--only", "router"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert list(found["rows"]) == ["router, 4 x 384"] and found["cost"] == {}
