"""Numbers and reports over whole sets, in a run or after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vftok import optim, sharding
from vftok.checkpoint import Checkpoints
from vftok.data.configured import BAD_CLIPS, eval_loader
from vftok.resume import starting_point
from vftok.state import TrainState, init_state, logical_axes
from vftok.tasks import Task, make_task


def run(cfg: ConfigDict, workdir) -> dict[str, float]:
  """`--mode=eval`: the newest checkpoint of `workdir`, or `cfg.init_from`, on the sets of `cfg.eval.sets`."""
  with restored(cfg, workdir) as (task, state):
    values = evaluate_sets(cfg, Path(workdir), task, state, task.frozen())
    if cfg.eval.get("generation") and cfg.eval.generation.clips:
      values |= task.evaluate_generation(state.model, Path(workdir) / "eval")
    return values


@contextlib.contextmanager
def restored(cfg: ConfigDict, workdir) -> Iterator[tuple[Task, TrainState]]:
  """The task and the newest checkpoint of `workdir`, or `cfg.init_from`, on the config's mesh.

  Raises:
    ValueError: there is neither.
  """
  mesh = sharding.make_mesh(cfg.mesh.to_dict())
  task = make_task(cfg)
  axes, shapes = logical_axes(task.init, cfg.freeze)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, axes, shapes)
  with jax.set_mesh(mesh), contextlib.closing(Checkpoints(Path(workdir), keep=0)) as checkpoints:
    state, places = init_state(task.init, tx, mesh, seed=cfg.seed, ema=bool(cfg.ema), freeze=cfg.freeze)
    if checkpoints.latest() is None and not cfg.init_from:
      raise ValueError(f"{workdir} has no checkpoint: train first, or set config.init_from.")
    state, _ = starting_point(cfg, task, checkpoints, state, places)
    yield task, state


def evaluate_sets(cfg, workdir: Path, task, state: TrainState, frozen) -> dict[str, float]:
  """Every set of `cfg.eval.sets` in turn, or those of `cfg.eval.only`; reports go to workdir/eval/SET.

  Raises:
    ValueError: `only` names a set that there is not.
  """
  values, sets = {}, cfg.eval.sets.to_dict()
  only = tuple(cfg.eval.only) or tuple(sets)
  if unknown := [name for name in only if name not in sets]:
    raise ValueError(f"eval.only names {unknown[0]!r}, expected some of {', '.join(sets)}.")
  for name, sources in ((name, sets[name]) for name in only):
    with contextlib.closing(eval_loader(cfg, sources, log=workdir / BAD_CLIPS)) as loader:
      total, batches = loader.examples, loader
      if cfg.eval.clips:
        total = min(total, cfg.eval.clips)
        batches = first_clips(loader, total)
      numbers = task.evaluate(state.model, frozen, batches, total, name, workdir / "eval" / name)
    values |= {f"{name}/{k}": v for k, v in numbers.items()}
  return values


def first_clips(batches, clips: int):
  """Batches up to a number of clips; what is over in the last one is masked."""
  left = clips
  for batch in batches:
    if left <= 0:
      return
    yield {**batch, "_mask": batch["_mask"] & (np.cumsum(batch["_mask"]) <= left)}
    left -= int(batch["_mask"].sum())
