"""`shapes`: a coloured shape that moves over a shaded ground. numpy only, for tests and first tries."""

from __future__ import annotations

import zlib

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
  """

  label_names = tuple(SHAPES)

  def __init__(self, split: str = "train", *, size=(64, 64), frames: int = 17, count: int = 1000, fps: float = 8.0):
    self.size = (size, size) if isinstance(size, int) else tuple(size)
    if len(self.size) != 2 or min(self.size) < 8:
      raise ValueError(f"size is {size}, expected (height, width) in pixels: pass two numbers of at least 8.")
    if min(frames, count) < 1:
      raise ValueError(f"frames is {frames} and count {count}, expected at least 1 of each: pass 1 or more.")
    self.split, self.frames, self.count, self.fps = split, frames, count, fps

  def __len__(self):
    return self.count

  def take(self, indices, spec, seeds=None):
    """As `sources.Source` says."""
    return {"video": load_clips([self[i] for i in indices.tolist()], spec, seeds)}

  def describe(self, indices):
    """Captions and labels."""
    drawn = [self._drawn(i)[1:] for i in indices.tolist()]
    return [_caption(*what) for what in drawn], [self.label_names.index(shape) for shape, _, _ in drawn]

  def _drawn(self, index):
    rng = np.random.default_rng([zlib.crc32(self.split.encode()), index])
    pick = lambda table: list(table)[rng.integers(len(table))]
    return rng, pick(SHAPES), pick(COLOURS), pick(DIRECTIONS)

  def __getitem__(self, index):
    rng, shape, colour, direction = self._drawn(index)
    (height, width), (down, right) = self.size, DIRECTIONS[direction]
    side = min(height, width)
    radius, speed = side * rng.uniform(0.12, 0.22), side * rng.uniform(0.02, 0.06)
    row, column = height * rng.uniform(0.3, 0.7), width * rng.uniform(0.3, 0.7)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ground = 40 + 80 * (np.cos(rng.uniform(0, 6)) * y / height + np.sin(rng.uniform(0, 6)) * x / width + 1) / 2
    ground = ground[..., None] * rng.uniform(0.6, 1.0, 3)
    time = np.arange(self.frames, dtype=np.float32)[:, None, None] - self.frames // 2
    distance = SHAPES[shape](y - row - time * speed * down, x - column - time * speed * right)
    cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]  # one pixel of soft edge
    frames = np.rint(ground * (1 - cover) + np.array(COLOURS[colour]) * cover).astype(np.uint8)
    return {
      "frames": frames,
      "caption": _caption(shape, colour, direction),
      "label": self.label_names.index(shape),
      "name": f"shapes/{self.split}:{index}",
      "fps": self.fps,
    }


def _caption(shape, colour, direction):
  return f"a {colour} {shape} moves {direction}"
