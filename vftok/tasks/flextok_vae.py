"""Training the 2-D VAE under FlexTok, an AutoencoderKL (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.flextok import vae_weights
from vftok.families.flextok.vae import KLConfig
from vftok.models import config_json
from vftok.tasks.vae import VAETask


class FlexTokVAETask(VAETask):
  """As `VAETask`, of pictures: each frame of a clip is one. Saves diffusers' layout, what FlexTok's `config.vae` reads.

  Keep `loss.unit` on or set `model.scaling`: flow decoders want latents of about variance 1.
  """

  load_vae, save_vae = staticmethod(vae_weights.load_vae), staticmethod(vae_weights.save_vae)

  def _model(self, model: dict[str, Any]) -> KLConfig:
    return config_json.build(KLConfig, model, "config")

  def flops(self) -> float:
    """By XLA's count of the program: convolutions, attention and what is elementwise."""
    picture = jax.ShapeDtypeStruct((1, 1, *self.size, self.model.in_channels), jnp.float32)
    params = nn.unbox(jax.eval_shape(self.vae.init, jax.random.key(0), picture))["params"]
    both = jax.jit(lambda params, x: self.vae.apply({"params": params}, x))
    return 3 * float(both.lower(params, picture).cost_analysis()["flops"]) * self.cfg.data.frames
