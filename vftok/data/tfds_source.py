"""TensorFlow Datasets sets stored as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data import shards
from vftok.data.record_files import RecordFiles
from vftok.io.sides import NoSuchSplit
from vftok.runtime.optional import required


class TfdsSource:
  """A split of a prepared ArrayRecord set, its features renamed to a record's."""

  def __init__(self, builder, split, *, video, caption="caption", label="label", name=None, time=None, fps=None):
    features = builder.info.features
    fields = {"video": video, "caption": caption, "label": label, "name": name, "time": time}
    for option in ("video", "caption", "label"):
      if fields[option] is not None and fields[option] not in features:
        raise ValueError(
          f"{option} is {fields[option]!r}, expected a feature of {builder.name} ({', '.join(features)}): name one."
        )
    if split.split("[")[0] not in builder.info.splits:
      raise NoSuchSplit(
        f"split is {split!r}, expected one of {', '.join(builder.info.splits)} of {builder.name}: choose one."
      )
    if builder.info.file_format is None or builder.info.file_format.value != "array_record":
      raise ValueError(f"{builder.data_dir} is not stored as ArrayRecord: prepare it with file_format='array_record'.")
    parts = [
      (os.fspath(part.filename), part.skip, part.take if part.take >= 0 else part.examples_in_shard - part.skip)
      for part in builder.info.splits[split].file_instructions
    ]
    self._records, self._features = RecordFiles(parts), features
    shards.check([path for path, _, _ in parts])
    self._fields, self._fps, self._set = fields, fps, f"{builder.name}/{split}"
    self.label_names = tuple(getattr(features[label], "names", None) or ()) if label in features else ()

  def __len__(self):
    return len(self._records)

  def example(self, index: int) -> dict[str, Any]:
    """The stored example. Raises ValueError naming the shard where it cannot be read."""
    try:
      record = self._records[index]
      if not record:  # what is left of a file that was cut short
        raise ValueError("an empty record")
      return self._features.deserialize_example_np(record)
    except Exception as error:  # readers and decoders of bytes raise many kinds
      reason = " ".join(str(error).split())[:100] or type(error).__name__
      raise ValueError(
        f"{self._file(index)} is damaged ({reason}): get a whole copy, or write the set again."
      ) from None

  def array(self, example, key: str, shape: tuple[int, ...], dtype: str, index: int) -> np.ndarray:
    """One array of an example. Raises ValueError where it is not what the set's recipe says."""
    value = np.asarray(example.get(key))
    if value.shape != tuple(shape) or value.dtype != np.dtype(dtype):
      raise ValueError(
        f"{self._file(index)} has {key} {value.dtype} {value.shape}, expected {dtype} {tuple(shape)} by the set's "
        "recipe: write the set again."
      )
    return value

  def _file(self, index: int) -> str:
    return f"record {index} of {self._records.path(index)}"

  def __getitem__(self, index):
    return self.record(self.example(index), index)

  def record(self, example: dict[str, Any], index: int) -> dict[str, Any]:
    """A record of `sources.Source` of a stored example."""
    get = lambda field: example.get(self._fields[field]) if self._fields[field] else None
    video, label, name = get("video"), get("label"), get("name")
    kind = "mp4" if isinstance(video, bytes) else "frames"
    if name is not None:
      name = f"{_text(name)}@{float(get('time')):.2f}" if get("time") is not None else _text(name)
    return {
      kind: video if kind == "mp4" else np.asarray(video),
      "caption": _text(get("caption") or ""),
      "label": -1 if label is None else int(label),
      "name": name or f"{self._set}:{index}",
      "fps": self._fps or (float(example["fps"]) if "fps" in example else None),
    }


def _tfds():
  return required("tensorflow_datasets", "tensorflow-datasets", "reading a TFDS set")


def open_tfds(directory: str | os.PathLike):
  """The builder of the set prepared in `directory` or below it, the newest version where there are several."""
  tensorflow_datasets = _tfds()
  found = sorted(path.parent for path in Path(directory).glob("**/dataset_info.json") if ".incomplete" not in str(path))
  if not found:
    raise FileNotFoundError(f"{directory} holds no prepared TFDS set: prepare it as ArrayRecord, or check the path.")
  if len({path.parent for path in found}) > 1:
    names = ", ".join(sorted({str(path.parent.relative_to(directory)) for path in found}))
    raise ValueError(f"{directory} holds several sets ({names}): pass the directory of one.")
  newest = max(found, key=lambda path: [int(n) if n.isdigit() else 0 for n in path.name.split(".")])
  try:
    return tensorflow_datasets.builder_from_directory(str(newest))
  except Exception as error:  # of JSON, of protocol buffers, of features that are none
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    raise ValueError(
      f"{newest} holds a damaged set (dataset_info.json or features.json: {reason}): get a whole copy of it."
    ) from None


def named_tfds(name: str, directory: str | os.PathLike | None):
  """The builder of a prepared set by its name. Raises FileNotFoundError where it is not in `directory`."""
  tensorflow_datasets = _tfds()
  try:
    return tensorflow_datasets.builder(name, data_dir=directory and str(directory), try_gcs=False)
  except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
    where = directory or "the TFDS default folder"
    raise FileNotFoundError(f"there is no TFDS set {name!r} in {where}: prepare it there first.") from error


def _text(value) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
