"""Training the router: regression of measured losses (spec: EVATok section 11.5), judged by the rewards it gets.

A clip's loss under an assignment is taken as a sum of what its steps lose. What is compared is the loss beside the mean
over the clip's assignments: how hard a clip is as a whole moves no token.
"""

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

from vftok.budget import allocate, search
from vftok.budget.auto import Auto
from vftok.budget.curves import MEASURES, assignments, curve_table
from vftok.budget.reward import check_weight, percentile
from vftok.budget.router import Router
from vftok.data.curves import read_meta
from vftok.models.config_json import from_dict
from vftok.models.flops import stack_flops
from vftok.models.flow import gaussian
from vftok.models.router import RouterConfig, net
from vftok.models.transformer import StackConfig
from vftok.runtime.files import whole_file
from vftok.runtime.words import brief
from vftok.tasks import Metrics, mean
from vftok.tasks.curve_fits import centred, expected, explained, one_for_all, sizes, summed
from vftok.tasks.losses import RouterLoss

SAMPLE = 512  # clips that scales are taken from
STORED = ("losses", "drawn", "sampled")
WEIGHTS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)  # preferences that an evaluation reports


class RouterTask:
  """Parameters are the router's own tree; nothing is frozen, latents and losses are measured once."""

  def __init__(self, cfg: ConfigDict):
    self.cfg, self.loss_cfg = cfg, RouterLoss.of(cfg)
    sources = list(cfg.data.sources.to_dict().values())
    self.meta = _one([read_meta(source["directory"]) for source in sources])
    self.keep = assignments(self.meta["levels"], self.meta["steps"], self.meta["random"], self.meta["seed"])
    self.measure = self.loss_cfg.measure
    one = lambda record: self._measured({key: np.asarray(record[key])[None] for key in STORED}, np)
    scales, self.common = _scales(sources, one, self.meta["levels"], with_size=self.loss_cfg.size)
    facts = ("levels", "tokenizer", "fingerprint", "codebook_size")
    known = dict(latents=self.meta["latents_shape"], measure=self.measure) | {name: self.meta[name] for name in facts}
    if cfg.model.head == "classes":
      if self.measure != "flow":
        raise ValueError(f"loss.measure is {self.measure!r}, expected 'flow' for classes: only it is known for all.")
      check_weight(self.loss_cfg.preference)
      known |= dict(preference=self.loss_cfg.preference)
    self.router = Router(from_dict(RouterConfig, {**cfg.model.to_dict(), **known, **scales}))

  def init(self, key: jax.Array) -> Any:
    return self.router.init(key)

  def frozen(self) -> Any:
    return {}

  def start(self, params, batches) -> Any:
    common = {"common": jnp.asarray(self.common)} if self.router.cfg.head == "curves" else {}
    if not self.cfg.init_from:
      return {**params, **common}
    source, loaded = Router.load(self.cfg.init_from)
    units = dict(drop_scale=1.0, measure="flow", loss_mean=0.0, loss_std=1.0, size=())
    if dataclasses.replace(source.cfg, **units) != dataclasses.replace(self.router.cfg, **units):
      raise ValueError(f"init_from holds another router ({brief(source.cfg, 250)}): use the model it was made with.")
    # Of another measure: what is common to all clips is that of this one, what a clip has of its own is kept.
    return loaded if source.cfg.measure == self.measure else {**loaded, **common}

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    """Mean squared error of losses beside the clip's mean, in units of `drop_scale`; of classes, `chosen`."""
    cfg = self.router.cfg
    latents = batch["latents"].astype(jnp.float32)
    if self.loss_cfg.noise:  # thousands of clips are few: what a router may rely on has to survive it
      noise = jax.vmap(lambda key: gaussian(key, latents.shape[1:]))(keys_B)
      latents = latents + self.loss_cfg.noise * latents.std((1, 2, 3), keepdims=True) * noise
    out = net(cfg).apply({"params": params}, latents)
    if cfg.head == "classes":
      return self._class_loss(out, self._table(batch["losses"]))
    level_BxNxT, loss_BxN, known_B = self._measured(batch, jnp)
    loss_BxN = loss_BxN - sizes(level_BxNxT, cfg.size, cfg.levels, jnp)
    error_B = jnp.square(centred(summed(out, level_BxNxT, jnp) - loss_BxN / cfg.drop_scale)).mean(1)
    total, weight = mean(error_B, known_B)
    return total / jnp.maximum(weight, 1), {"error": (total, weight)}

  def _class_loss(self, logits_BxA, table_BxTxm) -> tuple[jax.Array, Metrics]:
    reward = self.router.reward()
    keep_AxT = search.all_assignments(self.meta["levels"], self.meta["steps"])
    level_AxT = np.searchsorted(self.meta["levels"], keep_AxT)
    loss_BxA = sum(table_BxTxm[:, t, level_AxT[:, t]] for t in range(keep_AxT.shape[1]))
    cost_A = keep_AxT.sum(1) / reward.length_std
    reward_BxA = -self.loss_cfg.preference * loss_BxA / reward.loss_std - (2 - self.loss_cfg.preference) * cost_A
    return self.chosen(logits_BxA, reward_BxA)

  def chosen(self, logits_BxA, reward_BxA) -> tuple[jax.Array, Metrics]:
    """Cross-entropy with the best assignment, or with softmax(reward / loss.soft) where that is not 0."""
    soft, best_B, ours_B = self.loss_cfg.soft, reward_BxA.argmax(1), logits_BxA.argmax(1)
    target = jax.nn.softmax(reward_BxA / soft, -1) if soft else jax.nn.one_hot(best_B, reward_BxA.shape[1])
    error_B = -(target * jax.nn.log_softmax(logits_BxA, -1)).sum(1)
    got_B = jnp.take_along_axis(reward_BxA, ours_B[:, None], 1)[:, 0]
    share_B = (got_B - reward_BxA.min(1)) / jnp.maximum(reward_BxA.max(1) - reward_BxA.min(1), 1e-9)
    hit_B = (ours_B == best_B).astype(jnp.float32)
    return error_B.mean(), {"error": mean(error_B), "top1": mean(hit_B), "share of reward": mean(share_B)}

  def _table(self, losses_BxNxTxt):
    """[B, T, m]: the clip's loss with one step at one level, beside that at all tokens."""
    table = curve_table(losses_BxNxTxt.mean(-1), self.meta["steps"], len(self.meta["levels"]))
    return table - table[..., -1:]

  def _measured(self, batch, xp):
    """(index of each step's level [B, N, T], loss [B, N], whether the clip was measured [B])."""
    levels = xp.asarray(self.meta["levels"])
    if self.measure == "flow":
      # Not those that tables are made of: rewards are of all kinds of assignments, most of them uneven.
      first = len(self.keep) - self.meta["random"]
      losses = xp.concatenate([batch["losses"][:, first:].mean((2, 3)), batch["sampled"][..., 0].mean(2)], axis=1)
      keep_BxNxT = xp.broadcast_to(self.keep[first:], (len(losses), *self.keep[first:].shape))
      keep_BxNxT = xp.concatenate([keep_BxNxT, batch["drawn"]], axis=1)
    else:
      losses, keep_BxNxT = batch["sampled"][..., MEASURES.index(self.measure)].mean(2), batch["drawn"]
    known_B = xp.isfinite(losses).all(1)
    return xp.searchsorted(levels, keep_BxNxT), xp.where(known_B[:, None], losses, 0.0), known_B

  @property
  def dtype(self) -> str:
    return self.router.cfg.dtype

  def flops(self) -> float:
    cfg = self.router.cfg
    return 3 * stack_flops(StackConfig(cfg.dim, cfg.depth, cfg.head_dim), cfg.steps * (cfg.patches + 1))

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    return {}

  def evaluate(self, params, frozen, batches: Iterable[dict], total: int, split: str, out) -> dict[str, float]:
    """How well losses are predicted and what rewards that gets, on held-out clips; writes router.json into `out`."""
    parts, tables = [], []
    for batch in batches:
      *measured, known = self._measured(batch, np)
      good = batch["_mask"] & known
      predicted = np.asarray(self.router.predict(params, batch["latents"]), np.float64)
      parts.append([value[good] for value in (predicted, *measured)])
      tables.append(self._table(batch["losses"])[good])
    if self.router.cfg.head == "classes":
      values = self._class_values(np.concatenate(tables), np.concatenate([part[0] for part in parts]))
      return self.written(values, split, out, measure=self.measure)
    predicted, level_BxNxT, loss_BxN = (np.concatenate(part) for part in zip(*parts, strict=True))
    cfg = self.router.cfg
    values = {"clips": len(predicted)} | explained(predicted, level_BxNxT, loss_BxN, cfg.levels, cfg.size)
    for weight in WEIGHTS:
      found = self._drawn_percentiles(predicted, level_BxNxT, loss_BxN, weight)
      values |= {f"percentile of measured/{weight}/{k}": v for k, v in found.items()}
    if self.measure == "flow":  # whose assignments are made for separable curves
      for weight in WEIGHTS:
        found = self._percentiles(np.concatenate(tables), self.router.keep(predicted, Auto(preference=weight)), weight)
        values |= {f"percentile/{weight}/{k}": v for k, v in found.items()}
      for budget in self._means():
        found = self._losses(np.concatenate(tables), predicted, budget)
        worst, best = found.pop("worst"), found["oracle"]
        for name, loss in found.items():
          values |= {f"loss/mean {budget}/{name}": loss}
          values |= {f"percentile/mean {budget}/{name}": percentile(-loss, -best, -worst)} if name != "oracle" else {}
    return self.written(values, split, out, measure=self.measure)

  def written(self, values: dict, split: str, out, **facts) -> dict[str, float]:
    """`values` as floats, which now stand in router.json of the directory `out`."""
    values = {name: float(value) for name, value in values.items()}
    Path(out).mkdir(parents=True, exist_ok=True)
    with whole_file(Path(out) / "router.json") as path:
      path.write_text(json.dumps({"split": split, **facts, **values}, indent=2) + "\n")
    return values

  def _class_values(self, tables, logits) -> dict[str, float]:
    weight = self.loss_cfg.preference
    keep = self.router.keep(logits, Auto(preference=weight))
    return {"clips": len(logits)} | {
      f"percentile/{weight:g}/{name}": value for name, value in self._percentiles(tables, keep, weight).items()
    }

  def _drawn_percentiles(self, predicted, level_BxNxT, loss_BxN, weight: float) -> dict[str, float]:
    """Of the best among a clip's measured assignments by the router, by what is best for all clips, and by chance."""
    reward, keep = self.router.reward(), np.asarray(self.meta["levels"])[level_BxNxT]
    rewards = np.stack([reward(*pair, weight) for pair in zip(loss_BxN, keep, strict=True)])
    levels, size = self.router.cfg.levels, self.router.cfg.size
    by = {"router": (predicted, size), "one for all": one_for_all(level_BxNxT, loss_BxN, levels, with_size=bool(size))}
    found = {}
    for name, (table, own_size) in by.items():
      wanted = expected(table, own_size, level_BxNxT, levels)
      guess = np.stack([reward(*pair, weight) for pair in zip(wanted, keep, strict=True)])
      found[name] = np.take_along_axis(rewards, guess.argmax(1)[:, None], 1)[:, 0]
    found["chance"] = rewards.mean(1)
    return {name: percentile(chosen, rewards.max(1), rewards.min(1)) for name, chosen in found.items()}

  def _means(self) -> list[int]:
    most = self.meta["levels"][-1]
    return [k for k in (2, 4, 8, 16, 32, 64, 128) if k < most]

  def _full(self, tables) -> np.ndarray:
    return np.stack([allocate.at_every_count(table, self.meta["levels"]) for table in tables])

  def _percentiles(self, tables, keep, weight: float) -> dict[str, float]:
    """Of the router's counts, of each clip's best uniform assignment, and of the one that is best for all alike."""
    levels, steps = self.meta["levels"], self.meta["steps"]
    reward = dataclasses.replace(self.router.reward(), loss_mean=0.0)
    losses = self._full(tables)
    of = lambda keep: reward(np.take_along_axis(losses, keep[:, :, None] - 1, 2)[..., 0].sum(1), keep, weight)
    best = of(np.stack([allocate.for_preference(full, reward, weight) for full in losses]))
    routed = of(keep)
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
    """What clips lose with a hard total, spread in each way; "worst" of all ways, too."""
    full, steps = self._full(tables), self.meta["steps"]
    at = lambda keep: float(np.take_along_axis(full, keep[:, :, None] - 1, 2).sum(1).mean())
    total = budget * steps
    per_clip = lambda curves: np.stack([allocate.for_total(curve, total) for curve in curves])
    one = np.repeat(allocate.for_total(full.mean(0), total)[None], len(full), 0)
    uniform = np.full((len(full), steps), budget, np.int32)
    rows = {"uniform": uniform, "one for all": one, "router": per_clip(self._full(predicted)), "oracle": per_clip(full)}
    rows["worst"] = per_clip(-full)
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


def _scales(sources: list[dict], measured, levels, *, with_size: bool) -> tuple[dict[str, Any], np.ndarray]:
  """Of the first clips of the training sets: drop_scale, loss_mean, loss_std and size; and the logs of drops
  [T, m - 1], in that scale, that fit all of them alike.
  """
  from vftok.data.sources import source_of

  indexes, losses = [], []
  for source in sources:
    records = source_of(source)
    found = [measured(records[i]) for i in range(min(SAMPLE, len(records)))]
    indexes += [level for level, _, known in found if known.all()]
    losses += [loss for _, loss, known in found if known.all()]
  if not losses or losses[0].shape[-1] < 2:
    raise ValueError("no clip has such losses: raise label.sampled and label.drawn, and run label_budgets again.")
  indexes, losses = np.concatenate(indexes), np.concatenate(losses)
  scales = dict(drop_scale=centred(losses).std(), loss_mean=losses.mean(), loss_std=losses.std())
  if not scales["drop_scale"] > 0:
    raise ValueError("all assignments lose the same, expected less with more tokens: is the tokenizer trained?")
  table, size = one_for_all(indexes, losses, levels, with_size=with_size)
  drops = -np.diff(table[0], axis=1) / scales["drop_scale"]
  common = np.log(np.maximum(drops, 0.02 * np.abs(drops).mean())).astype(np.float32)
  return {**{name: float(value) for name, value in scales.items()}, "size": size}, common
