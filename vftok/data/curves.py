"""`curves`: latents of clips and what each loses under many assignments of tokens, as an ArrayRecord TFDS set.

`python -m vftok.tools.label_budgets` writes such sets. Losses are stored and not labels, so that any preference, search
or baseline can be worked out from them later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data import shards
from vftok.data.recipe import check_fields, read_recipe, shape, text, whole
from vftok.data.tfds_source import TfdsSource, open_tfds

MEASURES = ("flow", "lpips", "features")
NAME, VERSION = "vftok_curves", "2.1.0"


def features(meta: Mapping[str, Any]):
  """TFDS features of a set by its recipe."""
  tfds = shards.tfds().features
  arrays = {key: tfds.Tensor(shape=shape, dtype=np.dtype(kind)) for key, shape, kind in _arrays(meta)}
  return tfds.FeaturesDict(
    {**arrays, "caption": tfds.Text(), "label": tfds.Scalar(dtype=np.int64), "name": tfds.Text()}
  )


def finish_curves(directory: Path, parts: Mapping[str, Sequence[Path]], meta) -> dict[str, int]:
  """Makes shards the set in `directory` (inside `dataset_writer.whole_directory`, whose recipe is `meta`).

  Args:
    parts: {split: its shards}, of examples: "latents" float16 [T, h, w, C], "losses" float32 [N, T, times],
      "caption", "label", "name", and "drawn" int32 [M, T], assignments of its own, with "sampled" float32
      [M, T, measures] (`MEASURES`), nan beside the flow loss where the clip was not sampled.
    meta: with "every", "latents" are uint8 frames and "losses" [A, 1, 2] LPIPS and squared error of all assignments,
      and there is no more. Has "latents_shape", "losses_shape", "drawn_shape", and "levels", "steps", "random",
      "seed" of `curves.assignments`.

  Returns:
    {split: clips}.
  """
  return shards.finish(directory, NAME, VERSION, "What clips lose at each budget.", features(meta), parts)


def _arrays(meta) -> tuple[tuple[str, tuple[int, ...], str], ...]:
  drawn = tuple(meta["drawn_shape"])
  if meta.get("every"):  # all assignments were decoded; clips are stored as they are
    kinds = (("latents", "uint8"), ("losses", "float32"))
    return tuple((name, tuple(meta[f"{name}_shape"]), kind) for name, kind in kinds)
  return (
    ("latents", tuple(meta["latents_shape"]), "float16"),
    ("losses", tuple(meta["losses_shape"]), "float32"),
    ("drawn", drawn, "int32"),
    ("sampled", (*drawn, len(MEASURES)), "float32"),
  )


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
  """What a set of curves was made from. Raises FileNotFoundError: none there; ValueError: a damaged one."""
  fields = {"latents_shape": shape(4), "losses_shape": shape(3), "fingerprint": text}
  fields |= {"drawn_shape": shape(2, 0), "steps": whole, "codebook_size": whole}
  fields["levels"] = lambda v: isinstance(v, list) and shape(len(v))(v)
  meta = read_recipe(directory, "curves", "run `python -m vftok.tools.label_budgets` first", fields)
  if not meta.get("every"):  # but some that were drawn
    check_fields(directory, meta, dict.fromkeys(("random", "seed"), lambda n: whole(n, 0)))
  return meta


def curves(split: str, *, directory: str | os.PathLike):
  """Reads what `finish_curves` wrote. Raises FileNotFoundError or ValueError: no such set, or no such split."""
  return CurvesSource(open_tfds(directory), split, read_meta(directory))


class CurvesSource(TfdsSource):
  """Records with "latents", "losses", "drawn" and "sampled", as `finish_curves` took them."""

  def __init__(self, builder, split, meta):
    super().__init__(builder, split, video="latents", name="name")
    self.meta = meta
    self.arrays = _arrays(meta)

  def __getitem__(self, index):
    example = self.example(index)
    arrays = {key: self.array(example, key, shape, dtype, index) for key, shape, dtype in self.arrays}
    record = self.record(example, index)
    del record["frames"]
    return record | arrays
