"""The .vft file: the tokens of one video, 16 bits each, only those kept.

Little-endian, no gaps:

  offset  bytes  field
  0       4      magic 89 56 46 54 (\\x89VFT)
  4       2      version, 1
  6       2      K, registers per time step
  8       8      fps, float64
  16      4      frames, the video's true number
  20      4      T, time steps
  24      2+2    height, width of the frames in pixels
  28      2+2    frames per chunk, frames by which chunks overlap
  32      8      fingerprint of the model that made the ids
  40      1      L, number of FSQ dimensions; 128 more where tokens have no order (grids, sets), so none can be cut
  41      2L     levels of each; their product V <= 65536 is the codebook size
  ..      2T     keep, tokens kept in each time step, 0..K
  ..      2N     ids, N = sum(keep): step after step, coarse to fine, 0..V-1
  ..      4      CRC-32 of everything before

The bytes depend on nothing else, so cutting the counts and ids gives what encoding at that budget would have.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vftok.io.video import check_fps
from vftok.runtime.files import whole_file

MAGIC, VERSION = b"\x89VFT", 1
NO_ORDER_BIT = 128  # beside the number of levels
_HEADER = struct.Struct("<4sHHdIIHHHH8sB")


@dataclasses.dataclass(frozen=True, eq=False)
class Vft:
  """Tokens of one video and what is needed to play them.

  Attributes:
    ids: uint16 [N], the ids kept, step after step.
    keep: uint16 [T], how many each time step has; N is their sum.
    registers: K, the most a step can have.
    levels: FSQ levels; their product is the codebook size.
    frames: the video's true number of frames.
    fps: frames per second.
    size: (height, width) in pixels.
    chunk_frames, overlap_frames: how the model cuts long videos.
    fingerprint: 16 hex digits that name the model's weights and graph.
    nested: whether the first tokens of a step are a coarser code of it, so that it can be cut.

  Raises:
    ValueError: a field out of range or of another length than the others say.
  """

  ids: np.ndarray
  keep: np.ndarray
  registers: int
  levels: tuple[int, ...]
  frames: int
  fps: float
  size: tuple[int, int]
  chunk_frames: int
  overlap_frames: int
  fingerprint: str
  nested: bool = True

  def __post_init__(self):
    check_fps(self.fps)
    if self.codebook_size > 1 << 16:
      raise ValueError(f"the codebook has {self.codebook_size} ids, expected at most 65536: .vft holds 16 bits per id.")
    if not 1 <= len(self.levels) < NO_ORDER_BIT or min(self.levels) < 1 or max(self.levels) > 0xFFFF:
      raise ValueError(f"levels are {self.levels}, expected 1 to 127 numbers of 1 to 65535: check the model.")
    for name, value, high in (
      ("registers", self.registers, 0xFFFF),
      ("height", self.size[0], 0xFFFF),
      ("width", self.size[1], 0xFFFF),
      ("frames", self.frames, 0xFFFFFFFF),
      ("time steps", len(self.keep), 0xFFFFFFFF),
      ("chunk_frames", self.chunk_frames, 0xFFFF),
    ):
      if not 1 <= value <= high:
        raise ValueError(f"{name} is {value}, expected 1 to {high}: the tokens are no model's.")
    if not 0 <= self.overlap_frames < self.chunk_frames:
      raise ValueError(
        f"overlap_frames is {self.overlap_frames}, expected 0 to {self.chunk_frames - 1}: check the model."
      )
    if not re.fullmatch("[0-9a-f]{16}", self.fingerprint):
      raise ValueError(f"fingerprint is {self.fingerprint!r}, expected 16 hex digits: take the tokenizer's.")
    keep, ids = np.asarray(self.keep), np.asarray(self.ids)
    for name, array in (("keep", keep), ("ids", ids)):
      if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected a flat row of integers: see Vft.")
    if keep.min() < 0 or keep.max() > self.registers:
      bad = keep.min() if keep.min() < 0 else keep.max()
      raise ValueError(f"keep is {bad}, expected 0 to {self.registers} tokens per time step: lower it.")
    if len(ids) != keep.sum(dtype=np.int64):
      raise ValueError(f"there are {len(ids)} ids, expected {keep.sum(dtype=np.int64)}, the sum of keep.")
    if len(ids) and (ids.min() < 0 or ids.max() >= self.codebook_size):
      bad = ids.min() if ids.min() < 0 else ids.max()
      raise ValueError(f"an id is {bad}, expected 0 to {self.codebook_size - 1}: these ids are another model's.")
    object.__setattr__(self, "keep", keep.astype("<u2"))
    object.__setattr__(self, "ids", ids.astype("<u2"))

  @property
  def codebook_size(self) -> int:
    return math.prod(self.levels)

  @property
  def bits(self) -> float:
    """Information in the ids: N log2 V. The file spends 16 bits on each."""
    return len(self.ids) * math.log2(self.codebook_size)

  @classmethod
  def of(cls, tokens, tok, fps: float, fingerprint: str) -> Vft:
    """From VideoTokens of one video (B = 1) made by the tokenizer `tok`."""
    ids_TxK, keep_T = np.asarray(tokens.ids), np.asarray(tokens.keep)
    if len(ids_TxK) != 1:
      raise ValueError(f"the batch has {len(ids_TxK)} videos, expected 1: a .vft file holds one, write one each.")
    ids_TxK, keep_T = ids_TxK[0], keep_T[0]
    return cls(
      ids=ids_TxK[np.arange(ids_TxK.shape[1]) < keep_T[:, None]],
      keep=keep_T,
      registers=tok.registers,
      levels=tuple(tok.levels),
      frames=tok.frames_for(len(keep_T)) if tokens.frames is None else tokens.frames,
      fps=fps,
      size=tuple(tok.frame_size),
      chunk_frames=tok.chunk_frames,
      overlap_frames=tok.overlap_frames,
      fingerprint=fingerprint,
      nested=tok.nested,
    )

  def tokens(self):
    """VideoTokens: ids int32 [1, T, K] (0 where not kept), keep int32 [1, T]."""
    from vftok.tokens import VideoTokens

    ids_TxK: Any = np.zeros((len(self.keep), self.registers), np.int32)
    ids_TxK[np.arange(self.registers) < self.keep[:, None]] = self.ids
    keep_1xT: Any = self.keep[None].astype(np.int32)
    return VideoTokens(ids=ids_TxK[None], keep=keep_1xT, frames=self.frames, nested=self.nested)

  def truncate(self, keep) -> Vft:
    """At most `keep` tokens per time step, an int or one count per step [T], 0..K. Counts never grow."""
    keep = np.asarray(keep)
    if keep.dtype.kind not in "iu" or keep.shape not in ((), self.keep.shape):
      raise ValueError(
        f"keep is {keep.dtype} {keep.shape}, expected whole numbers: pass one, or one for each of the "
        f"{len(self.keep)} time steps."
      )
    if keep.min() < 0 or keep.max() > self.registers:
      bad = keep.min() if keep.min() < 0 else keep.max()
      raise ValueError(f"keep is {bad}, expected 0 to {self.registers} tokens per time step: pass a count in between.")
    shorter = np.minimum(self.keep, keep)
    if not self.nested and (shorter < self.keep).any():
      from vftok.tokens import NO_ORDER

      raise ValueError(NO_ORDER)
    rank = np.arange(len(self.ids)) - np.repeat(np.cumsum(self.keep, dtype=np.int64) - self.keep, self.keep)
    return dataclasses.replace(self, keep=shorter, ids=self.ids[rank < np.repeat(shorter, self.keep)])

  def to_bytes(self) -> bytes:
    body = b"".join(
      (
        _HEADER.pack(
          MAGIC,
          VERSION,
          self.registers,
          self.fps,
          self.frames,
          len(self.keep),
          *self.size,
          self.chunk_frames,
          self.overlap_frames,
          bytes.fromhex(self.fingerprint),
          len(self.levels) | (0 if self.nested else NO_ORDER_BIT),
        ),
        np.asarray(self.levels, "<u2").tobytes(),
        self.keep.tobytes(),
        self.ids.tobytes(),
      )
    )
    return body + struct.pack("<I", zlib.crc32(body))

  @classmethod
  def from_bytes(cls, data: bytes) -> Vft:
    """Parses a whole file, allocating no more than it holds. Raises ValueError, one sentence."""
    if data[:4] != MAGIC:
      raise ValueError("it does not start with the .vft mark: pass a file written by `vftok encode`.")
    if len(data) >= 6 and (version := int.from_bytes(data[4:6], "little")) != VERSION:
      raise ValueError(f"it has version {version}, expected {VERSION}: install the vftok that wrote it.")
    if len(data) < _HEADER.size:
      raise ValueError(f"it was cut short, it has {len(data)} bytes and its header {_HEADER.size}: get a whole copy.")
    _, _, k, fps, frames, t, height, width, chunk, overlap, fingerprint, n_levels = _HEADER.unpack_from(data)
    nested, n_levels = n_levels < NO_ORDER_BIT, n_levels % NO_ORDER_BIT
    start = _HEADER.size + 2 * n_levels
    counts_end = start + 2 * t
    size = counts_end + 4
    if len(data) >= size:
      keep = np.frombuffer(data, "<u2", t, start)
      size += 2 * int(keep.sum(dtype=np.int64))
    if len(data) < size:
      raise ValueError(f"it was cut short, it has {len(data)} of at least {size} bytes: get a whole copy of it.")
    if len(data) > size:
      raise ValueError(f"it has {len(data) - size} bytes after its end at {size}: remove them or get a clean copy.")
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
      raise ValueError("its checksum does not match, some bytes were changed: get a clean copy of it.")
    return cls(
      ids=np.frombuffer(data, "<u2", (size - 4 - counts_end) // 2, counts_end),
      keep=keep,
      registers=k,
      levels=tuple(np.frombuffer(data, "<u2", n_levels, _HEADER.size).tolist()),
      frames=frames,
      fps=fps,
      size=(height, width),
      chunk_frames=chunk,
      overlap_frames=overlap,
      fingerprint=fingerprint.hex(),
      nested=nested,
    )


def is_vft(path) -> bool:
  """True if the file at `path` is named .vft or starts like one."""
  path = Path(path)
  if path.suffix.lower() == ".vft":
    return True
  if not path.is_file():
    return False
  with path.open("rb") as file:
    return file.read(4) == MAGIC


def read_vft(path) -> Vft:
  """Reads a file. Raises FileNotFoundError, or ValueError with one sentence where it is not a sound .vft."""
  path = Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist: check the path of the .vft file.")
  if not path.is_file():
    raise ValueError(f"{path} is not a file: pass a .vft file.")
  with path.open("rb") as file:
    head = file.read(4)
    data = head + file.read() if head == MAGIC else head  # not a gigabyte of something else
  try:
    return Vft.from_bytes(data)
  except ValueError as error:
    raise ValueError(f"{path} is not a sound .vft file: {error}") from error


def write_vft(path, vft: Vft) -> None:
  """Writes the file whole or not at all."""
  with whole_file(path) as temporary:
    temporary.write_bytes(vft.to_bytes())


def truncate_vft(source, target, keep) -> Vft:
  """Writes what encoding the same video at `keep` (an int, or one count per time step) would have given."""
  vft = read_vft(source).truncate(keep)
  write_vft(target, vft)
  return vft
