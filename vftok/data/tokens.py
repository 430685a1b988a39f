"""`tokens`: ids of clips that a tokenizer made once, at full length, as an ArrayRecord TFDS set.

Any budget is a slice of them at read time. `python -m vftok.tools.tokenize_dataset` writes such sets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data.dataset_writer import RECIPE, write_tfds
from vftok.data.tfds_source import TfdsSource, open_tfds
from vftok.optional import required

CLASSES = "classes.json"  # names of the labels, where they have some


def write_tokens(
  directory: Path,
  splits: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]],
  meta: Mapping,
  label_names: Sequence[str] = (),
) -> None:
  """Writes the set into `directory` (inside `dataset_writer.whole_directory`, whose recipe is `meta`).

  Args:
    splits: {name: function that gives its examples}; an example has "ids" uint16 [T, K], "caption", "label", "name"
      and, where meta has "text", "text_emb" float16 [S, C] and "text_mask" bool [S]; where it has "router", "curves"
      float32 [T, m].
    meta: has "shape" [T, K], "fingerprint" of the tokenizer and, where texts were embedded, "text_shape" [S, C]; where
      clips were routed, "router" with its "levels" (m of them) and what preferences are weighed by.
    label_names: of labels 0, 1, ...; none where labels are numbers only.
  """
  tfds = required("tensorflow_datasets", "tensorflow-datasets", "writing a TFDS set")
  tensor = lambda shape, dtype: tfds.features.Tensor(shape=tuple(shape), dtype=dtype)
  features = {
    "ids": tensor(meta["shape"], np.uint16),
    "caption": tfds.features.Text(),
    "label": tfds.features.Scalar(dtype=np.int64),
    "name": tfds.features.Text(),
  }
  if meta.get("text_shape"):
    features["text_emb"] = tensor(meta["text_shape"], np.float16)
    features["text_mask"] = tensor(meta["text_shape"][:1], np.bool_)
  if meta.get("router"):
    features["curves"] = tensor(_curves_shape(meta), np.float32)
  write_tfds(directory, "vftok_tokens", "1.0.0", "Tokens of clips.", features, splits)
  if label_names:
    (directory / CLASSES).write_text(json.dumps(list(label_names)) + "\n")


def _curves_shape(meta: Mapping) -> tuple[int, int]:
  return meta["shape"][0], len(meta["router"]["levels"])


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
  """What a set of tokens was made from, and its "label_names". Raises FileNotFoundError where there is none."""
  path, classes = Path(directory) / RECIPE, Path(directory) / CLASSES
  if not path.exists():
    raise FileNotFoundError(
      f"{directory} holds no tokens ({RECIPE} is missing): run `python -m vftok.tools.tokenize_dataset` first."
    )
  return json.loads(path.read_text()) | {"label_names": json.loads(classes.read_text()) if classes.exists() else []}


def tokens(split: str, *, directory: str | os.PathLike, fingerprint: str | None = None):
  """Reads what `write_tokens` wrote.

  Raises:
    FileNotFoundError: no such set.
    ValueError: another tokenizer than the one with this `fingerprint` made them, or no such split.
  """
  meta = read_meta(directory)
  if fingerprint and fingerprint != meta["fingerprint"]:
    raise ValueError(
      f"{directory} was made by the tokenizer {meta['fingerprint']}, expected {fingerprint}: tokenize the clips again."
    )
  return TokensSource(open_tfds(directory), split, meta)


class TokensSource(TfdsSource):
  """Records with "ids" uint16 [T, K] and, with text, "text_emb" float16 [S, C], "text_mask" bool [S].

  Where clips were routed there is "curves" float32 [T, m] too.
  """

  def __init__(self, builder, split, meta):
    super().__init__(builder, split, video="ids", name="name")
    self.meta, self.arrays = meta, (("ids", tuple(meta["shape"]), "uint16"),)
    if meta.get("text_shape"):
      s, c = meta["text_shape"]
      self.arrays += (("text_emb", (s, c), "float16"), ("text_mask", (s,), "bool"))
    if meta.get("router"):
      self.arrays += (("curves", _curves_shape(meta), "float32"),)
    self.label_names = tuple(meta["label_names"])

  def __getitem__(self, index):
    example = self._records[index]
    record = super().__getitem__(index)
    record["ids"] = record.pop("frames")
    arrays = {key: np.asarray(example[key]) for key, _, _ in self.arrays[1:]}
    for key, array in arrays.items():
      if not np.isfinite(array).all():
        raise ValueError(
          f"{record['name']} holds {key} with NaN or infinite values, expected finite ones: make it again."
        )
    return record | arrays
