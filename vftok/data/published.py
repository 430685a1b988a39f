"""Published lists of clips as they come: Panda-70M's CSV, Kinetics' CSVs, UCF-101's text files.

Videos lie anywhere below `root`; they are found by their names, and clips whose video is not there (much of such lists
is gone from the net) are left out, which a warning counts.
"""

from __future__ import annotations

import ast
import copy
import csv
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from vftok.data.folder import kept, video_files
from vftok.data.lines import Lines, table_rows
from vftok.io.sides import Sides
from vftok.runtime.meeting import warn
from vftok.runtime.words import brief

_CLOCK = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d(?:\.\d{1,9})?)")


class ListedClips:
  """Parts of video files as a `Source`, at about 30 bytes a clip. `sides`: the split of each; gone in parts.

  Args:
    root: what `files` are relative to.
    files: video files. place: int32 [n], whose each clip is.
    spans: float32 [n, 2] seconds, NaN for the whole file.
    labels: int32 [n], -1 unknown; label_names.
    captions: None: the label's name; else (CSV file, int64 [n] offsets of rows, int32 [n] places in them).
  """

  def __init__(self, root: Path, files, place, spans, labels, label_names, sides: Sides, captions=None):
    self.root, self.files, self.label_names, self.sides = str(root), files, tuple(label_names), sides
    self._place, self._spans, self._labels, self._captions = place, spans, labels, captions

  def only(self, positions: np.ndarray) -> ListedClips:
    """The same with these clips."""
    part, (used, place) = copy.copy(self), np.unique(self._place[positions], return_inverse=True)
    part.files, part._place, part.sides = [self.files[i] for i in used], place.astype(np.int32), None
    part._spans, part._labels = self._spans[positions], self._labels[positions]
    if self._captions:
      path, offsets, places = self._captions
      part._captions = path, offsets[positions], places[positions]
    return part

  def __len__(self):
    return len(self._place)

  def __getitem__(self, index):
    file, label = self.files[self._place[index]], int(self._labels[index])
    start, end = (None if math.isnan(t) else float(t) for t in self._spans[index])
    name = file if start is None else f"{file}@{start:g}"
    caption = self._caption(index) if self._captions else self.label_names[label] if label >= 0 else ""
    facts = dict(caption=caption, label=label, name=name, fps=None)
    return {"path": os.path.join(self.root, file), "start": start, "end": end, **facts}

  def _caption(self, index) -> str:
    path, offsets, places = self._captions
    with open(path, "rb") as file:
      header = next(csv.reader(Lines(path, file)))
      file.seek(int(offsets[index]))
      row = dict(zip(header, next(csv.reader(Lines(path, file))), strict=True))
    return _list(row["caption"])[places[index]]


def panda70m(split: str, *, path: str | os.PathLike, root: str | os.PathLike, holdout: float = 0.05) -> ListedClips:
  """Panda-70M's CSV: a row is a video (videoID) with lists of timestamps and captions, and each pair is a clip.

  Args:
    split: "train" or "val" by a stable hash of the video, or "all": their files are a split each.
    path: of the CSV. root: where the videos are, each called videoID with any ending.
    holdout: the share of videos in "val".

  Raises:
    FileNotFoundError: no such file. ValueError: a row that cannot be read (named by its line), or no video at all.
  """
  return _part(lambda: _panda(Path(path), Path(root)), ("panda70m", path, root), split, holdout, path)


def kinetics(split: str, *, path: str | os.PathLike, root: str | os.PathLike) -> ListedClips:
  """Kinetics' own CSVs (400, 600, 700): label, youtube_id, time_start, time_end, split.

  Args:
    split: as the list states it ("train", "val", "test", "holdout"), or "all".
    path: of one CSV, or a folder of them. root: where the videos are: clips that were cut out are called
      ID_000010_000020 with any ending, whole videos ID.

  Raises:
    FileNotFoundError: no such list. ValueError: a row that cannot be read (named by its line), or no video at all.
  """
  return _part(lambda: _kinetics(Path(path), Path(root)), ("kinetics", path, root), split, 0.0, path)


def ucf101(split: str, *, path: str | os.PathLike, root: str | os.PathLike, fold: int = 1) -> ListedClips:
  """UCF-101's own lists: classInd.txt, trainlist01.txt and testlist01.txt, of the folds 1, 2 and 3.

  Args:
    split: "train", "test" or "all".
    path: the folder of the lists (ucfTrainTestlist). root: where the videos are.

  Raises:
    FileNotFoundError: no such list. ValueError: a line that cannot be read, or no video at all.
  """
  return _part(lambda: _ucf101(Path(path), Path(root), fold), ("ucf101", path, root, fold), split, 0.0, path)


def _part(make, key, split, holdout, where) -> ListedClips:
  whole = kept(tuple(map(str, key)), make)
  return whole.only(whole.sides.chosen(split, holdout, str(where)))


class _Clips:
  """Gathers clips of videos that are there."""

  def __init__(self, root: Path):
    self.root, self.known = root, {}
    for file in video_files(root):
      self.known.setdefault(os.path.splitext(os.path.basename(file))[0], file)
    self.files, self._numbers = [], {}
    self.place, self.starts, self.ends, self.labels, self.lost = array("i"), array("f"), array("f"), array("i"), 0

  def find(self, *stems: str) -> tuple[int, str] | None:
    """(number of the file, which of the names it has); None, counted, where there is none."""
    stem = next((stem for stem in stems if stem in self.known), None)
    if stem is None:
      self.lost += 1
      return None
    file = self.known[stem]
    if file not in self._numbers:
      self._numbers[file] = len(self.files)
      self.files.append(file)
    return self._numbers[file], stem

  def add(self, place: int, label: int = -1, span: tuple[float, float] = (math.nan, math.nan)) -> None:
    self.place.append(place)
    self.labels.append(label)
    self.starts.append(span[0])
    self.ends.append(span[1])

  def done(self, names, sides: Sides, captions=None) -> ListedClips:
    if not len(self.place):
      raise ValueError(f"{self.root} has none of the listed videos ({self.lost} are missing): check the folder.")
    if self.lost:
      warn(f"{self.lost} of the listed videos are not in {self.root} and are left out.", stacklevel=6)
    spans = np.stack([np.array(self.starts, np.float32), np.array(self.ends, np.float32)], 1)
    arrays = np.array(self.place, np.int32), spans, np.array(self.labels, np.int32)
    return ListedClips(self.root, self.files, *arrays, names, sides, captions)


def _panda(path: Path, root: Path) -> ListedClips:
  clips, offsets, places, names = _Clips(root), array("q"), array("i"), []
  for offset, where, row in _rows(path, ("videoID", "timestamp", "caption")):
    found = clips.find(row["videoID"])
    if not found:
      continue
    times, captions = _list(row["timestamp"], where), _list(row["caption"], where)
    if len(times) != len(captions) or not all(isinstance(text, str) for text in captions):
      raise ValueError(f"{where} has {len(times)} timestamps and {len(captions)} captions, expected a text for each.")
    for k, pair in enumerate(times):
      clips.add(found[0], span=_span(pair, where))
      offsets.append(offset)
      places.append(k)
      names.append(row["videoID"])
  return clips.done((), Sides.by_name(names), (str(path), np.array(offsets, np.int64), np.array(places, np.int32)))


def _kinetics(path: Path, root: Path) -> ListedClips:
  lists = sorted(path.glob("*.csv")) if path.is_dir() else [path]
  if not lists:
    raise FileNotFoundError(f"{path} holds no .csv: pass a list of Kinetics, or a folder of them.")
  clips, splits, labels = _Clips(root), [], []
  for file in lists:
    for _, where, row in _rows(file, ("youtube_id", "time_start", "time_end", "split")):
      try:
        start, end = float(row["time_start"]), float(row["time_end"])
        cut = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
      except (ValueError, OverflowError):
        raise ValueError(
          f"{where} has times {brief(row['time_start'])}, {brief(row['time_end'])}, expected seconds."
        ) from None
      if not 0 <= start < end < math.inf:
        raise ValueError(f"{where} has times {start:g} to {end:g}, expected seconds that rise from 0.")
      found = clips.find(cut, row["youtube_id"])
      if found:
        clips.add(found[0], span=(start, end) if found[1] == row["youtube_id"] else (math.nan, math.nan))
        splits.append(row["split"])
        labels.append(row.get("label", ""))
  names = sorted({label for label in labels if label})
  number = {name: i for i, name in enumerate(names)}
  clips.labels = array("i", (number.get(label, -1) for label in labels))
  return clips.done(names, Sides.stated(splits))


def _ucf101(path: Path, root: Path, fold: int) -> ListedClips:
  names, clips, splits = _classes(path / "classInd.txt"), _Clips(root), []
  for split in ("train", "test"):
    file = path / f"{split}list{fold:02d}.txt"
    for number, line in enumerate(_text(file).splitlines(), 1):
      words = line.split()
      label = words[0].split("/")[0] if words else ""
      if words and ("/" not in words[0] or label not in names):
        raise ValueError(f"{file} line {number} is {brief(line)}, expected CLASS/VIDEO with a class of classInd.txt.")
      found = clips.find(os.path.splitext(os.path.basename(words[0]))[0]) if words else None
      if found:
        clips.add(found[0], names.index(label))
        splits.append(split)
  return clips.done(names, Sides.stated(splits))


def _classes(file: Path) -> list[str]:
  """Class names of lines "1 ApplyEyeMakeup", in that order."""
  rows = [line.split() for line in _text(file).splitlines() if line.strip()]
  if not rows or [row[0] for row in rows] != [str(i + 1) for i in range(len(rows))] or any(len(r) != 2 for r in rows):
    raise ValueError(f"{file} is no list of classes, expected lines such as '1 ApplyEyeMakeup', counted from 1.")
  return [name for _, name in rows]


def _text(file: Path) -> str:
  if not file.is_file():
    raise FileNotFoundError(f"{file} does not exist: pass the folder of the lists, as they were published.")
  try:
    return file.read_text("utf-8-sig")
  except UnicodeDecodeError:
    raise ValueError(f"{file} is not UTF-8 text, expected a list of videos.") from None


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, str, Mapping[str, str]]]:
  """Yields (offset, "FILE line N", row) of a CSV with a header."""
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist: pass the list as it was published.")

  def check(header, number):
    if missing := [name for name in needed if name not in header]:
      where = f"{path} line {number}"
      raise ValueError(f"{where} has no column {missing[0]!r}, expected {', '.join(needed)}: is it another list?")

  with open(path, "rb") as file:
    for offset, number, row in table_rows(Lines(str(path), file), check):
      yield offset, f"{path} line {number}", row


def _list(text: str, where: str = "") -> list:
  """A list written as Python or JSON writes it."""
  try:
    value = ast.literal_eval(text)  # literals only: nothing is run
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    value = None
  if not isinstance(value, list):
    raise ValueError(f"{where} has {brief(text)}, expected a list such as ['0:00:02.085', '0:00:05.464'].")
  return value


def _span(pair, where: str) -> tuple[float, float]:
  """Seconds of ["0:00:02.085", "0:00:05.464"]."""
  clocks = (
    [_CLOCK.fullmatch(text) if isinstance(text, str) else None for text in pair] if isinstance(pair, list) else []
  )
  if len(clocks) != 2 or None in clocks:
    raise ValueError(f"{where} has the timestamp {brief(pair)}, expected ['h:mm:ss.fff', 'h:mm:ss.fff'].")
  start, end = (3600 * int(m[1]) + 60 * int(m[2]) + float(m[3]) for m in clocks)
  if start >= end:
    raise ValueError(f"{where} has the timestamp {brief(pair)}, expected an end after the start.")
  return start, end
