"""A CSV, TSV or JSONL list of clips. Rows stay on disk: of a list of millions memory holds 8 bytes each."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vftok.data.lines import Lines, table_rows
from vftok.io.sides import SPLITS, Sides, name_hash
from vftok.runtime.meeting import warn
from vftok.runtime.words import brief

COLUMNS = ("path", "caption", "label", "start", "end", "split")
_WHOLE = re.compile(r"-?[0-9]{1,10}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


class Manifest:
  """Rows of a manifest as a `Source`. All rows are checked when it is opened.

  Args:
    labels: names of labels 0, 1, ..., where other sets share them; None: all names in the manifest, sorted.

  Attributes:
    sides: the split of each row ("train" where it states none), or by its path as written where none does; gone in
      what `only` gives.
    label_names: sorted names, of all splits; empty where labels are numbers, which are used as they are.
  """

  def __init__(self, path: Path, root: Path, columns, labels: Sequence[str] | None = None):
    if unknown := set(columns) - set(COLUMNS):
      raise ValueError(
        f"columns names {listed(unknown)}, expected some of {', '.join(COLUMNS)}: use our names as keys."
      )
    self.path, self.root = str(path), str(root)
    self._columns = {name: columns.get(name, name) for name in COLUMNS}
    self._jsonl = path.suffix.lower() == ".jsonl"
    self._tabs = path.suffix.lower() == ".tsv"
    self._header = None
    # 8 + 4 + 8 bytes a row while it is read; names that repeat are kept once.
    offsets, splits, hashes, stated = array("q"), array("i"), array("Q"), {"train": 0}
    found, there, known = set(), {}, None if labels is None else set(labels)
    kinds, uncaptioned = {}, []  # {whether a number: line and label of the first}, [how many, the first one's line]
    for offset, line, row in self._rows():
      entry = self._entry(row, line)
      if self._jsonl or not there:
        there = row | there
      offsets.append(offset)
      hashes.append(name_hash(entry["path"]))
      name = entry["split"] or ""
      splits.append(stated.setdefault(SPLITS.get(name.lower(), name), len(stated)) if name else -1)
      if (label := entry["label"]) is not None:
        kinds.setdefault(_WHOLE.fullmatch(label) is not None, (line, label))
        if labels is not None and label not in known:
          raise self._bad(line, "label", label, f"one of the {len(labels)} labels")
      found.add(label)
      if not (entry["caption"] or "").strip():
        uncaptioned = [uncaptioned[0] + 1, uncaptioned[1]] if uncaptioned else [1, line]
    if not offsets:
      raise ValueError(f"{path} lists no clips, expected at least one row: check the file.")
    self._check_columns(columns, there)
    self._warn_of_captions(there, len(offsets), uncaptioned)
    if labels is None and len(kinds) > 1:
      line, label = kinds[False]
      raise self._bad(line, "label", label, f"a number, as {kinds[True][1]} in line {kinds[True][0]}, or names only")
    if labels is None:
      labels = () if True in kinds else sorted(found - {None})
    self._offsets, self._labels = np.array(offsets, np.int64), {name: i for i, name in enumerate(labels)} or None
    self.label_names = tuple(labels)
    self.sides = _sides(np.array(splits, np.int32), tuple(stated), np.array(hashes, np.uint64))

  def _check_columns(self, columns, there):
    for name, column in columns.items():
      if column not in there:
        raise ValueError(
          f"columns names {brief(column)} for the {name}, expected a column of {self.path}, whose are "
          f"{listed(there, 8)}: correct the name."
        )

  def _warn_of_captions(self, there, rows, missing):
    """Captions that are not there are legal, where labels or nothing says what is seen, but never silent."""
    texts = [name for name, value in there.items() if isinstance(value, str) and not _NUMBER.fullmatch(value.strip())]
    others = [name for name in texts if name not in self._columns.values()]
    if self._columns["caption"] in there and missing:
      where = f"the first one in line {missing[1]}"
      warn(f"{self.path}: {missing[0]} of {rows} captions are empty, {where}.", stacklevel=5)
    elif self._columns["caption"] not in there and others:
      warn(
        f"{self.path} has no column {self._columns['caption']!r} in line 1, so all captions are empty; it has "
        f"{listed(others, 8)}: pass columns={{'caption': NAME}} to use one.",
        stacklevel=5,
      )

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
      lines = Lines(self.path, file)
      if self._jsonl:
        yield from self._json_rows(lines)
      else:
        yield from table_rows(lines, self._check_header, self._header, "\t" if self._tabs else ",")

  def _json_rows(self, lines):
    for text in lines:
      if not text.strip():
        continue
      where = f"{self.path} line {lines.number}"
      try:
        row = json.loads(text, object_pairs_hook=_once)
      except json.JSONDecodeError as error:
        raise ValueError(f"{where}, column {error.colno}: {error.msg}; expected one JSON object per line.") from None
      except RecursionError:
        raise ValueError(f"{where} is nested too deeply, expected one flat JSON object per line: fix it.") from None
      except ValueError as error:  # a number of thousands of digits, or a key that comes twice
        reason = str(error).split(":")[0].split(";")[0][:120]
        raise ValueError(f"{where}: {reason}; expected one plain JSON object per line.") from None
      if not isinstance(row, dict):
        raise ValueError(f"{where} is {text.strip()[:40]}, expected a JSON object: fix it.")
      yield lines.begin, lines.number, row

  def _check_header(self, names, number):
    if self._columns["path"] not in names:
      marks = "tabs" if self._tabs else "commas"
      raise ValueError(
        f"{self.path} line {number} has columns {listed(names, 8)}, expected {self._columns['path']!r} among them: add "
        f"a header with {marks} in between, or map names by columns={{'path': ...}}."
      )
    if twice := {name for name in names if names.count(name) > 1} - {""}:
      raise ValueError(f"{self.path} line {number} has column {listed(twice, 3)} twice, expected once: rename one.")
    self._header = names

  def _bad(self, line, column, value, expected):
    where = f"{self.path}, " if line is None else f"{self.path} line {line}, "
    return ValueError(f"{where}column {self._columns[column]!r} is {brief(value)}, expected {expected}: fix it.")

  def _entry(self, row, line):
    """The row under our names, None for what is empty."""

    def bad(column, expected):
      return self._bad(line, column, row.get(self._columns[column]), expected)

    entry = {name: row.get(column) for name, column in self._columns.items()}
    entry = {name: None if value == "" else value for name, value in entry.items()}
    if not isinstance(entry["path"], str):
      raise bad("path", "the path of a video")
    for name in ("caption", "split"):
      if not isinstance(entry[name], str | None):
        raise bad(name, "text")
    if isinstance(entry["label"], bool) or not isinstance(entry["label"], str | int | None):
      raise bad("label", "a name or a whole number")
    if entry["label"] is not None:
      label = entry["label"] = str(entry["label"]).strip() or None
      if label and _NUMBER.fullmatch(label) and not (_WHOLE.fullmatch(label) and -1 <= int(label) < 1 << 31):
        raise bad("label", "a name, or a whole number from -1 (none) to 2147483647")
    for name in ("path", "caption", "label", "split"):
      if entry[name] is not None and not _is_text(entry[name], name):
        raise bad(name, "text that UTF-8 can hold, and no zero byte")
    for name in ("start", "end"):
      if entry[name] is not None:
        entry[name] = _seconds(entry[name])
        if entry[name] is None:
          raise bad(name, "seconds")
        if not (math.isfinite(entry[name]) and entry[name] >= 0):
          raise bad(name, "seconds of at least 0")
    if entry["end"] is not None and entry["end"] <= (entry["start"] or 0.0):
      raise bad("end", "more than the start")
    return entry


def _sides(splits: np.ndarray, names: tuple[str, ...], hashes: np.ndarray) -> Sides:
  """Hashed where no row states a split; a row that states none is then of "train"."""
  if (splits < 0).all():
    return Sides(None, hashes)
  splits = np.maximum(splits, 0)
  used = np.unique(splits)
  return Sides(tuple(names[i] for i in used), np.searchsorted(used, splits).astype(np.int32))


def listed(names, most: int = 5) -> str:
  """The first names of several, as messages show them: of at most some 130 characters."""
  names = list(names)
  shown = [brief(name).strip("'\"") for name in names[:most]]
  while len(shown) > 1 and sum(map(len, shown)) > 120:
    shown.pop()
  return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _once(pairs):
  """A JSON object as a dict. Raises ValueError where a key comes twice."""
  row = dict(pairs)
  if len(row) != len(pairs):
    keys = [key for key, _ in pairs]
    raise ValueError(f"key {listed({key for key in keys if keys.count(key) > 1}, 1)} comes twice")
  return row


def _seconds(value) -> float | None:
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    return None
  if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
    return None
  try:
    return float(value)
  except OverflowError:
    return math.inf


def _is_text(value: str, name: str) -> bool:
  """Whether files and models can hold it; of paths the file system's own bytes too."""
  try:
    value.encode("utf-8", "surrogateescape" if name == "path" else "strict")
  except UnicodeEncodeError:
    return False
  return "\0" not in value
