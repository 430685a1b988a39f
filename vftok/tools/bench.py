"""Speed of this machine and this code, as JSON: `python -m vftok.tools.bench tokenizer`.

Config M: 17 frames at 128x128, latents 5x16x16x16, patch 1, encoder and decoder 6 x 384 (head_dim 64), 256 registers,
batch 1, float32. Every rate is nominal: FLOPs of the dense algorithm (all N^2 pairs, every register) over seconds, so
work that is not done counts as speed. `ratio` divides it by the rate of a jitted 2048^3 float32 matmul that is timed
right before and after, in the same process: machines differ, and a shared one differs from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.budget.router import Router
from vftok.models import flow
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.flops import stack_flops, vae_flops
from vftok.models.layers import PositionConfig
from vftok.models.router import RouterConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAE, VAEConfig
from vftok.runtime import target
from vftok.runtime.ending import exit_code
from vftok.tokenizer import programs
from vftok.tokenizer.api import Tokenizer
from vftok.tokens import VideoTokens

KEEPS = (1, 16, 64, 256)


def config_m(mask: str = "time_block_causal") -> TokenizerConfig:
  """Config M of the bench; its VAE is narrow because it is not part of what M measures."""
  stack = StackConfig(dim=384, depth=6)
  grid = PositionConfig("learnable_sum", (16, 16, 16))
  return TokenizerConfig(
    vae=VAEConfig(ch=8),
    encoder=EncoderConfig(stack=stack, patch=(1, 1, 1), positions=grid),
    decoder=DecoderConfig(stack=StackConfig(dim=384, depth=6, adaln=2), patch=(1, 1, 1), positions=grid, mask=mask),
    latent_size=(16, 16),
  )


def seconds(fn: Callable[[], Any], repeats: int) -> float:
  """Median seconds of a call whose result is waited for, after one that compiles."""
  jax.block_until_ready(fn())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def matmul_rate() -> float:
  """FLOP/s of a jitted 2048^3 float32 matmul: the yardstick."""
  a = jax.random.normal(jax.random.key(0), (2048, 2048))
  matmul = jax.jit(lambda x, y: x @ y)
  return 2 * 2048**3 / seconds(lambda: matmul(a, a), 9)


class Report:
  """Rows of seconds, nominal GFLOP/s and ratio to a matmul timed right before and after each row."""

  def __init__(self, repeats: int, only: str = ""):
    self.repeats, self.only, self.rows = repeats, only, {}

  def add(self, name: str, fn: Callable[[], Any], flops: float, repeats: int | None = None) -> float:
    """Seconds; NaN where the row was not asked for."""
    if not name.startswith(self.only):
      return math.nan
    rate = matmul_rate()
    took = seconds(fn, repeats or self.repeats)
    rate = statistics.mean([rate, matmul_rate()])
    self.rows[name] = {
      "seconds": round(took, 4),
      "nominal_gflop": round(flops / 1e9, 1),
      "gflop_per_s": round(flops / took / 1e9, 1),
      "matmul_gflop_per_s": round(rate / 1e9, 1),
      "ratio": round(flops / took / rate, 3),
    }
    print(f"{name:44s} {took:8.3f} s   ratio {flops / took / rate:.3f}", file=sys.stderr, flush=True)
    return took


def bench_transformers(report: Report, mask: str) -> dict[str, float]:
  """Encoder, decoder at each keep, guided evaluation, forward + backward. Returns cost ratios between them."""
  cfg = config_m(mask)
  tok = Tokenizer(cfg)
  params = nn.unbox(target.once(tok.init)(jax.random.key(0)))
  key = jax.random.key(1)
  latents = jax.random.normal(key, (1, 5, 16, 16, 16))
  tokens = VideoTokens.full(jax.random.randint(key, (1, 5, 256), 0, tok.codebook_size))
  length = 5 * (256 + 256)
  encoder, decoder = stack_flops(cfg.encoder.stack, length), stack_flops(cfg.decoder.stack, length)
  suffix, costs = f"[{mask}]", {}
  if mask == "time_block_causal":
    encode = report.add("encode", lambda: programs.features(cfg, params, latents), encoder)
    costs["router / encode"] = bench_router(report, latents) / encode
  took = {
    keep: report.add(
      f"decode keep {keep} {suffix}",
      lambda k=keep: tok.velocity(params, tokens.truncate(k), latents, 0.5),
      decoder,
    )
    for keep in KEEPS
  }

  @jax.jit
  def guided(params, ids, keep, x):
    run = lambda null: programs.velocity(cfg, params, ids, keep, x, 0.5, slots=256, null=null)
    return flow.APG(scale=20.0).combine(run(False), run(True), jnp.zeros_like(x), 0)[0]

  both = report.add(
    f"decode keep 256 guided {suffix}", lambda: guided(params, tokens.ids, tokens.keep, latents), decoder
  )

  @jax.jit
  def loss_and_grad(params, x, noise, ids, keep):
    def loss(params):
      v = programs.velocity(cfg, params, ids, keep, flow.interpolate(x, noise, jnp.full((1,), 0.5)), 0.5, slots=None)
      return flow.loss(v, x, noise) + jnp.mean(programs.features(cfg, params, x) ** 2)

    return jax.value_and_grad(loss)(params)

  noise = jax.random.normal(key, latents.shape)
  report.add(
    f"forward + backward, encoder and decoder {suffix}",
    lambda: loss_and_grad(params, latents, noise, tokens.ids, tokens.keep),
    3 * (encoder + decoder),
    repeats=3,
  )
  return costs | {
    f"keep 16 / keep 256 {suffix}": took[16] / took[256],
    f"guided / unguided at keep 256 {suffix}": both / took[256],
  }


def bench_router(report: Report, latents) -> float:
  """Seconds of a router of the paper's kind (configs/router.py:d12) on config M's latents."""
  cfg = RouterConfig(
    dim=384, depth=4, patch=(1, 4, 4), latents=latents.shape[1:], levels=(1, 2, 4, 8, 16, 32, 64, 128, 256)
  )
  router = Router(cfg)
  params = nn.unbox(router.init(jax.random.key(0)))
  flops = stack_flops(StackConfig(cfg.dim, cfg.depth), cfg.steps * (cfg.patches + 1))
  return report.add("router, 4 x 384", lambda: router.predict(params, latents), flops)


def bench_vae(report: Report) -> None:
  """The true-width VAE on one 17x64x64 video."""
  cfg = VAEConfig()
  model = VAE(cfg)
  video = jax.random.uniform(jax.random.key(0), (1, 17, 64, 64, 3), minval=-1.0)
  params = nn.unbox(target.once(model.init)(jax.random.key(0), video[:, :1]))
  encode = jax.jit(lambda p, x: model.apply(p, x, method=VAE.encode)[0])
  decode = jax.jit(lambda p, z: model.apply(p, z, method=VAE.decode))
  flops_encode, flops_decode = vae_flops(cfg, 17, 64, 64)
  latents = encode(params, video)
  report.add("VAE encode 17x64x64, ch 128", lambda: encode(params, video), flops_encode)
  report.add("VAE decode 17x64x64, ch 128", lambda: decode(params, latents), flops_decode)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.bench", description=__doc__.split("\n\n")[0])
  parser.add_argument("what", choices=["tokenizer"])
  parser.add_argument("--repeats", type=int, default=7, help="timed calls per row; the median counts")
  parser.add_argument("--only", default="", help="rows whose name begins so, such as 'decode keep 256'")
  parser.add_argument("--skip-vae", action="store_true", help="leave out the true-width VAE (about two minutes)")
  return exit_code("bench", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
  report, ratios = Report(args.repeats, args.only), {}
  for mask in ("time_block_causal", "full"):
    ratios |= bench_transformers(report, mask)
  if not args.skip_vae:
    bench_vae(report)
  out = {
    "machine": {"backend": jax.default_backend(), "cpu_count": os.cpu_count(), "arch": platform.machine()},
    "jax": jax.__version__,
    "rows": report.rows,
    "cost": {name: round(value, 3) for name, value in ratios.items() if not math.isnan(value)},
  }
  print(json.dumps(out, indent=2))


if __name__ == "__main__":
  sys.exit(main())
