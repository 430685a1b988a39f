"""`video_folder`: video files on disk, by a folder tree or a CSV/TSV/JSONL manifest.

Layouts that this covers: UCF-101 (<label>/<file>), Kinetics (train|val|test/<label>/<file>), Panda-70M and the like
(a manifest with path, caption, start, end).
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vftok.data.manifest import Manifest
from vftok.data.sides import SPLITS, Sides

ENDINGS = frozenset(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogg .ogv .ts .webm .wmv".split())


def video_folder(
  split: str,
  *,
  path: str | os.PathLike,
  root: str | os.PathLike | None = None,
  holdout: float = 0.05,
  columns: Mapping[str, str] | None = None,
):
  """Videos of a folder tree or a manifest.

  A folder: the label of a file is the name of the sub-folder that it is in (of the first, where they are nested),
  -1 where there is none, and its caption is the same name. Sub-folders train, val and test are splits.
  A manifest: columns path (relative to `root`), and if wanted caption, label (names or numbers), start, end
  (seconds), split. Without splits of its own, a stable hash of the path as written puts `holdout` of the files into
  "val" and the others into "train", so that all clips of one file are on one side; "all" is everything.

  Args:
    path: the folder, or a .csv, .tsv or .jsonl file in UTF-8.
    root: where relative paths of a manifest start; its own folder by default.
    columns: {our name: name in the manifest}, for manifests that call columns otherwise.

  Raises:
    FileNotFoundError: no such folder or manifest.
    ValueError: no video in it, no such split, or a bad manifest (the sentence names line and column).
  """
  if not 0 <= holdout < 1:
    raise ValueError(f"holdout is {holdout}, expected a share of the files: pass 0 or more and less than 1.")
  whole = _opened(Path(path), root, columns or {})
  return whole.only(whole.sides.chosen(split, holdout, str(path)))


_kept: dict | None = None  # of `opened_once`


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
  """Inside, a folder tree is walked and a manifest is read once, however many splits and passes ask for them."""
  global _kept
  before = _kept
  _kept = {} if before is None else before
  try:
    yield
  finally:
    _kept = before


def _opened(path: Path, root, columns) -> FolderSource | Manifest:
  """All clips of a tree or a manifest; `sides` says which split each is of."""
  key = (str(path.absolute()), root and str(root), tuple(sorted(columns.items())))
  if _kept is not None and key in _kept:
    return _kept[key]
  if path.is_dir():
    whole = FolderSource(path)
  elif not path.exists():
    raise FileNotFoundError(f"{path} does not exist: pass a folder of videos, or a .csv, .tsv or .jsonl file.")
  elif path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
    raise ValueError(f"{path} ends in {path.suffix!r}, expected a folder of videos, or a .csv, .tsv or .jsonl file.")
  else:
    whole = Manifest(path, Path(root) if root else path.parent, columns)
  if _kept is not None:
    _kept[key] = whole
  return whole


class FolderSource:
  """The video files of a folder tree, in the order of their paths. `sides`: the split of each; gone in parts."""

  def __init__(self, root: Path):
    files = sorted(_walk(root))
    if not files:
      raise ValueError(f"{root} holds no video files ({', '.join(sorted(ENDINGS))}): check the path.")
    tops = {file.split("/")[0] for file in files}
    # A folder called "train" among others is a label like any other.
    stated = all("/" in file for file in files) and "train" in tops and tops <= set(SPLITS)
    self.sides = Sides.stated(file.split("/")[0] for file in files) if stated else Sides.by_name(files)
    self.root, self.depth = str(root), int(stated)
    self.label_names = tuple(sorted({name for file in files if (name := self._label(file)) is not None}))
    self.files = files
    self._labels = {name: i for i, name in enumerate(self.label_names)}

  def only(self, positions: np.ndarray) -> FolderSource:
    """The same with these files: what a process of its own is given, at the size of its part."""
    part = copy.copy(self)
    part.files, part.sides = [self.files[i] for i in positions], None
    return part

  def _label(self, file):
    parts = file.split("/")[self.depth :]
    return parts[0] if len(parts) > 1 else None

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    file = self.files[index]
    label = self._label(file)
    return {
      "path": os.path.join(self.root, file),
      "caption": label or "",
      "label": self._labels.get(label, -1),
      "name": file,
      "fps": None,
    }


def _walk(root: Path):
  """Paths of video files below `root`, relative, with slashes. Links to folders are followed, each folder once."""
  seen = set()
  for folder, children, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      children.clear()
      continue
    seen.add(real)
    children[:] = sorted(name for name in children if not name.startswith("."))  # the first of several links counts
    relative = os.path.relpath(folder, root).replace(os.sep, "/")
    for name in files:
      if os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith("."):
        yield name if relative == "." else f"{relative}/{name}"
