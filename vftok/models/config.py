"""What defines a tokenizer or a generator, apart from its weights: frozen dataclasses."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vftok.models.ar import ARConfig
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.vae import VAEConfig


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Attributes:
  levels: FSQ levels, the codebook is their product.
  chunk_frames, overlap_frames: geometry of long video; chunks advance by chunk_frames - overlap_frames.
  latent_size: (h, w) of the VAE grid the model was made for; pixels are `vae.space_stride` times that.
  dino_frames: "" or how DINO features of a frame group are made ("first", "avg"), where the encoder reads them.
  dino_class: whose class vector register 0 of a step gets, where it gets one: its own ("per_frame") or frame 0's.
  guidance, scale, solver_steps: how it is decoded unless asked otherwise: "apg", "cfg" or "none", and so many steps.
  """

  vae: VAEConfig
  encoder: EncoderConfig
  decoder: DecoderConfig
  levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
  chunk_frames: int = 17
  overlap_frames: int = 1
  latent_size: tuple[int, int] = (32, 32)
  dino_frames: str = ""
  dino_class: str = "per_frame"
  guidance: str = "apg"  # these three: as the released pipeline has them
  scale: float = 20.0
  solver_steps: int = 30

  # Of APG, what a call leaves open: momentum, threshold, and whether norms are per channel.
  apg: ClassVar[tuple[float, float, bool]] = (0.0, 0.6, True)

  @property
  def chunk_latents(self) -> int:
    """Latent time steps of a chunk: one for the first frame, then one for every four."""
    return (self.chunk_frames - 1) // 4 + 1

  @property
  def step_tokens(self) -> int:
    """K, the tokens of a time step: the registers, or where there are none the cells of patches."""
    (h, w), (_, ph, pw), (y, x) = self.latent_size, self.encoder.patch, self.encoder.cell
    return self.encoder.registers or (h // (ph * y)) * (w // (pw * x))

  def with_dtype(self, dtype: str) -> TokenizerConfig:
    """The same model computing in `dtype`; norms, softmax, FSQ and flow time stay float32."""
    stack = lambda part: dataclasses.replace(part, stack=dataclasses.replace(part.stack, dtype=dtype))
    return dataclasses.replace(
      self,
      vae=dataclasses.replace(self.vae, dtype=dtype),
      encoder=stack(self.encoder),
      decoder=stack(self.decoder),
    )


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """Attributes:
  ar: the model.
  tokenizer: name or path of the tokenizer whose tokens it makes; fingerprint: of that tokenizer's encoder, "" unknown.
  text: name of the text encoder ("minilm", "t5"), "" for none. text_path: where its weights are, "" for its own.
  text_tokens: the most features of a prompt.
  classes: names of the classes, or () where they are numbers only.
  guidance: (largest budget, scale) pairs: what `generate` uses by itself.
  length_odds: how often each time step has each of `ar.levels` in what it was trained on; () where that is not known.
    A mean length is spread over time by it.
  nested: whether the tokens it makes can be cut, as their tokenizer says.
  condition, condition_frames: of models that go on from given frames: counts of the time steps that these have before
    the clip's own, part of `ar.steps`, and how many frames they are of.
  """

  ar: ARConfig
  tokenizer: str = ""
  fingerprint: str = ""
  text: str = ""
  text_path: str = ""
  text_tokens: int = 32
  classes: tuple[str, ...] = ()
  guidance: tuple[tuple[int, float], ...] = ((4, 3.0), (32, 2.0), (65536, 1.0))  # VideoFlexTok on K600, by SemanTok
  length_odds: tuple[tuple[float, ...], ...] = ()
  nested: bool = True
  condition: tuple[int, ...] = ()
  condition_frames: int = 0

  @property
  def steps(self) -> int:
    """Time steps of a clip that it makes."""
    return self.ar.steps - len(self.condition)

  def __post_init__(self):
    odds, steps, levels = self.length_odds, self.ar.steps, len(self.ar.levels)
    whole = len(odds) == steps and all(len(row) == levels and all(0 < odd < math.inf for odd in row) for row in odds)
    if odds and not whole:
      raise ValueError(f"length_odds are {str(odds)[:60]}, expected {steps} rows of {levels} numbers above 0.")
    first, most = self.condition, self.ar.slots
    if len(first) >= steps or not all(0 < k <= most for k in first) or bool(first) != (self.condition_frames > 0):
      raise ValueError(
        f"condition is {str(first)[:60]} of {self.condition_frames} frames, expected counts of 1..{most} for fewer "
        f"than {steps} steps, and how many frames they are of."
      )
