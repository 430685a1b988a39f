"""Writes a tokenizer in the layout of released VideoFlexTok models, under the family's canonical module names."""

from __future__ import annotations

import os

import flax.linen as nn
import flax.traverse_util as traverse
import numpy as np

from vftok.convert import reference_weights
from vftok.convert.export_config import DECODER_NAMES, ENCODER_NAMES, reference_config
from vftok.convert.reference_config import Names
from vftok.io import hub
from vftok.models.config import TokenizerConfig

CANONICAL = Names(ENCODER_NAMES, DECODER_NAMES)


def export(cfg: TokenizerConfig, params, directory: str | os.PathLike) -> None:
  """Writes config.json and model.safetensors as the PyTorch package and `Tokenizer.load` read them."""
  if not cfg.vae.released:
    raise ValueError("this model's VAE is not VidTok's (stem, linear code or latent scale): save() keeps it whole.")
  if not cfg.encoder.registers:
    raise ValueError("this model has no registers, and no grid of VideoFlexTok's was released: save() keeps it whole.")
  flat = traverse.flatten_dict(nn.unbox(params))
  tensors = {}
  for key, rule in reference_weights.rules(cfg, CANONICAL).items():
    prefix = "" if cfg.dino_frames or cfg.encoder.global_token else reference_weights.PREFIX
    tensors[prefix + key] = rule.to_theirs(np.asarray(flat[rule.path][rule.index]))
  hub.save_files(directory, tensors, reference_config(cfg))
