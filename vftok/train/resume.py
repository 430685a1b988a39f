"""Where a run starts: a checkpoint, another run, a model, or scratch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from vftok.data.configured import train_loader
from vftok.train.checkpoint import Checkpoints
from vftok.train.state import TrainState, abstract_state, merge


def check_source(cfg, checkpoints: Checkpoints) -> None:
  """Before minutes go into the first parameters: raises ValueError where the run to go on from has no checkpoint."""
  if cfg.resume_from and checkpoints.latest() is None:
    with _other_run(cfg):
      pass


@contextlib.contextmanager
def _other_run(cfg) -> Iterator[Checkpoints]:
  with contextlib.closing(Checkpoints(cfg.resume_from, keep=0, read_only=True)) as other:
    if other.latest() is None:
      raise ValueError(f"config.resume_from is {cfg.resume_from}, which has no checkpoint: pass a workdir that has.")
    yield other


def starting_point(cfg, task, checkpoints: Checkpoints, state, places) -> tuple[TrainState, int]:
  """(state, examples seen). The first that applies:

  1. the newest checkpoint in the workdir: this run goes on;
  2. cfg.resume_from, the workdir of another run: its newest checkpoint, data position included;
  3. cfg.init_from, a model: its weights, step 0 (and whatever else the task starts from);
  4. scratch.
  """
  target = abstract_state(state, places)
  found = None
  if checkpoints.latest() is not None:
    found = checkpoints.restore(target)
  elif cfg.resume_from:
    with _other_run(cfg) as other:
      found = other.restore(target)
  if found:
    say_differences(found.config, cfg.to_dict())
    return found.state, int(found.data["examples"])
  params = merge(state.params, state.fixed)
  started = task.start(params, _fresh_batches(cfg))
  if started is not params:
    started = jax.tree.map(lambda new, old: jax.device_put(jnp.asarray(new, old.dtype), old.sharding), started, params)
    trained = _like(started, state.params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, trained)
    state = state.replace(params=trained, fixed=_like(started, state.fixed), ema=ema)
  return state, 0


def _fresh_batches(cfg) -> Iterator[dict]:
  """The run's first batches, for tasks that fit something to data; opened only where one is asked for.

  Whole ones: what is fitted must be the same in every process.
  """
  with contextlib.closing(train_loader(cfg, 0, whole=True)) as loader:
    yield from loader


def _like(tree, part):
  """The leaves of `tree` at the paths of `part`."""
  return {k: _like(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in part.items()}


def say_differences(saved: dict, now: dict, prefix: str = "") -> None:
  for key in sorted(set(saved) | set(now)):
    old, new = saved.get(key), now.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
      say_differences(old, new, f"{prefix}{key}.")
    elif json.dumps(old, default=list) != json.dumps(new, default=list):
      print(f"note: {prefix}{key} is {new!r}, the checkpoint was made with {old!r}", flush=True)
