"""Training the router: regression of measured curves (spec: EVATok section 11.5), judged by the rewards it gets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vftok import allocate, search
from vftok.config import router_from_dict
from vftok.curves import assignments
from vftok.data.curves import read_meta
from vftok.data.video_writer import whole_file
from vftok.models.router import RouterNet
from vftok.perf import stack_flops
from vftok.reward import percentile
from vftok.router import Router
from vftok.tasks import Metrics, mean

SAMPLE = 512  # clips that scales are taken from
WEIGHTS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)  # preferences that an evaluation reports


class RouterTask:
  """Parameters are the router's own tree; nothing is frozen, latents and losses are measured once."""

  def __init__(self, cfg: ConfigDict):
    self.cfg = cfg
    sources = list(cfg.data.sources.to_dict().values())
    self.meta = _one([read_meta(source["directory"]) for source in sources])
    self.keep = assignments(self.meta["levels"], self.meta["steps"], self.meta["random"], self.meta["seed"])
    scales = _scales(sources, self.meta)
    known = dict(latents=self.meta["latents_shape"], levels=self.meta["levels"], tokenizer=self.meta["tokenizer"])
    known |= dict(fingerprint=self.meta["fingerprint"], codebook_size=self.meta["codebook_size"])
    self.router = Router(router_from_dict({**cfg.model.to_dict(), **known, **scales}))

  def init(self, key: jax.Array) -> Any:
    return self.router.init(key)

  def frozen(self) -> Any:
    return {}

  def start(self, params, batches) -> Any:
    if not self.cfg.init_from:
      return params
    source, loaded = Router.load(self.cfg.init_from)
    if dataclasses.replace(source.cfg, drop_scale=1.0) != dataclasses.replace(self.router.cfg, drop_scale=1.0):
      raise ValueError(f"init_from holds another router ({source.cfg}): use the model it was made with.")
    return loaded

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    """Mean squared error of the curves, each beside its own loss at all tokens, in units of `drop_scale`."""
    cfg = self.router.cfg
    predicted = RouterNet(cfg).apply({"params": params}, batch["latents"])
    error = jnp.square(predicted - self._curves(batch["losses"]) / cfg.drop_scale).mean((1, 2))
    return error.mean(), {"error": mean(error)}

  def _curves(self, losses_BxNxTxt) -> jax.Array:
    steps, levels = self.meta["steps"], len(self.meta["levels"])
    table = losses_BxNxTxt[:, : steps * levels].mean((2, 3)).reshape(-1, steps, levels)
    return table - table[..., -1:]

  def flops(self) -> float:
    cfg = self.router.cfg
    from vftok.models.transformer import StackConfig

    return 3 * stack_flops(StackConfig(cfg.dim, cfg.depth, cfg.head_dim), cfg.steps * (cfg.patches + 1))

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    return {}

  def evaluate(self, params, frozen, batches: Iterable[dict], total: int, split: str, out) -> dict[str, float]:
    """Proxy-reward percentiles over held-out clips by separable measured curves; writes router.json into `out`."""
    tables, predicted = [], []
    for batch in batches:
      good = batch["_mask"]
      tables.append(np.asarray(self._curves(jnp.asarray(batch["losses"])))[good])
      predicted.append(np.asarray(self.router.curves(params, batch["latents"]))[good])
    tables, predicted = np.concatenate(tables), np.concatenate(predicted)
    values = {
      "clips": len(tables),
      "r2": 1 - np.square(tables - predicted).sum() / np.square(tables - tables.mean(0)).sum(),
    }
    for weight in WEIGHTS:
      values |= {f"percentile/{weight}/{k}": v for k, v in self._percentiles(tables, predicted, weight).items()}
    for budget in self._means():
      values |= {f"loss/mean {budget}/{k}": v for k, v in self._losses(tables, predicted, budget).items()}
    values = {name: float(value) for name, value in values.items()}
    Path(out).mkdir(parents=True, exist_ok=True)
    with whole_file(Path(out) / "router.json") as path:
      path.write_text(json.dumps({"split": split, **values}, indent=2) + "\n")
    return values

  def _means(self) -> list[int]:
    most = self.meta["levels"][-1]
    return [k for k in (2, 4, 8, 16, 32, 64, 128) if k < most]

  def _full(self, tables) -> np.ndarray:
    return np.stack([allocate.at_every_count(table, self.meta["levels"]) for table in tables])

  def _percentiles(self, tables, predicted, weight: float) -> dict[str, float]:
    """Of the router, of the best uniform assignment of each clip, and of the one that is best for all clips alike."""
    levels, steps = self.meta["levels"], self.meta["steps"]
    reward = dataclasses.replace(self.router.reward(), loss_mean=0.0)
    losses = self._full(tables)
    of = lambda keep: reward(np.take_along_axis(losses, keep[:, :, None] - 1, 2)[..., 0].sum(1), keep, weight)
    best = of(np.stack([allocate.for_preference(full, reward, weight) for full in losses]))
    routed = of(np.stack([allocate.for_preference(full, reward, weight) for full in self._full(predicted)]))
    same = of(np.repeat(allocate.for_preference(losses.mean(0), reward, weight)[None], len(tables), 0))
    uniform = np.stack([of(np.full((len(tables), steps), k, np.int32)) for k in levels])
    if len(levels) ** steps <= 4096:
      every = search.all_assignments(levels, steps)
      worst = np.min([of(np.repeat(keep[None], len(tables), 0)) for keep in every], axis=0)
    else:
      worst = uniform.min(0)
    found = {"router": routed, "best uniform per clip": uniform.max(0), "one for all": same}
    return {name: percentile(rewards, best, worst) for name, rewards in found.items()}

  def _losses(self, tables, predicted, budget: int) -> dict[str, float]:
    full, steps = self._full(tables), self.meta["steps"]
    at = lambda keep: float(np.take_along_axis(full, keep[:, :, None] - 1, 2).sum(1).mean())
    total = budget * steps
    per_clip = lambda curves: np.stack([allocate.for_total(curve, total) for curve in curves])
    one = np.repeat(allocate.for_total(full.mean(0), total)[None], len(full), 0)
    uniform = np.full((len(full), steps), budget, np.int32)
    rows = {"uniform": uniform, "one for all": one, "router": per_clip(self._full(predicted)), "oracle": per_clip(full)}
    return {name: at(keep) for name, keep in rows.items()}

  def save(self, params, frozen, directory) -> None:
    self.router.save(params, directory)


def _one(metas: list[dict]) -> dict:
  """What all sets of curves agree on. Raises ValueError where they do not."""
  keys = ("fingerprint", "levels", "steps", "times", "random", "seed", "latents_shape")
  for other in metas[1:]:
    for key in keys:
      if other[key] != metas[0][key]:
        raise ValueError(f"two sets of curves differ in {key} ({metas[0][key]} and {other[key]}): label them alike.")
  return metas[0]


def _scales(sources: list[dict], meta: dict) -> dict[str, float]:
  """drop_scale, loss_mean and loss_std of the first clips of the training sets."""
  from vftok.data.sources import make_source

  steps, levels, tables, random = meta["steps"], len(meta["levels"]), [], []
  for source in sources:
    options = {key: value for key, value in source.items() if key not in ("kind", "weight", "split")}
    records = make_source(source["kind"], source.get("split", "train"), options)
    for i in range(min(SAMPLE, len(records))):
      losses = records[i]["losses"].mean(-1)
      tables.append(losses[: steps * levels].mean(-1).reshape(steps, levels))
      random.append(losses[steps * levels :].mean(-1))
  tables, random = np.stack(tables), np.concatenate(random)
  drops = tables - tables[..., -1:]
  if not (drops.std() > 0 and random.std() > 0):
    raise ValueError("all assignments lose the same, expected less with more tokens: is the tokenizer trained?")
  return dict(drop_scale=float(drops.std()), loss_mean=float(random.mean()), loss_std=float(random.std()))
