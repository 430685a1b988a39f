"""The frames that are on screen at given moments of a video, decoding no more of it than that takes.

Fast where containers keep timestamps and an index: from the last key frame at or before the first moment, and
frames that are neither shown nor needed by others are left out. Everywhere else, and where the fast way comes up
short, the file is decoded from its beginning. Both ways give the same pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vftok.io.container import demuxed, kinds, opened, pixel_aspect, pyav, rate, stated_seconds
from vftok.io.still import RATE, is_still
from vftok.io.video import check_end, check_still, decoded, end_slack

if TYPE_CHECKING:
  import av

_SEEKABLE = {"mov", "matroska"}  # an index of key frames, and a timestamp on every packet
_EPS = 1e-6  # seconds: containers round their timestamps


def shown(video, choose, check: Callable[[], None], timeout: float) -> Iterator[tuple[int, av.VideoFrame, Fraction]]:
  """Yields (k, frame, aspect of its pixels): `frame` is on screen at moment k; every k comes once, in any order.

  Args:
    video: a path or `VideoBytes`.
    choose: (seconds of the video, its frames per second) -> float64 moments, ascending, in seconds from the
      first frame that is shown.
    check: called between packets; raises where it has taken too long.
    timeout: seconds that storage may hang.

  Raises:
    FileNotFoundError, ValueError: no file, no video, damaged, it ends before the last moment, or its clock jumps.
  """
  if is_still(video):
    picture = next(decoded(video))
    yield from ((k, picture.frame, picture.aspect) for k in range(len(choose(1 / RATE, RATE))))
    return
  with contextlib.ExitStack() as stack:
    stream = stack.enter_context(opened(video, timeout))
    head, origin = _head(stream, check)
    if origin is None and head:
      origin = _first_time(video, timeout, check)
    seconds = stated_seconds(stream, origin or 0.0) if kinds(stream) & _SEEKABLE else None
    if not seconds:
      seconds = _scanned_seconds(video, timeout, origin, check)
    moments = choose(seconds, float(rate(stream)))
    aspect, missing = pixel_aspect(video, stream), dict.fromkeys(range(len(moments)))
    for k, frame in () if origin is None else _fast(video, stream, head, origin, moments, check):
      del missing[k]
      yield k, frame, aspect
  for k, frame in _from_the_start(video, moments, check) if missing else ():
    if k in missing:
      yield k, frame, aspect


def _head(stream, check):
  """(packets from the beginning until the first frame shown is among them, its time or None where that is not sure).

  Not sure: a timestamp is missing, or frames that come before the first key frame may not be decodable.
  """
  head, least = [], None
  for packet in demuxed(stream):
    check()
    if packet.size == 0:  # the end of the file
      break
    head.append(packet)
    if packet.pts is None:
      return head, None
    if not packet.is_discard:
      least = packet.pts if least is None else min(least, packet.pts)
    if least is not None and packet.dts is not None and packet.dts >= least:  # what follows is shown later
      break
  sure = least is not None and head[0].is_keyframe and head[0].pts <= least
  return head, float(least * stream.time_base) if sure else None


def _first_time(video, timeout, check) -> float | None:
  """Seconds on the file's clock of the first frame that can be decoded; None where it has no time."""
  with opened(video, timeout) as stream, contextlib.suppress(pyav().error.FFmpegError):
    for packet in demuxed(stream):
      check()
      for frame in packet.decode():
        return None if frame.pts is None else float(frame.pts * frame.time_base)
  return None


def _scanned_seconds(video, timeout, origin, check) -> float:
  """Seconds by the packets themselves; decoded only where some have no time and others do."""
  with opened(video, timeout) as stream:
    count, timed, last, period = 0, 0, 0.0, float(1 / rate(stream))
    for packet in demuxed(stream):
      check()
      count += packet.size > 0
      if packet.pts is not None:
        timed += 1
        begin = float(packet.pts * packet.time_base)
        last = max(last, begin + (float(packet.duration * packet.time_base) if packet.duration else period))
    if origin is not None and timed == count:
      if kinds(stream) & {"avi", "gif"}:
        check_end(video, stream, count, last - origin, origin, 0.0)
      return last - origin
  if not timed:
    return count * period
  end = 0.0
  for part in decoded(video):
    check()
    end = part.end
  return end


def _fast(video, stream, head, origin, moments, check):
  """(k, frame) as `shown`; gives up without a word where the slow way may still succeed."""
  context, container = stream.codec_context, stream.container
  context.thread_type, context.thread_count = "NONE", 1  # the loader's workers are the parallelism
  found = None
  with contextlib.suppress(pyav().error.FFmpegError):
    if kinds(stream) & _SEEKABLE and moments[0] > 0:
      start = int((origin + moments[0]) / stream.time_base)
      container.seek(start, stream=stream)
      found = _packets(video, stream, [], origin, moments, check)
      key = found and found[0][0]
      if key and key.is_keyframe and key.pts <= start + 1:
        # What comes after the key frame and is shown before it may refer to what was left out.
        found = [packet for packet in found[0] if packet.pts >= key.pts], found[1]
      else:
        container.seek(int(origin / stream.time_base), stream=stream)
        found, head = None, []
    packets, begins = found or _packets(video, stream, head, origin, moments, check) or ([], {})
    wanted = _wanted(video, stream, begins, moments)
    for packet in [*packets, None]:
      check()
      if not wanted:
        return
      if packet is not None:
        context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
      for frame in context.decode(packet):
        for k in () if frame.is_corrupt else wanted.pop(frame.pts, ()):
          yield k, frame


def _packets(video, stream, head, origin, moments, check):
  """(packets in decode order, {seconds: timestamp} of when each frame begins), None where timestamps are no guide.

  `head` are those that were read before. A packet is decoded no later than it is shown, so none after the last moment
  in that order is needed.
  """
  packets, begins, end, before = [], {}, 0.0, None
  # As floats: exact fractions cost as much as decoding.
  tick, period = float(stream.time_base), float(1 / rate(stream))
  for packet in itertools.chain(head, demuxed(stream)):
    check()
    if packet.size == 0:  # the end of the file
      continue
    if packet.is_corrupt:
      raise ValueError(f"{video} is damaged or cut short: get a whole copy of it.")
    pts, dts = packet.pts, packet.dts
    if pts is None or (dts is not None and before is not None and dts < before):  # none, or its clock runs backwards
      return None
    before = before if dts is None else dts
    packets.append(packet)
    begin = pts * tick - origin
    if not packet.is_discard and begin > -_EPS:
      if begin in begins:
        return None
      begins[begin] = pts
      end = max(end, begin + (packet.duration * tick if packet.duration else period))
    if dts is not None and dts * tick - origin > moments[-1]:
      return packets, begins
  if end + end_slack(stream, 1 << 62) <= moments[-1]:
    raise ValueError(f"{video} was cut short, it ends at {end:.2f} s and its header says more: get a whole copy of it.")
  return (packets, begins) if packets else None


def _wanted(video, stream, begins, moments) -> dict[int, list[int]]:
  """{timestamp: the moments at which that frame is on screen}."""
  order, wanted, period = sorted(begins), {}, float(1 / rate(stream))
  for k, moment in enumerate(moments if order else ()):
    last = max(0, bisect.bisect_right(order, moment + _EPS) - 1)
    if moment - order[last] > period and last + 1 < len(order):
      check_still(video, order[last], order[last + 1], f"the frame at {order[last]:.2f} s")
    wanted.setdefault(begins[order[last]], []).append(k)
  return wanted


def _from_the_start(video, moments: np.ndarray, check):
  """(k, frame) as `shown`, from the first frame on, in order."""
  k, begin, end, frame = 0, 0.0, 0.0, None
  with contextlib.closing(decoded(video)) as frames:
    for begin, end, frame, _ in frames:  # noqa: B007, the last ones are used below
      check()
      while moments[k] < end - _EPS:
        yield k, frame
        k += 1
        if k == len(moments):
          return
  if moments[-1] < end + max(0.25, 3 * (end - begin)):  # a healthy file's header may say that much more
    yield from ((k, frame) for k in range(k, len(moments)))
    return
  raise ValueError(f"{video} ends before {moments[-1]:.2f} s, which its header promises: get a whole copy of it.")
