"""The critic of the VAE's adversarial term: patches of single frames, real or not (Isola et al. 2017, PatchGAN)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from vftok.models.layers import partitioned
from vftok.models.vae_blocks import LECUN


class Discriminator(nn.Module):
  """Frames [N, H, W, 3] in [-1, 1] -> one number per patch [N, H/8, W/8], high for real ones."""

  width: int = 64
  depth: int = 3

  @nn.compact
  def __call__(self, x_NxHxWx3):
    init = partitioned(LECUN, None, None, "conv_in", "conv_out")
    conv = partial(nn.Conv, kernel_size=(4, 4), padding="SAME", kernel_init=init)
    x = x_NxHxWx3
    for i in range(self.depth):
      x = conv(self.width * 2**i, strides=2, name=f"down_{i}")(x)
      if i:
        x = nn.GroupNorm(num_groups=min(32, self.width), name=f"norm_{i}")(x)
      x = nn.leaky_relu(x, 0.2)
    return jnp.squeeze(conv(1, name="out")(x), -1)
