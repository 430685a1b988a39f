"""Fixed tables of positions (LARP section 2.4): sines first, float64 rounded once."""

from __future__ import annotations

import numpy as np

from vftok.families.query.config import QueryConfig
from vftok.models.sincos import sincos_1d, sincos_3d


def fixed_shapes(cfg: QueryConfig) -> dict[str, tuple[int, int]]:
  """Name -> shape of the tables that this model has fixed. They are stored beside what is learned."""
  t, h, w = cfg.grid
  enc, dec, tokens = cfg.encoder_hidden_size, cfg.decoder_hidden_size, cfg.bottleneck_token_num
  shapes = {
    "patch_positions": (cfg.learned_encoder_patch_pe, (t * h * w, enc)),
    "queries": (cfg.learned_encoder_latent_query_embed, (tokens, enc)),
    "latent_positions": (cfg.learned_decoder_latent_pe, (tokens, dec)),
    "patch_queries": (cfg.learned_decoder_patch_query_embed, (t * h * w, dec)),
  }
  return {name: shape for name, (learned, shape) in shapes.items() if not learned}


def fixed_tables(cfg: QueryConfig) -> dict[str, np.ndarray]:
  """The tables of `fixed_shapes`, made anew."""
  tables = {}
  for name, (length, dim) in fixed_shapes(cfg).items():
    if name in ("patch_positions", "patch_queries"):
      tables[name] = sincos_3d(cfg.grid, dim)
    else:
      base = cfg.latent_pe_scale_factor if name == "latent_positions" else 10000.0
      tables[name] = sincos_1d(length, dim, base)
  return tables
