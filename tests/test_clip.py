"""One clip out of one video: the right moments, the right pixels, whatever the file."""

import struct
import time

import numpy as np
import pytest
from PIL import Image
from video_files import encode, scene

from vftok.data import window
from vftok.data.clip import ClipSpec, load_clip, moments
from vftok.io.container import VideoBytes
from vftok.io.display import MIDDLE
from vftok.io.video import iter_frames, read_video

NATIVE = ClipSpec(frames=5, size=(48, 64), fps=None)


def error_at(a, b):
  return np.abs(a.astype(float) - b.astype(float)).mean()


FILES = {
  "b_frames.mp4": dict(codec="libx264", bf=3, g=12),
  "one_gop.mp4": dict(codec="libx264", bf=2, g=300),
  "open_gop.mp4": dict(codec="libx264", bf=3, g=10, **{"x264-params": "open-gop=1"}),
  "open_gop_hevc.mkv": dict(codec="libx265", **{"x265-params": "keyint=10:open-gop=1:bframes=3:log-level=none"}),
  "intra_refresh.mkv": dict(codec="libx264", g=10, **{"intra-refresh": 1}),
  "vp9.webm": dict(codec="libvpx-vp9", g=9, **{"cpu-used": 8, "deadline": "realtime"}),
  "old.avi": dict(codec="mpeg4", g=9, bf=0),
  "broadcast.ts": dict(codec="libx264", bf=2, g=12),
  "still.mov": dict(codec="mjpeg", pix_fmt="yuvj420p"),
}
SEEKABLE = (".mp4", ".mkv", ".webm", ".mov")
UNSTARTABLE = ("open_gop.mp4", "intra_refresh.mkv")  # FFmpeg finds fault with a start in the middle of these


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  for name, options in FILES.items():
    encode(folder / name, scene(60), **options)
  return folder


@pytest.mark.parametrize("name", FILES)
def test_only_what_is_shown_is_decoded_and_the_pixels_are_the_same(files, name, monkeypatch):
  path, rng, slow = files / name, np.random.default_rng(0), window._from_the_start
  starts = [0.001, 0.4, 0.8, *rng.uniform(0, 1.5, 7)]
  fallbacks = []
  monkeypatch.setattr(window, "_from_the_start", lambda *a: fallbacks.append(1) or slow(*a))
  for begin in starts:
    at = begin + np.arange(6) / rng.choice([8, 12.5, 25, 60])
    expected = {k: frame.to_ndarray(format="rgb24") for k, frame in slow(path, at, lambda: None)}
    shown = window.shown(path, lambda *_, at=at: at, lambda: None, 9.0)
    found = {k: frame.to_ndarray(format="rgb24") for k, frame, _ in shown}
    assert sorted(found) == list(range(6)), begin
    assert all(np.array_equal(found[k], expected[k]) for k in range(6)), begin
  if name.endswith(SEEKABLE) and name not in UNSTARTABLE:
    assert not fallbacks


@pytest.mark.parametrize("name, most", [("b_frames.mp4", 12 + 6), ("vp9.webm", 9 + 6), ("one_gop.mp4", 54)])
def test_how_much_is_decoded(files, name, most, monkeypatch):
  """5 frames from 1.6 s on (frame 40 of 60): from a key frame before it; without key frames, no needless B frames."""
  decoded = []
  real = window._packets

  def counted(*arguments):
    packets, begins = real(*arguments)
    decoded.append(len(packets))
    return packets, begins

  monkeypatch.setattr(window, "_packets", counted)
  at = 1.62 + np.arange(5) / 25
  assert len(list(window.shown(files / name, lambda *_: at, lambda: None, 9.0))) == 5
  assert decoded[-1] <= most


@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm", "old.avi", "broadcast.ts"])
def test_native_rate_gives_consecutive_frames(files, name):
  whole, _ = read_video(files / name)
  for seed in range(4):
    got = load_clip({"path": str(files / name)}, NATIVE, np.random.default_rng(seed))
    first = int(np.argmin([error_at(got[0], frame) for frame in whole]))
    assert [int(np.argmin([error_at(g, frame) for frame in whole])) for g in got] == list(range(first, first + 5))
    assert error_at(got, whole[first : first + 5]) < 2
  middle = load_clip({"path": str(files / name)}, NATIVE)
  assert error_at(middle, whole[27:32]) < 2


def test_resampling_and_parts_of_a_file(files):
  path = str(files / "b_frames.mp4")
  whole = list(iter_frames(path))
  spec = ClipSpec(frames=4, size=(48, 64), fps=5)
  got = load_clip({"path": path, "start": 1.0, "end": 1.8}, spec)  # 0.6 s apart in 0.8 s: 0.1 s in
  assert all(error_at(g, whole[i]) < 2 for g, i in zip(got, (27, 32, 37, 42), strict=True))
  seen = set()
  for seed in range(20):
    got = load_clip({"path": path, "start": 1.0, "end": 1.8}, spec, np.random.default_rng(seed))
    seen.add(int(np.argmin([error_at(got[0], frame) for frame in whole])))
  assert seen == {25, 26, 27, 28, 29}
  with pytest.raises(ValueError, match=r"b_frames\.mp4 has 2 frames at 5 frames per second, expected at least 4"):
    load_clip({"path": path, "start": 1.0, "end": 1.4}, spec)


@pytest.mark.parametrize("rate, fps, frames", [(24, 8, 17), (25, 25, 3), (30000 / 1001, 8, 5), (12, 8, 4), (5, 30, 9)])
def test_moments_stay_inside(rate, fps, frames):
  spec = ClipSpec(frames=frames, fps=fps)
  need = (frames - 1) / fps
  for length in (need + 1e-3, need + 1 / fps, need + 7.3):
    for draw in (0.0, 0.3, MIDDLE, 1 - 1e-12):
      at = moments(spec, 2.0, 2.0 + length, rate, draw)
      assert len(at) == frames and at[0] >= 2.0 and at[-1] < 2.0 + length
      assert np.allclose(np.diff(at), 1 / fps)
  with pytest.raises(ValueError, match=f"expected at least {frames}"):
    moments(spec, 2.0, 2.0 + need, rate, 0.0)


def test_bytes_are_a_file(files):
  data = (files / "b_frames.mp4").read_bytes()
  for name in FILES:
    data = (files / name).read_bytes()
    from_path = load_clip({"path": str(files / name)}, NATIVE, np.random.default_rng(1))
    assert np.array_equal(load_clip({"mp4": data, "name": "it"}, NATIVE, np.random.default_rng(1)), from_path)
    assert np.array_equal(np.stack(list(iter_frames(VideoBytes(data)))), read_video(files / name)[0])
  with pytest.raises(ValueError, match=r"bikes@3 is cut short or not a video"):
    load_clip({"mp4": b"hello" * 99, "name": "bikes@3"}, NATIVE)
  with pytest.raises(ValueError, match=r"the video is empty"):
    list(iter_frames(VideoBytes(b"")))


def test_a_playlist_in_bytes_opens_no_other_file(files):
  text = f"ffconcat version 1.0\nfile {files / 'b_frames.mp4'}\n".encode()
  with pytest.raises(ValueError):
    load_clip({"mp4": text, "name": "list"}, NATIVE)


# ---- the picture


def test_crops(tmp_path):
  path = encode(tmp_path / "a.mp4", scene(6, 96, 160), crf=4)
  whole, _ = read_video(path)
  spec = ClipSpec(frames=1, size=(24, 32), fps=None, scale=(0.5, 1.0), flip=True)
  resized = np.asarray(Image.fromarray(whole[2]).resize((40, 24), Image.Resampling.BICUBIC))
  assert error_at(load_clip({"path": str(path)}, spec)[0], resized[:, 4:36]) < 2.5  # the middle, not flipped
  for seed in range(6):
    rng = np.random.default_rng(seed)
    got = load_clip({"path": str(path)}, spec, rng)[0]
    moment, top, left, scale, flip = np.random.default_rng(seed).random(5)
    rows, columns = round(24 / (0.5 + scale / 2)), round(40 / (0.5 + scale / 2))
    expected = Image.fromarray(whole[int(moment * 6)]).resize((columns, rows), Image.Resampling.BICUBIC)
    top, left = int(top * (rows - 23)), int(left * (columns - 31))
    expected = np.asarray(expected)[top : top + 24, left : left + 32]
    assert error_at(got, expected[:, ::-1] if flip < 0.5 else expected) < 3, seed


def test_small_videos_are_enlarged_and_odd_sizes_read(tmp_path):
  path = encode(tmp_path / "odd.mkv", scene(6, 33, 47), "ffv1", pix_fmt="bgr0")
  got = load_clip({"path": str(path)}, ClipSpec(frames=6, size=(64, 64), fps=None))
  expected = np.stack(
    [np.asarray(Image.fromarray(f).resize((91, 64), Image.Resampling.BICUBIC)) for f in scene(6, 33, 47)]
  )
  assert got.shape == (6, 64, 64, 3) and error_at(got, expected[:, :, 13:77]) < 2


def test_rotation_is_applied_before_the_crop(tmp_path):
  path = encode(tmp_path / "a.mp4", scene(6, 48, 96), crf=4)
  data = bytearray(path.read_bytes())
  matrix = data.find(b"tkhd") + 44
  data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
  (tmp_path / "phone.mp4").write_bytes(data)
  spec = ClipSpec(frames=6, size=(64, 32), fps=None)
  upright = np.rot90(read_video(path)[0], -1, axes=(1, 2))  # 96 x 48
  expected = np.stack([np.asarray(Image.fromarray(f).resize((32, 64), Image.Resampling.BICUBIC)) for f in upright])
  assert error_at(load_clip({"path": str(tmp_path / "phone.mp4")}, spec), expected) < 2.5


def test_arrays_are_treated_alike():
  frames = scene(20, 48, 64)
  record = {"frames": frames, "name": "it", "fps": 8.0}
  assert np.array_equal(load_clip(record, ClipSpec(frames=5, size=(48, 64), fps=8.0)), frames[7:12])
  assert np.array_equal(load_clip(record, ClipSpec(frames=5, size=(48, 64), fps=4.0)), frames[5:14:2])
  assert np.array_equal(
    load_clip({**record, "fps": None}, ClipSpec(frames=20, size=(32, 32), fps=8.0)).shape, (20, 32, 32, 3)
  )
  with pytest.raises(ValueError, match="it has 20 frames at 8 frames per second, expected at least 21"):
    load_clip(record, ClipSpec(frames=21))
  with pytest.raises(ValueError, match="it has frames float64"):
    load_clip({**record, "frames": frames / 2}, ClipSpec())


def test_hdr(tmp_path):
  """10 bits, BT.2020, PQ: grey stays grey, brighter stays brighter, and white of 203 nits is bright."""
  steps = np.linspace(0, 148, 8).astype(np.uint8)  # PQ code 148 / 255 is 203 nits, the white of SDR
  frames = np.broadcast_to(np.repeat(steps, 8)[None, None, :, None], (6, 64, 64, 3))
  for codec, name, options in (
    ("libx265", "hdr.mp4", {"x265-params": "log-level=none"}),
    ("libx264", "ten_bits.mkv", {}),
  ):
    colour = (9, 16, 9) if codec == "libx265" else None
    path = encode(tmp_path / name, frames, codec, pix_fmt="yuv420p10le", colour=colour, **options)
    got = load_clip({"path": str(path)}, ClipSpec(frames=6, size=(64, 64), fps=None)).astype(int)
    columns = got[3, 32, 4::8]
    assert np.ptp(columns, axis=1).max() <= 6  # grey
    assert (np.diff(columns.mean(1)) > 0).all()
    assert columns[-1].mean() > (200 if colour else 140)


def test_time_is_up(files, monkeypatch):
  real, clock = window._packets, [0.0]

  def hangs(*arguments):
    clock[0] += 61
    return real(*arguments)

  monkeypatch.setattr(time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(window, "_packets", hangs)
  with pytest.raises(TimeoutError, match=r"old.* took longer than 60 s"):
    load_clip({"path": str(files / "b_frames.mp4"), "name": "old"}, NATIVE)


BAD_SPECS = [
  (dict(frames=0), "frames is 0"),
  (dict(size=(64,)), r"size is \(64,\)"),
  (dict(size=(0, 64)), r"size is \(0, 64\)"),
  (dict(fps=0), "fps is 0"),
  (dict(scale=(0.5, 1.5)), r"scale is \(0\.5, 1\.5\)"),
  (dict(scale=(0, 1)), r"scale is \(0, 1\)"),
  (dict(timeout=0), "timeout is 0"),
]


@pytest.mark.parametrize("arguments, sentence", BAD_SPECS)
def test_bad_specs(arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    ClipSpec(**arguments)
