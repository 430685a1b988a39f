"""Seconds of a config's training step here: `python -m vftok.tools.bench_step --config=configs/t2v.py:mini`.

Takes one batch of the config's own data, compiles the step as training does, and prints as JSON the median second of
a step, analytic FLOP/s and their ratio to a jitted 2048^3 float32 matmul timed before and after in this process.
launch/peers/torch_train.py is the generator's peer in PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from pathlib import Path

import jax
from absl import flags

from vftok.data.configured import train_loader
from vftok.runtime import sharding
from vftok.runtime.ending import or_exit
from vftok.runtime.process import begin
from vftok.tasks import make_task
from vftok.tools.bench import matmul_rate
from vftok.tools.trace import PROGRAM
from vftok.train import optim
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main
from vftok.train.loop import compiled_step, step_arrays
from vftok.train.state import init_state, logical_axes


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  given = flags.FLAGS
  or_exit(lambda: print(json.dumps(measured(given.config, given.steps, given.trace), indent=2)))


def measured(cfg, steps: int, trace: str | None = None) -> dict:
  """Of `steps` steps after two that compile and warm up; `trace`: a directory for a profile of three more.

  Raises ValueError for data that cannot be had.
  """
  mesh = sharding.make_mesh(cfg.mesh.to_dict())
  task = make_task(cfg)
  with jax.set_mesh(mesh):
    tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
    state, places = init_state(task.init, tx, mesh, seed=cfg.seed, ema=bool(cfg.ema), freeze=cfg.freeze)
    frozen = task.frozen()
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    with contextlib.closing(train_loader(cfg, 0)) as loader:
      batch = step_arrays(next(iter(loader)), mesh)
    step = compiled_step(cfg, mesh, task, tx, places)
    compiling = time.perf_counter()
    for _ in range(2):
      state, metrics = jax.block_until_ready(step(state, frozen, batch))
    compiling = time.perf_counter() - compiling
    rates, times = [matmul_rate()], []
    for _ in range(steps):
      start = time.perf_counter()
      state, metrics = jax.block_until_ready(step(state, frozen, batch))
      times.append(time.perf_counter() - start)
    rates.append(matmul_rate())
    if trace:
      with jax.profiler.trace(trace):
        for _ in range(3):
          state, metrics = jax.block_until_ready(step(state, frozen, batch))
      Path(trace, PROGRAM).write_text(step.lower(state, frozen, batch).compile().as_text())
  took, rate = statistics.median(times), statistics.mean(rates)
  flops = task.flops() * cfg.batch_size
  return {
    "machine": {"backend": jax.default_backend(), "cpu_count": os.cpu_count(), "arch": platform.machine()},
    "jax": jax.__version__,
    "batch": cfg.batch_size,
    "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    "loss": round(float(metrics["loss"]), 4),
    "two_steps_with_compiling_s": round(compiling, 1),
    "step_s": round(took, 4),
    "fastest_step_s": round(min(times), 4),
    "gflop_per_s": round(flops / took / 1e9, 1),
    "matmul_gflop_per_s": round(rate / 1e9, 1),
    "ratio": round(flops / took / rate, 3),
  }


def define_flags() -> None:
  """Not at import: other tools import `measured`."""
  define_config("Experiment file of what is trained.")
  flags.DEFINE_integer("steps", 15, "Timed steps; the median counts.", lower_bound=1)
  flags.DEFINE_string("trace", None, "Directory for a profile of three steps, read by vftok.tools.trace.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
