"""`packed`: clips in one file that NumPy and Pillow alone can read, all decoded into memory when it is opened.

The file is an uncompressed .npz without pickles. Of n clips it holds
  "blob" uint8 [bytes], every clip an AVIF sequence, or lossless WebP with its frames below each other;
  "offsets" int64 [n + 1], where each clip begins in the blob; "frames" int32 [n];
  "split", "caption", "name" text [n]; "label" int32 [n];
  "meta" JSON text: "format", "version", "codec", "size" [H, W], "fps", "label_names".
Clips may be longer and larger than what training takes: moment, crop and flip are drawn as from any stored frames.
`python -m vftok.tools.pack` writes one from any other source.
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from PIL import Image, features

from vftok.data.clip import load_clip
from vftok.io.sides import NoSuchSplit
from vftok.runtime.files import whole_file
from vftok.runtime.words import brief, is_whole

FORMAT, VERSION = "vftok-packed", 1
CODECS = ("AVIF", "WEBP")
LIMIT = 16 * 2**30  # bytes of decoded clips; a file that promises more is refused before anything is decoded
_ARRAYS = dict(blob="u1", offsets="i8", frames="i4", label="i4", split="U", caption="U", name="U", meta="U")
_MOST_FRAMES, _MOST_SIDE = 100_000, 16_384


def write_packed(path, clips: Iterable[Mapping[str, Any]], *, fps: float, codec="AVIF", quality=90, label_names=()):
  """Writes a file that `packed` reads, whole or not at all.

  Args:
    clips: each with "video" uint8 [F, H, W, 3] (F may differ), "split" and, if wanted, "caption", "label", "name".
    fps: frames per second of all of them.
    codec: "AVIF" (4:4:4, of this quality 1..100) or "WEBP" (lossless).

  Raises:
    ValueError: no clips, several sizes, or a codec that is unknown or that this Pillow cannot write.
  """
  _check_codec(codec, path)
  rows, parts, size = [], [], None
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for number, clip in enumerate(clips):
      video = np.asarray(clip["video"])
      size = size or video.shape[1:3]
      if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != (*size, 3) or not len(video):
        raise ValueError(f"clip {number} is {video.dtype} {video.shape}, expected uint8 [F, {size[0]}, {size[1]}, 3].")
      rows.append({"frames": len(video), **{k: clip.get(k, v) for k, v in _DEFAULTS.items()}})
      parts.append(pool.submit(_encoded, video, codec, quality))
  if not rows:
    raise ValueError(f"there are no clips to write to {path}: pass at least one.")
  parts = [part.result() for part in parts]
  meta = dict(format=FORMAT, version=VERSION, codec=codec, size=list(size), fps=fps, label_names=list(label_names))
  arrays = {key: np.array([row[key] for row in rows], _ARRAYS[key]) for key in rows[0]}
  arrays["offsets"] = np.cumsum([0, *map(len, parts)], dtype=np.int64)
  arrays["blob"] = np.frombuffer(b"".join(parts), np.uint8)
  with whole_file(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, meta=np.array(json.dumps(meta)), **arrays)


_DEFAULTS = dict(split="train", caption="", name="", label=-1)


def _encoded(video, codec, quality) -> bytes:
  out = io.BytesIO()
  if codec == "AVIF":
    first, *others = (Image.fromarray(frame) for frame in video)
    first.save(out, "AVIF", save_all=True, append_images=others, quality=quality, subsampling="4:4:4", speed=4)
  else:
    Image.fromarray(video.reshape(-1, *video.shape[2:])).save(out, "WEBP", lossless=True, quality=90, method=6)
  return out.getvalue()


def packed(split: str, *, path: str | os.PathLike, frames: int = 0, window: int = 0, limit: int = LIMIT):
  """Reads what `write_packed` wrote: clips of one split, or of "all".

  Args:
    frames: clips with fewer frames than this (at the file's rate) are left out.
    window: frames; a longer clip is given as windows of so many that overlap by half, so that it comes as often as it
      is long and not just once in an epoch. 0 gives every clip as a whole.
    limit: bytes that the decoded clips may take.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged or no such file, it has no such split, or more clips than `limit` allows.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist: write it with `python -m vftok.tools.pack`, or check the path.")
  arrays, meta = _read(path)
  splits = sorted({*arrays["split"].tolist()})
  if split not in (*splits, "all"):
    raise NoSuchSplit(f"split is {split!r}, expected one of {', '.join([*splits, 'all'])} of {path}: choose one.")
  chosen = np.flatnonzero(((arrays["split"] == split) | (split == "all")) & (arrays["frames"] >= frames))
  need = int(arrays["frames"][chosen].astype(np.int64).sum()) * math.prod(meta["size"]) * 3
  if need > limit:
    raise ValueError(f"{path} needs {need:,} bytes of memory for split {split!r}, the limit is {limit:,}: raise limit.")
  if not len(chosen):
    raise ValueError(f"{path} has no clip of {frames} frames in split {split!r}: ask for fewer frames.")
  return PackedSource(path, arrays, meta, chosen, window)


class PackedSource:
  """Clips of a packed file in memory. Attributes: meta, label_names."""

  def __init__(self, path: Path, arrays, meta, chosen, window: int):
    self.meta, self.label_names, self.fps = meta, tuple(meta["label_names"]), float(meta["fps"])
    self._path, self._split, self._pool = path, arrays["split"][chosen], None
    self._caption, self._label, self._name = (arrays[key][chosen] for key in ("caption", "label", "name"))
    blob, offsets = memoryview(arrays["blob"]), arrays["offsets"]

    def decode(i):
      shape = (int(arrays["frames"][i]), *meta["size"], 3)
      try:
        return _decoded(blob[offsets[i] : offsets[i + 1]], shape, meta["codec"])
      except Exception as error:  # Pillow raises many kinds, and what is inside is a stranger's
        reason = str(error) if isinstance(error, _Misfit) else f"its bytes are no {meta['codec']}"
        raise ValueError(f"{path} is damaged at clip {i} ({reason}): get a whole copy of it.") from None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the GIL
      self._clips = list(pool.map(decode, chosen.tolist()))
    lengths = [len(clip) for clip in self._clips]
    self._windows = np.array([(i, a, b) for i, n in enumerate(lengths) for a, b in _windows(n, window)], np.int64)

  def __len__(self):
    return len(self._windows)

  def __getitem__(self, index):
    clip, first, last = self._windows[index].tolist()
    name = str(self._name[clip]) or f"{self._path.name}:{self._split[clip]}:{clip}"
    return {
      "frames": self._clips[clip][first:last],
      "caption": str(self._caption[clip]),
      "label": int(self._label[clip]),
      "name": f"{name}+{first}" if first else name,
      "fps": self.fps,
    }

  def take(self, indices, spec, seeds=None):
    """As `sources.Source` says; clips are cut and resized by threads. Raises ValueError: a clip is too short."""
    out = np.empty((len(indices), spec.frames, *spec.size, 3), np.uint8)

    def fill(k):
      out[k] = load_clip(self[indices[k]], spec, None if seeds is None else np.random.default_rng(int(seeds[k])))

    self._pool = self._pool or concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    list(self._pool.map(fill, range(len(indices))))
    return {"video": out}

  def describe(self, indices):
    """Captions and labels."""
    clips = self._windows[indices, 0]
    return self._caption[clips].astype(object), self._label[clips]

  def __getstate__(self):
    return self.__dict__ | {"_pool": None}


def _windows(count: int, window: int) -> list[tuple[int, int]]:
  """(first, last) of windows of a clip of `count` frames, one about every half window."""
  if not 0 < window < count:
    return [(0, count)]
  pieces = max(1, math.ceil((count - window) / max(1, window // 2)))
  return [(first, first + window) for i in range(pieces + 1) for first in [(count - window) * i // pieces]]


class _Misfit(ValueError):
  """A picture of another size or number; the message is the reason alone."""


def _decoded(data, shape, codec) -> np.ndarray:
  count, height, width, _ = shape
  with Image.open(io.BytesIO(data), formats=[codec]) as picture:
    tall = count * height if codec == "WEBP" else height
    found = (getattr(picture, "n_frames", 1), picture.size)
    wanted = (1 if codec == "WEBP" else count, (width, tall))
    if found != wanted:
      raise _Misfit(f"it has {found[0]} pictures of {found[1]}, its header says {wanted[0]} of {wanted[1]}")
    if codec == "WEBP":
      return np.asarray(picture.convert("RGB")).reshape(shape)
    clip = np.empty(shape, np.uint8)
    for i in range(count):
      picture.seek(i)
      clip[i] = np.asarray(picture.convert("RGB"))
  return clip


def _check_codec(codec, path):
  if codec not in CODECS:
    raise ValueError(f"codec is {codec!r}, expected one of {', '.join(CODECS)}: choose one.")
  if not features.check(codec.lower()):
    raise ValueError(f"{path} holds {codec} pictures, which this Pillow was built without: pip install 'pillow>=11.3'.")


def _check_meta(meta: Any, path: Path, bad: Callable[[str], ValueError]) -> None:
  version = meta.get("version") if isinstance(meta, dict) else None
  if not is_whole(version) or version != VERSION or meta.get("format") != FORMAT:
    raise bad(f"its meta is not of format {FORMAT} {VERSION}")
  size, fps, names = meta.get("size"), meta.get("fps"), meta.get("label_names")
  if not isinstance(size, list) or len(size) != 2 or not all(is_whole(x) and 0 < x <= _MOST_SIDE for x in size):
    raise bad(f"its size is {str(size)[:40]}")
  if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0.01 <= fps <= 1000:
    raise bad(f"its fps is {str(fps)[:40]}")
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise bad("its label_names are not a list of text")
  if not isinstance(meta.get("codec"), str):
    raise bad(f"its codec is {str(meta.get('codec'))[:40]}")
  _check_codec(meta["codec"], path)


def _array(archive: zipfile.ZipFile, key: str, kind: str, bad: Callable[[str], ValueError]) -> np.ndarray:
  """An array of the file. What its header says is looked at first: NumPy would make whatever that asks for."""
  member = archive.getinfo(f"{key}.npy")
  with archive.open(member) as file:
    try:
      header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(file)]
      shape, _, dtype = header(file)
    except Exception:  # of all kinds, for NumPy reads headers as Python's own text
      raise bad(f"{key} is no array") from None
    same = dtype.kind == "U" if kind == "U" else dtype == np.dtype(kind)
    if not same or len(shape) != (key != "meta") or any(n < 0 for n in shape):
      raise bad(f"{key} is {dtype} {brief(shape)}")
    asked, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if asked != held or member.compress_type != zipfile.ZIP_STORED:
      raise bad(f"{key} has {held} bytes, and {brief(shape)} of {dtype} are {brief(asked)}")
    array = np.ndarray(shape, dtype, file.read())
  try:
    array.tolist() if kind == "U" else None
  except (ValueError, SystemError):  # numbers beyond all characters
    raise bad(f"{key} holds what is no text") from None
  return array


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The arrays and meta of a file, all checked against each other; no picture is decoded."""

  def bad(reason):
    return ValueError(f"{path} is no whole packed file ({reason}): get a whole copy, or write it again.")

  arrays = {}
  try:
    with zipfile.ZipFile(path) as archive:
      if lacking := [key for key in _ARRAYS if f"{key}.npy" not in archive.namelist()]:
        raise bad(f"it lacks {', '.join(lacking)}")
      for key, kind in _ARRAYS.items():
        arrays[key] = _array(archive, key, kind, bad)
  except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):  # an encrypted one is a RuntimeError
    raise bad("its zip is damaged") from None
  try:
    meta = json.loads(str(arrays["meta"]))
  except (ValueError, RecursionError):
    raise bad("its meta is no JSON") from None
  _check_meta(meta, path, bad)
  frames, offsets, label, names = arrays["frames"], arrays["offsets"], arrays["label"], meta["label_names"]
  count = len(frames)
  if not count or any(len(arrays[key]) != count for key in ("label", "split", "caption", "name")):
    raise bad(f"it has {count} clips and other counts beside them")
  end = len(arrays["blob"])
  if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != end or (offsets[1:] <= offsets[:-1]).any():
    raise bad(f"its offsets do not cut its {end} bytes into {count} clips")
  if (frames < 1).any() or (frames > _MOST_FRAMES).any():
    raise bad(f"a clip has {frames.min()} or {frames.max()} frames")
  if (label < -1).any() or (names and (label >= len(names)).any()):
    raise bad(f"a label is {label.min()} or {label.max()}")
  return arrays, meta
