"""The jitted programs behind EVATok's tokenizer, all pure: config and shapes static, parameters and counts data."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.families.evatok import vq
from vftok.families.evatok.config import EvatokConfig
from vftok.families.evatok.networks import Decoder, Encoder
from vftok.io.leaves import Leaves, leaves_of
from vftok.tokenizer.programs import exact, reads, to_float
from vftok.tokens import kept_slots

Params = dict[str, Any]


def init(cfg: EvatokConfig, key: jax.Array) -> Params:
  """{"encoder", "quantizer", "decoder"} in boxes that carry their logical axis names."""
  keys, keep = jax.random.split(key, 3), jnp.full((1, cfg.steps), cfg.slots)
  video, codes = jnp.zeros((1, cfg.frames, *cfg.frame_size, 3)), jnp.zeros((1, cfg.steps, cfg.slots, cfg.code_dim))
  table = jax.random.normal(keys[1], (cfg.codebook_size, cfg.code_dim))  # only its directions matter
  return {
    "encoder": Encoder(cfg).init(keys[0], video, keep)["params"],
    "quantizer": {"codebook": nn.LogicallyPartitioned(table, (None, None))},
    "decoder": Decoder(cfg).init(keys[2], codes, keep)["params"],
  }


@functools.cache
def abstract_params(cfg: EvatokConfig) -> Leaves:
  """Path -> shape of every parameter, without making one."""
  return leaves_of(cfg, functools.partial(init, cfg))


@functools.partial(jax.jit, static_argnums=0)
def features(cfg: EvatokConfig, params: Params, video_BxFxHxWx3, keep_BxT) -> jax.Array:
  """z float32 [B, T, K, c] of one clip, uint8 or float in [-1, 1]: what VQ rounds."""
  with exact(cfg.encoder.dtype):
    return Encoder(cfg).apply({"params": params["encoder"]}, to_float(video_BxFxHxWx3) / 2, keep_BxT)


@reads("", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def encode_chunk(cfg: EvatokConfig, params: Params, video_BxFxHxWx3, keep_BxT) -> jax.Array:
  """ids int32 [B, T, K] of one clip; 0 where not kept, -1 where z is not finite."""
  z = features(cfg, params, video_BxFxHxWx3, keep_BxT)
  with exact("float32"):
    ids = vq.ids_of(z, params["quantizer"]["codebook"])
  return jnp.where(kept_slots(keep_BxT, cfg.slots), ids, 0)


@reads("", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def decode_chunk(cfg: EvatokConfig, params: Params, ids_BxTxK, keep_BxT) -> jax.Array:
  """Frames float32 [B, F, H, W, 3] in about [-1, 1], not clipped."""
  codes = vq.codes_of(ids_BxTxK, params["quantizer"]["codebook"])
  with exact(cfg.decoder.dtype):
    return Decoder(cfg).apply({"params": params["decoder"]}, codes, keep_BxT) * 2
