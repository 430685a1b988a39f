"""Still pictures in, by Pillow: PNG, JPEG and WebP as they are meant to be looked at. `vftok.io.video` reads them so.

FFmpeg, which reads videos, knows neither their transparency nor all of their metadata.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vftok.io.container import MAX_ASPECT, MAX_PIXELS, VideoBytes

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
RATE = 25.0  # frames per second of what has none, FFmpeg's word
_FORMATS = ("PNG", "JPEG", "WEBP")  # a JPEG may have smaller ones behind it, as telephones write it (MPO)
_ORIENTATION = 0x112
_TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # EXIF's number -> Pillow's
_SQUARE = 0.02  # densities so close are equal: files round them


class Still(NamedTuple):
  """pixels: uint8 [h, w, 3], upright, in RGB. aspect: width of a pixel over its height."""

  pixels: np.ndarray
  aspect: Fraction


def is_still(path) -> bool:
  """Whether a file (or `VideoBytes`) is one still picture; False for animated PNGs, which are read as videos.

  Raises:
    ValueError: a picture whose header is damaged, of more than `MAX_PIXELS`, or a WebP of several frames.
  """
  if not _begins_as_one(path):
    return False
  with _opened(path) as picture:
    (width, height), frames, kind = picture.size, getattr(picture, "n_frames", 1), picture.format
  if width * height > MAX_PIXELS:
    raise ValueError(f"{path} has {width}x{height} pixels, expected at most {MAX_PIXELS}: make it smaller.")
  if frames > 1 and kind == "WEBP":
    raise ValueError(f"{path} is a WebP of {frames} frames, which is not read as a video: make it an .mp4 or .gif.")
  return frames == 1 or kind != "PNG"


def read_still(path) -> Still:
  """The picture of a file for which `is_still` is true.

  Transparent parts lie on white; 16 bits become 8; pixels that the file says are not square keep their shape.

  Raises:
    ValueError: it is damaged or cut short, or has pixels of more than `MAX_ASPECT`.
  """
  with _opened(path) as picture:
    picture.load()
    turn, aspect = _TURNS.get(_orientation(picture)), _aspect(picture)
    picture = _rgb(picture)
    if turn is not None:
      picture = picture.transpose(Image.Transpose(turn))
      aspect = 1 / aspect if turn in (2, 4, 5, 6) else aspect
    pixels = np.array(picture)
  if not Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT:
    raise ValueError(f"{path} has pixels of {aspect} (width to height), expected 1/{MAX_ASPECT} to {MAX_ASPECT}.")
  return Still(pixels, aspect)


def _begins_as_one(path) -> bool:
  if isinstance(path, VideoBytes):
    head = bytes(path.getbuffer()[:12])
  elif Path(path).is_file():
    with open(path, "rb") as file:
      head = file.read(12)
  else:
    return False
  return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4], head[8:]) == (b"RIFF", b"WEBP")


@contextlib.contextmanager
def _opened(path) -> Iterator[Image.Image]:
  """Whatever Pillow raises inside is one sentence."""
  try:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
      warnings.simplefilter("ignore")  # of metadata, and of sizes that are looked at here
      source = VideoBytes(path.getvalue()) if isinstance(path, VideoBytes) else stack.enter_context(open(path, "rb"))
      yield stack.enter_context(Image.open(source, formats=_FORMATS))
  except Image.DecompressionBombError:
    raise ValueError(f"{path} has far more than {MAX_PIXELS} pixels, expected that at most: make it smaller.") from None
  except Exception as error:  # of all kinds, with damaged files
    raise ValueError(f"{path} is a picture that is damaged or cut short: get a whole copy of it.") from error


def _orientation(picture) -> int:
  """EXIF's, 1..8; 1 where it is damaged."""
  try:
    return picture.getexif().get(_ORIENTATION, 1)
  except Exception:  # of all kinds; the pixels are sound
    return 1


def _aspect(picture) -> Fraction:
  """Width of a pixel over its height by the stated densities, 1 where there are none."""
  stated = picture.info.get("dpi") or picture.info.get("aspect") or picture.info.get("jfif_density")
  try:
    x, y = (float(density) for density in stated)
    return Fraction(1) if abs(x - y) <= _SQUARE * max(x, y) else Fraction(y / x).limit_denominator(1000)
  except (TypeError, ValueError, ZeroDivisionError, OverflowError):
    return Fraction(1)


def _rgb(picture) -> Image.Image:
  if picture.mode.startswith(("I", "F")):  # 16 bits of grey, which Pillow would cut off at 255
    grey = np.clip(np.asarray(picture).astype(np.float64), 0, 65535)
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
  if picture.has_transparency_data:
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
  return picture.convert("RGB")
