"""A CSV, TSV or JSONL list of clips. Rows stay on disk: of a list of millions memory holds 8 bytes each."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vftok.data.sides import SPLITS, Sides, name_hash

COLUMNS = ("path", "caption", "label", "start", "end", "split")


class Manifest:
  """Rows of a manifest as a `Source`. All rows are checked when it is opened.

  Attributes:
    sides: the split of each row, stated or by its path as written; gone in what `only` gives.
    label_names: sorted names; empty where labels are numbers, which are used as they are.
  """

  def __init__(self, path: Path, root: Path, columns):
    if unknown := set(columns) - set(COLUMNS):
      raise ValueError(
        f"columns names {sorted(unknown)}, expected some of {', '.join(COLUMNS)}: use our names as keys."
      )
    self.path, self.root = str(path), str(root)
    self._columns = {name: columns.get(name, name) for name in COLUMNS}
    self._jsonl = path.suffix.lower() == ".jsonl"
    self._tabs = path.suffix.lower() == ".tsv"
    self._header = None
    # 8 + 4 + 8 bytes a row while it is read; names that repeat are kept once.
    offsets, splits, hashes, labels, stated = array("q"), array("i"), array("Q"), set(), {"train": 0}
    for offset, line, row in self._rows():
      entry = self._entry(row, line)
      offsets.append(offset)
      hashes.append(name_hash(entry["path"]))
      name = entry["split"] or ""
      splits.append(stated.setdefault(SPLITS.get(name.lower(), name), len(stated)) if name else -1)
      labels.add(entry["label"])
    if not offsets:
      raise ValueError(f"{path} lists no clips, expected at least one row: check the file.")
    self._offsets, self._labels = np.array(offsets, np.int64), _label_numbers(labels)
    self.label_names = tuple(self._labels or ())
    self.sides = _sides(np.array(splits, np.int32), tuple(stated), np.array(hashes, np.uint64))

  def only(self, positions: np.ndarray) -> Manifest:
    """The same with these rows: what a process of its own is given, at 8 bytes a row."""
    part = copy.copy(self)
    part._offsets, part.sides = self._offsets[positions], None
    return part

  def __len__(self):
    return len(self._offsets)

  def __getitem__(self, index):
    _, _, row = next(self._rows(int(self._offsets[index])))
    entry = self._entry(row, None)
    label = entry["label"]
    if label is None:
      label = -1
    else:
      label = self._labels[label] if self._labels else int(label)
    part = f"@{entry['start']:g}" if entry["start"] is not None else ""
    return {
      "path": os.path.join(self.root, entry["path"]),
      "start": entry["start"],
      "end": entry["end"],
      "caption": entry["caption"] or "",
      "label": label,
      "name": entry["path"] + part,
      "fps": None,
    }

  def _rows(self, offset: int | None = None) -> Iterator[tuple[int, int, dict]]:
    """Yields (offset in the file, line number, row); from one row on, lines count from 1 again."""
    with open(self.path, "rb") as file:
      if offset is not None:
        file.seek(offset)
      lines = _Lines(self.path, file)
      yield from self._json_rows(lines) if self._jsonl else self._table_rows(lines)

  def _json_rows(self, lines):
    for text in lines:
      if not text.strip():
        continue
      try:
        row = json.loads(text)
      except json.JSONDecodeError as error:
        raise ValueError(
          f"{self.path} line {lines.number}, column {error.colno}: {error.msg}; expected one JSON object per line."
        ) from error
      if not isinstance(row, dict):
        raise ValueError(f"{self.path} line {lines.number} is {text.strip()[:40]}, expected a JSON object: fix it.")
      yield lines.begin, lines.number, row

  def _table_rows(self, lines):
    reader = csv.reader(lines, delimiter="\t" if self._tabs else ",", strict=True)
    while True:
      begin, number = lines.end, lines.number + 1
      try:
        cells = next(reader, None)
      except csv.Error as error:
        raise ValueError(f"{self.path} line {number}: {error}; expected comma-separated values.") from error
      if cells is None:
        return
      if not cells:  # a blank line
        continue
      if self._header is None:
        self._header = [name.strip() for name in cells]
        if self._columns["path"] not in self._header:
          raise ValueError(
            f"{self.path} line 1 has columns {', '.join(self._header)}, expected {self._columns['path']!r} among them: "
            "add a header, or map names by columns={'path': ...}."
          )
        continue
      if len(cells) != len(self._header):
        raise ValueError(
          f"{self.path} line {number} has {len(cells)} columns, expected {len(self._header)} as in line 1: fix it."
        )
      yield begin, number, dict(zip(self._header, cells, strict=True))

  def _entry(self, row, line):
    """The row under our names, None for what is empty."""

    def bad(column, expected):
      name = self._columns[column]
      return ValueError(f"{self.path} line {line}, column {name!r} is {row.get(name)!r}, expected {expected}: fix it.")

    entry = {name: row.get(column) for name, column in self._columns.items()}
    entry = {name: None if value == "" else value for name, value in entry.items()}
    if not isinstance(entry["path"], str):
      raise bad("path", "the path of a video")
    for name in ("caption", "split"):
      if not isinstance(entry[name], str | None):
        raise bad(name, "text")
    if isinstance(entry["label"], bool) or not isinstance(entry["label"], str | int | None):
      raise bad("label", "a name or a whole number")
    for name in ("start", "end"):
      if entry[name] is not None:
        try:
          entry[name] = float(entry[name])
        except (TypeError, ValueError):
          raise bad(name, "seconds") from None
        if not (math.isfinite(entry[name]) and entry[name] >= 0):
          raise bad(name, "seconds of at least 0")
    if entry["end"] is not None and entry["end"] <= (entry["start"] or 0.0):
      raise bad("end", "more than the start")
    entry["label"] = None if entry["label"] is None else str(entry["label"])
    return entry


def _sides(splits: np.ndarray, names: tuple[str, ...], hashes: np.ndarray) -> Sides:
  """Hashed where no row states a split; a row that states none is then of "train"."""
  if (splits < 0).all():
    return Sides(None, hashes)
  splits = np.maximum(splits, 0)
  used = np.unique(splits)
  return Sides(tuple(names[i] for i in used), np.searchsorted(used, splits).astype(np.int32))


def _label_numbers(labels) -> dict[str, int] | None:
  """{name: number} by the alphabet; None where all are numbers already."""
  names = sorted({label for label in labels if label is not None})
  try:
    if all(int(name) >= -1 for name in names):
      return None
  except ValueError:
    pass
  return {name: i for i, name in enumerate(names)}


class _Lines:
  """Lines of a binary file as text, with the offsets where the last one begins and ends and its number."""

  def __init__(self, path, file):
    self.path, self.file, self.number, self.begin, self.end = path, file, 0, file.tell(), file.tell()

  def __iter__(self):
    return self

  def __next__(self) -> str:
    line = self.file.readline()
    if not line:
      raise StopIteration
    self.begin, self.end = self.end, self.end + len(line)
    self.number += 1
    try:
      return line.decode("utf-8-sig" if self.begin == 0 else "utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{self.path} line {self.number} is not UTF-8 at byte {error.start}: save it as UTF-8."
      ) from error
