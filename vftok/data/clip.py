"""One clip of a fixed shape out of what a source gives: which moments, which crop, flipped or not.

Training draws all of it from the generator that is passed; evaluation takes the middle of the video and of the
picture. The picture is resized (bicubic, antialiased) as a whole and then cropped.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from vftok.data.window import shown
from vftok.io.container import VideoBytes
from vftok.io.display import MIDDLE, Display, cover
from vftok.io.video import check_fps


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """What every clip of a loader looks like.

  Attributes:
    frames: frames per clip, F.
    size: (H, W) in pixels.
    fps: frames per second to show it at, 0.01..1000; None keeps each video's own (average) rate.
    flip: mirror left and right with probability 1/2, in training.
    scale: range of the crop's side relative to the largest that fits, 0 < low <= high <= 1, in training.
    timeout: seconds that reading one clip may take.
  """

  frames: int = 17
  size: tuple[int, int] = (64, 64)
  fps: float | None = 8.0
  flip: bool = False
  scale: tuple[float, float] = (1.0, 1.0)
  timeout: float = 60.0

  def __post_init__(self):
    if self.frames < 1:
      raise ValueError(f"frames is {self.frames}, expected a number of frames: pass 1 or more.")
    if len(self.size) != 2 or min(self.size) < 1:
      raise ValueError(f"size is {self.size}, expected (height, width) in pixels: pass two numbers of at least 1.")
    if self.fps is not None:
      check_fps(self.fps)
    if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
      raise ValueError(f"scale is {self.scale}, expected (low, high) with 0 < low <= high <= 1: change the crop.")
    if not self.timeout > 0:
      raise ValueError(f"timeout is {self.timeout}, expected seconds above 0: pass 60 or so.")


@dataclasses.dataclass(frozen=True)
class _Draw:
  """Where the clip lies: moment, top and left in [0, 1) of the room there is."""

  moment: float = MIDDLE
  top: float = MIDDLE
  left: float = MIDDLE
  scale: float = 1.0
  flip: bool = False

  def of(self, shape, size):
    """See `cover`."""
    return cover(shape, size, self.scale, self.top, self.left)


def load_clip(record: Mapping[str, Any], spec: ClipSpec, rng: np.random.Generator | None = None) -> np.ndarray:
  """Frames uint8 [F, H, W, 3] of one record of a source (see `sources.Source`).

  Args:
    record: holds one of "mp4" (bytes), "path" (with "start" and "end" in seconds, if only a part counts) or
      "frames" (uint8 [F, H, W, 3], with "fps").
    rng: draws moment, crop and flip; None takes the middle.

  Raises:
    FileNotFoundError, ValueError: the video is missing or damaged.
    ShortClip: it is shorter than the clip.
    TimeoutError: it took longer than `spec.timeout` seconds.
  """
  draw = _Draw()
  if rng is not None:
    moment, top, left, scale, flip = rng.random(5)
    low, high = spec.scale
    draw = _Draw(moment, top, left, low + (high - low) * scale, spec.flip and flip < 0.5)
  frames = _from_array(record, spec, draw) if "frames" in record else _from_video(record, spec, draw)
  return np.ascontiguousarray(frames[:, :, ::-1]) if draw.flip else frames


class ShortClip(ValueError):
  """A sound video that is shorter than the clips asked for."""


def moments(spec: ClipSpec, begin: float, end: float, rate: float, moment: float) -> np.ndarray:
  """Seconds, float64 [F], at which to look at a video that runs from `begin` to `end`.

  Looks half-way between two frames of the video where it can, so that rounded timestamps change nothing.
  """
  fps = spec.fps or rate
  span = (spec.frames - 1) / fps
  room = end - begin - span
  if room <= 1e-6:
    have = math.floor(max(0.0, end - begin) * fps + 1e-6)
    raise ShortClip(f"has {have} frames at {fps:g} frames per second, expected at least {spec.frames}: leave it out.")
  offset = (math.floor(moment * room * rate) + 0.5) / rate
  return begin + min(offset, room - 1e-6) + np.arange(spec.frames) / fps


def _from_video(record, spec, draw):
  name = record.get("name") or str(record.get("path", "the video"))
  video = VideoBytes(record["mp4"], name) if "mp4" in record else record["path"]
  deadline = time.monotonic() + spec.timeout

  def check():
    if time.monotonic() > deadline:
      raise TimeoutError(f"{name} took longer than {spec.timeout:g} s")

  def choose(seconds, rate):
    begin, end = record.get("start"), record.get("end")
    try:
      return moments(spec, begin or 0.0, seconds if end is None else min(end, seconds), rate, draw.moment)
    except ShortClip as error:
      raise ShortClip(f"{name} {error}") from None

  clip = np.empty((spec.frames, *spec.size, 3), np.uint8)
  display, done = None, {}
  for k, frame, aspect in shown(video, choose, check, spec.timeout):
    display = display or Display(aspect)
    if frame.pts in done and frame.pts is not None:  # on screen at two moments
      clip[k] = clip[done[frame.pts]]
    else:
      clip[k], done[frame.pts] = display(frame, *draw.of(display.shape(frame), spec.size)), k
  return clip


def _from_array(record, spec, draw):
  frames, rate = np.asarray(record["frames"]), record.get("fps")
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
    raise ValueError(f"{record['name']} has frames {frames.dtype} {frames.shape}, expected uint8 [F, H, W, 3].")
  rate = rate or spec.fps or 1.0
  try:
    chosen = frames[np.floor(moments(spec, 0.0, len(frames) / rate, rate, draw.moment) * rate).astype(int)]
  except ShortClip as error:
    raise ShortClip(f"{record['name']} {error}") from None
  (rows, columns), window = draw.of(frames.shape[1:3], spec.size)
  if (rows, columns) != frames.shape[1:3]:
    return _resized(chosen, rows, columns, window)
  return np.ascontiguousarray(chosen[:, *window])


def _resized(frames_FxHxWx3, rows: int, columns: int, window) -> np.ndarray:
  """Each frame resized to (rows, columns), then the window of it: two calls for all frames instead of one for each.

  Pillow resizes along the width first and rounds in between, so doing one axis of all frames at a time is the same.
  """
  count, height, width, _ = frames_FxHxWx3.shape
  resize = lambda image, *size: np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
  tall = np.ascontiguousarray(frames_FxHxWx3).reshape(count * height, width, 3)
  narrow = resize(tall, columns, count * height).reshape(count, height, columns, 3)[:, :, window[1]]
  wide = np.ascontiguousarray(narrow.transpose(1, 0, 2, 3)).reshape(height, -1, 3)
  found = resize(wide, wide.shape[1], rows)[window[0]]
  return np.ascontiguousarray(found.reshape(len(found), count, -1, 3).transpose(1, 0, 2, 3))


def load_clips(records, spec: ClipSpec, seeds) -> np.ndarray:
  """uint8 [n, F, H, W, 3] of n records; seeds: of each one's generator, or None for the middle."""
  clips = np.empty((len(records), spec.frames, *spec.size, 3), np.uint8)
  for i, record in enumerate(records):
    clips[i] = load_clip(record, spec, None if seeds is None else np.random.default_rng(int(seeds[i])))
  return clips
