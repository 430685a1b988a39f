"""What knowing each clip would be worth: LPIPS of many assignments of the same total, clip by clip.

`python -m vftok.tools.study.oracle_budgets --config=configs/router.py:mini [--model NAME] [--clips 16] ...`

Held-out clips are decoded under assignments whose totals equal the uniform budget's, with several seeds of the noise.
  one for all: the assignment that is best for these clips together;
  oracle: each clip's own best.
Both are chosen by the other seeds and judged on the one that is left out, so that the luck of a noise is no gain; the
column "with luck" chooses and judges on the same seeds, an upper bound. No router can beat the oracle but by the
assignments that were not tried. Prints a table; --out gets it as JSON, with every clip's gain, and as a picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from absl import flags

from vftok.budget import curves
from vftok.budget.label import Label
from vftok.budget.search import all_assignments
from vftok.evals import budget_pictures
from vftok.frozen.metrics.weights import load_lpips
from vftok.runtime.ending import or_exit
from vftok.runtime.files import whole_file
from vftok.runtime.process import begin
from vftok.show import page
from vftok.show.progress import progress
from vftok.tokenizer.api import Tokenizer
from vftok.tools.label_budgets import clips_of
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main

HEAD = ("tokens per step", "uniform", "one for all", "oracle", "with luck", "gain: 10, 50, 90 % of clips", "is uniform")
BATCH = 8


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  or_exit(lambda: run(flags.FLAGS))


def run(options) -> None:
  """Numbers and a picture as the flags of `define_flags` ask for them.

  Raises:
    ValueError: fewer than two seeds, or a budget that is none of the levels.
  """
  asked, budgets = Label.of(options.config), sorted(int(n) for n in options.budgets)
  if options.seeds < 2:
    raise ValueError(f"--seeds is {options.seeds}, expected 2 or more: one is left out to judge by.")
  tok, params = Tokenizer.load(options.model or asked.tokenizer)
  levels, steps = asked.levels, tok.chunk_steps
  if unknown := set(budgets) - set(levels):
    raise ValueError(f"--budgets has {sorted(unknown)}, expected some of label.levels {levels}.")
  tried = {budget: candidates(levels, steps, budget, options.candidates) for budget in budgets}
  uniform = np.repeat(np.array(levels)[:, None], steps, 1)
  every = np.unique(np.concatenate([uniform, *tried.values()]), axis=0)
  solver_steps = asked.solver_steps or tok.cfg.solver_steps
  losses = measured(asked, tok, params, every, options.clips, options.seeds, solver_steps)
  place = {tuple(keep): i for i, keep in enumerate(every.tolist())}
  of = lambda keep_MxT: losses[:, [place[tuple(keep)] for keep in keep_MxT.tolist()]]
  own, rows = np.minimum.accumulate(of(uniform).mean((0, 2))), {}
  for budget, keep in tried.items():
    rows[budget] = gains(of(keep)) | {"tried": len(keep)}
    rows[budget]["is uniform"] = float(2 ** np.interp(-rows[budget]["oracle"], -own, np.log2(levels)))
  print(page.markdown_table(table(rows)))
  if options.out:
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"clips": len(losses), "seeds": options.seeds, "solver_steps": solver_steps}
    with whole_file(out / "oracle.json") as path:
      path.write_text(json.dumps({**facts, "budgets": rows}, indent=2) + "\n")
    budget_pictures.gains({budget: row["gains"] for budget, row in rows.items()}, out / "oracle.png")


def candidates(levels, steps: int, budget: int, count: int) -> np.ndarray:
  """int32 [at most count, T]: the uniform assignment, and others of its total, the same ones every time."""
  keep = all_assignments(levels, steps)
  keep = keep[(keep.sum(1) == budget * steps) & (keep != budget).any(1)]
  chosen = np.random.default_rng(budget).permutation(len(keep))[: count - 1]
  return np.concatenate([np.full((1, steps), budget, keep.dtype), keep[chosen]])


def measured(asked: Label, tok, params, keep_MxT, clips: int, seeds: int, solver_steps: int) -> np.ndarray:
  """LPIPS [B, M, seeds] of the first validation clips."""
  video, net, parts = clips_of(asked, "val", clips), load_lpips("vgg"), []
  with progress("decoding", len(video) * len(keep_MxT) * seeds, "clips", first="compiling") as done:
    for first in range(0, len(video), BATCH):
      piece = video[first : first + BATCH]
      tokens = tok.encode(params, piece)
      keep = np.repeat(keep_MxT[None], len(piece), 0)
      found = []
      for seed in range(seeds):
        found.append(curves.sampled_lpips(tok, params, net, piece, tokens, keep, seed, steps=solver_steps))
        done(len(piece) * len(keep_MxT))
      parts.append(np.stack(found, -1).astype(np.float64))
  return np.concatenate(parts)


def gains(losses_BxMxS: np.ndarray) -> dict:
  """LPIPS of each way, as `HEAD` names them, and each clip's gain; the first assignment is the uniform one."""
  seeds = losses_BxMxS.shape[2]
  same, own = [], []
  for left_out in range(seeds):
    others = np.delete(losses_BxMxS, left_out, 2).mean(2)
    judged = losses_BxMxS[:, :, left_out]
    same.append(judged[:, others.mean(0).argmin()])
    own.append(np.take_along_axis(judged, others.argmin(1)[:, None], 1)[:, 0])
  uniform = losses_BxMxS[:, 0].mean(1)
  ways = {"uniform": uniform, "one for all": np.mean(same, 0), "oracle": np.mean(own, 0)}
  ways["with luck"] = losses_BxMxS.mean(2).min(1)
  return {name: float(value.mean()) for name, value in ways.items()} | {"gains": (uniform - ways["oracle"]).tolist()}


def table(rows: dict[int, dict]) -> list[list[str]]:
  """LPIPS by way and budget; "is uniform": the uniform budget, between levels, that has the oracle's LPIPS."""
  cells = [[f"{HEAD[0]}, LPIPS", *HEAD[1:]]]
  for budget, row in rows.items():
    spread = ", ".join(f"{value:.4f}" for value in np.percentile(row["gains"], (10, 50, 90)))
    cells.append([f"{budget}", *(f"{row[name]:.4f}" for name in HEAD[1:5]), spread, f"{row['is uniform']:.2f}"])
  return cells


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  define_config("Experiment file with a `label` part: configs/router.py:mini.")
  flags.DEFINE_string("model", "", "Tokenizer; default: label.tokenizer.")
  flags.DEFINE_integer("clips", 16, "Validation clips.")
  flags.DEFINE_integer("seeds", 3, "Seeds of the noise.")
  flags.DEFINE_integer("candidates", 24, "Assignments tried for each budget, the uniform one included.")
  flags.DEFINE_list("budgets", ["2", "4", "8"], "Tokens per time step.")
  flags.DEFINE_string("out", "runs/oracle", "Where the numbers and the picture go.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
