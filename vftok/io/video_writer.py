"""Video files out: frames uint8 [F, H, W, 3] to .mp4 or .gif by PyAV, or .webp by Pillow, whole or not at all.

One frame may also be a picture: .png or .jpg.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vftok.io.video import check_fps, pyav
from vftok.runtime.files import whole_file
from vftok.runtime.optional import present

_BT709, _LIMITED_RANGE = 1, 1


def to_uint8(video) -> np.ndarray:
  """uint8 of the same shape from floats in [-1, 1], clipped and rounded to nearest; uint8 passes through.

  Raises:
    ValueError: NaN or infinite values, which are no picture, or another dtype.
  """
  video = np.asarray(video)
  if video.dtype == np.uint8:
    return video
  if video.dtype.name == "bfloat16":
    video = video.astype(np.float32)
  if video.dtype.kind != "f":
    raise ValueError(f"the video is {video.dtype}, expected uint8, or floats in [-1, 1]: convert it.")
  if wrong := int(video.size - np.isfinite(video).sum()):
    raise ValueError(
      f"{wrong} of the {video.size} values of the video are NaN or infinite, expected floats in [-1, 1]: check the "
      "model and the settings that made it."
    )
  return np.rint((np.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def check_video_name(path, frames: int = 1) -> None:
  """Raises ValueError unless `path` ends in one of the kinds that `video_writer` writes so many frames to."""
  kind = Path(path).suffix.lower()
  if kind not in (".mp4", ".gif", ".webp", *PICTURES):
    raise ValueError(
      f"{path} ends in {kind!r}, expected a video to write: use .mp4 or .gif or .webp, or .png of one frame."
    )
  if kind in PICTURES and frames > 1:
    raise ValueError(f"{path} is to hold a video, and {kind} holds one frame: use .mp4 or .gif or .webp.")


def film_ending() -> str:
  """ ".mp4", or ".webp" where PyAV is not installed: for films that may be either."""
  return ".mp4" if present("av") else ".webp"


def write_video(path, frames, fps: float) -> None:
  """Writes frames uint8 [F, H, W, 3] at once; see `video_writer`."""
  with video_writer(path, fps) as writer:
    writer.write(frames)


@contextlib.contextmanager
def video_writer(path, fps: float) -> Iterator[_Writer | _WebPWriter | _PictureWriter]:
  """Writes a video piece by piece: H.264 in .mp4, an animated .gif with a palette per frame, or an animated .webp; or
  one frame as .png or .jpg.

  `with video_writer(path, fps) as writer: writer.write(frames)`; the file appears whole when the block ends,
  and not at all when it fails. H.264 at 4:2:0 has even sides: an odd one grows by a repeated row or column. A .webp is
  held in memory until it ends, and is what can be written without PyAV.

  Raises:
    ValueError: another file ending, fps out of range, pieces that are not uint8 [F, H, W, 3] of one size, or
      no frame at all.
    FileNotFoundError: the folder does not exist.
    ModuleNotFoundError: PyAV is not installed.
  """
  check_fps(fps)
  check_video_name(path)
  kind = Path(path).suffix.lower()[1:]
  if kind == "gif" and fps > 50:
    raise ValueError(f"fps is {fps:g}, expected at most 50 in a .gif: write an .mp4 or lower fps.")
  options = {"movflags": "+faststart"} if kind == "mp4" else {}  # the index first: plays while it downloads
  with contextlib.ExitStack() as stack:
    temporary = stack.enter_context(whole_file(path))
    if f".{kind}" in PICTURES:
      writer = _PictureWriter(temporary, Path(path))
    elif kind == "webp":
      writer = _WebPWriter(temporary, fps)
    else:
      writer = _Writer(stack.enter_context(pyav().open(f"file:{temporary}", "w", kind, options)), fps)
    yield writer
    if not writer.frames:
      raise ValueError(f"there are no frames to write to {path}: pass at least one.")
    writer.finish()


def _checked(frames) -> np.ndarray:
  frames = np.asarray(frames)
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
    raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [F, H, W, 3]: see to_uint8.")
  return frames


class _WebPWriter:
  def __init__(self, path, fps):
    self.path, self.fps, self.pictures = path, fps, []

  @property
  def frames(self) -> int:
    return len(self.pictures)

  def write(self, frames) -> None:
    """Appends frames uint8 [F, H, W, 3]."""
    frames = _checked(frames)
    if self.pictures and frames.shape[2:0:-1] != self.pictures[0].size:
      width, height = self.pictures[0].size
      raise ValueError(
        f"frames are {frames.shape[1:]}, expected {(height, width, 3)} like the ones before: resize them."
      )
    self.pictures += [Image.fromarray(frame) for frame in np.array(frames)]  # of its own: callers reuse theirs

  def finish(self) -> None:
    ends = np.rint(np.arange(self.frames + 1) * 1000 / self.fps).astype(int)  # whole milliseconds, without drift
    options = dict(duration=np.diff(ends).tolist(), loop=0, quality=90, method=2, minimize_size=False)
    self.pictures[0].save(self.path, "WEBP", save_all=True, append_images=self.pictures[1:], **options)


class _PictureWriter:
  def __init__(self, temporary, path):
    self.temporary, self.path, self.frames = temporary, path, 0

  def write(self, frames) -> None:
    """Takes the one frame uint8 [1, H, W, 3]."""
    frames = _checked(frames)
    self.frames += len(frames)
    check_video_name(self.path, self.frames)
    self.picture = Image.fromarray(np.array(frames[0]))

  def finish(self) -> None:
    kind = PICTURES[self.path.suffix.lower()]
    self.picture.save(self.temporary, kind, **({} if kind == "PNG" else {"quality": 95, "subsampling": 0}))


class _Writer:
  def __init__(self, container, fps):
    self.container, self.fps, self.frames, self.shape = container, fps, 0, None
    self.gif = container.format.name == "gif"

  def write(self, frames) -> None:
    """Appends frames uint8 [F, H, W, 3]."""
    frames = _checked(frames)
    if not self.gif:
      frames = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
    if self.shape is None:
      self.shape = frames.shape[1:]
      self._start(*self.shape[:2])
    if frames.shape[1:] != self.shape:
      raise ValueError(f"frames are {frames.shape[1:]}, expected {self.shape} like the ones before: resize them.")
    for pixels in frames:
      self.container.mux(self.stream.encode(self._paletted(pixels) if self.gif else self._yuv(pixels)))
      self.frames += 1

  def finish(self):
    self.container.mux(self.stream.encode(None))

  def _start(self, height, width):
    rate = Fraction(self.fps).limit_denominator(100_000)
    self.stream = self.container.add_stream("gif" if self.gif else "libx264", rate=rate)
    self.stream.height, self.stream.width, self.stream.pix_fmt = (
      height,
      width,
      "pal8" if self.gif else "yuv420p",
    )
    if not self.gif:
      codec = self.stream.codec_context
      codec.options = {"crf": "16"}
      # Said in the file, or players guess the colour matrix from the frame size.
      codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
      codec.color_range = _LIMITED_RANGE

  def _yuv(self, pixels):
    frame = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range=_LIMITED_RANGE)

  def _paletted(self, pixels):
    image = Image.fromarray(pixels)
    # On real clips 19 x faster than the default, median cut, and with dithering half as far off after a 4x4 blur.
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    image = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    argb = np.full((256, 4), 255, np.uint8)
    argb[: len(colours), 1:] = colours
    return pyav().VideoFrame.from_ndarray((np.asarray(image), argb), format="pal8")
