"""Still pictures by the way of videos: read as they are meant to be seen, written, and through the command line."""

import io
import struct
import warnings
import zlib

import flax.traverse_util as traverse
import numpy as np
import pytest
from flextok_files import changed, golden_parts
from PIL import Image, ImageOps

from vftok.cli import commands
from vftok.convert.load import abstract_params
from vftok.data.clip import ClipSpec, load_clip
from vftok.data.sources import make_source
from vftok.families.flextok import FlexTok, released, vae_weights
from vftok.io.container import VideoBytes
from vftok.io.vft import read_vft
from vftok.io.video import read_video, video_info
from vftok.io.video_writer import check_video_name, write_video

BLOCKS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
PIXELS = np.kron(BLOCKS, np.ones((8, 8, 1), np.uint8))  # 32 x 48


def saved(path, picture=None, **options):
  (Image.fromarray(PIXELS) if picture is None else picture).save(path, **options)
  return path


def exif(orientation) -> Image.Exif:
  tags = Image.Exif()
  tags[0x112] = orientation
  return tags


# ---- reading


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.PNG", "no ending"])
def test_lossless_pictures_are_videos_of_one_frame(tmp_path, name):
  kind = {"a.webp": dict(format="WEBP", lossless=True)}.get(name, dict(format="PNG"))
  frames, fps = read_video(saved(tmp_path / name, **kind))
  assert fps == 25 and np.array_equal(frames, PIXELS[None])
  assert video_info(tmp_path / name)[0] == 25
  in_memory = VideoBytes((tmp_path / name).read_bytes(), "it")
  assert np.array_equal(read_video(in_memory)[0], frames) and np.array_equal(read_video(in_memory)[0], frames)
  for fps in (0.01, 8, 30, 999):
    assert len(read_video(tmp_path / name, fps=fps)[0]) == 1
  assert len(read_video(tmp_path / name, max_frames=3)[0]) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
  for name, options in (("a.jpg", dict(quality=100, subsampling=0)), ("a.png", {}), ("a.webp", dict(lossless=True))):
    path = saved(tmp_path / name, exif=exif(orientation), **options)
    with Image.open(path) as picture:
      expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(read_video(path)[0][0], expected), name
  shape = (48, 32) if orientation > 4 else (32, 48)
  assert expected.shape[:2] == shape


def test_a_damaged_orientation_is_none(tmp_path):
  path = saved(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
  assert np.array_equal(read_video(path)[0][0], PIXELS)


def test_resized_like_video_to_the_size_asked_for(tmp_path):
  """The short side fits, the middle is kept; the loader gives the same numbers."""
  path = saved(tmp_path / "a.png")
  (frame,), _ = read_video(path, (16, 16))
  assert frame.shape == (16, 16, 3)
  np.testing.assert_allclose(frame[2::4, 2::4].astype(int), BLOCKS[:, 1:5], atol=32)  # of 4 x 4 pixels a block
  clip = load_clip({"path": str(path)}, ClipSpec(frames=1, size=(16, 16), fps=None))
  assert np.array_equal(clip, frame[None])


GREY16 = PIXELS[..., 0].astype(np.uint16) * 257
ALPHA = np.concatenate([PIXELS, np.where(np.arange(48) < 24, 0, 255)[None, :, None].repeat(32, 0).astype(np.uint8)], 2)
ON_WHITE = np.where(np.arange(48)[None, :, None] < 24, 255, PIXELS)
KINDS = {
  "16 bits of grey": (lambda p: saved(p, Image.fromarray(GREY16)), PIXELS[..., :1].repeat(3, 2)),
  "grey": (lambda p: saved(p, Image.fromarray(PIXELS[..., 0])), PIXELS[..., :1].repeat(3, 2)),
  "two colours": (lambda p: saved(p, Image.fromarray(PIXELS[..., 0] > 99)), (PIXELS[..., :1] > 99) * 255),
  "palette": (lambda p: saved(p, Image.fromarray(PIXELS).quantize(256)), PIXELS),
  "transparency": (lambda p: saved(p, Image.fromarray(ALPHA)), ON_WHITE),
  "transparent palette": (lambda p: saved(p, Image.fromarray(ALPHA).quantize(256)), ON_WHITE),
}


@pytest.mark.parametrize("name", KINDS)
def test_pngs_of_other_kinds_become_rgb(tmp_path, name):
  make, expected = KINDS[name]
  frame = read_video(make(tmp_path / "a.png"))[0][0]
  assert frame.dtype == np.uint8 and frame.shape == PIXELS.shape
  np.testing.assert_allclose(frame.astype(int), np.broadcast_to(expected, frame.shape), atol=3)


def test_colours_of_16_bits(tmp_path):
  """No writer here makes them; rows of big-endian numbers behind filter 0."""
  rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PIXELS)
  (tmp_path / "a.png").write_bytes(png(48, 32, rows, bits=16))
  assert np.array_equal(read_video(tmp_path / "a.png")[0][0], PIXELS)


def test_jpegs_of_other_kinds_become_rgb(tmp_path):
  grey = read_video(saved(tmp_path / "g.jpg", Image.fromarray(PIXELS[..., 0]), quality=100))[0][0]
  np.testing.assert_allclose(grey.astype(int), PIXELS[..., :1].repeat(3, 2), atol=4)
  cmyk = read_video(saved(tmp_path / "c.jpg", Image.fromarray(PIXELS).convert("CMYK"), quality=100))[0][0]
  np.testing.assert_allclose(cmyk.astype(int), PIXELS, atol=8)
  second = Image.fromarray(PIXELS[::-1].copy())
  mpo = saved(tmp_path / "m.jpg", format="MPO", save_all=True, append_images=[second], quality=100, subsampling=0)
  frames, _ = read_video(mpo)  # what telephones write: the first is the picture
  np.testing.assert_allclose(frames.astype(int), PIXELS[None], atol=8)


def test_pixels_that_are_not_square_keep_their_shape(tmp_path):
  assert read_video(saved(tmp_path / "a.jpg", dpi=(100, 200)))[0].shape == (1, 32, 96, 3)
  assert read_video(saved(tmp_path / "b.jpg", dpi=(100, 200), exif=exif(6)))[0].shape == (1, 48, 16, 3)
  assert read_video(saved(tmp_path / "c.png", dpi=(72, 72.4)))[0].shape == (1, 32, 48, 3)


def test_an_animated_png_is_a_video(tmp_path):
  more = [Image.fromarray(PIXELS[::-1].copy())]
  frames, _ = read_video(saved(tmp_path / "a.png", save_all=True, append_images=more, duration=100))
  assert np.array_equal(frames, [PIXELS, PIXELS[::-1]])


def png(width, height, rows=b"", bits=8) -> bytes:
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(kind, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(PIXELS).save(buffer, kind, **options)
  return buffer.getvalue()


TWO = dict(save_all=True, append_images=[Image.fromarray(PIXELS[::-1].copy())], duration=100)
BAD = {
  "a bomb": (png(60_000, 60_000), "far more than 67108864 pixels"),
  "a large picture": (png(10_000, 9_000), "10000x9000 pixels, expected at most 67108864"),
  "a larger one": (png(10_000, 15_000), "10000x15000 pixels, expected at most 67108864"),
  "no pixels": (png(0, 0), "damaged or cut short"),
  "too few rows": (png(48, 32, b"\0" * 100), "damaged or cut short"),
  "an animated WebP": (encoded("WEBP", **TWO), "is a WebP of 2 frames"),
  "a signature": (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
  "only the start of a JPEG": (b"\xff\xd8\xff", "damaged or cut short"),
  **{
    f"half a {kind}": (encoded(kind)[: len(encoded(kind)) // 2], "damaged or cut short")
    for kind in ("PNG", "JPEG", "WEBP")
  },
  "a bad checksum": (encoded("PNG").replace(b"IDAT", b"IDAX", 1), "damaged or cut short"),
  "long pixels": (encoded("JPEG", dpi=(10, 1000)), "pixels of 100 (width to height)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_one_sentence(tmp_path, name):
  data, sentence = BAD[name]
  (tmp_path / "it.png").write_bytes(data)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for read in (read_video, lambda path: load_clip({"path": str(path)}, ClipSpec(frames=1, fps=None))):
      with pytest.raises(ValueError) as error:
        read(tmp_path / "it.png")
      text = str(error.value)
      assert sentence in text and "it.png" in text and len(text) < 400 and "\n" not in text


def test_damage_at_any_byte_is_a_picture_or_one_sentence(tmp_path):
  rng = np.random.default_rng(0)
  for data in (encoded("PNG", exif=exif(6)), encoded("JPEG", exif=exif(3)), encoded("WEBP", exif=exif(8))):
    for _ in range(60):
      bad = bytearray(data[: len(data) - rng.integers(0, 20)])
      for at in rng.integers(0, len(bad), 4):
        bad[at] = rng.integers(0, 256)
      try:
        frames, _ = read_video(VideoBytes(bytes(bad), "it"), (16, 16))
        assert frames.shape[1:] == (16, 16, 3)
      except ValueError as error:
        assert len(str(error)) < 400 and "\n" not in str(error)


# ---- a folder of them


def test_a_folder_of_pictures(tmp_path):
  for label in ("cat", "dog"):
    (tmp_path / label).mkdir()
    for i, ending in enumerate(("png", "jpg", "webp", "JPEG")):
      saved(tmp_path / label / f"{i}.{ending}")
  (tmp_path / "dog" / "notes.txt").write_text("no picture")
  write_video(tmp_path / "dog" / "film.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
  source = make_source("image_folder", "all", {"path": tmp_path})
  assert len(source) == 8 and source.label_names == ("cat", "dog")
  record = source[7]
  assert (record["label"], record["caption"]) == (1, "dog")
  assert load_clip(record, ClipSpec(frames=1, size=(8, 8))).shape == (1, 8, 8, 3)
  sizes = [len(make_source("image_folder", split, {"path": tmp_path, "holdout": 0.4})) for split in ("train", "val")]
  assert sum(sizes) == 8 and min(sizes) > 0
  assert len(make_source("video_folder", "all", {"path": tmp_path})) == 1
  (tmp_path / "none").mkdir()
  with pytest.raises(ValueError, match=r"holds no pictures \(.jpeg, .jpg, .png, .webp\)"):
    make_source("image_folder", "all", {"path": tmp_path / "none"})
  with pytest.raises(ValueError, match="expected at least 17"):
    load_clip(record, ClipSpec(frames=17, size=(8, 8)))


# ---- writing


def test_one_frame_is_written_as_a_picture(tmp_path):
  write_video(tmp_path / "a.png", PIXELS[None], 8)
  assert np.array_equal(read_video(tmp_path / "a.png")[0], PIXELS[None])
  for name in ("a.jpg", "a.JPEG"):
    write_video(tmp_path / name, PIXELS[None], 8)
    np.testing.assert_allclose(read_video(tmp_path / name)[0].astype(int), PIXELS[None], atol=40)
  with Image.open(tmp_path / "a.jpg") as picture:
    assert picture.format == "JPEG"


def test_more_frames_are_no_picture(tmp_path):
  (tmp_path / "a.png").write_bytes(b"old")
  for frames in (np.stack([PIXELS] * 3), np.zeros((0, 8, 8, 3), np.uint8)):
    with pytest.raises(ValueError):
      write_video(tmp_path / "a.png", frames, 8)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"
  with pytest.raises(ValueError, match=r"a video, and \.png holds one frame: use \.mp4"):
    check_video_name("a.png", 3)


# ---- the command line


@pytest.fixture(scope="module")
def model():
  """A tiny random image model of 16 x 24 pixels."""
  changes = [
    *((f"{module}.max_sizes", [4, 6]) for module in ("enc/enc_posemb_module", "dec/dec_patches_posemb_module")),
    *(
      (f"{module}.patch_sizes", [4, 4])
      for module in ("enc/enc_patch_emb", "dec/dec_noise_patch_emb", "dec/dec_to_patches")
    ),
  ]
  cfg, _ = released.parse(changed(golden_parts()[1], *changes), vae_weights.KLConfig((32,), 1, 4, scaling=0.6))
  rng = np.random.default_rng(0)
  fresh = lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
  return FlexTok(cfg), traverse.unflatten_dict({path: fresh(leaf) for path, leaf in abstract_params(cfg).items()})


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(commands, "load_tokenizer", lambda path, dino=None: model)

  def run(*words) -> str:
    code = commands.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out

  return run


@pytest.mark.slow
def test_a_picture_through_the_command_line(run, model, tmp_path, capsys):
  saved(tmp_path / "turned.jpg", exif=exif(6))
  assert "1 frames, 1 time steps, 16 tokens" in run("encode", "m", "turned.jpg", "a.vft")
  vft = read_vft("a.vft")
  assert (vft.frames, vft.chunk_frames, vft.overlap_frames, vft.size, vft.registers) == (1, 1, 0, (16, 24), 16)
  video = read_video("turned.jpg", (16, 24))[0][None]
  assert np.array_equal(vft.tokens().ids, model[0].encode(model[1], video).ids)
  run("truncate", "a.vft", "b.vft", "--keep", 4)
  assert "tokens_per_step.most      4" in run("info", "b.vft")
  run("decode", "m", "b.vft", "out.png", "--steps", 2)
  with Image.open("out.png") as picture:
    assert (picture.format, picture.size) == ("PNG", (24, 16))
  assert "frame_size" in run("info", "m")
  out = run("reconstruct", "m", "turned.jpg", "side.png", "--steps", 2, "--keep", "4,16")
  assert "wrote side.png and side_curves.png" in out
  with Image.open("side.png") as side, Image.open("side_curves.png") as curves:
    assert side.size[0] > 3 * 24 and curves.size != side.size


def test_a_film_is_no_picture_before_anything_is_decoded(run, tmp_path, capsys):
  write_video("film.mp4", np.stack([PIXELS] * 3), 8)
  run("encode", "m", "film.mp4", "film.vft")
  for words in (("decode", "m", "film.vft", "out.png"), ("reconstruct", "m", "film.mp4", "out.png")):
    assert commands.main(list(words)) == 2
    assert "a video, and .png holds one frame" in capsys.readouterr().err
  assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "film.vft"]
