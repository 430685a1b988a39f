"""The semantic curve as people look at it: a table, and a panel per attribute."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from vftok.evals.probe import ProbeTable
from vftok.runtime.files import whole_file


def probe_cells(table: ProbeTable) -> list[list[str]]:
  """A row per attribute, a column per k and ceiling; "0.61 ± 0.02" with several seeds."""
  names = list(next(iter(table.rows.values())))
  cells = [["attribute", "classes", "chance", *(f"k = {n[1:]}" if n[1:].isdigit() else n for n in names)]]
  for attribute, row in table.rows.items():
    spread = table.spread[attribute]
    text = lambda name: f"{row[name]:.3f}" + ("" if spread[name] is None else f" ± {spread[name]:.3f}")  # noqa: B023
    cells.append([attribute, str(table.classes[attribute]), f"{table.chance[attribute]:.3f}", *map(text, names)])
  return cells


def probe_picture(path: Path, table: ProbeTable, title: str) -> None:
  """PNG: accuracy over tokens kept per step, with chance and the ceilings as horizontal lines."""
  from matplotlib.figure import Figure

  columns = min(4, len(table.rows))
  lines = math.ceil(len(table.rows) / columns)
  figure = Figure(figsize=(3.6 * columns, 2.9 * lines + 0.4), dpi=140, layout="constrained")
  figure.suptitle(f"{title}\naccuracy of a linear probe on {table.tested} clips it did not see", fontsize=10)
  panels, x = figure.subplots(lines, columns, squeeze=False).ravel(), np.log2(table.keeps)
  for axes, (attribute, row) in zip(panels, table.rows.items(), strict=False):
    y = np.array([row[f"k{k}"] for k in table.keeps])
    half = np.array([table.spread[attribute][f"k{k}"] or 0 for k in table.keeps])
    axes.plot(x, y, "-o", color="#1f6fb4", linewidth=1.8, markersize=4)
    axes.fill_between(x, y - half, y + half, color="#1f6fb4", alpha=0.18, linewidth=0)
    for at, value in zip(x, y, strict=True):
      axes.annotate(f"{value:.2f}", (at, value), xytext=(0, 5), textcoords="offset points", fontsize=7, ha="center")
    levels = {name: value for name, value in row.items() if name not in {f"k{k}" for k in table.keeps}}
    for (name, value), dashes in zip(levels.items(), ("--", "-.") * len(levels), strict=False):
      axes.axhline(value, color="#777777", linewidth=1.1, linestyle=dashes, label=name)
    axes.axhline(table.chance[attribute], color="#b3261e", linewidth=1.1, linestyle=":", label="chance")
    axes.set_title(f"{attribute} ({table.classes[attribute]})", fontsize=9)
    axes.set_xticks(x, labels=[str(k) for k in table.keeps])
    axes.set_ylim(0, 1.08)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False)
  for axes in panels[len(table.rows) :]:
    axes.set_visible(False)
  with whole_file(path) as temporary:
    figure.savefig(temporary, format="png")
