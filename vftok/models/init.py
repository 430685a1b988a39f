"""Fresh parameters of whole models, in boxes that carry their logical axis names, for sharding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vftok.models.ar import AR
from vftok.models.ar_inputs import Condition, Places
from vftok.models.config import GeneratorConfig, TokenizerConfig
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.layers import fresh

Params = dict[str, Any]


def init_tokenizer(cfg: TokenizerConfig, key: jax.Array) -> Params:
  """{"vae", "encoder", "decoder"}: parameters of each."""
  (h, w), enc, dec = cfg.latent_size, cfg.encoder, cfg.decoder
  steps = cfg.chunk_latents // enc.patch[0]
  video = jnp.zeros((1, 1, cfg.vae.space_stride, cfg.vae.space_stride, 3))
  latents = jnp.zeros((1, steps * enc.patch[0], h, w, enc.channels))
  codes, keep = jnp.zeros((1, steps, cfg.step_tokens, dec.code_dim)), jnp.zeros((1, steps), jnp.int32)
  noisy = jnp.zeros((1, steps * dec.patch[0], h, w, dec.channels))
  keys = jax.random.split(key, 3)
  return {
    "vae": fresh(cfg.vae.module(), keys[0], video),
    "encoder": fresh(Encoder(enc), keys[1], latents),
    "decoder": fresh(Decoder(dec), keys[2], codes, keep, noisy, jnp.zeros((1,))),
  }


def init_generator(cfg: GeneratorConfig, key: jax.Array) -> Params:
  """Parameters of its transformer."""
  ids = jnp.zeros((1, 1), jnp.int32)
  cond = Condition(null_BxG=jnp.ones((1, 1), bool))
  return fresh(AR(cfg.ar), key, ids, Places.of(ids, ids), cond)
