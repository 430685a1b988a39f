"""The study's pictures: the middle frames of a few scenes as every arm decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vftok.evals.reconstruction import VAE
from vftok.runtime.files import whole_file
from vftok.show.picture import labelled_grid

SHOWN = "shown.png"  # of an arm and seed, and of all
ENLARGED = 3


def save(path: Path, media: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
  """Writes a PNG, a row for each clip and a column for each of the returned names, as `Evaluation.media` has them."""
  names = list(media[0])
  rows = [np.concatenate([clip[name][len(clip[name]) // 2] for name in names], axis=1) for clip in media]
  path.parent.mkdir(parents=True, exist_ok=True)
  with whole_file(path) as partial:
    Image.fromarray(np.concatenate(rows)).save(partial, format="PNG")
  return names


def sheet(path: Path, arms: Mapping[str, tuple[Path, Sequence[str]]]) -> bool:
  """Writes one picture of all arms, a tile of all scenes for each; whether there was anything to show.

  Args:
    arms: {arm: (the file that `save` wrote, its names)}; those without a file are left out. Of an arm with several
      budgets the smallest, the middle and the largest are shown.
  """
  tiles, labels = [], []
  for arm, (file, names) in arms.items():
    if not file.is_file():
      continue
    columns = dict(zip(names, np.split(np.asarray(Image.open(file).convert("RGB")), len(names), axis=1), strict=True))
    budgets = [name for name in names if name.startswith("keep ")]
    wanted = {name: name for name in ("original", VAE) if name in columns and name not in labels}
    wanted |= {budgets[i]: arm for i in sorted({0, len(budgets) // 2, len(budgets) - 1})}
    for name, label in wanted.items():
      tiles.append(_in_a_row(columns[name]))
      count = name.removeprefix("keep ")
      labels.append(label if label == name else f"{label}\n{count} token{'s' * (count != '1')} a step")
  if not tiles:
    return False
  with whole_file(path) as partial:
    Image.fromarray(labelled_grid(tiles, labels)[0]).save(partial, format="PNG")
  return True


def _in_a_row(clips: np.ndarray) -> np.ndarray:
  """Square pictures below each other -> [1, H, n W, 3] side by side, enlarged."""
  side = clips.shape[1]
  row = np.concatenate(np.split(clips, len(clips) // side), axis=1)
  size = (ENLARGED * row.shape[1], ENLARGED * row.shape[0])
  return np.asarray(Image.fromarray(row).resize(size, Image.Resampling.BICUBIC))[None]
