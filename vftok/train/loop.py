"""The one loop: what every model trains in. What differs between models is in vftok/tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import math
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vftok.data import bad_clips
from vftok.data.configured import BAD_CLIPS, train_loader
from vftok.data.folder import opened_once
from vftok.data.loader import Loader
from vftok.data.memory_loader import MemoryLoader
from vftok.runtime import sharding, target
from vftok.runtime.alone import alone
from vftok.runtime.files import folder_if_used, whole_file
from vftok.runtime.lock import locked
from vftok.runtime.process import agreed, local, whole
from vftok.tasks import Task, make_task
from vftok.train import optim
from vftok.train.checkpoint import Checkpoints
from vftok.train.evaluate import evaluate_sets
from vftok.train.meter import Meter
from vftok.train.resume import check_source, starting_point
from vftok.train.state import TrainState, init_state, logical_axes
from vftok.train.step import train_step
from vftok.train.stop import stop_signals
from vftok.train.writer import Writer, curves


class NotFinite(RuntimeError):
  """The loss became NaN or infinite; the message names the last good checkpoint."""


def run(cfg: ConfigDict, workdir) -> TrainState:
  """Trains until `cfg.steps` (or `cfg.minutes`), from the newest checkpoint of `workdir` if there is one.

  With `optim.schedule="clock"` the learning rate falls with the minutes instead of the steps, and the run is done when
  they are over, counted from the first step's end: for a machine that is borrowed for a while.

  Returns the last state. SIGTERM and SIGHUP save and return early; Ctrl-C saves and raises KeyboardInterrupt.

  Raises:
    ValueError: a config that cannot be run, a checkpoint of another config, or a workdir that another process uses.
    vftok.train.checkpoint.NotSaved: a checkpoint could not be written.
    NotFinite: the loss is no number; nothing after the last good checkpoint was saved.
  """
  workdir = local(workdir, "workdir")
  mesh = sharding.make_mesh(cfg.mesh.to_dict())
  _check(cfg, mesh)
  lead = jax.process_index() == 0
  with locked(workdir) if lead else contextlib.nullcontext(), opened_once(), folder_if_used(workdir / "checkpoints"):
    return _run(cfg, workdir, mesh, lead)


def _run(cfg: ConfigDict, workdir: Path, mesh, lead: bool) -> TrainState:
  """A start that is refused, for whatever reason, leaves the workdir as it was."""
  task = make_task(cfg)

  # ---- state: shapes first, then arrays where they belong; never whole on one device
  axes, shapes = logical_axes(task.init, cfg.freeze)
  tx, rate = optim.make_optimizer(cfg.optim, cfg.steps, axes, shapes)
  checkpoints = Checkpoints(workdir, keep=cfg.keep_checkpoints)
  with jax.set_mesh(mesh), contextlib.closing(checkpoints):
    check_source(cfg, checkpoints)
    state, places = init_state(task.init, tx, mesh, seed=cfg.seed, ema=bool(cfg.ema), freeze=cfg.freeze)
    frozen = task.frozen()
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
    state, examples = starting_point(cfg, task, checkpoints, state, places)
    step = int(state.step)
    make_writer = functools.partial(Writer, workdir, active=lead, resume=step, wandb=cfg.wandb, config=cfg.to_dict())
    with (
      contextlib.closing(train_loader(cfg, examples, workers=cfg.data.workers, log=workdir / BAD_CLIPS)) as loader,
      contextlib.closing(make_writer()) as writer,
    ):
      if lead:
        with whole_file(workdir / "config.json") as path:
          path.write_text(json.dumps(cfg.to_dict(), indent=2, default=list) + "\n")
      one = compiled_step(cfg, mesh, task, tx, places)
      return Run(cfg, workdir, mesh, task, one, rate, checkpoints, loader, writer, examples).steps(state, frozen, step)


def compiled_step(cfg: ConfigDict, mesh, task, tx, places: TrainState):
  """(state, frozen, arrays of a batch) -> (state, metrics) on the mesh; the state that goes in is given up."""
  step = functools.partial(train_step, task=task, tx=tx, cfg=cfg)
  out = (places, sharding.replicated(mesh))
  options = target.step_options(convolutions=cfg.task == "vae")
  return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options)


def step_arrays(host, mesh) -> dict[str, jax.Array]:
  """What a step takes of this process's part of a batch."""
  left = ("source", "index")  # whose clips these are is for people
  return sharding.to_devices({k: v for k, v in host.items() if v.dtype != object and k not in left}, mesh)


@dataclasses.dataclass
class Run:
  """What the steps of one run are made of. Its arrays live in the state that travels through `steps`.

  Attributes:
    step: `compiled_step`. rate: step -> learning rate.
    examples: seen so far: carried from batch to batch and from run to run, whatever their sizes.
  """

  cfg: ConfigDict
  workdir: Path
  mesh: Mesh
  task: Task
  step: Callable
  rate: Callable
  checkpoints: Checkpoints
  loader: Loader | MemoryLoader
  writer: Writer
  examples: int

  def __post_init__(self):
    cfg = self.cfg
    self.meter = Meter(cfg.steps, self.task.flops() * cfg.batch_size, self.task.dtype, 60 * cfg.minutes)
    self.left_out = bad_clips.Tally(self.workdir / BAD_CLIPS)
    self.sums: dict[str, np.ndarray] = {}
    self.began: float | None = None  # of a run by the clock: when its program was compiled

  def steps(self, state: TrainState, frozen, step: int) -> TrainState:
    cfg, began, pending, done = self.cfg, time.monotonic(), None, False
    gc.collect()
    gc.freeze()  # what is alive now stays: collections between steps stay short
    sys.setswitchinterval(5e-4)  # a thread that prepares batches may not hold a step up by its 5 ms
    with stop_signals() as stopping:
      for host in self.loader if step < cfg.steps else ():
        shown = None if not cfg.media_every or step % cfg.media_every else host
        slower = self._slower()
        with self._profiled(step):
          arrays = step_arrays(host, self.mesh)
          if slower is not None:
            arrays[optim.SLOWER] = jax.device_put(slower, sharding.replicated(self.mesh))
          with jax.transfer_guard("disallow"):  # what a step takes is on its devices by now
            state, metrics = self.step(state, frozen, arrays)
          if step + 1 == cfg.profile[1]:
            jax.block_until_ready(metrics)  # or the trace ends before its last step
        step, self.examples = step + 1, self.examples + cfg.batch_size
        if self.began is None and cfg.optim.schedule == "clock":
          jax.block_until_ready(metrics)
          began = self.began = time.monotonic()  # how long a compiler takes is no part of the schedule
        if pending is not None:  # one step late: the device computes this step while the last one is read
          self._record(*pending)
        pending = (step, metrics, _ids(host), 1.0 if slower is None else float(slower))
        if shown is not None and step > 1:
          self._show(step - 1, state, frozen, shown)
        over = cfg.minutes and step % cfg.log_every == 0 and agreed(time.monotonic() - began > 60 * cfg.minutes)
        done = step == cfg.steps or (over and cfg.optim.schedule == "clock")
        stop = stopping.is_set() or over or done or self.checkpoints.stop_requested(step)
        due = cfg.save_every and step % cfg.save_every == 0
        if stop or due or (cfg.eval_every and step % cfg.eval_every == 0):
          self._record(*pending)  # the loss of this very step is finite, or nothing is saved
          pending = None
        if stop or due:
          self._save(step, state)
        if cfg.eval_every and (step % cfg.eval_every == 0 or step == cfg.steps):
          self._evaluate(step, state, frozen)
        if stop:
          break
    self.checkpoints.wait()
    self._finish(step, state, frozen, stopped=not (done or step >= cfg.steps))
    if stopping.interrupted:
      raise KeyboardInterrupt
    return state

  def _slower(self) -> np.float32 | None:
    """The clock's factor on the learning rate, where there is one."""
    if self.cfg.optim.schedule != "clock":
      return None
    gone = 0.0 if self.began is None else (time.monotonic() - self.began) / (60 * self.cfg.minutes)
    return np.float32(optim.by_clock(gone, self.cfg.optim.final))

  def _record(self, step: int, metrics, ids: dict[str, Any], slower: float) -> None:
    values = jax.device_get(metrics)
    if not math.isfinite(float(values["loss"])) or not math.isfinite(float(values["grad_norm"])):
      latest = self.checkpoints.latest()
      raise NotFinite(
        f"the loss is {float(values['loss'])} (gradient norm {float(values['grad_norm'])}) at step {step}, "
        f"{'no step was saved' if latest is None else f'the last good checkpoint is step {latest}'}: look at "
        f"{self.workdir / 'metrics.jsonl'}, then lower optim.lr or check the data."
      )
    parts = {k: np.array(v, np.float64) for k, v in values["parts"].items()}
    self.sums = {k: self.sums.get(k, 0) + v for k, v in parts.items()}
    self.meter.tick(self.loader.wait_seconds)
    if step % self.cfg.log_every and step != self.cfg.steps:
      return
    means = {k: s / n for k, (s, n) in self.sums.items() if n}
    self.sums = {}
    row = {"loss": float(values["loss"]), **means, "grad_norm": float(values["grad_norm"])}
    row |= {"lr": float(self.rate(step - 1)) * slower, **ids, **self.meter.numbers()}
    row |= {f"data/{kind}_clips": n for kind, n in self.left_out().items()}
    self.writer.scalars(step, row)
    if jax.process_index() == 0:
      print(self.meter.line(step, row), flush=True)

  def _save(self, step: int, state: TrainState) -> None:
    self.checkpoints.save(step, state, {"examples": self.examples}, self.cfg.to_dict())

  def _show(self, step: int, state: TrainState, frozen, host) -> None:
    """Videos of what the model does."""
    shown: dict[str, Any] = {}
    with alone(self.task.init, state.model, frozen) as here:
      if here:
        shown = self.task.media(*here, host)
    for name in [name for name, value in shown.items() if np.ndim(value)]:
      self.writer.video(step, name, shown.pop(name), self.cfg.data.fps)
    if shown:
      self.writer.scalars(step, shown)
    self.writer.flush()
    self.meter.pause()

  def _evaluate(self, step: int, state: TrainState, frozen) -> None:
    values = {}
    with alone(self.task.init, state.model, frozen) as here:
      if here:
        values = evaluate_sets(self.cfg, self.workdir, self.task, *here)
    self.writer.scalars(step, {f"eval/{k}": v for k, v in values.items()})
    self.meter.pause()

  def _finish(self, step: int, state: TrainState, frozen, stopped: bool) -> None:
    model = None if stopped else whole(state.model)
    if jax.process_index():
      return
    self.writer.flush()
    picture = curves(self.workdir)
    if picture:
      self.writer.image(step, "curves", picture)
    if said := bad_clips.told(self.left_out(), self.workdir / BAD_CLIPS):
      print(said, flush=True)
    if model is not None:
      small = {k: v for k, v in frozen.items() if k not in ("features", "dino")}
      self.task.save(model, small, self.workdir / "model")
    print(f"{'stopped' if stopped else 'done'} at step {step}: {self.workdir}", flush=True)

  @contextlib.contextmanager
  def _profiled(self, step: int):
    start, stop = self.cfg.profile
    if start < stop and step == start:
      jax.profiler.start_trace(str(self.workdir / "profile"))
    yield
    if start < stop and step == stop - 1:
      jax.profiler.stop_trace()


def _ids(host) -> dict[str, Any]:
  """Which examples a step saw: enough to see that two runs saw the same."""
  ids = np.stack([host["source"], host["index"]], 1).astype("<i8")
  return {"data/ids": f"{zlib.crc32(ids.tobytes()):08x}", "data/first": int(ids[0, 1])}


def _check(cfg, mesh) -> None:
  multiple = sharding.batch_size_multiple(mesh) * cfg.accumulate
  if cfg.accumulate < 1 or cfg.batch_size % multiple:
    raise ValueError(
      f"batch_size is {cfg.batch_size}, expected a multiple of {multiple} (data x fsdp devices x accumulate)."
    )
  if cfg.optim.schedule == "clock" and not cfg.minutes:
    raise ValueError("optim.schedule is 'clock' and minutes is 0, expected minutes to train for: set config.minutes.")
  if cfg.optim.schedule == "clock" and jax.process_count() > 1:
    raise ValueError("optim.schedule is 'clock', expected one in steps where a job has many processes: clocks differ.")
  if cfg.steps < 1:
    raise ValueError(f"steps is {cfg.steps}, expected 1 or more.")
