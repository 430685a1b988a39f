"""The smallest task there is, for tests of the loop itself: its program compiles in a moment."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from vftok.tasks import mean


class PixelTask:
  """One number per channel learns the mean colour; every example has noise of its own."""

  dtype = "float32"

  def __init__(self, cfg):
    self.cfg = cfg

  def init(self, key):
    return {"mean": nn.with_logical_partitioning(lambda k: 0.1 * jax.random.normal(k, (3,)), (None,))(key)}

  def frozen(self):
    return {}

  def start(self, params, batches):
    return params

  def loss(self, params, frozen, batch, keys_B, step):
    colour_Bx3 = batch["video"].mean((1, 2, 3)) / 127.5 - 1
    noise_Bx3 = 0.1 * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys_B)
    error_B = jnp.square(colour_Bx3 + noise_Bx3 - params["mean"]).mean(1)
    return error_B.mean(), {"error": mean(error_B)}

  def flops(self):
    return 1.0

  def media(self, params, frozen, batch):
    return {}

  def save(self, params, frozen, directory):
    Path(directory).mkdir()
    (Path(directory) / "config.json").write_text(json.dumps([float(x) for x in params["mean"]]))
