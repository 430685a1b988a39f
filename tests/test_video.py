import os
import struct

import av
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from vftok.evals import pixels
from vftok.io.video import iter_frames, read_video, video_info
from vftok.io.video_writer import to_uint8, video_writer, write_video
from vftok.show.picture import curves_png, labelled_grid, si


def scene(frames=24, height=48, width=64):
  """A smooth moving picture whose frames are all different: uint8 [F, H, W, 3]."""
  y, x = np.mgrid[:height, :width]
  return np.stack(
    [
      np.stack([128 + 100 * np.sin((x + 3 * f) / 9), 128 + 100 * np.cos((y + 2 * f) / 7), 10.0 * f + 0 * x], -1)
      for f in range(frames)
    ]
  ).astype(np.uint8)


def encode(path, frames, codec, times=None):
  """A file as other programs would make it; times in milliseconds give a variable frame rate."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25 if times is None else 1000)
    stream.height, stream.width, stream.pix_fmt = (
      *frames.shape[1:3],
      "yuvj420p" if codec == "mjpeg" else "yuv420p",
    )
    for i, pixels_HxWx3 in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(pixels_HxWx3, format="rgb24")
      if times is not None:
        frame.pts = times[i]
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def error_at(a, b):
  return np.abs(a.astype(float) - b.astype(float)).mean()


def which(found, frames):
  """Index of the nearest of `frames` for each one found."""
  return [int(np.argmin([error_at(one, frame) for frame in frames])) for one in found]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp("clips")
  write_video(folder / "clip.mp4", scene(), 25)
  encode(folder / "clip.mkv", scene(), "libx264")
  encode(folder / "clip.avi", scene(), "mpeg4")
  encode(folder / "clip.webm", scene(), "libvpx-vp9")
  encode(folder / "clip.mov", scene(), "mjpeg")
  write_video(folder / "clip.gif", scene(), 25)
  return folder


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.webm", "clip.mov", "clip.gif"])
def test_reads_every_frame(clips, name):
  frames, fps = read_video(clips / name)
  assert frames.shape == (24, 48, 64, 3) and frames.dtype == np.uint8
  assert fps == 25
  assert which(frames, scene()) == list(range(24))
  assert video_info(clips / name) == (25, pytest.approx(24 / 25, abs=0.01))


@pytest.mark.parametrize("fps", [8, 2.5, 30000 / 1001, 50])
def test_written_is_read_back(tmp_path, fps):
  frames = scene(20)
  for ending, tolerance in (("mp4", 1e-6), ("gif", 2.0)):  # a .gif counts in hundredths of a second
    write_video(tmp_path / f"out.{ending}", frames, fps)
    back, rate = read_video(tmp_path / f"out.{ending}")
    assert back.shape == frames.shape and error_at(back, frames) < 5
    assert rate == pytest.approx(fps, abs=tolerance * fps / 10)
  assert len(read_video(tmp_path / "out.mp4", fps=fps)[0]) == len(frames)


def test_odd_sizes_are_written(tmp_path):
  frames = scene(3, 33, 47)
  write_video(tmp_path / "odd.mp4", frames, 8)
  back, _ = read_video(tmp_path / "odd.mp4")
  assert back.shape == (3, 34, 48, 3) and error_at(back[:, :33, :47], frames) < 6
  assert error_at(back[:, 33], back[:, 32]) < 6  # a repeated row, not a black one
  write_video(tmp_path / "odd.gif", frames, 8)
  assert read_video(tmp_path / "odd.gif")[0].shape == frames.shape


def test_colours_survive_at_any_size(tmp_path):
  for height, width in ((64, 64), (720, 1280)):
    red = np.broadcast_to(np.uint8([200, 30, 30]), (2, height, width, 3))
    write_video(tmp_path / "red.mp4", red, 8)
    assert np.abs(read_video(tmp_path / "red.mp4")[0].astype(int) - red).max() <= 3


def test_resampling_follows_the_timestamps(tmp_path):
  frames = scene(6)
  times = [0, 100, 200, 1000, 1100, 1200]  # ms: the third frame stays on screen for 0.8 s
  encode(tmp_path / "vfr.mp4", frames, "libx264", times=times)
  got, _ = read_video(tmp_path / "vfr.mp4", fps=10, max_frames=13)
  assert which(got, frames) == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5]
  assert which(read_video(tmp_path / "vfr.mp4", fps=2, max_frames=3)[0], frames) == [0, 2, 3]


def test_clip_of_a_video(clips):
  whole, _ = read_video(clips / "clip.mp4")
  part, _ = read_video(clips / "clip.mp4", start=0.4, max_frames=5)
  assert np.array_equal(part, whole[10:15])
  every_second, fps = read_video(clips / "clip.mp4", fps=12.5)
  assert fps == 12.5 and np.array_equal(every_second, whole[::2])
  twice, _ = read_video(clips / "clip.mp4", fps=50)
  assert np.array_equal(twice, np.repeat(whole, 2, axis=0))
  assert np.array_equal(np.stack(list(iter_frames(clips / "clip.mp4"))), whole)


def test_missing_timestamps_are_made_from_the_rate(tmp_path):
  frames = scene(10)
  with av.open(str(tmp_path / "raw.h264"), "w", format="h264") as container:
    stream = container.add_stream("libx264", rate=25, options={"bf": "2"})
    stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
    for pixels_HxWx3 in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HxWx3, format="rgb24")))
    container.mux(stream.encode(None))
  back, _ = read_video(tmp_path / "raw.h264")
  assert back.shape == frames.shape and error_at(back, frames) < 8
  assert len(read_video(tmp_path / "raw.h264", fps=12.5)[0]) == 5


def test_resize_short_side_then_centre_crop(clips):
  whole, _ = read_video(clips / "clip.mp4", max_frames=1)
  resized = lambda w, h: np.asarray(Image.fromarray(whole[0]).resize((w, h), Image.Resampling.BICUBIC))
  read = lambda size: read_video(clips / "clip.mp4", size=size, max_frames=1)[0][0]
  assert error_at(read((24, 24)), resized(32, 24)[:, 4:28]) < 3  # resized before YUV becomes RGB, so not to the bit
  assert error_at(read((24, 48)), resized(48, 36)[6:30]) < 3
  assert read((96, 32)).shape == (96, 32, 3)
  assert np.array_equal(read((48, 48)), whole[0, :, 8:56])


def test_rotation_of_a_phone_is_applied(clips, tmp_path):
  data = bytearray((clips / "clip.mp4").read_bytes())
  matrix = data.find(b"tkhd") + 44
  data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
  (tmp_path / "phone.mp4").write_bytes(data)
  lying, _ = read_video(clips / "clip.mp4")
  upright, _ = read_video(tmp_path / "phone.mp4")
  assert np.array_equal(upright, np.rot90(lying, -1, axes=(1, 2)))  # a quarter turn clockwise


def cut(part):
  return lambda data: data[: int(len(data) * part)]


DAMAGED = [
  ("clip.mp4", lambda d: b"", r"is empty \(0 bytes\), expected a video"),
  ("clip.mp4", lambda d: b"hello world\n" * 99, "cut short or not a video"),
  ("clip.mp4", cut(0.6), r"at frame \d+"),
  ("clip.mp4", lambda d: d[: len(d) // 2] + bytes(200) + d[len(d) // 2 + 200 :], r"damaged at frame \d+"),
  ("clip.mp4", lambda d: d[: len(d) // 2] + b"\x55" * 99 + d[len(d) // 2 + 99 :], r"damaged at frame \d+"),
  ("clip.mkv", cut(0.6), r"cut short, it ends at frame \d+ .* header says 0\.96 s"),
  ("clip.webm", cut(0.5), r"at frame \d+"),
  ("clip.avi", cut(0.6), "cut short"),
  ("clip.avi", lambda d: d[:-2000] + b"\x55" * 1000 + d[-1000:], r"at frame \d+"),
  ("clip.mov", lambda d: d[: len(d) // 2] + b"\x55" * 99 + d[len(d) // 2 + 99 :], r"damaged at frame \d+"),
  ("clip.gif", cut(0.6), r"at frame \d+"),
]


@pytest.mark.parametrize("name, damage, sentence", DAMAGED, ids=range(len(DAMAGED)))
def test_damage_is_noticed(clips, tmp_path, name, damage, sentence):
  path = tmp_path / name
  path.write_bytes(damage((clips / name).read_bytes()))
  with pytest.raises(ValueError, match=sentence) as caught:
    read_video(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_index_at_the_end_and_cut(tmp_path):
  path = encode(tmp_path / "tail.mp4", scene(), "libx264")
  path.write_bytes(path.read_bytes()[:-300])
  with pytest.raises(ValueError, match="cut short or not a video"):
    read_video(path)


def test_a_cut_video_still_gives_its_first_frames(clips, tmp_path):
  path = tmp_path / "clip.mkv"
  path.write_bytes(cut(0.6)((clips / "clip.mkv").read_bytes()))
  assert len(read_video(path, max_frames=5)[0]) == 5


def test_sound_only_and_sound_that_outlasts_the_picture(tmp_path):
  def with_sound(path, picture):
    with av.open(str(path), "w") as container:
      video = container.add_stream("libx264", rate=25) if picture else None
      audio = container.add_stream("aac", rate=44100)
      if picture:
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for pixels_HxWx3 in scene(10):
          container.mux(video.encode(av.VideoFrame.from_ndarray(pixels_HxWx3, format="rgb24")))
        container.mux(video.encode(None))
      for i in range(100):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 44100, 1024 * i
        container.mux(audio.encode(sound))
      container.mux(audio.encode(None))
    return path

  for ending in ("mp4", "mkv"):
    with pytest.raises(ValueError, match="holds audio and no video stream"):
      read_video(with_sound(tmp_path / f"sound.{ending}", False))
    assert len(read_video(with_sound(tmp_path / f"both.{ending}", True))[0]) == 10


BAD_READS = [
  (dict(fps=0), "fps is 0, expected"),
  (dict(fps=-8), "fps is -8, expected"),
  (dict(fps=float("nan")), "fps is nan, expected"),
  (dict(start=-1), "start is -1, expected"),
  (dict(start=float("inf")), "start is inf, expected"),
  (dict(max_frames=0), "max_frames is 0, expected"),
  (dict(size=(0, 8)), r"size is \(0, 8\), expected"),
  (dict(size=(8,)), r"size is \(8,\), expected"),
  (dict(min_frames=25), "has 24 frames, expected at least 25"),
  (dict(min_frames=9, fps=8), "has 8 frames at 8 frames per second, expected at least 9"),
  (dict(start=5), "has 0 frames from 5 s on, expected at least 1"),
]


@pytest.mark.parametrize("arguments, sentence", BAD_READS)
def test_bad_arguments(clips, arguments, sentence):
  with pytest.raises(ValueError, match=sentence):
    read_video(clips / "clip.mp4", **arguments)


def test_no_file_and_a_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no\.mp4 does not exist"):
    read_video(tmp_path / "no.mp4")
  with pytest.raises(ValueError, match="is not a file"):
    read_video(tmp_path)


BAD_WRITES = [
  ("out.mp4", [], 8, "no frames to write"),
  ("out.mp4", [scene(2), scene(2, 32, 32)], 8, r"expected \(48, 64, 3\)"),
  ("out.mp4", [scene(2).astype(np.float32)], 8, r"expected uint8 \[F, H, W, 3\]"),
  ("out.mp4", [scene(2)[0]], 8, r"expected uint8 \[F, H, W, 3\]"),
  ("out.gif", [scene(2)], 60, "at most 50 in a .gif"),
  ("out.mp4", [scene(2)], 0, "fps is 0"),
  ("out.txt", [scene(2)], 8, "use .mp4 or .gif"),
  ("no/out.mp4", [scene(2)], 8, "is not a folder"),
]


@pytest.mark.parametrize("name, pieces, fps, sentence", BAD_WRITES)
def test_a_failed_write_leaves_nothing(tmp_path, name, pieces, fps, sentence):
  if "/" not in name:
    (tmp_path / name).write_bytes(b"old")
  with (
    pytest.raises((ValueError, FileNotFoundError), match=sentence),
    video_writer(tmp_path / name, fps) as writer,
  ):
    for piece in pieces:
      writer.write(piece)
  assert [p.name for p in tmp_path.iterdir()] == ([name] if "/" not in name else [])
  assert "/" in name or (tmp_path / name).read_bytes() == b"old"


def test_nothing_appears_before_the_end(tmp_path):
  with video_writer(tmp_path / "out.mp4", 8) as writer:
    writer.write(scene(3))
    assert not (tmp_path / "out.mp4").exists()
  assert os.listdir(tmp_path) == ["out.mp4"]


def test_to_uint8():
  assert to_uint8(np.float32([-1.2, -1, 0, 1, 1.5])).tolist() == [0, 0, 128, 255, 255]
  every = np.arange(256, dtype=np.uint8)
  assert np.array_equal(to_uint8(every / np.float32(127.5) - 1), every)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
def test_what_is_not_finite_is_no_picture(value, dtype):
  video = np.zeros((2, 4, 4, 3), dtype)
  video[1, 2, 3, 0] = value
  with pytest.raises(ValueError, match=r"1 of the 96 values of the video are NaN or infinite, expected floats in"):
    to_uint8(video)


def test_to_uint8_takes_floats():
  assert to_uint8(np.zeros(2, ml_dtypes.bfloat16)).tolist() == [128, 128]
  for dtype in (np.int32, np.int64, bool, complex):
    with pytest.raises(ValueError, match="expected uint8, or floats"):
      to_uint8(np.zeros(2, dtype))


# ---- scores and pictures


def test_psnr_and_ssim_conventions():
  reference = np.full((1, 2, 16, 16, 3), 100, np.uint8)
  video = reference.copy()
  video[0, 1] = 120
  mse = (20 / 255) ** 2 / 2  # over the whole clip: half of its frames are off by 20
  assert pixels.psnr(reference, video) == pytest.approx([-10 * np.log10(mse)], rel=1e-5)
  a, b, c1 = 100 / 255, 120 / 255, 1e-4  # flat pictures: SSIM is its luminance term
  assert pixels.ssim(reference, video) == pytest.approx([(1 + (2 * a * b + c1) / (a * a + b * b + c1)) / 2], rel=1e-4)
  assert pixels.psnr(reference, reference) == np.inf and pixels.ssim(reference, reference) == pytest.approx(1)
  floats = video / np.float32(127.5) - 1
  assert pixels.psnr(reference, floats) == pytest.approx(pixels.psnr(reference, video), rel=1e-5)


def test_scores_do_not_depend_on_the_cut():
  reference, video = scene(7), np.roll(scene(7), 1, axis=2)
  scores = pixels.PixelScores()
  for start, stop in ((0, 3), (3, 4), (4, 7)):
    scores.update(reference[start:stop], video[start:stop])
  assert scores.frames == 7
  assert scores.psnr == pytest.approx(pixels.psnr(reference[None], video[None])[0], rel=1e-6)
  assert scores.ssim == pytest.approx(pixels.ssim(reference[None], video[None])[0], rel=1e-6)


@pytest.mark.parametrize(
  "reference, video, sentence",
  [
    (scene(2), scene(3), "expected the reference's"),
    (scene(2), scene(2).astype(np.float32), "expected uint8 or floats"),
    (scene(2), np.full((2, 48, 64, 3), np.nan), "expected uint8 or floats"),
    (scene(2, 8, 8), scene(2, 8, 8), "at least 11 x 11"),
  ],
)
def test_bad_scores(reference, video, sentence):
  with pytest.raises(ValueError, match=sentence):
    pixels.PixelScores().update(reference, video)


def test_labelled_grid():
  videos = [scene(4), 255 - scene(4), scene(4) // 2]
  labels = ["original\n4 frames", "k = 1\n5 tokens", "k = 4\n20 tokens"]
  grid = labelled_grid(videos, labels)
  frames, height, width, _ = grid.shape
  assert frames == 4 and height % 2 == width % 2 == 0 and width >= 3 * 256
  assert np.array_equal(grid[:, :40], np.broadcast_to(grid[:1, :40], grid[:, :40].shape))  # labels stand still
  assert grid[0, :40].max() > 200 and not np.array_equal(grid[0], grid[1])
  pieces = [labelled_grid([v[i : i + 2] for v in videos], labels) for i in (0, 2)]
  assert np.array_equal(np.concatenate(pieces), grid)
  many = labelled_grid([scene(1)] * 9, ["x"] * 9)
  assert many.shape[2] <= 1920 and many.shape[1] > 2 * 192
  big = labelled_grid([scene(1, 270, 480)], ["x"])
  assert np.array_equal(big[0, -278:-8, 8:488], scene(1, 270, 480)[0])  # big enough: left as it is


@pytest.mark.parametrize(
  "videos, labels",
  [([], []), ([scene(2)], []), ([scene(2), scene(3)], ["a", "b"]), ([scene(2).astype(float)], ["a"])],
)
def test_bad_grids(videos, labels):
  with pytest.raises(ValueError, match="expected"):
    labelled_grid(videos, labels)


def test_curves(tmp_path):
  path = tmp_path / "curves.png"
  curves_png(path, [4, 0, 1], [320, 0, 80], {"PSNR (dB)": [20.0, 10.0, np.inf], "SSIM": [0.5, 0.1, 0.3]}, "title")
  with Image.open(path) as image:
    assert image.size[0] > 1000 and np.asarray(image.convert("L")).std() > 5
  assert os.listdir(tmp_path) == ["curves.png"]


def test_an_odd_number_of_curves_leaves_no_empty_frame(tmp_path):
  path = tmp_path / "curves.png"
  curves_png(path, [1, 2], [10, 20], {name: [0.1, 0.2] for name in "abcde"})
  with Image.open(path) as image:
    pixels = np.asarray(image.convert("L"))
  height, width = pixels.shape
  assert pixels[2 * height // 3 + 40 :, : width // 2].min() < 100  # the fifth panel
  assert (pixels[2 * height // 3 + 40 :, width // 2 + 20 :] == 255).all()


def test_si():
  assert [si(v, "bit") for v in (0, 79.9, 999.4, 999.9, 20443, 3.27e6)] == [
    "0 bit", "79.9 bit", "999 bit", "1 kbit", "20.4 kbit", "3.27 Mbit",
  ]  # fmt: skip
