"""VidTok's causal 3-D VAE: video <-> latents, 4x in time and (released models) 8x in height and width.

Causal: latent step t sees frames 0..4t only, so a 17-frame clip gives 5 steps and a single image gives 1.
Everything is channels last.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vftok.models import conv as C
from vftok.models.layers import patchify, unpatchify
from vftok.models.vae_blocks import LECUN, Conv, Middle, Norm, Resample, ResBlock, time_block

LOGVAR_RANGE = (-30.0, 20.0)
TIME_STRIDE = 4
TIME_LEVELS = (1, 2)  # of released models: the levels that halve time
LOGVAR_START = -8.0  # of a posterior whose mean is right from the first step on (linear code)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes of the VAE. Width at level i is `ch * ch_mult[i]`; the decoder has one block more per level.

  The first six are what released models vary; the others serve models trained here.

  Attributes:
    dtype: compute dtype; norms and softmax stay float32.
    time_levels: the two levels that halve time.
    space_levels: those that halve height and width; None: all but the last.
    stem: pixels per side folded into channels before the first convolution; 2 makes a small VAE four times cheaper.
    linear: a linear code of space-time patches beside the networks, which then start at zero and learn what it misses.
    encoder_net: False leaves the encoder linear alone, so latents never change while the decoder trains on.
    latent_mean, latent_std: per channel, taken off (and divided by) after encoding, put back before decoding; () for
      none, as in all released models.
  """

  ch: int = 128
  ch_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  z_channels: int = 16
  in_channels: int = 3
  dtype: str = "float32"
  time_levels: tuple[int, ...] = TIME_LEVELS
  space_levels: tuple[int, ...] | None = None
  stem: int = 1
  linear: bool = False
  encoder_net: bool = True
  latent_mean: tuple[float, ...] = ()
  latent_std: tuple[float, ...] = ()

  @property
  def widths(self) -> tuple[int, ...]:
    return tuple(self.ch * m for m in self.ch_mult)

  @property
  def halves_space(self) -> tuple[int, ...]:
    return tuple(range(len(self.ch_mult) - 1)) if self.space_levels is None else self.space_levels

  @property
  def space_stride(self) -> int:
    return self.stem * 2 ** len(self.halves_space)

  @property
  def patch(self) -> tuple[int, int, int]:
    """Frames, height and width that one latent stands for."""
    return (TIME_STRIDE, self.space_stride, self.space_stride)

  def module(self) -> "VAE":
    return VAE(self)

  @property
  def released(self) -> bool:
    """Whether VidTok's own layout can hold this model."""
    return self == VAEConfig(self.ch, self.ch_mult, self.num_res_blocks, self.z_channels, self.in_channels, self.dtype)

  def __post_init__(self):
    levels = len(self.ch_mult)
    if len(self.time_levels) != 2 or levels <= max(self.time_levels):
      raise ValueError(
        f"the VAE needs two of its levels to halve time, so at least {max(self.time_levels, default=1) + 1} levels, "
        f"got ch_mult={self.ch_mult} and time_levels={self.time_levels}"
      )
    if any(not 0 <= i < levels - 1 for i in self.halves_space):
      raise ValueError(f"space_levels={self.space_levels} must name levels below the last of ch_mult={self.ch_mult}")
    if self.stem < 1 or not (self.encoder_net or self.linear):
      raise ValueError(f"stem={self.stem} must be 1 or more, and encoder_net=False needs linear=True")
    if {len(self.latent_mean), len(self.latent_std)} not in ({0}, {self.z_channels}):
      raise ValueError(f"latent_mean and latent_std must have {self.z_channels} values each or none")
    if any(not value > 0 for value in self.latent_std):
      raise ValueError(f"latent_std={self.latent_std} must be positive")


def last_conv(cfg: VAEConfig, features: int, op: Callable, bias_init: Callable = nn.initializers.zeros):
  """The output convolution; at zero where the linear code is right already."""
  init = nn.initializers.zeros if cfg.linear else LECUN
  return Conv(features, (3, 3, 3), cfg.dtype, op, init, bias_init, name="conv_out")


def start_logvar(key, shape, dtype=jnp.float32):
  """Bias of the moments of a linear start: mean 0, log-variance small."""
  return jnp.where(jnp.arange(shape[0]) < shape[0] // 2, 0.0, LOGVAR_START).astype(dtype)


class Encoder(nn.Module):
  cfg: VAEConfig

  @nn.compact
  def __call__(self, x_BxFxHxWxC):
    """-> moments [B, T, h, w, 2Z] in float32."""
    cfg = self.cfg
    x = x_BxFxHxWxC
    if x.shape[1] % TIME_STRIDE:  # three copies of the first frame: 4m+1 frames fill m+1 steps
      x = jnp.concatenate([x[:, :1]] * (TIME_STRIDE - 1) + [x], 1)
    code: Any = None
    if cfg.linear:
      code = Conv(cfg.z_channels, (), "float32", name="linear")(patchify(x, cfg.patch).astype(jnp.float32))
    if not cfg.encoder_net:
      return jnp.concatenate([code, jnp.full_like(code, LOGVAR_START)], -1)
    moments = self._net(patchify(x, (1, cfg.stem, cfg.stem)) if cfg.stem > 1 else x)
    return moments if code is None else moments.at[..., : cfg.z_channels].add(code)

  def _net(self, x):
    cfg, d = self.cfg, self.cfg.dtype
    x = Conv(cfg.ch, (3, 3, 3), d, C.conv3d, name="conv_in")(x.astype(d))
    for i, width in enumerate(cfg.widths):
      for j in range(cfg.num_res_blocks):
        x = ResBlock(width, (3, 3), d, C.conv2d, name=f"down_{i}_block_{j}")(x)
        x = time_block(width, d, f"down_{i}_time_{j}")(x)
      if i in cfg.halves_space:
        x = Conv(width, (3, 3), d, C.downsample_space, name=f"down_{i}_space")(x)
      if i in cfg.time_levels:
        x = Resample(d, C.mean_time, C.downsample_time, name=f"down_{i}_time")(x)
    x = Middle(d, name="mid")(x)
    x = Norm(d, name="norm_out")(x)
    bias_init = start_logvar if cfg.linear else nn.initializers.zeros
    return last_conv(cfg, 2 * cfg.z_channels, C.conv3d, bias_init)(x).astype(jnp.float32)


class Decoder(nn.Module):
  cfg: VAEConfig

  @nn.compact
  def __call__(self, z_BxTxhxwxZ):
    """-> video [B, 4T-3, 8h, 8w, C] in float32."""
    cfg, d = self.cfg, self.cfg.dtype
    x = Conv(cfg.widths[-1], (3, 3, 3), d, C.conv3d, name="conv_in")(z_BxTxhxwxZ.astype(d))
    x = Middle(d, name="mid")(x)
    for i, width in reversed(list(enumerate(cfg.widths))):
      for j in range(cfg.num_res_blocks + 1):
        x = ResBlock(width, (3, 3), d, C.conv2d, name=f"up_{i}_block_{j}")(x)
        x = time_block(width, d, f"up_{i}_time_{j}")(x)
      if i - 1 in cfg.halves_space:
        x = Conv(width, (3, 3), d, C.upsample_space, name=f"up_{i}_space")(x)
      if i in cfg.time_levels:
        x = Resample(d, C.repeat_time, C.upsample_time, name=f"up_{i}_time")(x)
    # The first three frames of the output are dropped: frame 3 is the first whose three inputs are 1, 2, 3.
    x = Norm(d, name="norm_out")(x[:, 1:])
    x = last_conv(cfg, cfg.in_channels * cfg.stem**2, partial(C.conv3d, front=0))(x).astype(jnp.float32)
    x = unpatchify(x, (1, cfg.stem, cfg.stem)) if cfg.stem > 1 else x
    if not cfg.linear:
      return x
    patches = Conv(cfg.in_channels * math.prod(cfg.patch), (), "float32", name="linear")(z_BxTxhxwxZ)
    return x + unpatchify(patches, cfg.patch)[:, TIME_STRIDE - 1 :]


class VAE(nn.Module):
  """Encoder and decoder. Pure functions of the parameters:

  mean, logvar = vae.apply(params, video, method=VAE.encode)
  video = vae.apply(params, mean, method=VAE.decode)
  """

  cfg: VAEConfig

  def setup(self):
    self.encoder = Encoder(self.cfg)
    self.decoder = Decoder(self.cfg)

  def encode(self, video_BxFxHxWxC):
    """Posterior of a video.

    Args:
      video_BxFxHxWxC: values in [-1, 1]. F = 4m+1 gives T = m+1 steps. Other F are accepted but only F = 4m+1
        decode to their own length (16 -> 4 -> 13, 18 -> 5 -> 17).

    Returns:
      mean and logvar, float32 [B, T, H/8, W/8, Z] each, logvar within [-30, 20].

    Raises:
      ValueError: the shape is not [B, F, H, W, C], or H or W is no multiple of the stride.
    """
    shape, n = video_BxFxHxWxC.shape, self.cfg.space_stride
    if len(shape) != 5 or shape[-1] != self.cfg.in_channels or not shape[1]:
      raise ValueError(f"expected video [B, F, H, W, {self.cfg.in_channels}], got {shape}")
    if shape[2] % n or shape[3] % n:
      raise ValueError(f"height and width must be multiples of {n}, got {shape[2]}x{shape[3]}")
    mean, logvar = jnp.split(self.encoder(video_BxFxHxWxC), 2, -1)
    logvar = jnp.clip(logvar, *LOGVAR_RANGE)
    if self.cfg.latent_std:
      mean = (mean - jnp.array(self.cfg.latent_mean)) / jnp.array(self.cfg.latent_std)
      logvar = logvar - 2 * jnp.log(jnp.array(self.cfg.latent_std))
    return mean, logvar

  def decode(self, z_BxTxhxwxZ):
    """Latents [B, T, h, w, Z] -> video, float32 [B, 4T-3, 8h, 8w, C], nominally in [-1, 1], not clipped.

    Raises:
      ValueError: the shape is not [B, T, h, w, Z].
    """
    if z_BxTxhxwxZ.ndim != 5 or z_BxTxhxwxZ.shape[-1] != self.cfg.z_channels or not z_BxTxhxwxZ.shape[1]:
      raise ValueError(f"expected latents [B, T, h, w, {self.cfg.z_channels}], got {z_BxTxhxwxZ.shape}")
    if self.cfg.latent_std:
      z_BxTxhxwxZ = z_BxTxhxwxZ * jnp.array(self.cfg.latent_std) + jnp.array(self.cfg.latent_mean)
    return self.decoder(z_BxTxhxwxZ)

  def __call__(self, video_BxFxHxWxC):
    """Decoded posterior mean; touches every parameter."""
    return self.decode(self.encode(video_BxFxHxWxC)[0])


def sample(mean, logvar, eps):
  """A draw from the posterior, given standard normal `eps` of the same shape."""
  return mean + jnp.exp(0.5 * logvar) * eps


def kl(mean, logvar):
  """KL divergence of the posterior from the standard normal: summed over each video, mean over the batch."""
  return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / mean.shape[0]
