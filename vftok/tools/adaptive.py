"""Quality against tokens, the same number for every moment against a router's choice.

`python -m vftok.tools.adaptive --config=configs/tokenizer.py:mini [--router DIR] [--clips 32] [--seeds 3]`

Both get the same totals, the same noise and the same decoder. "one for all" is the assignment that is best for the
average clip by the router's own curves: what of the gain is only that first steps need more. Prints a table and, for
each uniform budget, how many tokens the router takes for the same LPIPS, with the spread over seeds; adaptive.json and
adaptive.png go to --out.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from vftok import allocate
from vftok.budget import Auto
from vftok.data.configured import eval_loader
from vftok.data.video_writer import whole_file
from vftok.evals import page
from vftok.evals.reconstruction import noise_of, score_rows
from vftok.evaluate import first_clips
from vftok.models import flow
from vftok.process import begin
from vftok.router import find
from vftok.tokenizer import Tokenizer

WAYS = ("uniform", "one for all", "router")


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  options = flags.FLAGS
  cfg, (tok, params) = options.config, Tokenizer.load(options.model)
  router, weights = find(options.router, tok.fingerprint(params))
  budgets = [int(n) for n in options.budgets]
  sources = cfg.eval.sets.to_dict()[options.set]
  with contextlib.closing(eval_loader(cfg, sources)) as loader:
    average = np.mean(
      [curve for b in first_clips(loader, 256) for curve in _losses(router, weights, tok, params, b)], 0
    )
  with contextlib.closing(eval_loader(cfg, sources)) as loader:
    rows = scores(tok, params, router, weights, average, first_clips(loader, options.clips), budgets, cfg, options)
  print(page.markdown_table(table(rows, budgets)))
  print(page.markdown_table(savings(rows, budgets)))
  Path(options.out).mkdir(parents=True, exist_ok=True)
  with whole_file(Path(options.out) / "adaptive.json") as path:
    path.write_text(json.dumps(rows, indent=2) + "\n")
  plot(rows, budgets, Path(options.out) / "adaptive.png")


def _losses(router, weights, tok, params, batch) -> np.ndarray:
  """[b, T, K] of the batch's readable clips."""
  curves = np.asarray(router.curves(weights, tok.encode_latents(params, batch["video"])), np.float64)
  return np.stack([allocate.at_every_count(curve, router.cfg.levels) for curve in curves[batch["_mask"]]])


def scores(tok, params, router, weights, average, batches, budgets, cfg, options) -> dict[str, dict]:
  """{"router 4": a row of the evaluation} for every way and budget."""
  guidance = flow.CFG(scale=cfg.eval.guidance) if cfg.eval.guidance != 1 else None
  sampling = dict(steps=cfg.eval.steps, guidance=guidance, collapse=False)

  def reconstruct(video, ids, mask):
    del mask
    tokens = tok.encode(params, video)
    curves = router.curves(weights, tok.encode_latents(params, video))
    for seed in range(options.seeds):
      noise = noise_of(tok, seed, ids, tokens.ids.shape[1])
      for budget in budgets:
        steps = tokens.ids.shape[1]
        chosen = (budget, allocate.for_total(average, budget * steps), router.keep(curves, Auto(mean=budget)))
        for way, keep in zip(WAYS, chosen, strict=True):
          yield f"{way} {budget}", seed, tok.decode(params, tokens.truncate(keep), noise=noise, **sampling)

  count = options.seeds * len(budgets) * len(WAYS)
  context = dict(seeds=list(range(options.seeds)), steps=cfg.eval.steps)
  found = score_rows(reconstruct, batches, options.set, context, "vgg", options.rfvd, 0, options.clips, count)
  return {row["name"]: row for row in found.rows}


def table(rows, budgets) -> list[list[str]]:
  """LPIPS, PSNR and rFVD of each way at each budget."""
  cells = [["tokens per step", *(f"{way}: LPIPS, PSNR, rFVD" for way in WAYS)]]
  text = lambda row: " ".join(
    "-" if row[m] is None else f"{row[m]:.{d}f}" for m, d in (("lpips", 4), ("psnr", 2), ("rfvd", 0))
  )
  for budget in budgets:
    cells.append([str(budget), *(text(rows[f"{way} {budget}"]) for way in WAYS)])
  return cells


def savings(rows, budgets) -> list[list[str]]:
  """Tokens that each way takes for the LPIPS of a uniform budget: log-linear between budgets, per seed."""
  cells = [["LPIPS of uniform", *(f"{way} takes" for way in WAYS[1:])]]
  for budget in budgets[1:]:
    cells.append([str(budget)])
    for way in WAYS[1:]:
      shares = [1 - tokens / budget for tokens in tokens_for(rows, budgets, way, budget)]
      spread = f" ± {100 * np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
      cells[-1].append(f"{100 * np.mean(shares):.1f}{spread} % fewer")
  return cells


def tokens_for(rows, budgets, way: str, budget: int) -> list[float]:
  """Per seed: tokens per step at which `way` reaches the LPIPS of the uniform `budget`."""
  found = []
  for seed, wanted in enumerate(rows[f"uniform {budget}"]["per_seed"]["lpips"]):
    curve = np.minimum.accumulate([rows[f"{way} {b}"]["per_seed"]["lpips"][seed] for b in budgets])
    found.append(float(2 ** np.interp(-wanted, -curve, np.log2(budgets))))
  return found


def plot(rows, budgets, path: Path) -> None:
  """LPIPS over tokens, a line for each way."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
  for way in WAYS:
    seeds = np.array([rows[f"{way} {b}"]["per_seed"]["lpips"] for b in budgets])
    axis.errorbar(budgets, seeds.mean(1), seeds.std(1), marker="o", capsize=2, label=way)
  axis.set(xscale="log", xlabel="tokens per time step", ylabel="LPIPS")
  axis.set_xticks(budgets, [str(b) for b in budgets])
  axis.minorticks_off()
  axis.grid(alpha=0.3)
  axis.legend()
  with whole_file(path) as temporary:
    figure.savefig(temporary, dpi=110, format="png")
  plt.close(figure)


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  config_flags.DEFINE_config_file("config", None, "Experiment file of the tokenizer: configs/tokenizer.py:mini.")
  flags.DEFINE_string("model", "vftok-mini", "Tokenizer.")
  flags.DEFINE_string("router", None, "Router; default: the shipped one of this tokenizer.")
  flags.DEFINE_string("set", "sim_val", "Which of config.eval.sets.")
  flags.DEFINE_integer("clips", 32, "How many clips.")
  flags.DEFINE_integer("seeds", 3, "How many seeds of the noise.")
  flags.DEFINE_list("budgets", ["1", "2", "4", "8", "16"], "Tokens per time step.")
  flags.DEFINE_bool("rfvd", False, "Frechet video distance too.")
  flags.DEFINE_string("out", "runs/adaptive", "Where adaptive.json and adaptive.png go.")
  flags.mark_flags_as_required(["config"])


if __name__ == "__main__":
  define_flags()
  app.run(main)
