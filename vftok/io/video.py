"""Video files in: frames uint8 [F, H, W, 3] and frames per second, by PyAV.

Time is counted from the first frame that is shown, whatever the file's own clock says then. Reading never shortens
silently: a damaged frame, or a file that ends before its header said, is an error that names the frame.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from vftok.io.container import (
  STATES_DURATION,
  VideoBytes,
  demuxed,
  kinds,
  opened,
  pixel_aspect,
  pyav,
  rate,
  stated_seconds,
)
from vftok.io.display import Display, cover
from vftok.io.still import RATE, is_still, read_still

MAX_STILL = 600.0  # seconds that one frame may stay on screen: beyond, the file's clock has jumped


class Decoded(NamedTuple):
  """A frame, when it is on screen in seconds from the first one, and the width of its pixels over their height."""

  begin: float
  end: float
  frame: Any
  aspect: Fraction


def video_info(path) -> tuple[float, float | None]:
  """(frames per second, the average where it varies; seconds, None where the header does not say)."""
  if is_still(path):
    return RATE, 1 / RATE
  with opened(path) as stream:
    return float(rate(stream)), stated_seconds(stream, float((stream.start_time or 0) * stream.time_base))


def read_video(path, size=None, fps: float | None = None, **clip) -> tuple[np.ndarray, float]:
  """All of `iter_frames` (same arguments) in memory: (frames uint8 [F, H, W, 3], frames per second)."""
  frames = np.stack(list(iter_frames(path, size, fps, **clip)))
  return frames, float(video_info(path)[0] if fps is None else fps)


def iter_frames(
  path, size=None, fps: float | None = None, *, start=0.0, max_frames: int | None = None, min_frames: int = 1
) -> Iterator[np.ndarray]:
  """Decodes a video file frame by frame, as a player shows it: uint8 [H, W, 3].

  Upright (turned or mirrored as the file says), of square pixels, HDR as sRGB (see vftok.io.hdr); the same pixels
  as the training loader's. Any codec that FFmpeg knows, in any of `vftok.io.container.DEMUXERS`. Memory does not
  grow with length.

  Args:
    path: a file, or `VideoBytes`.
    size: (H, W) to give back: the short side is resized (bicubic, antialiased), then the centre cropped.
      None keeps the file's own lines, and its columns where pixels are square.
    fps: frames per second to give back, 0.01..1000: at each moment the frame that is on screen then, by the
      file's own timestamps (made from its rate where they are missing). None keeps every frame.
    start: seconds to skip from the first frame on; frames before it are decoded and dropped, which is exact in every
      container.
    max_frames: stop after so many frames. What follows them is not read, so not checked either.
    min_frames: fewer frames than this are an error.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: an argument out of range (at once); and while iterating: a file that is empty, not video,
      damaged or cut short (the sentence says at which frame), has fewer frames than `min_frames`, or timestamps by
      which one frame stays on screen for more than `MAX_STILL` seconds.
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


def _clip(path, size, fps, start, max_frames, min_frames) -> Iterator[np.ndarray]:
  count, shape, last, display = 0, None, None, None
  pixels: Any = None
  with contextlib.closing(decoded(path)) as frames:
    for frame, aspect in _on_screen(frames, fps, start):
      display = display or Display(aspect)
      if frame is not last:  # one comes twice where fps is above the file's own
        whole = display.shape(frame)
        pixels, last = display(frame, *(cover(whole, size) if size else ())), frame
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
  """(frame, aspect) of those to give back, in order."""
  eps, shown = 1e-6, 0  # seconds: containers round their timestamps
  for begin, end, frame, aspect in frames:
    if fps is None and begin >= start - eps:
      yield frame, aspect
    while fps is not None and start + shown / fps < end - eps:
      yield frame, aspect
      shown += 1


def decoded(path) -> Generator[Decoded]:
  """Every frame in the order shown; raises as `iter_frames` where the file is not healthy.

  The first frame begins at 0. One without a timestamp, or whose timestamp runs backwards, comes one period of the
  stream's rate after the one before.
  """
  if is_still(path):
    pixels, aspect = read_still(path)  # so briefly shown that it is one frame at every rate
    yield Decoded(0.0, 1e-3, pyav().VideoFrame.from_ndarray(pixels, format="rgb24"), aspect)
    return
  with opened(path) as stream:
    aspect, period = pixel_aspect(path, stream), float(1 / rate(stream))
    count, frame, begin, origin, reached = 0, None, 0.0, None, 0.0
    try:
      for packet in demuxed(stream, all_streams=True):
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
          after = 0.0 if frame is None else begin + period
          if origin is None and time is not None:
            origin = time - after
          if frame is not None:
            end = after if time is None or origin is None or time - origin <= begin else time - origin
            yield Decoded(begin, after if end - begin > MAX_STILL else end, frame, aspect)
            check_still(path, begin, end, f"frame {count - 1}")
            begin = end
          frame, count = following, count + 1
    except pyav().error.FFmpegError as error:
      raise ValueError(f"{path} is damaged at frame {count}: get a whole copy of it.") from error
    if frame is None:
      raise ValueError(f"{path} has no frame that can be decoded, expected a video: get a whole copy of it.")
    end = begin + (float(frame.duration * frame.time_base) if frame.duration else period)
    yield Decoded(begin, begin + period if end - begin > MAX_STILL else end, frame, aspect)
    check_still(path, begin, end, f"frame {count - 1}")
    check_end(path, stream, count, end, origin or 0.0, reached)


def check_still(path, begin: float, end: float, what: str) -> None:
  """Raises ValueError where a frame would stay on screen for longer than `MAX_STILL`."""
  if end - begin > MAX_STILL:
    raise ValueError(
      f"{path} shows {what} for {end - begin:.0f} s by its timestamps, expected at most {MAX_STILL:.0f} s: "
      "its clock jumps, write it again with whole timestamps."
    )


def end_slack(stream, frames: int) -> float:
  """Seconds by which a video with so many frames may end before its header says it does."""
  # A stated frame count makes a loss certain; a bare duration may be rounded or padded by whoever wrote it.
  period = float(1 / rate(stream))
  sure = stream.frames > frames and "avi" not in kinds(stream)  # which counts frames that only repeat the one before
  return 1.5 * period if sure else max(0.25, 3 * period)


def check_end(path, stream, count: int, end: float, origin: float, reached: float) -> None:
  """Raises ValueError where the file ends before its header says it would.

  Args:
    count, end: frames there are, and seconds from the first one at which the last one ends.
    origin, reached: on the file's own clock, when the first one begins and the last packet of all streams ends.
  """
  names, promised, container = kinds(stream), end, stream.container
  if names & STATES_DURATION and stream.duration is not None:
    promised = float(stream.duration * stream.time_base)
    end += origin if "avi" in names else 0.0  # where a late start counts
  elif names & STATES_DURATION and container.duration:
    promised, end = container.duration / pyav().time_base, max(reached, origin + end)
  if end < promised - end_slack(stream, count):
    raise ValueError(
      f"{path} was cut short, it ends at frame {count} ({end:.2f} s) and its header says {promised:.2f} s: "
      "get a whole copy of it, or read less of it with max_frames (--max-frames)."
    )
  if "gif" in names:
    with contextlib.nullcontext(path) if isinstance(path, VideoBytes) else open(path, "rb") as file:
      file.seek(max(0, file.seek(0, io.SEEK_END) - 64))
      if not file.read().rstrip(b"\0").endswith(b";"):
        raise ValueError(f"{path} was cut short, it ends at frame {count}: get a whole copy of it.")
