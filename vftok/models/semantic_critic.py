"""Heads that judge clips by a frozen net's features (EVATok section 4.2, after StyleGAN-T and GigaTok).

Each depth at which the net is read has a head: convolutions over its tokens in their order, to one number per token.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models.layers import partitioned, trunc_normal

VIRTUAL_BATCH = 8  # clips that are normalised together
POWER_STEPS = 8  # of the iteration that finds the largest singular value


class Heads(nn.Module):
  """A list of features [B, N, D] -> float32 [B, P], numbers of all tokens at all depths, high for real clips."""

  @nn.compact
  def __call__(self, taps: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([Head(name=f"head_{i}")(x) for i, x in enumerate(taps)], axis=1)


class Head(nn.Module):
  """[B, N, D] -> [B, N]: a block of kernel 1, one of kernel 9 beside its input, then one number per token."""

  @nn.compact
  def __call__(self, x_BxNxD):
    d = x_BxNxD.shape[-1]
    x = ConvBlock(d, 1, name="first")(x_BxNxD)
    x = (x + ConvBlock(d, 9, name="second")(x)) / math.sqrt(2)
    return SpectralConv(1, 1, name="out")(x)[..., 0]


class ConvBlock(nn.Module):
  """Convolution, normalisation over a few clips, leaky ReLU."""

  features: int
  width: int

  @nn.compact
  def __call__(self, x_BxNxD):
    x = SpectralConv(self.features, self.width, name="conv")(x_BxNxD)
    make = lambda name, init: self.param(name, partitioned(init, "embed"), (self.features,))
    x = local_norm(x) * make("scale", nn.initializers.ones) + make("bias", nn.initializers.zeros)
    return nn.leaky_relu(x, 0.2)


class SpectralConv(nn.Module):
  """Convolution over tokens in a circle, its kernel over its largest singular value."""

  features: int
  width: int

  @nn.compact
  def __call__(self, x_BxNxD):
    shape = (self.width, x_BxNxD.shape[-1], self.features)
    kernel = self.param("kernel", partitioned(trunc_normal, None, "embed", None), shape)
    bias = self.param("bias", partitioned(nn.initializers.zeros, None), (self.features,))
    kernel = kernel / largest_singular(kernel.reshape(-1, self.features))
    half = self.width // 2
    around = jnp.concatenate([x_BxNxD[:, -half:], x_BxNxD, x_BxNxD[:, :half]], axis=1) if half else x_BxNxD
    return jax.lax.conv_general_dilated(around, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")) + bias


def largest_singular(w_IxO) -> jax.Array:
  """Of a matrix, by power iteration from a fixed start; the gradient is that of u^T W v with both vectors held."""
  w, v = jax.lax.stop_gradient(w_IxO), jnp.ones(w_IxO.shape[1])
  length = lambda a: a / jnp.maximum(jnp.linalg.norm(a), 1e-12)
  for _ in range(POWER_STEPS):
    u = length(w @ v)
    v = length(u @ w)
  return jnp.maximum(u @ w_IxO @ v, 1e-12)


def local_norm(x_BxNxD) -> jax.Array:
  """Each channel to mean 0 and variance 1 over the tokens of VIRTUAL_BATCH clips, or of as many as divide the batch."""
  b, n, d = x_BxNxD.shape
  group = math.gcd(b, VIRTUAL_BATCH)
  x = x_BxNxD.reshape(b // group, group, n, d)
  centred = x - x.mean((1, 2), keepdims=True)
  return (centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-5)).reshape(b, n, d)
