"""Training FlexTok (arXiv 2502.13967), the tokenizer of pictures: VideoFlexTok's task at one time step."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.flextok import vae_weights
from vftok.families.flextok.api import FlexTok
from vftok.families.flextok.config import FlexTokConfig
from vftok.families.flextok.vae import KLConfig
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

  def _vae_flops(self, way: str) -> float:
    return picture_flops(self.tok.cfg.vae, self.tok.frame_size, way)


def picture_flops(vae: KLConfig, size: tuple[int, int], way: str) -> float:
  """Of "encode" or "decode" of one picture by XLA's count: convolutions, attention and what is elementwise."""
  module, n = vae.module(), vae.space_stride
  shaped = lambda height, width, channels: jax.ShapeDtypeStruct((1, 1, height, width, channels), jnp.float32)
  picture = shaped(*size, vae.in_channels)
  params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), picture))["params"]
  x = picture if way == "encode" else shaped(size[0] // n, size[1] // n, vae.z_channels)
  run = jax.jit(lambda params, x: module.apply({"params": params}, x, method=way))
  return float(run.lower(params, x).cost_analysis()["flops"])
