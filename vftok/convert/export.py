"""Writes a tokenizer in the layout of released VideoFlexTok models, under the family's canonical module names."""

from __future__ import annotations

import os

from vftok.convert import reference_weights
from vftok.convert.export_config import DECODER_NAMES, ENCODER_NAMES, reference_config
from vftok.convert.reference_config import Names
from vftok.io import hub
from vftok.io.layout import exported
from vftok.models.config import TokenizerConfig

CANONICAL = Names(ENCODER_NAMES, DECODER_NAMES)


def export(cfg: TokenizerConfig, params, directory: str | os.PathLike) -> None:
  """Writes config.json and model.safetensors as the PyTorch package and `Tokenizer.load` read them."""
  if not cfg.vae.released:
    raise ValueError("this model's VAE is not VidTok's (stem, linear code or latent scale): save() keeps it whole.")
  if not cfg.encoder.registers:
    raise ValueError("this model has no registers, and no grid of VideoFlexTok's was released: save() keeps it whole.")
  prefix = "" if cfg.dino_frames or cfg.encoder.global_token else reference_weights.PREFIX
  tensors = exported(reference_weights.rules(cfg, CANONICAL), params)
  hub.save_files(directory, {prefix + key: value for key, value in tensors.items()}, reference_config(cfg))
