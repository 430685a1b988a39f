"""What defines a FlexTok, apart from its weights: VideoFlexTok's config with the VAE and the guidance of pictures."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vftok.families.flextok.vae import KLConfig
from vftok.models.config import TokenizerConfig


@dataclasses.dataclass(frozen=True)
class FlexTokConfig(TokenizerConfig):
  """A `TokenizerConfig` of pictures: a chunk is one frame and one time step; `vae` is a `KLConfig`.

  Attributes:
    rest: the whole config.json as it was read, JSON text, so that it can be written again.
  """

  vae: KLConfig
  chunk_frames: int = 1
  overlap_frames: int = 0
  scale: float = 7.5  # these two and `apg`: as the released pipeline has them
  solver_steps: int = 20
  rest: str = dataclasses.field(default="", compare=False, repr=False)

  apg: ClassVar = (-0.5, 2.5, False)

  def __post_init__(self):
    if self.vae.groups != KLConfig.groups:
      found = f"norms of {self.vae.groups} groups"
      raise ValueError(f"the VAE has {found}, expected {KLConfig.groups}: FlexTok's files do not say how many.")
