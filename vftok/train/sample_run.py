"""`--mode=sample`: a file of prompts to videos and one page, from a run's newest checkpoint."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vftok.generator.sample import sample
from vftok.runtime.lock import locked
from vftok.runtime.process import local
from vftok.runtime.words import is_whole
from vftok.show import page
from vftok.show.picture import labelled_grid
from vftok.show.progress import COMPILING, progress
from vftok.tasks import Generates
from vftok.train.evaluate import restored

MARKER = "samples.json"


def run(cfg: ConfigDict, workdir) -> dict[str, float]:
  """Writes WORKDIR/samples: a film per prompt with a column per budget, samples.html, samples.json.

  Raises:
    ValueError: a task that makes no videos, or prompts that are none.
    FileNotFoundError: no such file of prompts.
  """
  if cfg.task != "ar":
    raise ValueError(
      f"config.task is {cfg.task!r}, which samples nothing: use --mode=sample with configs/t2v.py or c2v."
    )
  conditions = read_prompts(cfg.sample.prompts)
  with locked(local(workdir, "workdir") / "samples"), restored(cfg, workdir) as (task, model):
    assert isinstance(task, Generates)
    films = make(task.gen, model, conditions, cfg.sample, *task.tokenizer())
    _write(Path(workdir) / "samples", conditions, films, cfg)
  return {"videos": len(films)}


def read_prompts(path: str) -> list[dict[str, Any]]:
  """[{"text": prompt}] of a text file with a prompt per line; of a .jsonl, lines {"text": ...} or {"label": ...}.

  Raises:
    ValueError: a line that is neither, named by its number, or no line at all.
    FileNotFoundError: no such file.
  """
  if not path:
    raise ValueError("config.sample.prompts is empty, expected a file: one prompt per line, or .jsonl.")
  if not Path(path).is_file():
    raise FileNotFoundError(
      f"{path} is no file, expected one prompt per line, or .jsonl: correct config.sample.prompts."
    )
  try:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
  except UnicodeDecodeError:
    raise ValueError(f"{path} is not UTF-8 text, expected one prompt per line.") from None
  out = []
  for number, line in enumerate(lines, 1):
    if line.strip():
      out.append(_condition(line, f"{path}:{number}") if path.endswith(".jsonl") else {"text": line.strip()})
  if not out:
    raise ValueError(f"{path} has no prompt, expected one per line.")
  return out


def _condition(line: str, where: str) -> dict[str, Any]:
  try:
    value = json.loads(line)
  except json.JSONDecodeError:
    value = None
  given = value if isinstance(value, dict) and len(value) == 1 else {}
  text, label = given.get("text"), given.get("label")
  if not (isinstance(text, str) and text.strip()) and not (isinstance(label, str) or is_whole(label)):
    raise ValueError(f'{where} is {line[:60]!r}, expected {{"text": "..."}} or {{"label": ...}}.')
  return given


def make(gen, params, conditions, asked, tok, tok_params) -> list[np.ndarray]:
  """A film uint8 [F, H, W, 3] per condition: one column per budget, all from the same noise."""
  # {label of a column: what is asked for}; a model that says lengths takes budgets as means.
  adaptive = gen.cfg.ar.lengths != "none"
  name, label = ("mean_length", "mean k") if adaptive else ("keep", "k")
  budgets = {f"{label} = {k}": {name: k} for k in tuple(asked.keeps) or (() if adaptive else (gen.cfg.ar.slots,))}
  budgets = budgets or {"own lengths": {}}
  films = []
  with progress("sampling", len(conditions), "videos", first=COMPILING) as advance:
    for rows in _batches(conditions, asked.batch_size):
      kind = next(iter(rows[0]))
      columns = []
      for budget in budgets.values():
        pieces = sample(
          gen,
          params,
          tok,
          tok_params,
          jax.random.key(asked.seed),
          {kind: [row[kind] for row in rows]},
          frames=asked.frames or None,
          **budget,
          guidance=asked.guidance or None,
          temperature=asked.temperature,
          decode=dict(steps=asked.steps) if asked.steps else None,
        )
        columns.append(np.concatenate([piece.video for piece in pieces], axis=1))
      films += [labelled_grid(list(row), list(budgets)) for row in zip(*columns, strict=True)]
      advance(len(rows))
  return films


def _batches(conditions, size: int):
  """Runs of one kind of condition, at most `size` long."""
  batch: list[dict[str, Any]] = []
  for condition in conditions:
    if batch and (len(batch) == size or batch[0].keys() != condition.keys()):
      yield batch
      batch = []
    batch.append(condition)
  yield batch


def _write(directory: Path, conditions, films, cfg) -> None:
  fps = cfg.data.fps or 8.0
  names = [f"{i:04d}_{slug(str(next(iter(c.values()))))}" for i, c in enumerate(conditions)]
  facts = f"{len(films)} conditions of {cfg.sample.prompts}, seed {cfg.sample.seed}"
  with page.whole_report(directory, MARKER) as partial:
    out = [page.head(f"{cfg.title}: samples"), f"<p class=facts>{html.escape(facts)}</p>"]
    for name, condition, film in zip(names, conditions, films, strict=True):
      page.write_film(partial, name, film, fps)
      out.append(f"<h2>{html.escape(str(next(iter(condition.values()))))}</h2>{page.film(partial, name)}")
    (partial / "samples.html").write_text("\n".join(out) + "</html>\n", encoding="utf-8")
    rows = [{"file": f"{name}.mp4", **condition} for name, condition in zip(names, conditions, strict=True)]
    (partial / MARKER).write_text(json.dumps({"sample": cfg.sample.to_dict(), "videos": rows}, indent=2) + "\n")


def slug(text: str) -> str:
  """A short piece of `text` that any file system takes."""
  return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "prompt"
