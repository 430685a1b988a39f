"""What an evaluation of a generator leaves on disk: numbers, a table, curves, films and one page to open."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from vftok.evals import page
from vftok.evals.generation import REAL, VAE, GenerationEvaluation
from vftok.picture import video_rows


def write(
  directory, evaluation: GenerationEvaluation, prompts: dict[str, np.ndarray], *, title: str, fps: float
) -> None:
  """Makes `directory`: generation.json, table.md, generation.html, samples.mp4 and prompts.mp4. An earlier one goes.

  Args:
    prompts: {prompt: uint8 [n, F, H, W, 3]}: a column each, the same noise under other prompts, or empty.

  Raises:
    ValueError: `directory` is a file or holds anything that is no report.
  """
  films = {}
  if evaluation.media:
    films["samples"] = video_rows(_columns(evaluation.media))
  if prompts:
    films["prompts"] = video_rows({str(i): clips for i, clips in enumerate(prompts.values(), 1)})
  with page.whole_report(directory, "generation.json") as partial:
    (partial / "generation.json").write_text(json.dumps({"title": title, "rows": evaluation.rows}, indent=2) + "\n")
    (partial / "table.md").write_text(f"# {title}\n\n{facts(evaluation)}\n\n{page.markdown_table(cells(evaluation))}")
    for name, film in films.items():
      page.write_film(partial, name, film, fps)
    (partial / "generation.html").write_text(
      _page(partial, list(films), evaluation, list(prompts), title), encoding="utf-8"
    )


def facts(evaluation: GenerationEvaluation) -> str:
  """What stands beside the numbers."""
  row = evaluation.rows[0]
  height, width = row["size"]
  words = [f"{row['clips']} conditions and clips of {row['frames']} frames at {height}x{width}, split {row['split']}"]
  words.append(f"seed {row['seed']}, {row['steps']} decoder steps, temperature {row['temperature']}")
  if row["i3d_net"]:
    note = ", indicative only (fewer than 2048 clips)" if row["indicative"] else ""
    words.append(f"gFVD on 400 Kinetics logits of I3D at 224x224 by {row['i3d_net']}{note}")
  words.append("distance: RMS to the nearest training clip at 8x8, five frames")
  return "; ".join(words) + "."


def cells(evaluation: GenerationEvaluation) -> list[list[str]]:
  """The table, its head first: generated rows, reconstructed rows, real clips, chance."""
  known = next((row["alignment"] for row in evaluation.rows if row["alignment"]), None) or {}
  names = [name for name in known if not name.endswith("/chance")]
  number = lambda value, digits: "-" if value is None else f"{value:.{digits}f}"
  out = [["", "gFVD", "gFVD to VAE", *(f"{name} %" for name in names), "distance"]]
  kind = lambda row: (row["keep"] is None, row["name"].split(" ")[0], row["keep"] or 0)
  for row in sorted(evaluation.rows, key=kind):
    line = [row["name"], number(row["gfvd"], 1), number(row["gfvd_vae"], 1)]
    line += [number(100 * row["alignment"][name], 0) if row["alignment"] else "-" for name in names]
    out.append([*line, number(row["distance"], 3)])
  if names:
    out.append(["chance", "", "", *(number(100 * known[f"{name}/chance"], 0) for name in names), ""])
  return out


def _columns(media: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  names = [name for name in media[0] if name not in ("caption", VAE)]
  order = lambda name: (name != REAL, name.startswith("nearest"), not name.startswith("generated"))
  return {name: np.stack([clip[name] for clip in media]) for name in sorted(names, key=order)}


def _page(directory: Path, films: list[str], evaluation, prompts: list[str], title: str) -> str:
  esc = html.escape
  out = [page.head(title), f"<p class=facts>{esc(facts(evaluation))}</p>", page.table(cells(evaluation))]
  heads = {
    "samples": "Samples, one row per caption",
    "prompts": "The same noise under other prompts, one column each, more tokens further down",
  }
  for name in films:
    out.append(f"<h2>{esc(heads[name])}</h2>{page.film(directory, name)}")
    said = [clip["caption"] for clip in evaluation.media] if name == "samples" else prompts
    out.append("<ol>" + "".join(f"<li>{esc(text)}</li>" for text in said) + "</ol>")
  return "\n".join(out) + "</html>\n"
