"""What an evaluation leaves on disk: numbers, a table, curves, a film and one page to open, whole or not at all."""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vftok.evals.probe_picture import probe_cells, probe_picture
from vftok.evals.reconstruction import FIRST_FRAME, VAE, Evaluation
from vftok.evals.scores import METRICS
from vftok.show import page
from vftok.show.picture import curves_png, labelled_grid, si

_TITLES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "cosine": "VGG cosine", "rfvd": "rFVD"}
_DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "cosine": 4, "rfvd": 1}
_RATIO = 1.5  # of the VAE's own LPIPS that full budget may have


def write_report(directory, evaluations: Sequence[Evaluation], *, title: str, fps: float = 8.0) -> None:
  """Makes `directory`: metrics.json, table.md, report.html, and per split curves-, probe-, grid-*.png and grid-*.mp4.

  The page carries its pictures and films inside. An earlier report at the same place is replaced.

  Args:
    evaluations: one or more, of different splits.
    title: what was evaluated, e.g. the model and its step.
    fps: of the films.

  Raises:
    ValueError: `directory` is a file or holds anything that is no report, or two evaluations share a split.
  """
  splits = [evaluation.rows[0]["split"] for evaluation in evaluations]
  names = [re.sub(r"[^\w.-]+", "-", split) for split in splits]
  if not evaluations or len(set(names)) < len(names):
    raise ValueError(f"the splits are {splits}, expected at least one and each once: name them apart.")
  with page.whole_report(directory, "metrics.json") as partial:
    (partial / "metrics.json").write_text(json.dumps(to_json(evaluations, title), indent=2, allow_nan=False) + "\n")
    (partial / "table.md").write_text(markdown(evaluations, title))
    for name, evaluation in zip(names, evaluations, strict=True):
      _curves(partial / f"curves-{name}.png", evaluation, title)
      if evaluation.probe:
        probe_picture(partial / f"probe-{name}.png", evaluation.probe, f"{title}, split {evaluation.rows[0]['split']}")
      _films(partial, name, evaluation, fps)
    (partial / "report.html").write_text(_page(partial, names, evaluations, title), encoding="utf-8")


def to_json(evaluations: Sequence[Evaluation], title: str) -> dict[str, Any]:
  """Plain data; every row carries what its numbers depend on."""
  splits = [
    {
      "split": e.rows[0]["split"],
      "rows": e.rows,
      "codebook": e.codebook,
      "checks": checks(e),
      "probe": e.probe and e.probe.to_json(),
    }
    for e in evaluations
  ]
  return {"title": title, "splits": splits}


def checks(evaluation: Evaluation) -> list[dict[str, Any]]:
  """[{"check", "holds", "detail"}]: whether the curve behaves as coarse-to-fine tokens should; empty for a VAE alone.

  A step that rises by less than the spread over seeds (of both ends together) counts as level, not as rising; the
  whole curve has to fall by more than that.
  """
  kept, by_name = _kept(evaluation), {row["name"]: row for row in evaluation.rows}
  results = []
  for metric in ("lpips", "rfvd"):
    if len(kept) > 1 and all(row[metric] is not None for row in kept):
      noise = lambda a, b: float(np.hypot(a["spread"][metric] or 0, b["spread"][metric] or 0))  # noqa: B023 (used here)
      rises = [
        f"{a['name']} to {b['keep']}: {_number(metric, a)} to {_number(metric, b)}"
        for a, b in itertools.pairwise(kept)
        if b[metric] > a[metric] + noise(a, b)
      ]
      first, last = kept[0], kept[-1]
      if last[metric] >= first[metric] - noise(first, last):
        rises.append(f"level from end to end: {_number(metric, first)} and {_number(metric, last)}")
      text = f"{_TITLES[metric]} falls from {first['name']} to {last['keep']}"
      results.append(
        {"check": text, "holds": not rises, "detail": "; ".join(rises) or "no step rises beyond seed noise"}
      )
  if kept and kept[-1]["lpips"] is not None and VAE in by_name:
    ratio = kept[-1]["lpips"] / max(by_name[VAE]["lpips"], 1e-9)
    text = f"LPIPS at {kept[-1]['name']} is at most {_RATIO} x the VAE's own"
    results.append({"check": text, "holds": ratio <= _RATIO, "detail": f"{ratio:.2f} x"})
  if kept and kept[0]["rfvd"] is not None:
    still, first = by_name[FIRST_FRAME]["rfvd"], kept[0]["rfvd"]
    text = f"{kept[0]['name']} beats '{FIRST_FRAME}' on rFVD"
    results.append({"check": text, "holds": first < still, "detail": f"{first:.1f} against {still:.1f}"})
  return results


def markdown(evaluations: Sequence[Evaluation], title: str) -> str:
  """One table per split, each under the facts its numbers depend on."""
  parts = [f"# {title}\n\n"]
  for evaluation in evaluations:
    parts.append(f"## {evaluation.rows[0]['split']}\n\n{facts(evaluation)}\n\n")
    parts.append(page.markdown_table(_cells(evaluation)))
    if lines := _codebook(evaluation):
      parts.append(f"\nCodebook: {lines}.\n\n")
    marks = {True: "yes", False: "**no**"}
    parts += [f"- {c['check']}: {marks[c['holds']]} ({c['detail']})\n" for c in checks(evaluation)]
    if evaluation.probe:
      cells = page.markdown_table(probe_cells(evaluation.probe))
      parts.append(f"\n### Semantic curve\n\n{evaluation.probe.facts()}\n\n{cells}")
    parts.append("\n")
  return "".join(parts).rstrip() + "\n"


def facts(evaluation: Evaluation) -> str:
  """What stands beside the numbers of one split, as one paragraph."""
  row = evaluation.rows[0]
  height, width = row["size"]
  words = [f"{row['clips']} clips of {row['frames']} frames at {height}x{width}, split {row['split']}"]
  if "seeds" in row:
    words.append(f"{row['steps']} {row['solver']} steps, guidance {row['guidance']}, seeds {row['seeds']}")
  if row["lpips_net"]:
    words.append(f"LPIPS by {row['lpips_net']}")
  if row["i3d_net"]:
    note = ", indicative only (fewer than 2048 clips)" if row["indicative"] else ""
    words.append(f"rFVD on 400 Kinetics logits of I3D at 224x224 by {row['i3d_net']}{note}")
  return "; ".join(words) + "."


def _kept(evaluation):
  return sorted((row for row in evaluation.rows if row["keep"] is not None), key=lambda row: row["keep"])


def _cells(evaluation) -> list[list[str]]:
  metrics = [m for m in METRICS if any(row[m] is not None for row in evaluation.rows)]
  kept, rest = _kept(evaluation), [row for row in evaluation.rows if row["keep"] is None]
  cells = [["", "tokens", "bits", *(_TITLES[m] for m in metrics)]]
  for row in [*kept, *rest]:
    sizes = [str(row["tokens"]), f"{row['bits']:.0f}"] if row["tokens"] is not None else ["", ""]
    cells.append([row["name"], *sizes, *(_number(m, row) for m in metrics)])
  return cells


def _number(metric, row) -> str:
  if row[metric] is None:
    return "-"
  digits, spread = _DIGITS[metric], row["spread"].get(metric)
  return f"{row[metric]:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _codebook(evaluation) -> str:
  if not (c := evaluation.codebook):
    return ""
  return (
    f"{c['used_codes']} of {c['codebook_size']} codes used ({100 * c['used']:.1f} %), entropy {c['entropy_bits']:.2f} "
    f"bits pooled, {np.mean(c['entropy_bits_per_register']):.2f} per register on average (from "
    f"{c['tokens_per_register'][0]} tokens each), {c['bits_per_clip']:.0f} bits per clip, "
    f"{c['entropy_bits_per_clip']:.0f} by entropy"
  )


def _curves(path, evaluation, title):
  kept = _kept(evaluation)
  if not kept:
    return
  metrics = [m for m in METRICS if all(row[m] is not None for row in kept)]
  scores = {_TITLES[m]: [row[m] for row in kept] for m in metrics}
  spreads = {_TITLES[m]: [row["spread"][m] or 0 for row in kept] for m in metrics}
  others = [row for row in evaluation.rows if row["keep"] is None]
  levels = {_TITLES[m]: {row["name"]: row[m] for row in others if row[m] is not None} for m in metrics}
  about = f"{title}\n{kept[0]['clips']} clips of {kept[0]['frames']} frames, split {kept[0]['split']}"
  keeps, bits = [row["keep"] for row in kept], [row["bits"] for row in kept]
  curves_png(path, keeps, bits, scores, about, spreads=spreads, levels=levels)


def _films(directory, name, evaluation, fps):
  """grid-NAME.mp4 and the middle frame of it: one block per clip, the same columns in each."""
  if not evaluation.media:
    return
  rows = {row["name"]: row for row in evaluation.rows}
  columns = ["original", *({VAE} & set(rows)), *(row["name"] for row in _kept(evaluation))]
  labels = [n if n not in rows or rows[n]["bits"] is None else f"{n}\n{si(rows[n]['bits'], 'bit')}" for n in columns]
  grid = np.concatenate([labelled_grid([clip[n] for n in columns], labels) for clip in evaluation.media], axis=1)
  page.write_film(directory, f"grid-{name}", grid, fps)


def _page(directory, names, evaluations, title) -> str:
  esc = html.escape
  out = [page.head(title)]
  for name, evaluation in zip(names, evaluations, strict=True):
    out.append(f"<h2>{esc(evaluation.rows[0]['split'])}</h2><p class=facts>{esc(facts(evaluation))}</p>")
    out.append(page.table(_cells(evaluation)))
    if lines := _codebook(evaluation):
      out.append(f"<p>Codebook: {esc(lines)}.</p>")
    mark = lambda c: "yes" if c["holds"] else "<span class=no>no</span>"
    items = [f"<li>{esc(c['check'])}: {mark(c)} ({esc(c['detail'])})</li>" for c in checks(evaluation)]
    out.append(f"<ul>{''.join(items)}</ul>" if items else "")
    if (curves := directory / f"curves-{name}.png").is_file():
      out.append(f'<p><img alt="curves over tokens kept" src="{page.data(curves, "image/png")}"></p>')
    if evaluation.probe:
      out.append(f"<h3>Semantic curve</h3><p class=facts>{esc(evaluation.probe.facts())}</p>")
      out.append(page.table(probe_cells(evaluation.probe)))
      picture = page.data(directory / f"probe-{name}.png", "image/png")
      out.append(f'<p><img alt="accuracy over tokens kept" src="{picture}"></p>')
    out.append(page.film(directory, f"grid-{name}"))
  return "\n".join(out) + "</html>\n"
