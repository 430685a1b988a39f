"""`shapes`: coloured shapes that move over a shaded ground. numpy only, for tests and first tries."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from vftok.data.clip import load_clips

COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 180, 60),
  "blue": (50, 80, 230),
  "yellow": (235, 210, 50),
  "white": (240, 240, 240),
}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SHAPES = {
  "disc": np.hypot,
  "square": lambda y, x: np.maximum(abs(y), abs(x)) * 1.15,
  "diamond": lambda y, x: (abs(y) + abs(x)) * 0.8,
}


class ShapesSource:
  """`count` clips; each is a pure function of (split, its index), and so are caption and label (the shape).

  Args:
    size: (H, W) or one number for both, at least 8.
    frames: of every clip.
    objects: the most of them in a clip, 1 to 3. Caption, label and attributes but "count" are of the one in front.
  """

  label_names = tuple(SHAPES)
  attribute_names = {
    "object": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "motion": tuple(DIRECTIONS),
    "count": ("one", "two", "three"),
  }

  def __init__(
    self,
    split: str = "train",
    *,
    size=(64, 64),
    frames: int = 17,
    count: int = 1000,
    fps: float = 8.0,
    objects: int = 1,
  ):
    self.size = (size, size) if isinstance(size, int) else tuple(size)
    if len(self.size) != 2 or min(self.size) < 8:
      raise ValueError(f"size is {size}, expected (height, width) in pixels: pass two numbers of at least 8.")
    if min(frames, count) < 1:
      raise ValueError(f"frames is {frames} and count {count}, expected at least 1 of each: pass 1 or more.")
    if not 1 <= objects <= 3:
      raise ValueError(f"objects is {objects}, expected 1 to 3: pass a number in that range.")
    self.split, self.frames, self.count, self.fps, self.objects = split, frames, count, fps, objects

  def __len__(self):
    return self.count

  def take(self, indices, spec, seeds=None):
    """As `sources.Source` says."""
    return {"video": load_clips([self[i] for i in indices.tolist()], spec, seeds)}

  def describe(self, indices):
    """Captions and labels."""
    fronts = [self._drawn(i)[0][0] for i in indices.tolist()]
    return [_caption(front) for front in fronts], [self.label_names.index(front.shape) for front in fronts]

  def attributes(self, indices) -> dict[str, np.ndarray]:
    """{attribute: int32 [n]}, places in `attribute_names`."""
    drawn = [self._drawn(i)[0] for i in np.asarray(indices).tolist()]
    place = lambda name, words: np.array([self.attribute_names[name].index(word) for word in words], np.int32)
    return {
      "object": place("object", [things[0].shape for things in drawn]),
      "colour": place("colour", [things[0].colour for things in drawn]),
      "motion": place("motion", [things[0].direction for things in drawn]),
      "count": np.array([len(things) - 1 for things in drawn], np.int32),
    }

  def _drawn(self, index: int) -> tuple[list[_Thing], tuple[float, float, np.ndarray]]:
    """(things, the first in front; of the ground: two angles and the strength of each colour)."""
    rng = np.random.default_rng([zlib.crc32(self.split.encode()), index])
    words = _words(rng)
    (height, width), side = self.size, min(self.size)
    radius, speed = side * rng.uniform(0.12, 0.22), side * rng.uniform(0.02, 0.06)
    things = [_Thing(*words, radius, speed, height * rng.uniform(0.3, 0.7), width * rng.uniform(0.3, 0.7))]
    ground = rng.uniform(0, 6), rng.uniform(0, 6), rng.uniform(0.6, 1.0, 3)
    for _ in range(rng.integers(self.objects) if self.objects > 1 else 0):
      words, numbers = _words(rng), rng.uniform((0.08, 0.0, 0.1, 0.1), (0.15, 0.06, 0.9, 0.9))
      things.append(_Thing(*words, *(numbers * (side, side, height, width))))
    return things, ground

  def __getitem__(self, index):
    (things, (row, column, tint)), (height, width) = self._drawn(index), self.size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    frames = (40 + 80 * (np.cos(row) * y / height + np.sin(column) * x / width + 1) / 2)[..., None] * tint
    time = np.arange(self.frames, dtype=np.float32)[:, None, None] - self.frames // 2
    for thing in reversed(things):
      down, right = DIRECTIONS[thing.direction]
      moved = (y - thing.row - time * thing.speed * down, x - thing.column - time * thing.speed * right)
      cover = np.clip(thing.radius - SHAPES[thing.shape](*moved) + 0.5, 0, 1)[..., None]  # one pixel of soft edge
      frames = frames * (1 - cover) + np.array(COLOURS[thing.colour]) * cover
    return {
      "frames": np.rint(frames).astype(np.uint8),
      "caption": _caption(things[0]),
      "label": self.label_names.index(things[0].shape),
      "name": f"shapes/{self.split}:{index}",
      "fps": self.fps,
    }


class _Thing(NamedTuple):
  """Names, then pixels: `speed` of a frame, `row` and `column` of the centre in the middle frame."""

  shape: str
  colour: str
  direction: str
  radius: float
  speed: float
  row: float
  column: float


def _words(rng) -> tuple[str, ...]:
  return tuple(list(table)[rng.integers(len(table))] for table in (SHAPES, COLOURS, DIRECTIONS))


def _caption(thing: _Thing) -> str:
  return f"a {thing.colour} {thing.shape} moves {thing.direction}"
