"""One way from a file to pixels, whoever reads: what is opened, when a frame is shown, how it is displayed."""

import contextlib
import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_files import encode, scene

from vftok.data.clip import ClipSpec, load_clip, moments
from vftok.io import container, video
from vftok.io.container import VideoBytes
from vftok.io.display import MIDDLE
from vftok.io.video import read_video, video_info
from vftok.tools import prepare_videos

# ---- what is opened


def numbered(number, height=32, width=64):
  """A frame that shows its number as eight bars, black 0 and white 1."""
  bars = np.array([number >> (7 - b) & 1 for b in range(8)], np.uint8) * 255
  return np.broadcast_to(np.repeat(bars, width // 8)[None, :, None], (height, width, 3))


def number(frame):
  row = frame[frame.shape[0] // 2].mean(-1).reshape(8, -1)[:, 2:-2].mean(1) > 127
  return int(sum(2 ** (7 - b) for b in range(8) if row[b]))


def film(path, frames=50, start=0.0, jump=(), sound=0.0, sar=None, codec="libx264", pictures=None, **options):
  """25 frames per second from `start` on; from frame jump[0] on jump[1] seconds later; so many seconds of sound."""
  with av.open(str(path), "w") as out:
    stream = out.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
    stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000 if codec == "libx264" else 25)
    if sar:
      stream.codec_context.sample_aspect_ratio = sar
    audio = out.add_stream("aac", rate=48000, layout="mono") if sound else None
    for i in range(frames):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pictures if sar else numbered(i)), format="rgb24")
      seconds = start + i / 25 + (jump[1] if jump and i >= jump[0] else 0)
      frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
    for i in range(int(sound * 48000 / 1024)):
      noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
      noise.sample_rate, noise.pts = 48000, 1024 * i
      out.mux(audio.encode(noise))
    if audio:
      out.mux(audio.encode(None))
  return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  return film(tmp_path_factory.mktemp("films") / "plain.mp4")


REFERS = {
  "list.ffconcat": "ffconcat version 1.0\nfile {name}\n",
  "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n",
  "list.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
  "<Representation><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>",
  "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
  "list.vobsub.idx": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
}


@pytest.mark.parametrize("name, text", REFERS.items(), ids=REFERS)
def test_what_names_other_files_is_refused(plain, name, text):
  for ending in (name, "list.mp4"):
    path = plain.parent / ending
    path.write_text(text.format(name=plain.name))
    for source, record in (
      (path, {"path": str(path), "name": ending}),
      (VideoBytes(path.read_bytes(), ending), {"mp4": path.read_bytes(), "name": ending}),
    ):
      with pytest.raises(ValueError, match=r"list.* not a video") as caught:
        read_video(source)
      assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
      with pytest.raises(ValueError, match=r"list.* not a video"):
        load_clip(record, ClipSpec(frames=2))


def test_no_demuxer_of_the_list_reads_others():
  """By name, for who adds one."""
  others = "concat hls dash sdp rtp rtsp sap image2 image2pipe tee imf vobsub webm_dash_manifest lavfi v4l2 fbdev alsa"
  assert not set(container.DEMUXERS) & set(others.split())


def test_a_number_in_the_path_is_no_pattern(tmp_path):
  for i in range(3):
    Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
  with pytest.raises(FileNotFoundError):
    read_video(tmp_path / "%d.png")
  (tmp_path / "%d.png").write_bytes((tmp_path / "2.png").read_bytes())
  for name in ("%d.png", "2.png"):
    frames, _ = read_video(tmp_path / name)
    assert frames.shape == (1, 32, 32, 3) and int(frames[0, 9, 9, 0]) == 160


def test_a_cover_is_no_video(tmp_path):
  jpeg, song = io.BytesIO(), tmp_path / "song.mp3"
  Image.new("RGB", (32, 32), (200, 0, 0)).save(jpeg, "JPEG")
  with av.open(str(song), "w") as out:
    stream = out.add_stream("mp3", rate=44100, layout="mono")
    for i in range(20):
      sound = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
      sound.sample_rate, sound.pts = 44100, 1152 * i
      out.mux(stream.encode(sound))
    out.mux(stream.encode(None))
  picture = b"\0image/jpeg\0\x03\0" + jpeg.getvalue()
  size = len(picture) + 10
  tag = b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
  song.write_bytes(tag + b"APIC" + struct.pack(">IH", len(picture), 0) + picture + song.read_bytes())
  for read in (read_video, lambda path: load_clip({"path": str(path)}, ClipSpec(frames=1))):
    with pytest.raises(ValueError, match="holds a cover picture, audio and no video stream"):
      read(song)


def test_a_codec_that_is_not_known(plain, tmp_path):
  path = tmp_path / "unknown.mp4"
  path.write_bytes(plain.read_bytes().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
  for read in (read_video, video_info, lambda path: load_clip({"path": str(path)}, ClipSpec(frames=1))):
    with pytest.raises(ValueError, match=r"unknown\.mp4 holds video in a codec that is not known here"):
      read(path)


@pytest.mark.parametrize("seed", range(8))
def test_damage_of_any_kind_is_a_sentence(plain, seed):
  """FFmpeg's own errors are ValueErrors too, and no sentences."""
  rng, data = np.random.default_rng(seed), bytearray(plain.read_bytes())
  for at in rng.integers(0, len(data), 12):
    data[at : at + 4] = rng.bytes(4)
  for read in (
    lambda: read_video(VideoBytes(bytes(data), "it")),
    lambda: load_clip({"mp4": bytes(data), "name": "it"}, ClipSpec(frames=3)),
    lambda: video_info(VideoBytes(bytes(data), "it")),
  ):
    try:
      read()
    except ValueError as error:
      assert type(error) is ValueError and str(error).startswith("it ") and len(str(error)) < 400


def test_frames_beyond_the_limit(plain, monkeypatch):
  monkeypatch.setattr(container, "MAX_PIXELS", 2000)
  with pytest.raises(ValueError, match="frames of 64x32, expected at most 2000 pixels"):
    read_video(plain)


# ---- when a frame is shown

CLOCKS = {
  "plain.mp4": {},
  "late.mp4": dict(start=3.0),
  "late.mkv": dict(start=3.0),
  "late.ts": dict(start=3.0),
  "late.flv": dict(start=3.0),
  "late_with_sound.mp4": dict(start=0.5, sound=4.0),
  "late_with_sound.mkv": dict(start=0.5, sound=4.0),
  "cut_at_a_key.mp4": dict(start=-0.4, bf=0, g=10),
  "cut.mp4": dict(start=-0.2),
  "late_b_frames.avi": dict(start=0.04, codec="mpeg4", bf=2),
  "no_time.h264": {},
}


@pytest.mark.parametrize("name, options", CLOCKS.items(), ids=CLOCKS)
def test_time_zero_is_the_first_shown_frame(name, options, tmp_path):
  path = film(tmp_path / name, **options)
  if name == "late_with_sound.mkv":  # as other programs write it: the header knows only when the sound ends
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
  whole, rate = read_video(path)
  first = number(whole[0])
  assert first == round(-25 * min(0, options.get("start", 0))) and rate == 25
  assert [number(frame) for frame in whole] == list(range(first, 50))
  assert number(read_video(path, start=0.4, max_frames=1)[0][0]) == first + 10
  assert [number(f) for f in read_video(path, fps=5, max_frames=5)[0]] == [first + 5 * i for i in range(5)]
  spec = ClipSpec(frames=4, size=(32, 64), fps=5)
  for seed in (None, 0, 1, 2):
    rng = None if seed is None else np.random.default_rng(seed)
    draw = MIDDLE if seed is None else np.random.default_rng(seed).random(5)[0]
    at = moments(spec, 0.0, len(whole) / 25, 25.0, draw)
    got = load_clip({"path": str(path)}, spec, rng)
    assert np.array_equal(got, whole[np.floor(at * 25 + 1e-6).astype(int)]), seed


class Through:
  """Another object, some of whose attributes are replaced."""

  def __init__(self, real, **replaced):
    self.__dict__ = {"real": real, **replaced}

  def __getattr__(self, name):
    return getattr(self.real, name)


def test_timestamps_that_come_late(plain, monkeypatch):
  """The first three frames have none: they come one period apart, the last one before the first that has one."""
  real, count = video.opened, itertools.count()

  def frames(packet):
    for frame in packet.decode():
      yield Through(frame, pts=None if next(count) < 3 else 2 * frame.pts + 100 * 90_000)  # at half the rate

  @contextlib.contextmanager
  def opened(path):
    with real(path) as stream:
      late = Through(stream)
      packets = lambda: (Through(p, stream=late, decode=lambda p=p: frames(p)) for p in stream.container.demux())
      late.container = Through(stream.container, demux=packets)
      yield late

  monkeypatch.setattr(video, "opened", opened)
  parts = list(itertools.islice(video.decoded(plain), 6))
  assert [part.begin * 25 for part in parts] == pytest.approx([0, 1, 2, 3, 5, 7])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_clock_that_jumps(tmp_path, ending):
  path = film(tmp_path / f"jump.{ending}", jump=(25, 86_400.0))
  with pytest.raises(ValueError, match="shows frame 24 for 86400 s by its timestamps, expected at most 600 s"):
    read_video(path, fps=8)
  assert len(read_video(path, max_frames=24)[0]) == 24  # what comes before is sound
  with pytest.raises(ValueError, match="expected at most 600 s: its clock jumps"):
    load_clip({"path": str(path)}, ClipSpec(frames=4, size=(32, 64), fps=5))
  still = film(tmp_path / f"still.{ending}", frames=3, jump=(2, 30.0))
  assert [number(f) for f in read_video(still, fps=1, max_frames=31)[0]] == [0, *[1] * 30]


# ---- how it is displayed


def turned(path, to, matrix):
  """The file with (a, b, c, d) in its display matrix."""
  data = bytearray(path.read_bytes())
  at = data.find(b"tkhd") + 44
  a, b, c, d = (value << 16 for value in matrix)
  data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  to.write_bytes(data)
  return to


def moved(frames, matrix):
  """frames [F, H, W, 3] with pixel (x, y) at (a x + c y, b x + d y), shifted to begin at 0."""
  a, b, c, d = matrix
  y, x = np.mgrid[: frames.shape[1], : frames.shape[2]]
  column, row = a * x + c * y, b * x + d * y
  column, row = column - column.min(), row - row.min()
  out = np.zeros((len(frames), row.max() + 1, column.max() + 1, 3), np.uint8)
  out[:, row, column] = frames
  return out


MATRICES = [
  m
  for m in itertools.product((-1, 0, 1), repeat=4)
  if abs(m[0]) == abs(m[3]) != abs(m[1]) == abs(m[2]) and m[0] * m[3] != m[1] * m[2]
]


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_all_eight_orientations(matrix, tmp_path_factory):
  folder = tmp_path_factory.getbasetemp() / "orientations"
  if not folder.exists():
    folder.mkdir()
    encode(folder / "a.mp4", scene(3, 32, 48), crf=8)
  path = turned(folder / "a.mp4", folder / f"{matrix}.mp4", matrix)
  assert len(MATRICES) == 8
  expected = moved(read_video(folder / "a.mp4")[0], matrix)
  assert np.array_equal(read_video(path)[0], expected)
  got = load_clip({"path": str(path)}, ClipSpec(frames=3, size=expected.shape[1:3], fps=None))
  assert np.array_equal(got, expected)
  assert np.array_equal(
    load_clip({"mp4": path.read_bytes()}, ClipSpec(3, (24, 24), None)), read_video(path, (24, 24))[0]
  )


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov", "h264"])
@pytest.mark.parametrize("sar", [Fraction(2), Fraction(2, 3)], ids=str)
def test_pixels_become_square(tmp_path, ending, sar):
  y, x = np.mgrid[:32, :64]
  inside = (y - 15.5) ** 2 + ((x - 31.5) * float(sar)) ** 2 < 12**2  # shown as a circle 24 across
  picture = np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)
  path = film(tmp_path / f"a.{ending}", frames=3, sar=sar, pictures=picture)
  whole, _ = read_video(path)
  assert whole.shape == (3, 32, round(64 * sar), 3)
  spec = ClipSpec(frames=3, size=(32, 32), fps=None)
  small, clip = read_video(path, size=(32, 32))[0], load_clip({"path": str(path)}, spec)
  assert np.array_equal(small, clip)
  for frames in (whole, small):
    white = frames[1, ..., 0] > 127
    assert white.any(1).sum() == pytest.approx(24, abs=2) == white.any(0).sum()
  if ending == "mp4":
    lying = turned(path, tmp_path / "turned.mp4", (0, 1, -1, 0))
    assert np.array_equal(read_video(lying)[0], np.rot90(whole, -1, axes=(1, 2)))


def test_pixels_of_no_shape(tmp_path):
  path = film(tmp_path / "a.mp4", frames=2, sar=Fraction(2), pictures=numbered(1))
  path.write_bytes(path.read_bytes().replace(b"pasp" + struct.pack(">II", 2, 1), b"pasp" + struct.pack(">II", 40, 1)))
  for read in (read_video, lambda path: load_clip({"path": str(path)}, ClipSpec(frames=1))):
    with pytest.raises(ValueError, match=r"pixels of 40 \(width to height\), expected 1/16 to 16"):
      read(path)


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_hdr_is_the_same_for_every_reader(tmp_path, transfer):
  frames = np.broadcast_to(np.repeat(np.linspace(0, 200, 8).astype(np.uint8), 8)[None, None, :, None], (3, 64, 64, 3))
  options = dict(pix_fmt="yuv420p10le", colour=(9, transfer, 9), **{"x265-params": "log-level=none"})
  path = encode(tmp_path / "hdr.mp4", frames, "libx265", **options)
  clip = load_clip({"path": str(path)}, ClipSpec(frames=3, size=(32, 32), fps=None))
  assert np.array_equal(read_video(path, size=(32, 32))[0], clip)
  record = {"path": str(path), "name": "hdr"}
  mp4, _ = prepare_videos._mp4(record, prepare_videos.Job("train", 0, 1, (0, 1), (32, 32), 25.0, 9.0, ""))
  prepared, _ = read_video(VideoBytes(mp4))
  assert np.ptp(clip[1, 16].astype(int), axis=1).max() <= 6 and clip[1, 16, -2].mean() > 245  # grey; bright is white
  assert len(prepared) == 3 and np.abs(prepared.astype(int) - clip).mean() < 2
