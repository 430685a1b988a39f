"""What is trained: everything that differs between models, behind one protocol that the loop drives."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from ml_collections import ConfigDict

TASKS = {
  "vae": "vftok.tasks.vae:VAETask",
  "tokenizer": "vftok.tasks.tokenizer:TokenizerTask",
  "flextok": "vftok.tasks.flextok:FlexTokTask",
  "flextok_vae": "vftok.tasks.flextok_vae:FlexTokVAETask",
  "one_pass": "vftok.tasks.one_pass:OnePassTask",
  "ar": "vftok.tasks.ar:ARTask",
  "router": "vftok.tasks.router:RouterTask",
  "assignment_router": "vftok.tasks.assignment_router:AssignmentRouterTask",
}
ADAPTIVE_AR = "vftok.tasks.ar_adaptive:AdaptiveARTask"  # task "ar" whose model says lengths itself

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight): exact means over any set of batches


class Task(Protocol):
  """One kind of model. All functions are pure; `frozen` (a VAE, feature nets) is an argument, never closed over."""

  dtype: str  # of the matrix products

  def init(self, key: jax.Array) -> Any:
    """Boxed parameters: what is trained and, by `config.freeze`, parts that are not."""

  def frozen(self) -> Any:
    """Weights of other models that the loss needs, read from disk once."""

  def start(self, params: Any, batches: Iterable[dict]) -> Any:
    """Parameters before the first step of a new run: from `config.init_from`, or fitted to data."""

  def loss(self, params, frozen, batch: dict, keys_B: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean loss over the batch (`_mask` is all True in training); all noise of an example comes from its own key."""

  def flops(self) -> float:
    """Forward + backward FLOPs of one example, by the formulas of vftok/models/flops.py."""

  def media(self, params, frozen, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray | float]:
    """Videos uint8 [F, H, W, 3] that show what the model does, and numbers too dear for every step, by name."""

  def evaluate(self, params, frozen, batches: Iterable[dict], total: int, split: str, out) -> dict[str, float]:
    """Numbers over a whole set; writes tables and pictures into the directory `out`."""

  def save(self, params, frozen, directory) -> None:
    """Writes a model that the library loads."""


@runtime_checkable
class Generates(Task, Protocol):
  """A task whose model makes tokens: it is sampled, and what it makes is judged."""

  gen: Any

  def tokenizer(self) -> tuple[Any, Any]:
    """(tokenizer, params) that its tokens are of."""
    ...

  def evaluate_generation(self, params, out, asked: Any = None) -> dict[str, float]:
    """Generated clips against held-out ones; writes into the directory `out`."""
    ...


def make_task(cfg: ConfigDict, **given: Any) -> Task:
  """The task of a config; `given` goes to it. Raises ValueError where `config.task` is not one of TASKS."""
  if cfg.task not in TASKS:
    raise ValueError(f"config.task is {cfg.task!r}, expected one of {', '.join(TASKS)}.")
  adaptive = cfg.task == "ar" and cfg.model.ar.get("lengths", "none") != "none"
  module, name = (ADAPTIVE_AR if adaptive else TASKS[cfg.task]).split(":")
  return getattr(importlib.import_module(module), name)(cfg, **given)


def mean(value_B: jax.Array, where_B: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
  """(sum, weight) of one value per example, of those in `where_B` if given."""
  if where_B is None:
    return value_B.sum(), value_B.size * jax.numpy.ones(())
  where_B = where_B.astype(value_B.dtype)
  return (value_B * where_B).sum(), where_B.sum()
