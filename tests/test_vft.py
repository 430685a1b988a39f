import dataclasses
import struct
import types
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vftok.io.vft import Vft, is_vft, read_vft, truncate_vft, write_vft
from vftok.tokens import VideoTokens

TOK = types.SimpleNamespace(
  registers=16,
  levels=(8, 8, 8, 5, 5, 5),
  frame_size=(128, 96),
  chunk_frames=17,
  overlap_frames=1,
  nested=True,
  frames_for=lambda steps: 1 + 4 * (steps - 1),
)
PRINT = "0123456789abcdef"
IDS = np.random.default_rng(0).integers(0, 64000, (1, 5, 16)).astype(np.int32)


def tokens(keep=(16, 4, 0, 16, 1), frames=15):
  return VideoTokens(ids=jnp.asarray(IDS), keep=jnp.asarray([keep], jnp.int32), frames=frames)


def vft(**changes):
  return dataclasses.replace(Vft.of(tokens(), TOK, 8.0, PRINT), **changes)


def sealed(data: bytes) -> bytes:
  """With a checksum that is right for what stands before it, as a hostile file would have."""
  return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def equal(a: Vft, b: Vft) -> bool:
  return a.to_bytes() == b.to_bytes()


def test_round_trip(tmp_path):
  path = tmp_path / "clip.vft"
  write_vft(path, vft())
  back = read_vft(path)
  assert (back.frames, back.fps, back.size, back.registers) == (15, 8.0, (128, 96), 16)
  assert (back.levels, back.chunk_frames, back.overlap_frames) == ((8, 8, 8, 5, 5, 5), 17, 1)
  assert back.fingerprint == PRINT and back.codebook_size == 64000
  got = back.tokens()
  assert got.frames == 15 and got.ids.dtype == got.keep.dtype == np.int32
  assert got.keep.tolist() == [[16, 4, 0, 16, 1]]
  kept = np.arange(16) < np.asarray(got.keep)[..., None]
  assert np.array_equal(got.ids, np.where(kept, IDS, 0))
  assert back.bits == pytest.approx(37 * np.log2(64000))
  assert is_vft(path) and [p.name for p in tmp_path.iterdir()] == ["clip.vft"]


def test_size_and_bytes_are_what_the_layout_says():
  data = vft().to_bytes()
  assert len(data) == 41 + 2 * 6 + 2 * 5 + 2 * 37 + 4  # header, levels, counts, 16 bits for each id kept, checksum
  assert data[:8] == b"\x89VFT\x01\x00\x10\x00"
  assert struct.unpack_from("<dIIHHHH", data, 8) == (8.0, 15, 5, 128, 96, 17, 1)
  assert data[32:40].hex() == PRINT and data[40] == 6
  assert np.frombuffer(data, "<u2", 5, 53).tolist() == [16, 4, 0, 16, 1]
  assert np.frombuffer(data, "<u2", 20, 63).tolist() == [*IDS[0, 0], *IDS[0, 1, :4]]
  assert data == vft().to_bytes()


@pytest.mark.parametrize("keep", [0, 1, 3, 16, (5, 4, 3, 2, 1)])
def test_truncating_equals_encoding_at_that_budget(tmp_path, keep):
  write_vft(tmp_path / "full.vft", vft())
  truncate_vft(tmp_path / "full.vft", tmp_path / "short.vft", keep)
  encoded = Vft.of(tokens().truncate(jnp.asarray(keep)), TOK, 8.0, PRINT)
  assert (tmp_path / "short.vft").read_bytes() == encoded.to_bytes()
  truncate_vft(tmp_path / "short.vft", tmp_path / "short.vft", 16)  # never grows, and in place
  assert (tmp_path / "short.vft").read_bytes() == encoded.to_bytes()


def test_ids_up_to_16_bits_and_no_further():
  wide = vft(levels=(256, 256), ids=np.full(37, 65535))
  assert Vft.from_bytes(wide.to_bytes()).ids.tolist() == [65535] * 37
  with pytest.raises(ValueError, match="codebook has 65792 ids, expected at most 65536"):
    vft(levels=(256, 257))


def test_frames_not_said_are_what_the_steps_stand_for():
  assert Vft.of(tokens(frames=None), TOK, 8.0, PRINT).frames == 17
  with pytest.raises(ValueError, match="batch has 2 videos, expected 1"):
    Vft.of(VideoTokens.full(np.repeat(IDS, 2, axis=0)), TOK, 8.0, PRINT)


BAD_FIELDS = [
  (dict(fps=0.0), "fps is 0"),
  (dict(fps=float("nan")), "fps is nan"),
  (dict(frames=0), "frames is 0"),
  (dict(size=(0, 8)), "height is 0"),
  (dict(size=(8, 70000)), "width is 70000"),
  (dict(registers=0), "registers is 0"),
  (dict(registers=15), "keep is 16, expected 0 to 15"),
  (dict(levels=()), "levels are"),
  (dict(levels=(0, 5)), "levels are"),
  (dict(overlap_frames=17), "overlap_frames is 17"),
  (dict(fingerprint="xyz"), "expected 16 hex digits"),
  (dict(ids=np.full(37, 64000)), "an id is 64000, expected 0 to 63999"),
  (dict(ids=np.full(37, -1)), "an id is -1"),
  (dict(ids=np.zeros(36, int)), "there are 36 ids, expected 37"),
  (dict(ids=np.zeros(37)), "ids is float64"),
  (dict(keep=np.array([16, 4, 0, 16, -1])), "keep is -1"),
  (dict(keep=np.zeros(0, int), ids=np.zeros(0, int)), "time steps is 0"),
]


@pytest.mark.parametrize("changes, sentence", BAD_FIELDS)
def test_bad_fields(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    vft(**changes)


@pytest.mark.parametrize(
  "keep, sentence",
  [
    (17, "keep is 17, expected 0 to 16"),
    (-1, "keep is -1, expected 0 to 16"),
    ([1, 2], "one for each of the 5 time steps"),
    (1.5, "expected whole numbers"),
    ([], "expected whole numbers"),
  ],
)
def test_bad_truncation(keep, sentence):
  with pytest.raises(ValueError, match=sentence):
    vft().truncate(keep)


def patched(offset: int, form: str, value) -> bytes:
  data = bytearray(vft().to_bytes())
  struct.pack_into(form, data, offset, value)
  return sealed(bytes(data))


GOOD = vft().to_bytes()
BAD_FILES = {
  "empty": (b"", "does not start with the .vft mark"),
  "another kind": (b"\x00\x00\x00\x20ftypisom" * 9, "does not start with the .vft mark"),
  "newer version": (patched(4, "<H", 2), "has version 2, expected 1"),
  "only a mark": (GOOD[:4], "cut short, it has 4 bytes"),
  "half a header": (GOOD[:30], "cut short, it has 30 bytes"),
  "no counts": (GOOD[:50], "cut short, it has 50 of"),
  "half the ids": (GOOD[:100], "cut short, it has 100 of at least 141 bytes"),
  "one byte short": (GOOD[:-1], "cut short, it has 140 of"),
  "trailing garbage": (GOOD + b"xyz", "has 3 bytes after its end at 141"),
  "two files": (GOOD + GOOD, "has 141 bytes after its end"),
  "flipped id": (GOOD[:90] + bytes([GOOD[90] ^ 4]) + GOOD[91:], "checksum does not match"),
  "flipped checksum": (GOOD[:-1] + bytes([GOOD[-1] ^ 4]), "checksum does not match"),
  "absurd step count": (patched(20, "<I", 0xFFFFFFFF), "cut short, it has 141 of at least 8589934"),
  "absurd number of levels": (patched(40, "<B", 255), "cut short|bytes after its end"),
  "keep above K": (patched(6, "<H", 15), "keep is 16, expected 0 to 15"),
  "id outside the codebook": (patched(63, "<H", 64000), "an id is 64000, expected 0 to 63999"),
  "codebook too large": (patched(41, "<H", 999), "codebook has .* expected at most 65536"),
  "no codebook": (patched(41, "<H", 0), "levels are"),
  "fps nan": (patched(8, "<d", float("nan")), "fps is nan"),
  "no frames": (patched(16, "<I", 0), "frames is 0"),
  "overlap above chunk": (patched(30, "<H", 17), "overlap_frames is 17"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
  data, sentence = BAD_FILES[name]
  path = tmp_path / "bad.vft"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=sentence) as caught:
    read_vft(path)
  assert str(caught.value).startswith(f"{path} is not a sound .vft file: ") and "\n" not in str(caught.value)


def test_missing_file_folder_and_failed_write(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist"):
    read_vft(tmp_path / "no.vft")
  with pytest.raises(ValueError, match="is not a file"):
    read_vft(tmp_path)
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    write_vft(tmp_path / "no" / "x.vft", vft())
  (tmp_path / "old.vft").write_bytes(b"old")
  with pytest.raises(FileNotFoundError):
    truncate_vft(tmp_path / "no.vft", tmp_path / "old.vft", 1)
  assert (tmp_path / "old.vft").read_bytes() == b"old"


# ---- the parser never does anything but parse or refuse


def survives(data: bytes):
  """Parses to content that writes back as the same bytes, or is refused by a ValueError of one line."""
  try:
    parsed = Vft.from_bytes(data)
  except ValueError as error:
    assert str(error) and "\n" not in str(error)
  else:
    assert parsed.to_bytes() == data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data, marked):
  survives(data)
  if marked:
    survives(b"\x89VFT\x01\x00" + data)
    survives(sealed(b"\x89VFT\x01\x00" + data + b"\0\0\0\0"))


@settings(max_examples=500, deadline=None)
@given(
  st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
  st.booleans(),
)
def test_mutated_files(changes, seal):
  data = bytearray(GOOD)
  for at, value in changes:
    data[at] = value
  data = bytes(data)
  if not seal and data != GOOD:
    with pytest.raises(ValueError):
      Vft.from_bytes(data)
  survives(sealed(data) if seal else data)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=40))
def test_cut_and_grown_files(length, tail):
  for data in (GOOD[:length], GOOD + tail):
    if data != GOOD:
      with pytest.raises(ValueError):
        Vft.from_bytes(data)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_content_round_trips(data):
  k = data.draw(st.integers(1, 40))
  keep = np.array(data.draw(st.lists(st.integers(0, k), min_size=1, max_size=12)))
  levels = tuple(data.draw(st.lists(st.integers(1, 16), min_size=1, max_size=4)))
  seed = data.draw(st.integers(0, 99))
  ids = np.random.default_rng(seed).integers(0, np.prod(levels), keep.sum())
  one = Vft(
    ids,
    keep,
    k,
    levels,
    data.draw(st.integers(1, 2**32 - 1)),
    data.draw(st.floats(0.01, 1000)),
    (1, 65535),
    17,
    0,
    PRINT,
  )
  assert equal(Vft.from_bytes(one.to_bytes()), one)
  budget = data.draw(st.integers(0, k))
  short = one.truncate(budget)
  assert np.array_equal(short.keep, np.minimum(keep, budget))
  assert np.array_equal(short.tokens().ids[0, :, :budget], one.tokens().ids[0, :, :budget])
