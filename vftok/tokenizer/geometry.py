"""Frames, chunks and time steps: what fits, and how long video is cut into overlapping chunks."""

from __future__ import annotations

import numpy as np

from vftok.models import fsq
from vftok.models.config import TokenizerConfig
from vftok.models.nested import powers_of_two
from vftok.tokens import is_concrete

TIME_FACTOR = 4  # frames per latent after the first one


def latents_for(frames: int) -> int:
  """Latent time steps of 1 + 4m frames."""
  return (frames - 1) // TIME_FACTOR + 1 if frames else 0


def check_whole_latents(frames: int) -> None:
  """Raises ValueError where frames are not 1 + 4m."""
  if frames % TIME_FACTOR != 1:
    low = frames - (frames - 1) % TIME_FACTOR
    raise ValueError(f"the video has {frames} frames, expected 1 + a multiple of 4 such as {low} or {low + 4}.")


class Geometry:
  """The sizes of a tokenizer of any family. F frames and T time steps of chunk-with-overlap video correspond.

  A family gives the properties below; the rest follows.
  """

  registers: int  # K, the most tokens of a time step
  levels: tuple[int, ...]  # of FSQ; of a table, its length alone
  frame_size: tuple[int, int]  # (H, W) in pixels
  chunk_frames: int
  overlap_frames: int
  chunk_steps: int
  overlap_steps: int
  nested: bool  # whether a prefix of a step's tokens decodes
  one_pass: bool  # whether decoding takes one pass: no noise, no solver steps, no guidance

  @property
  def codebook_size(self) -> int:
    return fsq.codebook_size(self.levels)

  @property
  def budgets(self) -> list[int]:
    """Counts worth looking at: 1, 2, 4, ... and all; of tokens that cannot be cut, what `encode` can be asked for."""
    return powers_of_two(self.registers) if self.nested else [self.registers]

  @property
  def stride(self) -> int:
    return self.chunk_frames - self.overlap_frames

  def steps_for(self, frames: int) -> int:
    """Time steps of a video whose frames fit: 17 -> 5, 33 -> 9 with one frame of overlap; 34 -> 10 with none."""
    chunks = (frames - self.chunk_frames) // self.stride + 1
    if chunks < 1 or frames != self.chunk_frames + (chunks - 1) * self.stride:
      raise ValueError(self.misfit(frames))
    return self.chunk_steps + (chunks - 1) * (self.chunk_steps - self.overlap_steps)

  def frames_for(self, steps: int) -> int:
    """Inverse of `steps_for`."""
    new = self.chunk_steps - self.overlap_steps
    chunks = (steps - self.chunk_steps) // new + 1
    if chunks < 1 or steps != self.chunk_steps + (chunks - 1) * new:
      more = f"{self.chunk_steps} or {self.chunk_steps} + a multiple of {new}"
      raise ValueError(f"the tokens have {steps} time steps, expected {more}: pass whole chunks.")
    return self.chunk_frames + (chunks - 1) * self.stride

  def _fitting(self, frames: int) -> tuple[int, int]:
    """Nearest fitting frame counts (at or below, at or above)."""
    below = max((frames - self.chunk_frames) // self.stride, 0)
    above = max(-(-(frames - self.chunk_frames) // self.stride), 0)
    return self.chunk_frames + below * self.stride, self.chunk_frames + above * self.stride

  def misfit(self, frames: int) -> str:
    """The sentence for a frame count that fits no number of chunks."""
    low, high = self._fitting(frames)
    fitting = f"{high}" if frames < self.chunk_frames else f"{low} or {high}"
    hint = "cut it, or pass fit='pad' (--fit pad)"
    return f"the video has {frames} frames, expected a count that fits chunks such as {fitting}: {hint}."


class FlowGeometry(Geometry):
  """Of latents of a causal VAE, 1 + 4m frames a chunk, and a flow decoder."""

  cfg: TokenizerConfig
  one_pass = False

  @property
  def nested(self) -> bool:
    return self.cfg.encoder.registers > 0

  @property
  def registers(self) -> int:
    return self.cfg.step_tokens

  @property
  def levels(self) -> tuple[int, ...]:
    return self.cfg.levels

  def check_latent_frames(self, frames: int) -> None:
    """Raises ValueError where so many frames have no whole number of latents."""
    check_whole_latents(frames)

  @property
  def spatial_factor(self) -> int:
    return self.cfg.vae.space_stride

  @property
  def frame_size(self) -> tuple[int, int]:
    h, w = self.cfg.latent_size
    return self.spatial_factor * h, self.spatial_factor * w

  @property
  def chunk_frames(self) -> int:
    return self.cfg.chunk_frames

  @property
  def overlap_frames(self) -> int:
    return self.cfg.overlap_frames

  @property
  def chunk_steps(self) -> int:
    return self.cfg.chunk_latents // self.cfg.encoder.patch[0]

  @property
  def overlap_steps(self) -> int:
    return latents_for(self.overlap_frames) // self.cfg.encoder.patch[0]

  def slots(self, keep, collapse: bool = True, least: int | None = None) -> int | None:
    """How many registers a program must compute one by one for these counts: a power of two, or None for all.

    Programs are compiled per bucket, not per count: all counts inside a bucket share one. No bucket is below `least`.
    """
    if "mask" not in self.cfg.decoder.replacements:
      if is_concrete(keep) and int(np.min(keep)) < self.registers:
        raise ValueError("this model has no mask vector for dropped tokens: keep all of them.")
      return self.registers if self.cfg.decoder.collapsible else None
    if not collapse or not self.cfg.decoder.collapsible:
      return None
    largest = max(int(np.max(keep)) if is_concrete(keep) else self.registers, least or 0)
    return min(1 << max(largest - 1, 0).bit_length(), self.registers)
