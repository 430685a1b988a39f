"""Numbers and reports over whole sets, in a run or after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from vftok.data.configured import BAD_CLIPS, eval_loader
from vftok.data.folder import opened_once
from vftok.data.loader import first_clips
from vftok.evals.clips import Clips
from vftok.evals.protocol import Protocol, fingerprint, leave
from vftok.runtime import sharding
from vftok.runtime.lock import locked
from vftok.runtime.process import local
from vftok.tasks import Generates, Task, make_task
from vftok.train.checkpoint import Checkpoints
from vftok.train.resume import say_differences, starting_point
from vftok.train.state import init_state, merge, planned_state

OF_TRAINING = ("features", "lpips", "router")  # frozen nets that no evaluation reads


def run(cfg: ConfigDict, workdir, protocol=None) -> dict[str, float]:
  """`--mode=eval`: the newest checkpoint of `workdir`, or `cfg.init_from`, on the sets of `cfg.eval.sets`.

  Args:
    protocol: a file that an evaluation left: the same is made again, with its clips and settings, and nothing else.

  Raises:
    ValueError: there is neither, this is one of many processes, another process evaluates there, or the protocol is
      of another model or other data.
  """
  asked = None if protocol is None else Protocol.read(protocol)
  cfg = asked.applied(cfg) if asked else cfg
  generates = bool(cfg.eval.get("generation") and cfg.eval.generation.clips)
  if asked.kind == "generation" if asked else generates:
    from vftok.evals import generation_run

    generation_run.check(cfg)  # first: a wrong name must not cost an evaluation
  with locked(local(workdir, "workdir") / "eval"), opened_once(), restored(cfg, workdir) as (task, model):
    values = {}
    if asked is None or asked.kind == "reconstruction":
      values |= evaluate_sets(cfg, Path(workdir), task, model, task.frozen(), asked)
    if isinstance(task, Generates) and (asked.kind == "generation" if asked else generates):
      values |= task.evaluate_generation(model, Path(workdir) / "eval", asked)
    return values


@contextlib.contextmanager
def restored(cfg: ConfigDict, workdir) -> Iterator[tuple[Task, Any]]:
  """The task and the parameters of the newest checkpoint of `workdir`, or `cfg.init_from`, on the config's mesh.

  Parameters alone: neither optimizer moments nor, where there is a running mean, what it is the mean of.

  Raises:
    ValueError: there is neither, or this is one of many processes.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f"this is one of {jax.process_count()} processes, expected one for evaluation and sampling: leave out "
      "--distributed and start it on one host, whose devices it uses."
    )
  mesh = sharding.make_mesh(cfg.mesh.to_dict())
  task = make_task(cfg)
  no_moments = optax.identity()
  with jax.set_mesh(mesh), contextlib.closing(Checkpoints(Path(workdir), keep=0, read_only=True)) as checkpoints:
    if checkpoints.latest() is not None:
      target, _ = planned_state(task.init, no_moments, mesh, ema=bool(cfg.ema), freeze=cfg.freeze)
      fields = {"step": target.step, "ema" if cfg.ema else "params": target.ema if cfg.ema else target.params}
      fields |= {"fixed": target.fixed} if target.fixed else {}
      found = checkpoints.restore_part(fields)
      say_differences(found.config, cfg.to_dict())
      yield task, merge(found.state["ema" if cfg.ema else "params"], found.state.get("fixed", {}))
      return
    if not cfg.init_from:
      raise ValueError(f"{workdir} has no checkpoint: train first, or set config.init_from.")
    state, places = init_state(task.init, no_moments, mesh, seed=cfg.seed, ema=False, freeze=cfg.freeze)
    state, _ = starting_point(cfg, task, checkpoints, state, places)
    yield task, state.model


def evaluate_sets(cfg, workdir: Path, task, model, frozen, asked: Protocol | None = None) -> dict[str, float]:
  """Every set of `cfg.eval.sets` in turn, or those of `cfg.eval.only`; reports go to workdir/eval/SET.

  Beside a report with distances goes its protocol. With one that is `asked` for, its set and clips are evaluated.

  The devices of the mesh share each batch of `cfg.eval.batch_size`, where they divide it.

  Raises:
    ValueError: `only` names a set that there is not.
  """
  values, sets = {}, cfg.eval.sets.to_dict()
  only = (asked.split,) if asked else tuple(cfg.eval.only) or tuple(sets)
  if unknown := [name for name in only if name not in sets]:
    raise ValueError(f"eval.only names {unknown[0]!r}, expected some of {', '.join(sets)}.")
  who = fingerprint(model, {name: tree for name, tree in frozen.items() if name not in OF_TRAINING})
  if asked:
    asked.check_model(who)
  for name, sources in ((name, sets[name]) for name in only):
    with contextlib.closing(eval_loader(cfg, sources, log=workdir / BAD_CLIPS)) as loader:
      total = asked.count if asked else min(loader.examples, cfg.eval.clips or loader.examples)
      some = first_clips(loader, total) if cfg.eval.clips and not asked else loader
      clips = Clips(some, loader.names, asked.clips["indices"] if asked else None)
      report = workdir / "eval" / name
      numbers = task.evaluate(model, frozen, map(sharding.spread, clips), total, name, report)
    leave("reconstruction", name, cfg, sources, clips, who, report, asked)
    values |= {f"{name}/{k}": v for k, v in numbers.items()}
  return values
