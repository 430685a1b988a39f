"""What an evaluation of a generator leaves on disk: numbers, a table, curves, films and one page to open."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vftok.evals.generation import REAL, VAE, GenerationEvaluation
from vftok.show import page
from vftok.show.picture import curves_png, video_rows


def write(
  directory,
  evaluation: GenerationEvaluation,
  prompts: Sequence[tuple[str, dict[str, np.ndarray]]],
  *,
  title: str,
  fps: float,
  training: Path | None = None,
) -> None:
  """Makes `directory`: generation.json, table.md, generation.html, curves.png, samples.mp4, prompts.mp4.

  An earlier report at the same place is replaced.

  Args:
    prompts: (generator, {prompt: uint8 [n, F, H, W, 3]}), ...: a column per prompt, all from the same noise. The first
      generator is the one evaluated; of every further one there is a film prompts-2.mp4, ...
    training: a picture of the run's curves, shown where there is one.

  Raises:
    ValueError: `directory` is a file or holds anything that is no report.
  """
  films, said = {}, {}  # said: (heading, captions)
  if evaluation.media:
    films["samples"] = video_rows(_columns(evaluation.media))
    said["samples"] = ("Samples, one row per caption", [clip["caption"] for clip in evaluation.media])
  for number, (generator, columns) in enumerate(prompts, 1):
    if columns:
      name = "prompts" if number == 1 else f"prompts-{number}"
      films[name] = video_rows({str(i): clips for i, clips in enumerate(columns.values(), 1)})
      heading = "The same noise under other prompts, one column each, more tokens further down"
      said[name] = (heading if number == 1 else f"The same noise and prompts in {generator}", list(columns))
  with page.whole_report(directory, "generation.json") as partial:
    (partial / "generation.json").write_text(json.dumps({"title": title, "rows": evaluation.rows}, indent=2) + "\n")
    (partial / "table.md").write_text(f"# {title}\n\n{facts(evaluation)}\n\n{page.markdown_table(cells(evaluation))}")
    _curves(partial / "curves.png", evaluation, title)
    for name, film in films.items():
      page.write_film(partial, name, film, fps)
    (partial / "generation.html").write_text(_page(partial, said, evaluation, title, training), encoding="utf-8")


def facts(evaluation: GenerationEvaluation) -> str:
  """What stands beside the numbers."""
  row = evaluation.rows[0]
  height, width = row["size"]
  words = [f"{row['clips']} conditions and clips of {row['frames']} frames at {height}x{width}, split {row['split']}"]
  words.append(
    f"seed {row['seed']}, {row['steps']} decoder steps under {row['decoder']}, temperature {row['temperature']}"
  )
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
  clip = ["CLIP"] if evaluation.rows[0]["clip"] is not None else []
  out = [["", "tokens", "gFVD", "gFVD to VAE", *clip, *(f"{name} %" for name in names), "distance"]]
  kind = lambda row: (row["keep"] is None, row["name"].split(" ")[0], row["keep"] or 0)
  for row in sorted(evaluation.rows, key=kind):
    line = [row["name"], number(row["tokens"], 1), number(row["gfvd"], 1), number(row["gfvd_vae"], 1)]
    line += [number(row["clip"], 4) for _ in clip]
    line += [number(100 * row["alignment"][name], 0) if row["alignment"] else "-" for name in names]
    out.append([*line, number(row["distance"], 3)])
  if names:
    out.append(
      ["chance", "", "", "", *("" for _ in clip), *(number(100 * known[f"{name}/chance"], 0) for name in names), ""]
    )
  return out


def _columns(media: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  names = [name for name in media[0] if name not in ("caption", VAE)]
  order = lambda name: (name != REAL, name.startswith("nearest"), not name.startswith("generated"))
  return {name: np.stack([clip[name] for clip in media]) for name in sorted(names, key=order)}


def _curves(path: Path, evaluation: GenerationEvaluation, title: str) -> None:
  """What was measured of generated clips, over tokens kept; reconstructions at full budget and real clips as lines."""
  made = sorted((row for row in evaluation.rows if row["name"].startswith("generated")), key=lambda row: row["keep"])
  by_name = {row["name"]: row for row in evaluation.rows}
  ceiling = max((row for name, row in by_name.items() if name.startswith("recon")), key=lambda row: row["keep"])
  agreement = lambda row: 100 * row["alignment"]["all"]
  scores = {"agreement with the caption (%)": agreement} if made[0]["alignment"] else {}
  scores |= {"gFVD": lambda row: row["gfvd"]} if made[0]["gfvd"] is not None else {}
  if not scores:
    scores = {"distance": lambda row: row["distance"] if row["distance"] is not None else math.nan}
  levels = {name: {"reconstructed at full budget": of(ceiling)} for name, of in scores.items()}
  for name in levels.keys() & {"agreement with the caption (%)"}:
    levels[name] |= {"real clips": agreement(by_name[REAL]), "chance": 100 * made[0]["alignment"]["all/chance"]}
  keeps, bits = [row["keep"] for row in made], [row["bits"] for row in made]
  curves_png(path, keeps, bits, {k: [of(row) for row in made] for k, of in scores.items()}, title, levels=levels)


def _page(directory: Path, said, evaluation, title: str, training: Path | None) -> str:
  esc = html.escape
  out = [page.head(title), f"<p class=facts>{esc(facts(evaluation))}</p>"]
  for name, (heading, captions) in said.items():
    out.append(f"<h2>{esc(heading)}</h2>{page.film(directory, name)}")
    out.append("<ol>" + "".join(f"<li>{esc(text)}</li>" for text in captions) + "</ol>")
  picture = lambda path: f'<p><img src="{page.data(path, "image/png")}"></p>'
  out += ["<h2>In numbers</h2>", page.table(cells(evaluation)), picture(directory / "curves.png")]
  if training is not None and training.is_file():
    out += ["<h2>Training</h2>", picture(training)]
  return "\n".join(out) + "</html>\n"
