"""Video files in: frames uint8 [F, H, W, 3] and frames per second, by PyAV.

Reading never shortens silently: a damaged frame, or a file that ends before its header said, is an error
that names the frame.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vftok.optional import required

STATES_DURATION = {"mov", "matroska", "avi"}  # containers whose header says how long they are, and means it


class VideoBytes(io.BytesIO):
  """An encoded video in memory, under the name that messages call it; goes wherever a path does."""

  def __init__(self, data: bytes, name: str = "the video"):
    super().__init__(data)
    self.name = name

  def __str__(self):
    return self.name


def pyav():
  """PyAV, for who reads or writes video files. Raises ModuleNotFoundError where it is not installed."""
  return required("av", "av", "reading and writing video files")


def video_info(path) -> tuple[float, float | None]:
  """(frames per second, the average where it varies; seconds, None where the header does not say)."""
  with opened(path) as container:
    return float(rate(container.streams.video[0])), stated_seconds(container)


def stated_seconds(container) -> float | None:
  """Seconds of the first video stream by the header of an open file, None where it does not say."""
  stream = container.streams.video[0]
  if stream.duration is not None:
    return float(stream.duration * stream.time_base)
  return container.duration / pyav().time_base if container.duration else None


def read_video(path, size=None, fps: float | None = None, **clip) -> tuple[np.ndarray, float]:
  """All of `iter_frames` (same arguments) in memory: (frames uint8 [F, H, W, 3], frames per second)."""
  frames = np.stack(list(iter_frames(path, size, fps, **clip)))
  return frames, float(video_info(path)[0] if fps is None else fps)


def iter_frames(
  path, size=None, fps: float | None = None, *, start=0.0, max_frames: int | None = None, min_frames: int = 1
) -> Iterator[np.ndarray]:
  """Decodes a video file (any container and codec that FFmpeg knows) frame by frame: uint8 [H, W, 3].

  Memory does not grow with length. Rotation written by a phone is applied.

  Args:
    path: a file, or `VideoBytes`.
    size: (H, W) to give back: the short side is resized (bicubic, antialiased), then the centre cropped.
      None keeps the file's own size.
    fps: frames per second to give back, 0.01..1000: at each moment the frame that is on screen then, by the
      file's own timestamps (made from its rate where they are missing). None keeps every frame.
    start: seconds to skip; frames before it are decoded and dropped, which is exact in every container.
    max_frames: stop after so many frames. What follows them is not read, so not checked either.
    min_frames: fewer frames than this are an error.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: an argument out of range (at once); and while iterating: a file that is empty, not video,
      damaged or cut short (the sentence says at which frame), or has fewer frames than `min_frames`.
  """
  if fps is not None:
    check_fps(fps)
  if size is not None and (len(size) != 2 or min(size) < 1):
    raise ValueError(f"size is {size}, expected (height, width) in pixels: pass two numbers of at least 1.")
  if not (math.isfinite(start) and start >= 0):
    raise ValueError(f"start is {start}, expected seconds from the beginning of the video: pass 0 or more.")
  for name, count in (("max_frames", max_frames), ("min_frames", min_frames)):
    if count is not None and count < 1:
      raise ValueError(f"{name} is {count}, expected a number of frames: pass 1 or more.")
  return _clip(path, size, fps, start, max_frames, min_frames)


def check_fps(fps: float) -> None:
  """Raises ValueError unless 0.01 <= fps <= 1000."""
  if not 0.01 <= fps <= 1000:
    raise ValueError(f"fps is {fps}, expected frames per second: pass 0.01 to 1000.")


def _clip(path, size, fps, start, max_frames, min_frames):
  count, shape = 0, None
  with contextlib.closing(decoded(path)) as frames:
    for frame in _on_screen(frames, fps, start):
      pixels = _pixels(frame, size)
      shape = shape or pixels.shape
      if pixels.shape != shape:
        raise ValueError(
          f"{path} changes from {shape[1]}x{shape[0]} to {pixels.shape[1]}x{pixels.shape[0]} pixels at frame "
          f"{count}, expected one size: pass size=(H, W) to bring all frames to it."
        )
      count += 1
      yield pixels
      if count == max_frames:
        return
  if count < min_frames:
    where = (f" from {start:g} s on" if start else "") + (f" at {fps:g} frames per second" if fps else "")
    raise ValueError(f"{path} has {count} frames{where}, expected at least {min_frames}: ask for fewer.")


def _on_screen(frames, fps, start):
  """The frames to give back, in order; one comes twice where fps is above the file's own."""
  eps, shown = 1e-6, 0  # seconds: containers round their timestamps
  for begin, end, frame in frames:
    if fps is None and begin >= start - eps:
      yield frame
    while fps is not None and start + shown / fps < end - eps:
      yield frame
      shown += 1


def decoded(path):
  """Yields (begin, end, frame), in seconds from the first frame; raises where the file is not healthy."""
  with opened(path) as container:
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}  # by default FFmpeg paints over damage
    period = float(1 / rate(stream))
    count, frame, begin, origin, reached = 0, None, 0.0, 0.0, 0.0
    try:
      for packet in container.demux():
        if packet.stream is not stream:  # sound may outlast the picture, and then the file lasts as long
          if packet.pts is not None:
            reached = max(reached, float((packet.pts + (packet.duration or 0)) * packet.time_base))
          continue
        if packet.is_corrupt:
          raise ValueError(f"{path} is damaged or cut short at frame {count}: get a whole copy of it.")
        for following in packet.decode():
          if following.is_corrupt:
            raise ValueError(f"{path} is damaged at frame {count}: get a whole copy of it.")
          time = None if following.pts is None else float(following.pts * following.time_base)
          if frame is None:
            origin = time or 0.0
          else:
            # No timestamp, or one that runs backwards: the next frame comes one period later.
            end = begin + period if time is None or time - origin <= begin else time - origin
            yield begin, end, frame
            begin = end
          frame, count = following, count + 1
    except pyav().error.FFmpegError as error:
      raise ValueError(f"{path} is damaged at frame {count}: get a whole copy of it.") from error
    if frame is None:
      raise ValueError(f"{path} has no frame that can be decoded, expected a video: get a whole copy of it.")
    end = begin + (float(frame.duration * frame.time_base) if frame.duration else period)
    yield begin, end, frame
    _check_end(path, container, count, end, max(reached, origin + end))


def _check_end(path, container, count, end, reached):
  """Raises ValueError where the file ends before its header says it would."""
  stream, kinds = container.streams.video[0], set(container.format.name.split(","))
  promised = end
  if kinds & STATES_DURATION and stream.duration is not None:
    promised = float(stream.duration * stream.time_base)
  elif kinds & STATES_DURATION and container.duration:
    promised, end = container.duration / pyav().time_base, reached
  # A stated frame count makes a loss certain; a bare duration may be rounded or padded by whoever wrote it.
  period = float(1 / rate(stream))
  slack = 1.5 * period if stream.frames > count else max(0.25, 3 * period)
  if end < promised - slack:
    raise ValueError(
      f"{path} was cut short, it ends at frame {count} ({end:.2f} s) and its header says {promised:.2f} s: "
      "get a whole copy of it, or read less of it with max_frames."
    )
  if "gif" in kinds:
    with contextlib.nullcontext(path) if isinstance(path, VideoBytes) else open(path, "rb") as file:
      file.seek(max(0, file.seek(0, io.SEEK_END) - 64))
      if not file.read().rstrip(b"\0").endswith(b";"):
        raise ValueError(f"{path} was cut short, it ends at frame {count}: get a whole copy of it.")


@contextlib.contextmanager
def opened(path, timeout: float | None = None):
  """An input container that holds a video stream; a path whose storage hangs for `timeout` seconds is an error."""
  av = pyav()
  try:
    # A colon in the path makes no protocol of it, and a playlist must not reach for the network.
    container = av.open(
      _checked(path),
      metadata_errors="ignore",
      options={"protocol_whitelist": "file"},
      timeout=timeout,
    )
  except av.error.FFmpegError as error:
    reason = (error.strerror or type(error).__name__).lower()
    raise ValueError(f"{path} is cut short or not a video ({reason}): pass a file that FFmpeg can play.") from error
  with container:
    if not container.streams.video:
      kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
      raise ValueError(f"{path} holds {kinds} and no video stream: pass a file with pictures.")
    yield container


def _checked(path):
  """What FFmpeg opens: a file that is there and not empty."""
  if isinstance(path, VideoBytes):
    size = path.seek(0, io.SEEK_END)
    path.seek(0)
  else:
    file = Path(path)
    if not file.exists():
      raise FileNotFoundError(f"{path} does not exist: check the path of the video.")
    if not file.is_file():
      raise ValueError(f"{path} is not a file, expected a video: pass an .mp4 or the like.")
    size = file.stat().st_size
  if size == 0:
    raise ValueError(f"{path} is empty (0 bytes), expected a video: get a whole copy of it.")
  return path if isinstance(path, VideoBytes) else f"file:{path}"


def rate(stream) -> Fraction:
  return stream.average_rate or stream.guessed_rate or Fraction(25)


def _pixels(frame, size) -> np.ndarray:
  pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
  if size is not None:
    (height, width), (h, w) = size, pixels.shape[:2]
    scale = max(height / h, width / w)
    h, w = max(height, round(h * scale)), max(width, round(w * scale))
    if scale != 1:
      pixels = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BICUBIC))
    top, left = (h - height) // 2, (w - width) // 2
    pixels = pixels[top : top + height, left : left + width]
  return np.ascontiguousarray(pixels)
