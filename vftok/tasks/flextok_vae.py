"""Training the 2-D VAE under FlexTok, an AutoencoderKL (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any

from vftok.families.flextok import vae_weights
from vftok.families.flextok.vae import KLConfig
from vftok.models import config_json
from vftok.tasks.flextok import picture_flops
from vftok.tasks.vae import VAETask


class FlexTokVAETask(VAETask):
  """As `VAETask`, of pictures: each frame of a clip is one. Saves diffusers' layout, what FlexTok's `config.vae` reads.

  Keep `loss.unit` on or set `model.scaling`: flow decoders want latents of about variance 1.
  """

  load_vae, save_vae = staticmethod(vae_weights.load_vae), staticmethod(vae_weights.save_vae)

  def _model(self, model: dict[str, Any]) -> KLConfig:
    return config_json.build(KLConfig, model, "config")

  def flops(self) -> float:
    both = sum(picture_flops(self.model, self.size, way) for way in ("encode", "decode"))
    return 3 * both * self.cfg.data.frames
