"""Parameters of a tokenizer of this family: fresh ones, and the shapes of all without making one."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.families.query.config import QueryConfig
from vftok.families.query.nets import CodesIn, Decoder, Encoder, Prior, Scorer
from vftok.families.query.positions import fixed_shapes, fixed_tables
from vftok.io.leaves import leaves_of

Params = dict[str, Any]


def init_learned(cfg: QueryConfig, key: jax.Array, fixed) -> Params:
  """What is learned, in boxes with logical axes; `fixed`: see `positions.fixed_tables`.

  Linear layers Xavier-uniform without biases, the last one zero, tables normal, codes Kaiming-uniform (LARP section 5).
  """
  video = jnp.zeros((1, cfg.frames, cfg.input_size, cfg.input_size, 3))
  features = jnp.zeros((1, cfg.bottleneck_token_num, cfg.encoder_hidden_size))
  codes = jnp.zeros((1, cfg.groups, cfg.group_tokens, cfg.vq.bottleneck_dim))
  keep = jnp.full((1, cfg.groups), cfg.group_tokens)
  keys = jax.random.split(key, 6)
  quantizer = CodesIn(cfg).init(keys[1], features)["params"]
  table = nn.initializers.variance_scaling(2.0, "fan_in", "uniform", in_axis=1, out_axis=0)
  quantizer["table"] = nn.LogicallyPartitioned(
    table(keys[2], (cfg.vq.codebook_size, cfg.vq.bottleneck_dim), jnp.float32), ("vocab", None)
  )
  if cfg.vq.stochastic_temperature < 0:
    quantizer["inverse_temperature"] = nn.LogicallyPartitioned(jnp.float32(1 / 0.03), ())
  params = {
    "encoder": Encoder(cfg).init(keys[0], video, fixed)["params"],
    "quantizer": quantizer,
    "decoder": Decoder(cfg).init(keys[3], codes, fixed)["params"],
  }
  if cfg.prior is not None:
    params["prior"] = Prior(cfg).init(keys[4], codes[:, 0, :1])["params"]
  if cfg.scorer:
    params["scorer"] = Scorer(cfg).init(keys[5], features, features, keep)["params"]
  return params


def init(cfg: QueryConfig, key: jax.Array) -> Params:
  """`init_learned` beside the tables that stay as they are."""
  axes = (None, "embed")
  fixed = {name: nn.LogicallyPartitioned(jnp.asarray(a), axes) for name, a in fixed_tables(cfg).items()}
  return {**init_learned(cfg, key, nn.unbox(fixed)), **({"fixed": fixed} if fixed else {})}


@functools.cache
def abstract_params(cfg: QueryConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  fixed = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in fixed_shapes(cfg).items()}
  learned = leaves_of(cfg, functools.partial(init_learned, cfg), fixed)
  return {**learned, **{("fixed", name): leaf for name, leaf in fixed.items()}}
