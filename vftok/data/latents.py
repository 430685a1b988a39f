"""`latents`: VAE latents that were computed once, float16 [T, h, w, C], as an ArrayRecord TFDS set."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data import recipe
from vftok.data.dataset_writer import whole_directory, write_tfds
from vftok.data.tfds_source import TfdsSource, open_tfds
from vftok.runtime.optional import required


def write_latents(
  directory: str | os.PathLike, splits: Mapping[str, Iterable[Mapping[str, Any]]], meta: Mapping[str, Any]
) -> None:
  """Writes a set that `latents` reads; it appears whole, or not at all.

  Args:
    directory: must not exist yet.
    splits: {name: examples}, read once and in order; an example has "latents" (float [T, h, w, C], all of one
      shape), and if wanted "caption", "label", "name".
    meta: plain JSON that goes beside the latents; "fingerprint" says which VAE made them. The shape is added.

  Raises:
    ValueError: the directory exists, no fingerprint, or an example of another shape or not finite in float16.
  """
  directory = Path(directory)
  if directory.exists():
    raise ValueError(f"{directory} exists already, expected a new directory: choose another or remove it.")
  if not isinstance(meta.get("fingerprint"), str):
    raise ValueError(f"meta has fingerprint {meta.get('fingerprint')!r}, expected that of the VAE as text: add it.")
  facts = dict(meta)
  with whole_directory(directory, facts) as temporary:
    facts["shape"] = _write(temporary, splits)


def _write(directory: Path, splits) -> list[int]:
  tfds = required("tensorflow_datasets", "tensorflow-datasets", "writing a TFDS set")
  firsts, examples = {}, {}
  for name, given in splits.items():
    iterator = iter(given)
    firsts[name] = next(iterator, None)
    if firsts[name] is None:
      raise ValueError(f"split {name!r} has no examples, expected at least one: leave it out.")
    examples[name] = itertools.chain([firsts[name]], iterator)
  shape = np.shape(next(iter(firsts.values()))["latents"])
  if len(shape) != 4:
    raise ValueError(f"latents have shape {shape}, expected [T, h, w, C]: pass one clip per example.")

  def checked(name):
    return (_example(example, shape, f"{name}:{i}") for i, example in enumerate(examples[name]))

  features = {
    "latents": tfds.features.Tensor(shape=shape, dtype=np.float16),
    "caption": tfds.features.Text(),
    "label": tfds.features.Scalar(dtype=np.int64),
    "name": tfds.features.Text(),
  }
  made = {name: functools.partial(checked, name) for name in splits}
  write_tfds(directory, "vftok_latents", "1.0.0", "VAE latents of clips.", features, made)
  return list(shape)


def _example(example, shape, where):
  latents = np.asarray(example["latents"], np.float16)
  if latents.shape != shape:
    raise ValueError(f"latents {where} have shape {latents.shape}, expected {shape} like the first: pass one shape.")
  if not np.isfinite(latents).all():
    raise ValueError(f"latents {where} are not finite in float16, expected at most 65504: scale them down.")
  return {
    "latents": latents,
    "caption": example.get("caption", ""),
    "label": int(example.get("label", -1)),
    "name": example.get("name", where),
  }


def latents(split: str, *, directory: str | os.PathLike, fingerprint: str | None = None):
  """Reads what `write_latents` wrote. The source has `shape` [T, h, w, C] and `meta`.

  Raises:
    FileNotFoundError: no such set.
    ValueError: they were made by another VAE than the one with this `fingerprint`, or no such split.
  """
  fields = {"shape": recipe.shape(4), "fingerprint": recipe.text}
  meta = recipe.read_recipe(directory, "cached latents", "check the path, or write them", fields)
  if fingerprint is not None and fingerprint != meta["fingerprint"]:
    raise ValueError(
      f"{directory} was made by the VAE {meta['fingerprint']}, expected {fingerprint}: write the latents again."
    )
  return LatentsSource(open_tfds(directory), split, meta)


class LatentsSource(TfdsSource):
  """Records with "latents" float16 [T, h, w, C]."""

  def __init__(self, builder, split, meta):
    super().__init__(builder, split, video="latents", name="name")
    self.meta, self.shape = meta, tuple(meta["shape"])
    self.arrays = (("latents", self.shape, "float16"),)

  def __getitem__(self, index):
    example = self.example(index)
    latents = self.array(example, *self.arrays[0], index)
    record = self.record(example, index)
    del record["frames"]
    return record | {"latents": latents}
