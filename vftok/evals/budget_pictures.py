"""Pictures of budgets: quality over mean tokens, and clips with the tokens of each moment under them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vftok.runtime.files import whole_file


def quality(rows: dict[str, dict], budgets: Sequence[float], ways: Sequence[str], path: Path) -> None:
  """LPIPS over tokens, a line for each way, and how far each is from the first way; spread over seeds as bars.

  `rows` as `vftok.tools.adaptive` has them. The second picture has the budgets that the first way has too.
  """
  figure, (whole, beside) = _axes(1, 2, figsize=(9, 3.6), squeeze=True)
  named = {(way, b): rows.get(f"{way} {b:g}") for way in ways for b in budgets}
  seeds = {place: np.array(row["per_seed"]["lpips"]) for place, row in named.items() if row}
  for way in ways:
    known = [b for b in budgets if (way, b) in seeds]
    values = np.array([seeds[way, b] for b in known])
    whole.errorbar(known, values.mean(1), values.std(1), marker="o", capsize=2, label=way)
    both = [b for b in known if (ways[0], b) in seeds]
    apart = np.array([100 * (seeds[way, b] / seeds[ways[0], b] - 1) for b in both])  # the same noise seed by seed
    beside.errorbar(both, apart.mean(1), apart.std(1), marker="o", capsize=2, label=way)
  whole.set(ylabel="LPIPS")
  beside.set(ylabel=f"LPIPS beside {ways[0]} (%)")
  for axis in (whole, beside):
    axis.set(xscale="log", xlabel="tokens per time step, mean")
    axis.set_xticks(list(budgets), [f"{b:g}" for b in budgets])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  whole.legend()
  _save(figure, path)


def gains(by_budget: dict[int, Sequence[float]], path: Path) -> None:
  """What each clip gains in LPIPS at each budget, the clips in order of it."""
  figure, axis = _axes(1, 1, figsize=(5, 3.6), squeeze=True)
  for budget, values in by_budget.items():
    axis.plot(np.linspace(0, 100, len(values)), sorted(values), label=f"{budget} tokens per time step")
  axis.axhline(0, color="gray", linewidth=1)
  axis.set(xlabel="clips (%)", ylabel="LPIPS less than uniform")
  axis.grid(alpha=0.3)
  axis.legend()
  _save(figure, path)


def clips_with_counts(videos: Sequence[np.ndarray], keep_NxT: np.ndarray, path: Path) -> None:
  """One row per clip: the last frame of every time step, its number of tokens as a bar under it.

  Args:
    videos: uint8 [F, H, W, 3] each, of one shape, 1 + 4m frames.
    keep_NxT: tokens per time step.
  """
  n, steps = keep_NxT.shape
  figure, axes = _axes(2 * n, steps, figsize=(1.5 * steps, 2.1 * n), squeeze=False, height_ratios=[3, 1] * n)
  most = int(keep_NxT.max())
  for row, (video, keep) in enumerate(zip(videos, keep_NxT, strict=True)):
    last_T = np.linspace(0, len(video) - 1, steps).round().astype(int)
    for t in range(steps):
      picture, bar = axes[2 * row, t], axes[2 * row + 1, t]
      picture.imshow(video[last_T[t]])
      bar.barh(0, keep[t], color="tab:blue")
      bar.set(xlim=(0, most))
      bar.set_title(f"{keep[t]} token{'s' if keep[t] > 1 else ''}", fontsize=8, pad=2)
      for axis in (picture, bar):
        axis.set_xticks([])
        axis.set_yticks([])
  _save(figure, path)


def _axes(*grid, figsize, **options):
  from matplotlib.figure import Figure  # without pyplot: no window system, no global state

  figure = Figure(figsize=figsize, layout="constrained")
  return figure, figure.subplots(*grid, **options)


def _save(figure, path: Path) -> None:
  with whole_file(path) as temporary:
    figure.savefig(temporary, dpi=110, format="png")
