"""Tokens per second of a generator here, with and without its cache: `python -m vftok.tools.bench_generator`.

One class-conditional model (49 M parameters outside its embeddings, the published smallest one) makes sequences
of 5 x 256 = 1,280 tokens with guidance. Rates are of the second call, so compiling is not in them. Its peer in PyTorch
is launch/peers/torch_generator.py, with the same options.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time

import jax
import jax.numpy as jnp

from vftok.generator import generate
from vftok.generator.api import Generator
from vftok.generator.request import request
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.runtime import memory, target
from vftok.runtime.ending import exit_code


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.bench_generator", description=__doc__.split("\n\n")[0])
  parser.add_argument("--depth", type=int, default=10, help="layers; the width is 64 times that (default 10, 49 M)")
  parser.add_argument("--vocab", type=int, default=8_000)
  parser.add_argument("--slots", type=int, default=256, help="tokens of each of the five time steps (default 256)")
  parser.add_argument("--batch", type=int, default=1, help="sequences at once (default 1)")
  parser.add_argument("--guidance", type=float, default=2.0, help="1 for none (default 2)")
  parser.add_argument("--cached-only", action="store_true", help="leave out whole forward passes")
  return exit_code("bench_generator", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
  memory.keep_memory()
  ar = ARConfig(vocab=args.vocab, steps=5, slots=args.slots, depth=args.depth, n_classes=10)
  gen = Generator(GeneratorConfig(ar))
  params = target.once(gen.init)(jax.random.key(0))
  quarters = _cached(gen, params, args.batch, args.guidance)
  length = ar.length
  out = {
    "machine": {"backend": jax.default_backend(), "cpu_count": os.cpu_count(), "arch": platform.machine()},
    "jax": jax.__version__,
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "tokens": length,
    "batch": args.batch,
    "guidance": args.guidance,
    "tokens_per_second_by_quarter": [round(rate, 2) for rate in quarters],
    "tokens_per_second": round(4 / sum(1 / rate for rate in quarters), 2),
  }
  out["last_quarter_over_first"] = round(quarters[-1] / quarters[0], 3)
  if args.cached_only:
    print(json.dumps(out))
    return
  for name, at in (("whole", length), ("half", length // 2)):
    out[f"uncached_tokens_per_second_at_{name}_length"] = round(1 / _uncached(gen, params, at), 3)
  out["cached_over_uncached_at_half_length"] = round(
    out["tokens_per_second"] / out["uncached_tokens_per_second_at_half_length"], 2
  )
  print(json.dumps(out, indent=2))


def _cached(gen: Generator, params, batch: int, guidance: float) -> list[float]:
  """Tokens per second, of all sequences together, in each quarter of their length."""
  plan, _, keep, cond, static = request(gen.cfg, {"label": [1] * batch}, guidance=guidance)
  for _ in range(2):  # the first call compiles
    keys = jax.random.split(jax.random.key(0), len(keep))
    memo, state = generate.start(gen.cfg.ar, params, plan, cond, keys, **static["start"])
    jax.block_until_ready(state)
    rates, length = [], gen.cfg.ar.length
    for quarter in range(1, 5):
      begin = time.perf_counter()
      advance = generate.advancing(state)
      state = advance(gen.cfg.ar, params, memo, plan, state, quarter * length // 4, **static["advance"])
      jax.block_until_ready(state)
      rates.append(batch * length / 4 / (time.perf_counter() - begin))
  return rates


def _uncached(gen: Generator, params, length: int) -> float:
  """Seconds for one token by a whole forward pass over `length`, with condition and without."""
  ids = jnp.zeros((2, length), jnp.int32)
  labels = jnp.array([1, 1], jnp.int32)
  run = lambda: gen.logits(params, ids, {"label": labels})
  jax.block_until_ready(run())
  begin = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - begin


if __name__ == "__main__":
  sys.exit(main())
