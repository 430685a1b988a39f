"""Cuts captioned video into short windows: none spans a hard cut, and held-out time lies apart from training time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vftok.data.packaged_clip import Shot

GAP = 1.0  # seconds between training time and held-out time of one source
SHARE = 0.2  # of a training source's time that is held out, at its end


class Window(NamedTuple):
  """Frames first..last - 1 of a source, all inside one shot."""

  split: str
  first: int
  last: int
  shot: Shot


def hard_cuts(frames: Iterable[np.ndarray]) -> list[int]:
  """Indices of the frames (uint8 [H, W, 3]) that begin a new shot.

  A cut is a change, as the mean over 32 x 32 pixels, of over 24 of 255 that is twice the median change of the six
  frames before and after it: fast motion changes several frames in a row, a cut changes one or two.
  """
  small = [np.asarray(Image.fromarray(f).resize((32, 32), Image.Resampling.BOX), np.float32) for f in frames]
  changes = np.array([0.0] + [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(small)])
  cuts = []
  for i in np.flatnonzero(changes > 24):
    around = np.delete(changes[max(1, i - 6) : i + 7], min(i - 1, 6))
    if not len(around) or changes[i] > 2 * np.median(around):
      cuts.append(int(i))
  return cuts


def windows(
  shots: Sequence[Shot],
  cuts: Sequence[int],
  frames: int,
  fps: float,
  *,
  held_out: bool,
  seconds: float = 3.0,
  least: float = 2.1,
) -> list[Window]:
  """Windows of about `seconds`, at least `least`, in order of time.

  Args:
    shots: the captioned times; nothing else is used.
    cuts: first frames of new shots; a frame on either side of each is left out, for cuts that are half a dissolve.
    frames: of the whole source.
    held_out: all of it is split "val_source". Otherwise the last fifth of the captioned time is "val_time", after a
      gap of one second, and the rest "train"; of a source with under 4 windows nothing is held out.
  """
  need = math.ceil(least * fps - 1e-6)
  pieces = []
  for shot in shots:
    low, high = math.ceil(shot.start * fps - 1e-6), min(math.floor(shot.end * fps + 1e-6), frames)
    inside = [cut for cut in cuts if low < cut < high]
    for first, last in zip([low] + [cut + 1 for cut in inside], [cut - 1 for cut in inside] + [high], strict=True):
      if last - first >= need:
        pieces.append((first, last, shot))
  total = sum(last - first for first, last, _ in pieces)
  if held_out or total < 4 * need:
    return [w for piece in pieces for w in _tiled("val_source" if held_out else "train", *piece, seconds * fps, need)]
  wanted, border = max(need, round(SHARE * total)), frames
  for first, last, _ in reversed(pieces):
    # What is left of a piece must still hold a window.
    border = max(first, last - max(wanted, need))
    wanted -= last - border
    if wanted <= 0:
      break
  out = []
  for first, last, shot in pieces:
    end = min(last, border - math.ceil(GAP * fps))
    out += _tiled("train", first, end, shot, seconds * fps, need)
    out += _tiled("val_time", max(first, border), last, shot, seconds * fps, need)
  return out


def _tiled(split: str, first: int, last: int, shot: Shot, target: float, need: int) -> list[Window]:
  length = last - first
  count = min(max(1, round(length / target)), length // need) if length >= need else 0
  edges = [first + length * i // count for i in range(count + 1)] if count else []
  return [Window(split, a, b, shot) for a, b in itertools.pairwise(edges)]
