"""The frames that are on screen at given moments of a video, decoding no more of it than that takes.

Fast where containers keep timestamps and an index: from the last key frame at or before the first moment, and
frames that are neither shown nor needed by others are left out. Everywhere else, and where the fast way comes up
short, the file is decoded from its beginning. Both ways give the same pixels.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vftok.data.video import STATES_DURATION, decoded, opened, pyav, rate, stated_seconds

if TYPE_CHECKING:
  import av

_SEEKABLE = {"mov", "matroska"}  # an index of key frames, and a timestamp on every packet
_EPS = 1e-6  # seconds: containers round their timestamps


def shown(video, choose, check: Callable[[], None], timeout: float) -> Iterator[tuple[int, av.VideoFrame]]:
  """Yields (k, frame): `frame` is on screen at moment k; every k comes once, in any order.

  Args:
    video: a path or `VideoBytes`.
    choose: (seconds of the video, its frames per second) -> float64 moments, ascending, in seconds from the
      first frame.
    check: called between packets; raises where it has taken too long.
    timeout: seconds that storage may hang.

  Raises:
    FileNotFoundError, ValueError: no file, no video, damaged, or it ends before the last moment.
  """
  with contextlib.ExitStack() as stack:
    container = stack.enter_context(opened(video, timeout))
    kinds = set(container.format.name.split(","))
    seconds = stated_seconds(container) if kinds & STATES_DURATION else None
    if not seconds:
      seconds = _scanned_seconds(container, check)
      container = stack.enter_context(opened(video, timeout))
    moments = choose(seconds, float(rate(container.streams.video[0])))
    missing = dict.fromkeys(range(len(moments)))
    for k, frame in _fast(video, container, kinds & _SEEKABLE, moments, check):
      del missing[k]
      yield k, frame
  for k, frame in _from_the_start(video, moments, check) if missing else ():
    if k in missing:
      yield k, frame


def _scanned_seconds(container, check):
  """Seconds by the packets themselves; nothing is decoded."""
  stream, first, last = container.streams.video[0], None, 0.0
  count, period = 0, float(1 / rate(stream))
  for packet in container.demux(stream):
    check()
    count += packet.size > 0
    if packet.pts is not None:
      begin = float(packet.pts * packet.time_base)
      first = begin if first is None else min(first, begin)
      last = max(last, begin + (float(packet.duration * packet.time_base) if packet.duration else period))
  return count * period if first is None else last - first


def _fast(video, container, seekable, moments, check):
  """As `shown`; gives up without a word where the slow way may still succeed."""
  stream = container.streams.video[0]
  context = stream.codec_context
  context.thread_type, context.thread_count = "NONE", 1  # the loader's workers are the parallelism
  context.options = {"err_detect": "explode"}
  first = stream.start_time or 0
  found = None
  with contextlib.suppress(pyav().error.FFmpegError):
    if seekable and moments[0] > 0:
      start = first + int(moments[0] / stream.time_base)
      container.seek(start, stream=stream)
      found = _packets(video, container, stream, moments, check)
      key = found and found[0][0]
      if key and key.is_keyframe and key.pts <= start + 1:
        # What comes after the key frame and is shown before it may refer to what was left out.
        found = [packet for packet in found[0] if packet.pts >= key.pts], found[1]
      else:
        container.seek(first, stream=stream)
        found = None
    packets, begins = found or _packets(video, container, stream, moments, check) or ([], {})
    wanted = _wanted(begins, moments)
    for packet in [*packets, None]:
      check()
      if not wanted:
        return
      if packet is not None:
        context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
      for frame in context.decode(packet):
        for k in () if frame.is_corrupt else wanted.pop(frame.pts, ()):
          yield k, frame


def _packets(video, container, stream, moments, check):
  """(packets in decode order, {seconds: timestamp} of when each frame begins), None where timestamps are missing.

  A packet is decoded no later than it is shown, so none after the last moment in that order is needed.
  """
  packets, begins, end = [], {}, 0.0
  # As floats: exact fractions cost as much as decoding.
  tick, period = float(stream.time_base), float(1 / rate(stream))
  origin = (stream.start_time or 0) * tick
  for packet in container.demux(stream):
    check()
    if packet.size == 0:  # the end of the file
      continue
    if packet.is_corrupt:
      raise ValueError(f"{video} is damaged or cut short: get a whole copy of it.")
    pts, dts = packet.pts, packet.dts
    if pts is None:
      return None
    packets.append(packet)
    begin = pts * tick - origin
    if not packet.is_discard:
      begins[begin] = pts
      end = max(end, begin + (packet.duration * tick if packet.duration else period))
    if dts is not None and dts * tick - origin > moments[-1]:
      return packets, begins
  if end <= moments[-1]:
    raise ValueError(f"{video} was cut short, it ends at {end:.2f} s and its header says more: get a whole copy of it.")
  return (packets, begins) if packets else None


def _wanted(begins, moments) -> dict[int, list[int]]:
  """{timestamp: the moments at which that frame is on screen}."""
  order, wanted = sorted(begins), {}
  for k, moment in enumerate(moments if order else ()):
    last = max(0, bisect.bisect_right(order, moment + _EPS) - 1)
    wanted.setdefault(begins[order[last]], []).append(k)
  return wanted


def _from_the_start(video, moments: np.ndarray, check):
  """As `shown`, from the first frame on, in order."""
  k = 0
  with contextlib.closing(decoded(video)) as frames:
    for _, end, frame in frames:
      check()
      while moments[k] < end - _EPS:
        yield k, frame
        k += 1
        if k == len(moments):
          return
  raise ValueError(f"{video} ends before {moments[-1]:.2f} s, which its header promises: get a whole copy of it.")
