"""Opening video files: only containers that hold their own content, and of them the stream that is the video."""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from pathlib import Path

from vftok.runtime.optional import required

# FFmpeg's demuxers that read one file and can name no other: no playlists (concat, hls, dash, sdp, image2) and no
# devices. The last two lines are for the sentence that a song has no video, and for single pictures.
DEMUXERS = (
  *"mov matroska avi mpegts mpeg flv asf ogg gif nut mxf dv rm ivf obu".split(),
  *"h264 hevc vvc av1 m4v mpegvideo mjpeg vc1 h263 yuv4mpegpipe apng".split(),
  *"mp3 aac flac wav".split(),
  *"png_pipe jpeg_pipe webp_pipe bmp_pipe".split(),
)
STATES_DURATION = {"mov", "matroska", "avi"}  # containers whose header says how long they are, and means it
MAX_PIXELS = 1 << 26  # of a frame: twice 8K
MAX_ASPECT = 16  # of one pixel
_ATTACHED_PIC, _TIMED_THUMBNAILS = 0x400, 0x800  # FFmpeg's dispositions of what is no video


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


@contextlib.contextmanager
def opened(path, timeout: float | None = None):
  """Yields the video stream of an open file; `stream.container` is the rest of it.

  Args:
    path: a file, or `VideoBytes`.
    timeout: seconds that storage may hang.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is empty, of a kind that is not in `DEMUXERS`, has no video stream (covers are none), or one in a
      codec that cannot be decoded here, or of more than `MAX_PIXELS`; or FFmpeg found it damaged inside the block.
  """
  av = pyav()
  source = _checked(path)
  # A colon in the path makes no protocol of it, and nothing in the file may reach for another or for the network.
  options = {"protocol_whitelist": "file" if isinstance(source, str) else "none"}
  try:
    container = av.open(
      source,
      metadata_errors="ignore",
      options=options | {"format_whitelist": ",".join(DEMUXERS)},
      timeout=timeout,
    )
  except av.error.ArgumentError:  # what FFmpeg says of a kind that is not on the list
    raise ValueError(
      f"{path} is not a video of a kind that is read here, playlists are none: pass an .mp4, .mkv, .webm or the like."
    ) from None
  except av.error.FFmpegError as error:
    reason = (error.strerror or type(error).__name__).lower()
    raise ValueError(f"{path} is cut short or not a video ({reason}): pass a file that FFmpeg can play.") from error
  try:
    with container:
      yield _video_stream(path, container)
  except av.error.FFmpegError as error:  # of whatever is done with it
    raise ValueError(f"{path} is damaged: get a whole copy of it.") from error


def demuxed(stream, *, all_streams: bool = False):
  """Yields the packets of a stream of an open file, or of all its streams, in the file's order; last an empty one."""
  try:
    yield from stream.container.demux(*(() if all_streams else (stream,)))
  except IndexError:  # PyAV's, after the last packet, where a stream began in the middle of the file
    return


def _video_stream(path, container):
  """The first video stream that is no cover and can be decoded."""
  films = [s for s in container.streams.video if not int(s.disposition) & (_ATTACHED_PIC | _TIMED_THUMBNAILS)]
  if not films:
    kinds = sorted({"a cover picture" if s.type == "video" else s.type for s in container.streams}) or ["nothing"]
    raise ValueError(f"{path} holds {', '.join(kinds)} and no video stream: pass a file with moving pictures.")
  stream = next((s for s in films if s.codec_context is not None), None)
  if stream is None:
    raise ValueError(f"{path} holds video in a codec that is not known here: convert it, to H.264 for one.")
  context = stream.codec_context
  if context.width * context.height > MAX_PIXELS:
    raise ValueError(
      f"{path} has frames of {context.width}x{context.height}, expected at most {MAX_PIXELS} pixels: make it smaller."
    )
  # By default FFmpeg paints over damage.
  context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
  return stream


def _checked(path):
  """What FFmpeg opens: a file that is there and not empty."""
  if isinstance(path, VideoBytes):
    size = path.getbuffer().nbytes
  else:
    file = Path(path)
    if not file.exists():
      raise FileNotFoundError(f"{path} does not exist: check the path of the video.")
    if not file.is_file():
      raise ValueError(f"{path} is not a file, expected a video: pass an .mp4 or the like.")
    size = file.stat().st_size
  if size == 0:
    raise ValueError(f"{path} is empty (0 bytes), expected a video: get a whole copy of it.")
  # Bytes can be open several times, each with a place of its own; they are not copied.
  return io.BytesIO(path.getvalue()) if isinstance(path, VideoBytes) else f"file:{path}"


def rate(stream) -> Fraction:
  """Frames per second of a stream, the average where it varies; 25 where the file says none of 0.01..1000."""
  for stated in (stream.average_rate, stream.guessed_rate):
    if stated and Fraction(1, 100) <= stated <= 1000:
      return Fraction(stated)
  return Fraction(25)


def pixel_aspect(path, stream) -> Fraction:
  """Width of a pixel over its height, 1 where the file does not say. Raises ValueError beyond `MAX_ASPECT`."""
  stated = stream.sample_aspect_ratio
  aspect = Fraction(stated) if stated and stated > 0 else Fraction(1)
  if not Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT:
    raise ValueError(f"{path} has pixels of {aspect} (width to height), expected 1/{MAX_ASPECT} to {MAX_ASPECT}.")
  return aspect


def kinds(stream) -> set[str]:
  """Names of the container's format, such as {"mov", "mp4", ...}."""
  return set(stream.container.format.name.split(","))


def stated_seconds(stream, origin: float) -> float | None:
  """Seconds from the first shown frame, `origin` on the file's clock, to the end by the header; None if not said there.

  A Matroska header states the longest stream's end, so that of a file with sound says nothing of the picture.
  """
  container, end = stream.container, None
  if stream.duration is not None:
    return float(stream.duration * stream.time_base)
  with contextlib.suppress(KeyError, ValueError):
    hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # a Matroska tag
    end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
  if end is None and container.duration and len(container.streams) == 1:
    end = container.duration / pyav().time_base
  return None if end is None or not 0 < end - origin < float("inf") else end - origin
