"""How good choices of budgets are beside the best of all: every assignment of some clips is measured.

`python -m vftok.tools.study.search_budgets --config=configs/router.py:mini [--router DIR,DIR] [--clips 8] [--skip 64]`

Rewards are of the measured flow loss, not of separable curves. Prints proxy-reward percentiles by preference:
  best uniform per clip, and one uniform for all;
  one for all: the assignment that is best for these clips together;
  threshold: ElasticTok's rule, the shortest assignment whose loss stays under a bound, the same for all clips and such
    that the mean length is that of the best assignments;
  greedy forward, marginal gain: `vftok/budget/search.py`, with the share of all assignments that they measured;
  the routers that are given.
Beside preferences, hard budgets: from the worst to the best assignment with exactly that total.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vftok.budget import allocate, curves, search
from vftok.budget.auto import Auto
from vftok.budget.label import Label
from vftok.budget.reward import Reward, lengths, percentile
from vftok.budget.router import find
from vftok.runtime.ending import or_exit
from vftok.runtime.files import whole_file
from vftok.runtime.process import begin
from vftok.show import page
from vftok.show.progress import progress
from vftok.tasks.curve_fits import summed
from vftok.tasks.router import WEIGHTS
from vftok.tokenizer import programs
from vftok.tokenizer.api import Tokenizer
from vftok.tools.label_budgets import clips_of
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main

MOST = 20_000  # assignments that are still measured one by one
MEANS = (2, 4, 8)  # tokens per step of hard budgets
COLUMNS = (*(f"w {weight:g}" for weight in WEIGHTS), *(f"mean {mean}" for mean in MEANS), "measured")
PIECE = 125  # assignments per call, so that progress can be shown


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  options = flags.FLAGS

  def run() -> None:
    rows = compare(options.config, options.router, options.clips, options.skip)
    body = [[name, *(cells.get(column, "") for column in COLUMNS)] for name, cells in rows.items()]
    print(page.markdown_table([["", *COLUMNS], *body]))
    if options.out:
      with whole_file(Path(options.out)) as path:
        path.write_text(json.dumps(rows, indent=2) + "\n")

  or_exit(run)


def compare(cfg: ConfigDict, routers, clips: int, skip: int = 0) -> dict[str, dict[str, str]]:
  """{way: {column: percentile under a preference or a hard budget, or the share of assignments it had to measure}}.

  Raises:
    ValueError: more assignments than can be measured, or a router of other levels.
  """
  asked = Label.of(cfg)
  tok, params = Tokenizer.load(asked.tokenizer)
  levels, steps = asked.levels, tok.chunk_steps
  if len(levels) ** steps > MOST:
    raise ValueError(
      f"label.levels has {len(levels)} levels for {steps} steps, {len(levels) ** steps} assignments, expected at most "
      f"{MOST} to try all: pass fewer, such as --config.label.levels=1,4,16."
    )
  keep = search.all_assignments(levels, steps)
  losses_BxN, latents = measured(asked, tok, params, keep, clips, skip)
  reward = Reward.fitted(losses_BxN, levels, steps)
  found, curves_of = {}, {}
  for name in routers:
    router, weights = find(name, tok.fingerprint(params))
    if router.cfg.levels != levels:
      raise ValueError(f"the router {name} knows levels {router.cfg.levels}, expected {levels}: pass label.levels.")
    predicted = np.asarray(router.predict(weights, latents), np.float64)
    found[f"router {name}"] = choice(router, predicted, reward)
    curves_of |= {f"router {name}": predicted} if router.cfg.head == "curves" else {}
  rows: dict[str, dict[str, str]] = {}
  for weight in WEIGHTS:
    for name, (share, looks) in ways(losses_BxN, keep, levels, reward, weight, found).items():
      cells = rows.setdefault(name, {})
      cells |= {} if share is None else {f"w {weight:g}": f"{share:.1f} %"}
      cells |= {"measured": f"{100 * looks:.1f} %"} if looks else {}
  for budget in (mean for mean in MEANS if mean in levels[:-1]):  # at the last there is but one
    for name, share in hard(losses_BxN, keep, levels, budget, curves_of).items():
      rows.setdefault(name, {})[f"mean {budget}"] = f"{share:.1f} %"
  return rows


def choice(router, predicted, reward: Reward):
  """weight -> assignments [B, T] of a router, None where it does not know that preference (a router of classes)."""
  if router.cfg.head == "curves":
    return lambda weight: allocate.among_levels(predicted, router.cfg.levels, reward, weight)
  known = router.cfg.preference
  return lambda weight: router.keep(predicted, Auto(preference=known)) if abs(weight - known) < 1e-6 else None


def measured(asked: Label, tok, params, keep_NxT, clips: int, skip: int = 0):
  """(flow losses [B, N], latents) of validation clips, the first `skip` left out.

  Raises:
    ValueError: that leaves none.
  """
  video = clips_of(asked, "val", skip + clips)[skip:]
  if not len(video):
    raise ValueError(f"--skip is {skip}, expected fewer than the validation clips there are.")
  latents = tok.encode_latents(params, video)
  ids = programs.encode_latents(tok.cfg, params, latents, video, tok.dino)
  parts, pieces = [], np.array_split(keep_NxT, -(-len(keep_NxT) // PIECE))
  with progress("measuring", len(keep_NxT), "assignments", first="compiling") as done:
    for piece in pieces:
      filled = np.concatenate([piece, np.repeat(piece[-1:], PIECE - len(piece), 0)])  # one program for all pieces
      losses = curves.flow_losses(tok.cfg, params, latents, ids, filled, asked.times, jax.random.key(asked.seed))
      parts.append(np.asarray(losses, np.float64).mean((2, 3))[:, : len(piece)])
      done(len(piece))
  return np.concatenate(parts, 1), latents


def ways(losses_BxN, keep_NxT, levels, reward: Reward, weight: float, routers) -> dict[str, tuple[float | None, float]]:
  """{way: (percentile, share of assignments measured, 0 where that is not the point)} under one preference.

  Args:
    routers: {name: weight -> assignments [B, T], or None, whose percentile is None too}.
  """
  rewards = np.stack([reward(losses, keep_NxT, weight) for losses in losses_BxN])
  best, worst = rewards.max(1), rewards.min(1)
  at = lambda index: percentile(np.take_along_axis(rewards, np.asarray(index)[:, None], 1)[:, 0], best, worst)
  place = {tuple(k): i for i, k in enumerate(keep_NxT.tolist())}
  uniform = np.array([place[(k,) * keep_NxT.shape[1]] for k in levels])
  same = lambda index: np.full(len(rewards), index)
  out = {
    "one uniform for all": (at(same(uniform[rewards[:, uniform].mean(0).argmax()])), 0),
    "best uniform per clip": (at(uniform[rewards[:, uniform].argmax(1)]), 0),
    "one for all": (at(same(rewards.mean(0).argmax())), 0),
    "threshold": (at(threshold(losses_BxN, keep_NxT, lengths(keep_NxT)[rewards.argmax(1)].mean())), 0),
  }
  for name, find_one in (("greedy forward", search.greedy_forward), ("marginal gain", search.marginal_gain)):
    of_clip = lambda i: lambda keep: losses_BxN[i, [place[tuple(k)] for k in keep.tolist()]]
    results = [find_one(of_clip(i), reward, weight, levels, keep_NxT.shape[1]) for i in range(len(rewards))]
    looks = np.mean([result.evaluations for result in results]) / len(keep_NxT)
    out[name] = (at([place[tuple(result.keep.tolist())] for result in results]), looks)
  for name, choose in routers.items():
    chosen = choose(weight)
    out[name] = (None if chosen is None else at([place[tuple(k)] for k in chosen.tolist()]), 0)
  return out


def hard(losses_BxN, keep_NxT, levels, budget: int, curves_of) -> dict[str, float]:
  """{way: percentile among the assignments with exactly `budget` tokens per step}, of what needs no measuring.

  Args:
    curves_of: {name: a router's curves [B, T, m]}.
  """
  same = keep_NxT.sum(1) == budget * keep_NxT.shape[1]
  rewards, keep_MxT = -losses_BxN[:, same], keep_NxT[same]
  at = lambda index_B: percentile(rewards[np.arange(len(rewards)), index_B], rewards.max(1), rewards.min(1))
  everyone = lambda index: at(np.full(len(rewards), index))
  out = {"one uniform for all": everyone((keep_MxT == budget).all(1).argmax())}
  out["one for all"] = everyone(rewards.mean(0).argmax())
  level_1xMxT = np.searchsorted(levels, keep_MxT)[None]
  for name, table_BxTxm in curves_of.items():
    out[name] = at(summed(table_BxTxm, level_1xMxT, np).argmin(1))
  return out


def threshold(losses_BxN, keep_NxT, mean_length: float) -> np.ndarray:
  """Index [B] of the shortest assignment under a bound that gives this mean length; of the least loss where none is."""
  order = np.argsort(lengths(keep_NxT), kind="stable")
  ordered, total = losses_BxN[:, order], lengths(keep_NxT)[order]
  low, high = ordered.min(), ordered.max()
  for _ in range(60):
    bound = (low + high) / 2
    under = ordered <= bound
    first = np.where(under.any(1), under.argmax(1), ordered.argmin(1))
    low, high = (bound, high) if total[first].mean() > mean_length else (low, bound)
  return order[first]


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  define_config("Experiment file with a `label` part: configs/router.py:mini.")
  flags.DEFINE_list("router", [], "Routers to judge.")
  flags.DEFINE_integer("clips", 8, "Validation clips.", lower_bound=1)
  flags.DEFINE_integer("skip", 0, "How many of them are left out first: what something was chosen on.", lower_bound=0)
  flags.DEFINE_string("out", "", "A JSON file for the numbers.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
