"""What defines a FlexTok, apart from its weights: VideoFlexTok's config with a VAE of pictures and guidance of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from vftok.models.config import TokenizerConfig
from vftok.models.config_checks import DTYPES, MAX_SIZE
from vftok.runtime.words import brief


@dataclasses.dataclass(frozen=True)
class KLConfig:
  """Sizes of an AutoencoderKL, as Stable Diffusion, FlexTok and others have it: 2-D, half the size after each level
  but the last.

  Attributes:
    widths: channels of each level. blocks: residual blocks of a level; the decoder has one more.
    z_channels: of the latents. groups: of every GroupNorm.
    scaling, shift: latents are (mean - shift) * scaling; the decoder is given latents / scaling + shift.
    attention: whether the middle has one. code_in, code_out: whether there is a 1x1 convolution before the decoder
      (`post_quant_conv`) and after the encoder (`quant_conv`).
  """

  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  z_channels: int = 16
  in_channels: int = 3
  groups: int = 32
  scaling: float = 1.0
  shift: float = 0.0
  attention: bool = True
  code_in: bool = True
  code_out: bool = True
  dtype: str = "float32"

  @property
  def space_stride(self) -> int:
    return 2 ** (len(self.widths) - 1)

  @property
  def latent_mean(self) -> tuple[float, ...]:
    """As `VAEConfig` has it, for all channels one; () where latents are not scaled."""
    return (self.shift,) if self.latent_std else ()

  @property
  def latent_std(self) -> tuple[float, ...]:
    return () if (self.scaling, self.shift) == (1.0, 0.0) else (1.0 / self.scaling,)

  def module(self):
    from vftok.families.flextok.vae import AutoencoderKL

    return AutoencoderKL(self)

  def __post_init__(self):
    for name in ("widths", "blocks", "z_channels", "groups"):
      value = getattr(self, name)
      if not value or any(not 0 < n <= MAX_SIZE for n in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"the VAE has {name} = {brief(value)}, expected whole numbers of 1..{MAX_SIZE}.")
    if uneven := [n for n in self.widths if n % self.groups]:
      raise ValueError(f"the VAE has a level of {uneven[0]} channels, expected a multiple of its {self.groups} groups.")
    if self.in_channels != 3:
      raise ValueError(f"the VAE reads pictures of {self.in_channels} channels, expected 3: red, green and blue.")
    for name, low in (("scaling", 1e-12), ("shift", -math.inf)):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= low):
        raise ValueError(f"the VAE has {name} = {brief(value)}, expected a {'positive ' * (low > 0)}number.")
    if self.dtype not in DTYPES:
      raise ValueError(f"the VAE has dtype = {brief(self.dtype)}, expected {' or '.join(DTYPES)}.")


@dataclasses.dataclass(frozen=True)
class FlexTokConfig(TokenizerConfig):
  """A `TokenizerConfig` of pictures: a chunk is one frame and one time step; `vae` is a `KLConfig`."""

  apg: ClassVar = (-0.5, 2.5, False)  # of the released pipeline, as are the next fields

  chunk_frames: int = 1
  overlap_frames: int = 0
  scale: float = 7.5
  solver_steps: int = 20
