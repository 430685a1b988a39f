"""Pictures of budgets: quality over mean tokens, and clips with the tokens of each moment under them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vftok.data.video_writer import whole_file


def quality(rows: dict[str, dict], budgets: Sequence[float], ways: Sequence[str], path: Path) -> None:
  """LPIPS over tokens, a line for each way; `rows` as `vftok.tools.adaptive` has them."""
  figure, axis = _axes(figsize=(5, 3.6))
  for way in ways:
    known = [b for b in budgets if f"{way} {b:g}" in rows]
    seeds = np.array([rows[f"{way} {b:g}"]["per_seed"]["lpips"] for b in known])
    axis.errorbar(known, seeds.mean(1), seeds.std(1), marker="o", capsize=2, label=way)
  axis.set(xscale="log", xlabel="tokens per time step, mean", ylabel="LPIPS")
  axis.set_xticks(list(budgets), [f"{b:g}" for b in budgets])
  axis.minorticks_off()
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
  figure, axes = _axes(2 * n, steps, figsize=(1.5 * steps, 2.1 * n), height_ratios=[3, 1] * n)
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


def _axes(*grid, figsize, height_ratios=None):
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  return plt.subplots(
    *grid, figsize=figsize, constrained_layout=True, squeeze=not grid, gridspec_kw=dict(height_ratios=height_ratios)
  )


def _save(figure, path: Path) -> None:
  import matplotlib.pyplot as plt

  with whole_file(path) as temporary:
    figure.savefig(temporary, dpi=110, format="png")
  plt.close(figure)
