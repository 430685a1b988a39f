"""Training FlexTok (arXiv 2502.13967), the tokenizer of pictures: VideoFlexTok's task at one time step."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.flextok import vae_weights
from vftok.families.flextok.api import FlexTok
from vftok.families.flextok.config import FlexTokConfig
from vftok.runtime.words import brief
from vftok.tasks.tokenizer import TokenizerTask
from vftok.tokenizer import families


class FlexTokTask(TokenizerTask):
  """As `TokenizerTask`, over the 2-D VAE of `config.vae`, a folder in diffusers' layout; saves the released layout.

  A clip is one frame: `data.frames` is 1, of pictures (`image_folder`) or of videos.
  """

  CONFIG = FlexTokConfig
  load_vae = staticmethod(vae_weights.load_vae)

  def __init__(self, cfg):
    if cfg.data.frames != 1:
      raise ValueError(f"data.frames is {cfg.data.frames}, expected 1: FlexTok sees pictures.")
    super().__init__(cfg)

  def _tokenizer(self, model) -> FlexTok:
    return FlexTok(model)

  def _opened(self, name) -> tuple[FlexTok, Any]:
    tok, params = families.load(name)
    if not isinstance(tok, FlexTok):
      raise ValueError(f"init_from is {brief(str(name))}, which is no FlexTok: name one, or leave it empty.")
    return tok, params

  def _encode_flops(self) -> float:
    """By XLA's count of the program: convolutions, attention and what is elementwise."""
    vae = self.tok.cfg.vae.module()
    picture = jax.ShapeDtypeStruct((1, 1, *self.tok.frame_size, 3), jnp.float32)
    params = nn.unbox(jax.eval_shape(vae.init, jax.random.key(0), picture))["params"]
    encode = jax.jit(lambda params, x: vae.apply({"params": params}, x, method="encode"))
    return float(encode.lower(params, picture).cost_analysis()["flops"])
