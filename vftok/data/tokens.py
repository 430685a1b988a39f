"""`tokens`: ids of clips that a tokenizer made once, at full length, as an ArrayRecord TFDS set.

Any budget is a slice of them at read time. `python -m vftok.tools.tokenize_dataset` writes such sets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data import shards
from vftok.data.recipe import RECIPE, read_recipe, shape, text, whole
from vftok.data.tfds_source import TfdsSource, open_tfds

CLASSES = "classes.json"  # names of the labels, where they have some


NAME, VERSION = "vftok_tokens", "1.1.0"


def features(meta: Mapping[str, Any]):
  """TFDS features of a set by its recipe. Text features are the bytes of a caption's own tokens, float16 [n, C].

  As a tensor TFDS would store four bytes a number, padding included: 2.1 MB a clip for 128 tokens of 4096.
  """
  tfds = shards.tfds().features
  tensor = lambda shape, dtype: tfds.Tensor(shape=tuple(shape), dtype=dtype)
  out = {"ids": tensor(meta["shape"], np.uint16), "caption": tfds.Text(), "label": tfds.Scalar(dtype=np.int64)}
  out["name"] = tfds.Text()
  if meta.get("text_shape"):
    out["text"] = tfds.Text()
  if meta.get("router"):
    out["curves"] = tensor(_curves_shape(meta), np.float32)
  if meta.get("counts"):
    out["keep"] = tensor(meta["shape"][:1], np.int32)
  return tfds.FeaturesDict(out)


def stored(example: Mapping[str, Any]) -> dict[str, Any]:
  """An example as `features` has it, of one with "text_emb" float16 [S, C] and "text_mask" bool [S].

  Raises:
    ValueError: a mask with gaps, or text features that are not finite.
  """
  example = dict(example)
  if "text_emb" in example:
    emb, mask = np.asarray(example.pop("text_emb")), np.asarray(example.pop("text_mask"), bool)
    count = int(mask.sum())
    if not mask[:count].all() or not np.isfinite(emb[:count]).all():
      raise ValueError(
        f"the text features of {example['caption'][:60]!r} have gaps or are not finite in float16, expected a text's "
        "tokens first and numbers up to 65504: use another text encoder."
      )
    example["text"] = emb[:count].astype("<f2").tobytes()
  return example


def finish_tokens(directory: Path, parts: Mapping[str, Sequence[Path]], meta, label_names=()) -> dict[str, int]:
  """Makes shards the set in `directory` (inside `dataset_writer.whole_directory`, whose recipe is `meta`).

  Args:
    parts: {split: its shards}, of what `stored` makes of examples; one has "ids" uint16 [T, K], "caption", "label",
      "name" and, where meta has "text", "text_emb" float16 [S, C] and "text_mask" bool [S]; where it has "router",
      "curves" float32 [T, m]; where it has "counts", "keep" int32 [T].
    meta: has "shape" [T, K], "fingerprint" of the tokenizer and, where texts were embedded, "text_shape" [S, C]; where
      clips were routed, "router" with its "levels" (m of them) and what preferences are weighed by; of tokens that
      are as many as the encoder was asked for, "counts" that it knows, and where each clip has tokens of its first
      frames before its own, "condition": how many "frames" and the "counts" of their time steps, part of T.
    label_names: of labels 0, 1, ...; none where labels are numbers only.

  Returns:
    {split: clips}.
  """
  counts = shards.finish(directory, NAME, VERSION, "Tokens of clips.", features(meta), parts)
  if label_names:
    (directory / CLASSES).write_text(json.dumps(list(label_names)) + "\n")
  return counts


def _curves_shape(meta: Mapping) -> tuple[int, int]:
  return meta["shape"][0], len(meta["router"]["levels"])


def read_meta(directory: str | os.PathLike) -> dict[str, Any]:
  """What a set of tokens was made from, and its "label_names".

  Raises:
    FileNotFoundError: there is none. ValueError: its recipe or its names are damaged.
  """
  fields = {"shape": shape(2), "fingerprint": text, "codebook_size": whole, "tokenizer": text}
  counts = lambda value: shape(len(value))(value)
  tool = "run `python -m vftok.tools.tokenize_dataset` first"
  meta, path = read_recipe(directory, "tokens", tool, fields), Path(directory) / CLASSES
  for key, usable in (
    ("text_shape", shape(2)),
    ("router", lambda r: isinstance(r, dict) and counts(r["levels"])),
    ("counts", counts),
    ("condition", lambda c: whole(c["frames"]) and 0 < len(c["counts"]) < meta["shape"][0] and counts(c["counts"])),
  ):
    try:
      fits = meta.get(key) is None or usable(meta[key])
    except (KeyError, TypeError):
      fits = False
    if not fits:
      raise ValueError(f"{Path(directory) / RECIPE} is damaged ({key} is {str(meta[key])[:60]}): write the set again.")
  try:
    names = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
  except (OSError, ValueError):
    names = None
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError(f"{path} is damaged, expected the names of the labels in JSON: get a whole copy of the set.")
  return meta | {"label_names": names}


def tokens(split: str, *, directory: str | os.PathLike, fingerprint: str | None = None):
  """Reads what `finish_tokens` wrote.

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

  Where clips were routed there is "curves" float32 [T, m] too; where ids depend on counts, "keep" int32 [T].
  """

  def __init__(self, builder, split, meta):
    super().__init__(builder, split, video="ids", name="name")
    self.meta, self.arrays = meta, (("ids", tuple(meta["shape"]), "uint16"),)
    if meta.get("text_shape"):
      s, c = meta["text_shape"]
      self.arrays += (("text_emb", (s, c), "float16"), ("text_mask", (s,), "bool"))
    if meta.get("router"):
      self.arrays += (("curves", _curves_shape(meta), "float32"),)
    if meta.get("counts"):
      self.arrays += (("keep", tuple(meta["shape"][:1]), "int32"),)
    self.label_names = tuple(meta["label_names"])

  def __getitem__(self, index):
    example = self.example(index)
    if self.meta.get("text_shape") and "text" in example:
      example |= self._text(example["text"], index)
    arrays = {key: self.array(example, key, shape, dtype, index) for key, shape, dtype in self.arrays}
    record = self.record(example, index)
    del record["frames"]
    for key, array in arrays.items():
      if not np.isfinite(array).all():
        raise ValueError(
          f"{record['name']} holds {key} with NaN or infinite values, expected finite ones: make it again."
        )
    return record | arrays

  def _text(self, data: bytes, index: int) -> dict[str, np.ndarray]:
    """Text features as a batch has them: as many tokens as the longest may have, and which of them are there."""
    s, c = self.meta["text_shape"]
    numbers = np.frombuffer(data, "<f2") if len(data) % (2 * c) == 0 else None
    if numbers is None or len(numbers) > s * c:
      raise ValueError(
        f"{self._file(index)} has {len(data)} bytes of text features, expected up to {s} tokens of {2 * c}: "
        "write the set again."
      )
    emb = np.zeros((s, c), np.float16)
    emb.reshape(-1)[: len(numbers)] = numbers
    return {"text_emb": emb, "text_mask": np.arange(s) < len(numbers) // c}
