"""The study as people read it: OUT/study.html, study.json, study.md, study.png (curves) and shown.png (scenes), written
anew after every piece of work."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vftok.runtime.files import whole_file
from vftok.show import page
from vftok.tools.study.families.claims import interval, verdicts
from vftok.tools.study.families.shown import SHOWN, sheet

COSTS = {  # head of a column -> (what a result calls it, its unit)
  "training GFLOP": ("training_gflop_a_clip", 1),
  "encode GFLOP": ("encode_gflop", 1),
  "decode GFLOP": ("decode_gflop", 1),
  "encode ms": ("encode_seconds", 1e3),
  "decode ms": ("decode_seconds", 1e3),
}
TITLE = "Tokenizer families at equal data, steps and parameters"


def write(out: Path, study) -> None:
  """Of all results that are there, in whatever order and by whichever process they were made."""
  tokenizers, generators = study.found()
  found = verdicts(tokenizers, generators)
  protocol = {
    "size": study.size,
    **dataclasses.asdict(study.facts),
    "frames": study.experiments.FRAMES,
    "split": "test, guidance chosen on val",
    "seeds": sorted({seed for of in tokenizers.values() for seed in of}),
    "clips": "scenes 0, 1, 2, ... of the split, every frame, 8 a second",
    "command": f"python -m vftok.tools.study.families --out {out.name} --size {study.size}",
  }
  data = {
    "title": TITLE,
    "protocol": protocol,
    "claims": [dataclasses.asdict(verdict) for verdict in found],
    "tokenizers": tokenizers,
    "generators": generators,
  }
  with whole_file(out / "study.json") as partial:
    partial.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
  tables = {
    "Claims": claim_cells(found),
    "Tokenizers": tokenizer_cells(tokenizers),
    "What linear classifiers read off the first k tokens of a step": probe_cells(tokenizers),
    "Error of flow decoders at high noise, with which tokens": high_noise_cells(tokenizers),
    "Generators": generator_cells(generators),
  }
  facts = ", ".join(f"{name} {value}" for name, value in protocol.items())
  parts = [page.head(TITLE), f"<p class=facts>{html.escape(facts)}</p>"]
  for head, cells in tables.items():
    if len(cells) > 1:
      parts.append(f"<h2>{html.escape(head)}</h2>{page.table(cells)}")
  picture = out / "study.png"
  if _curves(picture, tokenizers):
    parts.append(f'<p><img alt="quality over bits" src="{page.data(picture, "image/png")}"></p>')
  picture, files = out / SHOWN, {}
  for arm, by_seed in tokenizers.items():
    for seed in sorted(by_seed)[:1]:
      files[arm] = (study.place(arm, seed) / SHOWN, by_seed[seed]["shown"])
  if sheet(picture, files):
    parts.append(f'<p><img alt="scenes as each arm decodes them" src="{page.data(picture, "image/png")}"></p>')
  with whole_file(out / "study.html") as partial:
    partial.write_text("\n".join([*parts, "</html>", ""]), encoding="utf-8")
  with whole_file(out / "study.md") as partial:
    texts = [f"## {head}\n\n{page.markdown_table(cells)}" for head, cells in tables.items()]
    partial.write_text(f"# {TITLE}\n\n{facts}\n\n" + "\n".join(texts))


def claim_cells(found) -> list[list[str]]:
  cells = [["claim", "of", "verdict", "number", "mean", "95 %", "bound", "seeds"]]
  for v in found:
    mean = "-" if v.mean is None else f"{v.mean:.3g}"
    span = "-" if v.low is None else f"{v.low:.3g} to {v.high:.3g}"
    cells.append([v.claim, v.of, v.verdict, v.number, mean, span, f"{v.bound:g}", str(len(v.values))])
  return cells


def tokenizer_cells(tokenizers) -> list[list[str]]:
  cells = [["arm", "tokens a step", "bits", "LPIPS", "PSNR", "rFVD", "M parameters", *COSTS]]
  for arm, by_seed in tokenizers.items():
    if not by_seed:
      continue
    first = next(iter(by_seed.values()))
    for place, row in enumerate(first["rows"]):
      if row["keep"] is None:
        continue
      rows = [result["rows"][place] for result in by_seed.values()]
      numbers = [_mean(rows, metric, digits) for metric, digits in (("lpips", 4), ("psnr", 2), ("rfvd", 1))]
      line = [arm, f"{row['keep']:g}", f"{row['bits']:.0f}", *numbers]
      if row["keep"] == max(r["keep"] or 0 for r in first["rows"]):
        line.append(f"{first['parameters'] / 1e6:.2f}")
        for name, unit in COSTS.values():
          line.append(f"{unit * np.median([result[name] for result in by_seed.values()]):.3g}")
      cells.append(line + [""] * (len(cells[0]) - len(line)))
  return cells


def probe_cells(tokenizers) -> list[list[str]]:
  known = [result for by_seed in tokenizers.values() for result in by_seed.values() if result["probe"]]
  if not known:
    return [[]]
  names = list(known[0]["probe"]["rows"])
  cells = [["arm", "k", *names], ["chance", "", *(f"{known[0]['probe']['chance'][n]:.2f}" for n in names)]]
  for arm, by_seed in tokenizers.items():
    tables = [result["probe"] for result in by_seed.values() if result["probe"]]
    for keep in tables[0]["keeps"] if tables else ():
      values = [[t["rows"][n].get(f"k{keep}") for t in tables if n in t["rows"]] for n in names]
      cells.append([arm, f"{keep}", *(_spread(v, 2) for v in values)])
  return cells


def high_noise_cells(tokenizers) -> list[list[str]]:
  kinds = {"no tokens": "null", "the first": "k1", "all": "all", "another clip's": "wrong"}
  cells = [["arm", *kinds]]
  for arm, by_seed in tokenizers.items():
    found = [result["high_noise"] for result in by_seed.values() if result["high_noise"]]
    if found:
      cells.append([arm, *(_spread([of.get(f"high/{kind}") for of in found], 3) for kind in kinds.values())])
  return cells


def generator_cells(generators) -> list[list[str]]:
  cells = [["arm", "depth", "M parameters", "nats a clip", "gFVD", "agreement"]]
  for arm, by_seed in generators.items():
    depths = sorted({int(depth) for sizes in by_seed.values() for depth in sizes})
    for depth in depths:
      entries = [sizes[str(depth)] for sizes in by_seed.values() if str(depth) in sizes]
      largest = lambda entry, kind: next((entry[n] for n in reversed(list(entry)) if n.startswith(kind)), None)
      line = [arm, str(depth), f"{entries[0]['parameters'] / 1e6:.2f}", _mean(entries, "nats_a_clip", 1)]
      for kind, digits in (("gfvd/generated keep", 1), ("alignment/object/generated keep", 2)):
        line.append(_spread([largest(entry, kind) for entry in entries], digits))
      cells.append(line)
  return cells


def _mean(rows: list[Mapping[str, Any]], name: str, digits: int) -> str:
  return _spread([row[name] for row in rows], digits)


def _spread(values, digits: int) -> str:
  """Mean and half of its interval."""
  values = [value for value in values if value is not None]
  mean, low, _ = interval(values)
  if mean is None:
    return "-"
  return f"{mean:.{digits}f}" + ("" if low is None else f" ± {mean - low:.{digits}f}")


def _curves(path: Path, tokenizers) -> bool:
  """LPIPS (PSNR without a net) over bits of a clip, a line or point per arm; whether there was anything to draw."""
  if not any(tokenizers.values()):
    return False
  from matplotlib.figure import Figure  # without pyplot: no window system, no global state

  figure = Figure(figsize=(7, 4.6), dpi=160, layout="constrained")
  axes = figure.subplots()
  metric = ""
  for arm, by_seed in tokenizers.items():
    results = list(by_seed.values())
    if not results:
      continue
    places = [i for i, row in enumerate(results[0]["rows"]) if row["keep"] is not None]
    metric = "lpips" if results[0]["rows"][places[0]]["lpips"] is not None else "psnr"
    values = np.array([[result["rows"][i][metric] for i in places] for result in results])
    bits = [results[0]["rows"][i]["bits"] for i in places]
    error = values.std(0, ddof=1) if len(values) > 1 else None
    axes.errorbar(bits, values.mean(0), error, marker="o", linewidth=1.6, markersize=4, capsize=2, label=arm)
  axes.set_xscale("log", base=2)
  axes.set_xlabel("bits of a clip")
  axes.set_ylabel({"lpips": "LPIPS", "psnr": "PSNR (dB)"}[metric])
  axes.grid(color="#e3e3e3", linewidth=0.7)
  axes.legend(frameon=False, fontsize=8)
  with whole_file(path) as partial:
    figure.savefig(partial, format="png")
  return True
