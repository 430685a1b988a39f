"""`latents`: VAE latents that were computed once, float16 [T, h, w, C], as an ArrayRecord TFDS set."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data.tfds_source import TfdsSource, open_tfds

META = "latents.json"


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
  temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.part")
  try:
    shape = _write(temporary, splits)
    text = json.dumps({**meta, "shape": shape}, indent=2)
    (temporary / META).write_text(text)
    os.replace(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _write(directory: Path, splits) -> list[int]:
  import tensorflow_datasets as tfds

  firsts, rests = {}, {}
  for name, examples in splits.items():
    rests[name] = iter(examples)
    firsts[name] = next(rests[name], None)
    if firsts[name] is None:
      raise ValueError(f"split {name!r} has no examples, expected at least one: leave it out.")
  shape = np.shape(next(iter(firsts.values()))["latents"])
  if len(shape) != 4:
    raise ValueError(f"latents have shape {shape}, expected [T, h, w, C]: pass one clip per example.")

  class VftokLatents(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As written."}

    def _info(self):
      features = {
        "latents": tfds.features.Tensor(shape=shape, dtype=np.float16),
        "caption": tfds.features.Text(),
        "label": tfds.features.Scalar(dtype=np.int64),
        "name": tfds.features.Text(),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        description="Latents of videos.",
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(name) for name in firsts}

    def _generate_examples(self, split):
      for i, example in enumerate(itertools.chain([firsts[split]], rests[split])):
        yield i, _example(example, shape, f"{split}:{i}")

  directory.mkdir(parents=True)
  builder = VftokLatents(data_dir=str(directory), file_format="array_record")
  builder.download_and_prepare()
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
  if not (Path(directory) / META).exists():
    raise FileNotFoundError(f"{directory} holds no cached latents ({META} is missing): check the path, or write them.")
  meta = json.loads((Path(directory) / META).read_text())
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

  def __getitem__(self, index):
    record = super().__getitem__(index)
    record["latents"] = record.pop("frames")
    return record
