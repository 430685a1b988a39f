"""`video_folder` and `image_folder`: files on disk, by a folder tree or a CSV/TSV/JSONL manifest.

Layouts that this covers: UCF-101 (<label>/<file>), Kinetics (train|val|test/<label>/<file>), Panda-70M and the like
(a manifest with path, caption, start, end).
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vftok.data.manifest import Manifest, listed
from vftok.io import still
from vftok.io.sides import SPLITS, Sides
from vftok.runtime.meeting import warn
from vftok.runtime.words import brief

ENDINGS = frozenset(".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogg .ogv .ts .webm .wmv".split())
PICTURES = frozenset(still.ENDINGS)
_MOST_LABELS = 1 << 24  # bytes of a file of names


def video_folder(
  split: str,
  *,
  path: str | os.PathLike,
  root: str | os.PathLike | None = None,
  holdout: float = 0.05,
  columns: Mapping[str, str] | None = None,
  labels: Sequence[str] | str | os.PathLike | None = None,
  links: bool = False,
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
    labels: names of the labels 0, 1, ..., or a text file with one in each line, where several folders or manifests
      share them. None: those found in this one, of all its splits, by the alphabet.
    links: follow links that lead out of the folder; else they are left out, and a warning says so.

  Raises:
    FileNotFoundError: no such folder or manifest.
    NoSuchSplit: none of that name.
    ValueError: no video in it, a label that is not in `labels`, or a bad manifest (the sentence names line and
      column).
  """
  return _files(split, path, root, holdout, columns, labels, links, ENDINGS)


def image_folder(
  split: str,
  *,
  path: str | os.PathLike,
  root: str | os.PathLike | None = None,
  holdout: float = 0.05,
  columns: Mapping[str, str] | None = None,
  labels: Sequence[str] | str | os.PathLike | None = None,
  links: bool = False,
):
  """Pictures (PNG, JPEG, WebP) of a folder tree or a manifest, each a clip of one frame: for loaders of `frames` = 1.

  All arguments and errors as of `video_folder`; ImageNet's layout is <split>/<label>/<file>.
  """
  return _files(split, path, root, holdout, columns, labels, links, PICTURES)


def _files(split, path, root, holdout, columns, labels, links, endings):
  if not 0 <= holdout < 1:
    raise ValueError(f"holdout is {holdout}, expected a share of the files: pass 0 or more and less than 1.")
  whole = _opened(Path(path), root, columns or {}, label_list(labels), links, endings)
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


def kept(key, make: Callable[[], Any]) -> Any:
  """make(), or inside `opened_once` what it gave before under this key."""
  if _kept is None:
    return make()
  if key not in _kept:
    _kept[key] = make()
  return _kept[key]


def _opened(path: Path, root, columns, labels, links: bool, endings: frozenset[str]) -> FolderSource | Manifest:
  """All clips of a tree or a manifest; `sides` says which split each is of."""
  key = (str(path.absolute()), root and str(root), tuple(sorted(columns.items())), labels, links, endings)

  def make():
    if path.is_dir():
      return FolderSource(path, labels, links, endings)
    if not path.exists():
      raise FileNotFoundError(f"{path} does not exist: pass a folder of videos, or a .csv, .tsv or .jsonl file.")
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
      raise ValueError(f"{path} ends in {path.suffix!r}, expected a folder of videos, or a .csv, .tsv or .jsonl file.")
    return Manifest(path, Path(root) if root else path.parent, columns, labels)

  return kept(key, make)


def video_files(root: Path) -> Iterator[str]:
  """Paths of the video files below a folder, relative, with slashes; links out of it are not followed."""
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is no folder, expected one of videos: check the path.")
  return _walk(root, False, [], ENDINGS)


def label_list(labels) -> tuple[str, ...] | None:
  """Names out of `video_folder`'s `labels`. Raises ValueError or FileNotFoundError where they are no list of names."""
  if labels is None:
    return None
  if isinstance(labels, str | os.PathLike):
    file = Path(labels)
    if not file.is_file():
      raise FileNotFoundError(f"{file} does not exist: pass labels as names, or a file with one in each line.")
    if file.stat().st_size > _MOST_LABELS:
      raise ValueError(f"{file} has {file.stat().st_size} bytes, expected a list of label names: check the path.")
    try:
      labels = [name.strip() for name in file.read_text("utf-8-sig").splitlines() if name.strip()]
    except UnicodeDecodeError as error:
      raise ValueError(f"{file} is not UTF-8 at byte {error.start}: save it as UTF-8.") from None
  labels = tuple(labels)
  if not labels or not all(isinstance(name, str) and name for name in labels):
    raise ValueError(f"labels are {brief(labels)}, expected names: pass a list of text.")
  if twice := [name for name in dict.fromkeys(labels) if labels.count(name) > 1]:
    raise ValueError(f"labels name {listed(twice, 3)} twice, expected each name once.")
  return labels


class FolderSource:
  """Files with these endings of a folder tree, by their paths. `sides`: the split of each; gone in parts."""

  def __init__(self, root: Path, labels: tuple[str, ...] | None = None, links: bool = False, endings=ENDINGS):
    left_out = []
    files = sorted(_walk(root, links, left_out, endings))
    if left_out:
      what = f"{len(left_out)} links in {root} lead out of it and are not followed, {left_out[0]} for one"
      warn(f"{what}: pass links=True where they are yours.", stacklevel=5)
    if not files:
      what = "pictures" if endings == PICTURES else "video files"
      raise ValueError(f"{root} holds no {what} ({', '.join(sorted(endings))}): check the path.")
    tops = {file.split("/")[0] for file in files}
    # A folder called "train" among others is a label like any other.
    stated = all("/" in file for file in files) and "train" in tops and tops <= set(SPLITS)
    self.sides = Sides.stated(file.split("/")[0] for file in files) if stated else Sides.by_name(files)
    self.root, self.depth = str(root), int(stated)
    found = {name: file for file in files if (name := self._label(file)) is not None}
    if labels is not None and (unknown := sorted(found.keys() - set(labels))):
      raise ValueError(
        f"{root} has the folder {brief(unknown[0])}, expected one of the {len(labels)} labels: add it to them."
      )
    self.label_names = labels or tuple(sorted(found))
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


def _walk(root: Path, links: bool, left_out: list[str], endings: frozenset[str]):
  """Paths of files with these endings below `root`, relative, with slashes. A folder that links lead to comes once.

  Links out of `root` are followed where `links` says so; else they go to `left_out`.
  """
  seen, top = set(), os.path.realpath(root)

  def inside(folder, name):
    path = os.path.join(folder, name)
    if links or not os.path.islink(path) or os.path.commonpath([top, os.path.realpath(path)]) == top:
      return True
    left_out.append(path)
    return False

  for folder, children, files in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      children.clear()
      continue
    seen.add(real)
    # The first of several links counts.
    children[:] = sorted(name for name in children if not name.startswith(".") and inside(folder, name))
    relative = os.path.relpath(folder, root).replace(os.sep, "/")
    for name in files:
      if os.path.splitext(name)[1].lower() in endings and not name.startswith(".") and inside(folder, name):
        yield name if relative == "." else f"{relative}/{name}"
