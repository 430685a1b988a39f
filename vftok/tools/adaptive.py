"""Quality against tokens, the same number for every moment against a router's choice.

`python -m vftok.tools.adaptive --config=configs/tokenizer.py:mini [--router DIR] [--tries 16] [--clips 32] [--rfvd]`

All get the same mean, the same noise and the same decoder:
  uniform: the budget for every step;
  one for all: the assignment that is best for the average clip by the router's curves, so what of the gain is only that
    some steps need more in every clip;
  router: the budget is each clip's own, spread over its steps;
  router, shared: the budget is the whole set's, so a still clip gives to a busy one;
  router, tried: each clip's own budget, spread as is best of --tries ways that are decoded under other noise.
Prints a table and how many tokens each takes for the LPIPS of a uniform budget, with the spread over seeds;
adaptive.json, adaptive.png and budgets.png (clips with their tokens per step) go to --out, with --page to a report.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
from absl import flags

from vftok.budget import allocate
from vftok.budget.auto import Auto
from vftok.budget.router import find
from vftok.data.configured import eval_loader
from vftok.data.loader import first_clips
from vftok.evals import budget_pictures
from vftok.evals.reconstruction import noise_of, score_rows
from vftok.runtime.ending import or_exit
from vftok.runtime.files import whole_file
from vftok.runtime.process import begin
from vftok.show import page
from vftok.show.progress import COMPILING, progress
from vftok.tokenizer.api import Tokenizer
from vftok.tokenizer.checks import guidance_of
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main

WAYS = ("uniform", "one for all", "router", "router, shared", "router, tried")
BATCH = 8  # clips that are tried at once
SHOWN = 6  # clips in budgets.png
SECTION = "A budget for every moment"


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  or_exit(lambda: run(flags.FLAGS))


def run(options) -> None:
  """Numbers and pictures as the flags of `define_flags` ask for them.

  Raises:
    ValueError: no such set, no clip, or a router of another tokenizer.
  """
  cfg, (tok, params) = options.config, Tokenizer.load(options.model)
  router, weights = find(options.router, tok.fingerprint(params))
  budgets = sorted(float(n) for n in options.budgets)
  if options.set not in cfg.eval.sets:
    raise ValueError(f"--set is {options.set!r}, expected one of {', '.join(cfg.eval.sets)}.")
  loader = lambda: contextlib.closing(eval_loader(cfg, cfg.eval.sets.to_dict()[options.set]))
  with loader() as batches:
    names, losses, clips = curves(router, weights, tok, params, first_clips(batches, options.clips))
  chosen = {budget: assignments(losses, budget) for budget in budgets}
  if options.tries:
    for budget, keep in tried(tok, params, clips, budgets, options).items():
      chosen[budget]["router, tried"] = keep
  place = {name: i for i, name in enumerate(names)}
  with loader() as batches:
    rows = scores(tok, params, chosen, place, first_clips(batches, options.clips), cfg, options)
  print(page.markdown_table(table(rows, budgets)))
  print(page.markdown_table(savings(rows, budgets)))
  out = Path(options.out)
  out.mkdir(parents=True, exist_ok=True)
  with whole_file(out / "adaptive.json") as path:
    path.write_text(json.dumps(rows, indent=2) + "\n")
  budget_pictures.quality(rows, budgets, ways_of(rows), out / "adaptive.png")
  middle = chosen[budgets[len(budgets) // 2]]["router, shared"]
  uneven = np.argsort(-middle.std(1), kind="stable")[:SHOWN]
  budget_pictures.clips_with_counts([clips[i] for i in uneven], middle[uneven], out / "budgets.png")
  if options.page:
    page.add(options.page, SECTION, section(rows, budgets, out))


def curves(router, weights, tok, params, batches):
  """([(source, index)], losses [N, T, K] by the router, [uint8 video]) of the readable clips."""
  names, losses, videos = [], [], []
  for batch in batches:
    good = np.flatnonzero(batch["_mask"])
    found = np.asarray(router.predict(weights, tok.encode_latents(params, batch["video"])), np.float64)
    losses += [allocate.at_every_count(found[i], router.cfg.levels) for i in good]
    names += [(int(batch["source"][i]), int(batch["index"][i])) for i in good]
    videos += [batch["video"][i] for i in good]
  if not names:
    raise ValueError("the set has no clip that can be read: check its source and split.")
  return names, np.stack(losses), videos


def assignments(losses_NxTxK, budget: float) -> dict[str, np.ndarray]:
  """{way: int32 [N, T]} with the same mean; "uniform" is left out where the budget is no whole number."""
  n, steps, _ = losses_NxTxK.shape
  total = round(budget * steps)
  same = allocate.for_total(losses_NxTxK.mean(0), total)
  ways = {
    "one for all": np.repeat(same[None], n, 0),
    "router": np.stack([allocate.for_total(losses, total) for losses in losses_NxTxK]),
    "router, shared": allocate.for_mean(losses_NxTxK, budget),
  }
  return {"uniform": np.full((n, steps), int(budget), np.int32)} | ways if budget == int(budget) else ways


def tried(tok, params, clips, budgets, options) -> dict[float, np.ndarray]:
  """{budget: int32 [N, T]} of `Auto(mean=budget, tries=options.tries)`, as anyone gets it."""
  pieces = [np.stack(clips[i : i + BATCH]) for i in range(0, len(clips), BATCH)]
  found: dict[float, list] = {budget: [] for budget in budgets}
  with progress("trying", len(clips) * len(budgets), "clips", first=COMPILING) as done:
    for piece in pieces:
      for budget in budgets:
        how = Auto(mean=budget, router=options.router, tries=options.tries)
        found[budget].append(np.asarray(tok.encode(params, piece, budget=how).keep))
        done(len(piece))
  return {budget: np.concatenate(keep) for budget, keep in found.items()}


def ways_of(rows) -> list[str]:
  """Which of `WAYS` were measured."""
  return [way for way in WAYS if any(name.rpartition(" ")[0] == way for name in rows)]


def scores(tok, params, chosen, place, batches, cfg, options) -> dict[str, dict]:
  """{"router 4": a row of the evaluation} for every way and budget."""
  guidance = guidance_of(cfg.eval.guidance_kind, cfg.eval.guidance, tok.cfg)
  sampling = dict(steps=cfg.eval.steps, guidance=guidance, collapse=False)

  def reconstruct(video, ids, mask):
    del mask
    tokens = tok.encode(params, video)
    rows = [place.get(tuple(pair), 0) for pair in ids.tolist()]  # what pads a batch may be any clip
    for seed in range(options.seeds):
      noise = noise_of(tok, seed, ids, tokens.ids.shape[1])
      for budget, ways in chosen.items():
        for way, keep in ways.items():
          yield f"{way} {budget:g}", seed, tok.decode(params, tokens.truncate(keep[rows]), noise=noise, **sampling)

  count = options.seeds * sum(len(ways) for ways in chosen.values())
  context = dict(seeds=list(range(options.seeds)), steps=cfg.eval.steps)
  found = score_rows(reconstruct, batches, options.set, context, "vgg", options.rfvd, 0, options.clips, count)
  return {row["name"]: row for row in found.rows}


def table(rows, budgets) -> list[list[str]]:
  """LPIPS, feature cosine and rFVD of each way at each budget."""
  ways = ways_of(rows)
  cells = [["tokens per step", *(f"{way}: LPIPS, cosine, rFVD" for way in ways)]]
  form = (("lpips", 4), ("cosine", 4), ("rfvd", 0))

  def text(row):
    spread = f" ± {row['spread']['lpips']:.4f}" if row["spread"].get("lpips") else ""
    numbers = ["-" if row[m] is None else f"{row[m]:.{d}f}" for m, d in form]
    return ", ".join([numbers[0] + spread, *numbers[1:]])

  for budget in budgets:
    known = [rows.get(f"{way} {budget:g}") for way in ways]
    cells.append([f"{budget:g}", *("" if row is None else text(row) for row in known)])
  return cells


def savings(rows, budgets) -> list[list[str]]:
  """Tokens that each way takes for the LPIPS of a uniform budget: log-linear between budgets, per seed."""
  ways = ways_of(rows)[1:]
  cells = [["LPIPS of uniform", *(f"{way} takes" for way in ways)]]
  for budget in (b for b in budgets[1:] if f"uniform {b:g}" in rows):
    cells.append([f"{budget:g}"])
    for way in ways:
      shares = [1 - tokens / budget for tokens in tokens_for(rows, budgets, way, budget)]
      spread = f" ± {100 * np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
      cells[-1].append(f"{100 * np.mean(shares):.1f}{spread} % fewer")
  return cells


def tokens_for(rows, budgets, way: str, budget: float) -> list[float]:
  """Per seed: tokens per step at which `way` reaches the LPIPS of the uniform `budget`."""
  found = []
  for seed, wanted in enumerate(rows[f"uniform {budget:g}"]["per_seed"]["lpips"]):
    curve = np.minimum.accumulate([rows[f"{way} {b:g}"]["per_seed"]["lpips"][seed] for b in budgets])
    found.append(float(2 ** np.interp(-wanted, -curve, np.log2(budgets))))
  return found


def section(rows, budgets, out: Path) -> str:
  """The same for a page."""
  row = rows[f"router {budgets[0]:g}"]
  facts = (
    f"{row['clips']} clips of {row['frames']} frames, split {row['split']}, {len(row['seeds'])} seeds of the noise"
  )
  picture = lambda name: f'<p><img src="{page.data(out / name, "image/png")}"></p>'
  return "\n".join(
    [
      f"<h2>{SECTION}</h2><p class=facts>{facts}. Tokens per step are means over the set.</p>",
      page.table(table(rows, budgets)),
      page.table(savings(rows, budgets)),
      picture("adaptive.png"),
      "<p>What a router gives to each time step:</p>",
      picture("budgets.png"),
    ]
  )


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  define_config("Experiment file of the tokenizer: configs/tokenizer.py:mini.")
  flags.DEFINE_string("model", "vftok-mini", "Tokenizer.")
  flags.DEFINE_string("router", None, "Router; default: the shipped one of this tokenizer.")
  flags.DEFINE_integer("tries", 0, "Ways to spread each clip's budget that are decoded and compared; 0: none.")
  flags.DEFINE_string("set", "sim_test", "Which of config.eval.sets; choose on sim_val.")
  flags.DEFINE_integer("clips", 32, "How many clips.")
  flags.DEFINE_integer("seeds", 3, "How many seeds of the noise.")
  flags.DEFINE_list("budgets", ["1", "2", "4", "8", "16"], "Tokens per time step; uniform counts need whole numbers.")
  flags.DEFINE_bool("rfvd", False, "Frechet video distance too.")
  flags.DEFINE_string("out", "runs/adaptive", "Where the numbers and pictures go.")
  flags.DEFINE_string("page", "", "A report.html that gets them too.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
