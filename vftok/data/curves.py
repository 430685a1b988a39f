"""`curves`: latents of clips and what each loses under many assignments of tokens, as an ArrayRecord TFDS set.

`python -m vftok.tools.label_budgets` writes such sets. Losses are stored and not labels, so that any preference, search
or baseline can be worked out from them later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vftok.curves import MEASURES
from vftok.data.dataset_writer import RECIPE, write_tfds
from vftok.data.tfds_source import TfdsSource, open_tfds
from vftok.optional import required


def write_curves(directory: Path, splits: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]], meta) -> None:
  """Writes the set into `directory` (inside `dataset_writer.whole_directory`, whose recipe is `meta`).

  Args:
    splits: {name: function that gives its examples}: "latents" float16 [T, h, w, C], "losses" float32 [N, T, times],
      "caption", "label", "name", and "drawn" int32 [M, T], assignments of its own, with "sampled" float32
      [M, T, measures] (`vftok.curves.MEASURES`), nan beside the flow loss where the clip was not sampled.
    meta: has "latents_shape", "losses_shape", "drawn_shape", and "levels", "steps", "random", "seed" of
      `curves.assignments`.
  """
  tfds = required("tensorflow_datasets", "tensorflow-datasets", "writing a TFDS set")
  features = {
    **{key: tfds.features.Tensor(shape=shape, dtype=np.dtype(kind)) for key, shape, kind in _arrays(meta)},
    "caption": tfds.features.Text(),
    "label": tfds.features.Scalar(dtype=np.int64),
    "name": tfds.features.Text(),
  }
  write_tfds(directory, "vftok_curves", "2.1.0", "What clips lose at each budget.", features, splits)


def _arrays(meta) -> tuple[tuple[str, tuple[int, ...], str], ...]:
  drawn = tuple(meta["drawn_shape"])
  return (
    ("latents", tuple(meta["latents_shape"]), "float16"),
    ("losses", tuple(meta["losses_shape"]), "float32"),
    ("drawn", drawn, "int32"),
    ("sampled", (*drawn, len(MEASURES)), "float32"),
  )


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
  """What a set of curves was made from. Raises FileNotFoundError where there is none."""
  path = Path(directory) / RECIPE
  if not path.exists():
    raise FileNotFoundError(
      f"{directory} holds no curves ({RECIPE} is missing): run `python -m vftok.tools.label_budgets` first."
    )
  return json.loads(path.read_text())


def curves(split: str, *, directory: str | os.PathLike):
  """Reads what `write_curves` wrote. Raises FileNotFoundError or ValueError: no such set, or no such split."""
  return CurvesSource(open_tfds(directory), split, read_meta(directory))


class CurvesSource(TfdsSource):
  """Records with "latents", "losses", "drawn" and "sampled", as `write_curves` took them."""

  def __init__(self, builder, split, meta):
    super().__init__(builder, split, video="latents", name="name")
    self.meta = meta
    self.arrays = _arrays(meta)

  def __getitem__(self, index):
    record = super().__getitem__(index)
    record["latents"] = record.pop("frames")
    example = self._records[index]
    return record | {key: np.asarray(example[key]) for key, _, _ in self.arrays[1:]}
