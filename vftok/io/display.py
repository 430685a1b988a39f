"""Decoded frames as a player shows them: upright, of square pixels, in 8-bit sRGB, resized and cropped.

The only way from a decoded frame to pixels: whoever reads the same file at the same size gets the same numbers.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np

from vftok.io import hdr

MIDDLE = 0.5 - 1e-9  # just under one half: of an odd number of pixels too many, the smaller half goes first


def cover(shape, size, scale: float = 1.0, top: float = MIDDLE, left: float = MIDDLE):
  """How to cut a clip's picture out of a whole one: resize it until it covers the clip, then crop.

  Args:
    shape: (height, width) of the whole picture. size: (H, W) wanted.
    scale: side of the crop relative to the largest that fits, above 0 and at most 1.
    top, left: where it lies, in [0, 1) of the room there is.

  Returns:
    ((rows, columns) to resize the whole picture to, the window (two slices) to cut out of that).
  """
  (height, width), (h, w) = shape, size
  step = min(height / h, width / w) * scale  # pixels of the picture per pixel of the clip
  rows, columns = max(h, round(height / step)), max(w, round(width / step))
  top, left = int(top * (rows - h + 1)), int(left * (columns - w + 1))
  return (rows, columns), (slice(top, top + h), slice(left, left + w))


class Display:
  """uint8 [h, w, 3] of decoded frames. One per clip and thread: its tables are costly.

  Args:
    aspect: width of a stored pixel over its height.
  """

  def __init__(self, aspect: Fraction = Fraction(1)):
    from av.video.reformatter import Interpolation, VideoReformatter  # where frames were decoded PyAV is there

    # Without full chroma the colours of a small picture have half its columns.
    bicubic = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT
    self._reformat = functools.partial(VideoReformatter().reformat, interpolation=bicubic, threads=1)
    self._aspect = aspect

  def shape(self, frame) -> tuple[int, int]:
    """(height, width) at which a frame is shown, its lines neither added nor dropped."""
    height, width = frame.height, max(1, round(frame.width * self._aspect))
    return (width, height) if orientation(frame)[0] else (height, width)

  def __call__(self, frame, shape=None, window=()) -> np.ndarray:
    """The frame resized to `shape` (rows, columns; None: as `shape` gives it), and of that the `window` (slices)."""
    transposed, left_right, upside_down = orientation(frame)
    height, width = shape or self.shape(frame)
    if transposed:
      height, width = width, height
    bright = frame.color_trc in (hdr.PQ, hdr.HLG)
    # Resized in YUV and then converted, the cheap order.
    picture = self._reformat(frame, width, height, "rgb48le" if bright else "rgb24").to_ndarray()
    if transposed:
      picture = picture.swapaxes(0, 1)
    picture = picture[:: -1 if upside_down else 1, :: -1 if left_right else 1][window]
    return hdr.to_sdr(picture, frame.color_trc) if bright else np.ascontiguousarray(picture)


def orientation(frame) -> tuple[bool, bool, bool]:
  """(transposed, then mirrored left to right, then top to bottom) by the frame's display matrix: one of all eight.

  A matrix that turns by other than quarters counts as the nearest quarter.
  """
  data = frame.side_data.get("DISPLAYMATRIX")
  if data is None:
    return False, False, False
  # x' = a x + c y, y' = b x + d y, both axes as in pictures (y down).
  a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
  if abs(b) + abs(c) > abs(a) + abs(d):
    return True, c < 0, b < 0
  return False, a < 0, d < 0
