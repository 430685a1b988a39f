"""Loaders as `cfg.data` and `cfg.eval` ask for them."""

from __future__ import annotations

from ml_collections import ConfigDict

from vftok.data.clip import ClipSpec
from vftok.data.loader import Loader, make_loader
from vftok.data.memory_loader import MemoryLoader

BAD_CLIPS = "bad_clips.jsonl"  # in a workdir
_ONE_PROCESS = dict(process_index=0, process_count=1)  # every clip of a batch in the process that asks


def train_loader(
  cfg: ConfigDict, examples: int, *, workers: int = 0, log=None, whole: bool = False
) -> Loader | MemoryLoader:
  """The training mix of `cfg.data` from a number of examples on: this process's part of each batch, or all of it."""
  return make_loader(
    cfg.data.sources.to_dict(),
    _spec(cfg, train=True),
    cfg.batch_size,
    seed=cfg.seed,
    start=examples,
    workers=workers,
    bad_clips=log,
    **(_ONE_PROCESS if whole else {}),
  )


def _spec(cfg, train: bool) -> ClipSpec:
  data = cfg.data
  random = dict(flip=data.flip, scale=tuple(data.scale)) if train else {}
  return ClipSpec(frames=data.frames, size=(data.size, data.size), fps=data.fps or None, timeout=data.timeout, **random)


def eval_loader(cfg: ConfigDict, sources: dict, *, log=None) -> Loader | MemoryLoader:
  """One pass over a set of `cfg.eval.sets`, all of it in the process that asks."""
  options = dict(seed=cfg.seed, train=False, bad_clips=log, **_ONE_PROCESS)
  return make_loader(sources, _spec(cfg, train=False), cfg.eval.batch_size, **options)
