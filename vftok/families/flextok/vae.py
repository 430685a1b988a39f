"""AutoencoderKL (Rombach et al. 2022, arXiv 2112.10752): pictures <-> latents, as diffusers lays it out.

The blocks of `vftok.models.vae_blocks`, with GroupNorm in place of LayerNorm. Pictures come as the frames of a video
[B, F, H, W, 3], each by itself, so that everything around a video VAE serves: T = F time steps of latents.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from vftok.models import conv as C
from vftok.models.config_checks import DTYPES, MAX_BLOCKS, MAX_SIZE
from vftok.models.layers import ranked
from vftok.models.vae import LOGVAR_RANGE
from vftok.models.vae_blocks import EPS, Attention, Conv, ResBlock, silu
from vftok.runtime.words import brief


@dataclasses.dataclass(frozen=True)
class KLConfig:
  """Sizes of an AutoencoderKL, as Stable Diffusion, FlexTok and others have it: 2-D, half the size after each level
  but the last.

  Attributes:
    widths: channels of each level. blocks: residual blocks of a level; the decoder has one more.
    z_channels: of the latents. groups: of every GroupNorm.
    scaling, shift: latents are (mean - shift) * scaling; the decoder is given latents / scaling + shift.
    attention: whether the middle has one. code_in, code_out: whether there is a 1x1 convolution before the decoder
      (`post_quant_conv`) and after the encoder (`quant_conv`).
  """

  widths: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  z_channels: int = 16
  in_channels: int = 3
  groups: int = 32
  scaling: float = 1.0
  shift: float = 0.0
  attention: bool = True
  code_in: bool = True
  code_out: bool = True
  dtype: str = "float32"

  linear = False  # `VAEConfig` may have a linear code

  @property
  def space_stride(self) -> int:
    return 2 ** (len(self.widths) - 1)

  @property
  def latent_mean(self) -> tuple[float, ...]:
    """As `VAEConfig` has it, for all channels one; () where latents are not scaled."""
    return (self.shift,) if self.latent_std else ()

  @property
  def latent_std(self) -> tuple[float, ...]:
    return () if (self.scaling, self.shift) == (1.0, 0.0) else (1.0 / self.scaling,)

  def module(self) -> AutoencoderKL:
    return AutoencoderKL(self)

  def __post_init__(self):
    for name in ("widths", "blocks", "z_channels", "groups"):
      value = getattr(self, name)
      if not value or any(not 0 < n <= MAX_SIZE for n in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"the VAE has {name} = {brief(value)}, expected whole numbers of 1..{MAX_SIZE}.")
    if self.blocks * len(self.widths) > MAX_BLOCKS:
      found = f"{len(self.widths)} levels of {self.blocks} blocks"
      raise ValueError(f"the VAE has {found}, expected at most {MAX_BLOCKS} blocks: take another file.")
    if uneven := [n for n in self.widths if n % self.groups]:
      raise ValueError(f"the VAE has a level of {uneven[0]} channels, expected a multiple of its {self.groups} groups.")
    if self.in_channels != 3:
      raise ValueError(f"the VAE reads pictures of {self.in_channels} channels, expected 3: red, green and blue.")
    for name, low in (("scaling", 1e-12), ("shift", -math.inf)):
      value = getattr(self, name)
      if not (math.isfinite(value) and value >= low):
        raise ValueError(f"the VAE has {name} = {brief(value)}, expected a {'positive ' * (low > 0)}number.")
    if self.dtype not in DTYPES:
      raise ValueError(f"the VAE has dtype = {brief(self.dtype)}, expected {' or '.join(DTYPES)}.")


class GroupNorm(nn.Module):
  """Over the pixels of a picture and the channels of a group, in float32 (eps 1e-6), then SiLU if `act`."""

  dtype: str
  act: bool = True
  groups: int = 32

  @nn.compact
  def __call__(self, x_BxFxHxWxC):
    shape, c = x_BxFxHxWxC.shape, x_BxFxHxWxC.shape[-1]
    names = ("conv_in",)
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, names), (c,))
    bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names), (c,))
    x = x_BxFxHxWxC.astype(jnp.float32)

    def mean(x):
      """[B, F, 1, 1, C], of a channel's group; channels stay the innermost axis until pixels are gone."""
      by_group = x.mean((2, 3)).reshape(*shape[:2], self.groups, c // self.groups).mean(-1)
      return jnp.repeat(by_group, c // self.groups, axis=-1)[:, :, None, None]

    x = x - mean(x)
    y = x * (lax.rsqrt(mean(jnp.square(x)) + EPS) * ranked(scale, 5)) + ranked(bias, 5)
    return (silu(y) if self.act else y).astype(self.dtype)


class Middle(nn.Module):
  cfg: KLConfig

  @nn.compact
  def __call__(self, x):
    block = _block(self.cfg, x.shape[-1])
    x = block(name="block_1")(x)
    if self.cfg.attention:
      x = Attention(self.cfg.dtype, _norm(self.cfg), name="attn")(x)
    return block(name="block_2")(x)


class Encoder(nn.Module):
  cfg: KLConfig

  @nn.compact
  def __call__(self, x_BxFxHxWx3):
    """-> moments float32 [B, F, h, w, 2 Z]: mean, then log-variance."""
    cfg, d = self.cfg, self.cfg.dtype
    x = Conv(cfg.widths[0], (3, 3), d, C.conv2d, name="conv_in")(x_BxFxHxWx3.astype(d))
    for i, width in enumerate(cfg.widths):
      for j in range(cfg.blocks):
        x = _block(cfg, width)(name=f"down_{i}_block_{j}")(x)
      if i < len(cfg.widths) - 1:
        x = Conv(width, (3, 3), d, C.downsample_space, name=f"down_{i}_space")(x)
    x = Middle(cfg, name="mid")(x)
    x = _norm(cfg)(d, name="norm_out")(x)
    x = Conv(2 * cfg.z_channels, (3, 3), d, C.conv2d, name="conv_out")(x)
    return (Conv(2 * cfg.z_channels, (), d, name="code_out")(x) if cfg.code_out else x).astype(jnp.float32)


class Decoder(nn.Module):
  cfg: KLConfig

  @nn.compact
  def __call__(self, z_BxFxhxwxZ):
    """-> pictures float32 [B, F, H, W, 3]."""
    cfg, d = self.cfg, self.cfg.dtype
    x = z_BxFxhxwxZ.astype(d)
    x = Conv(cfg.z_channels, (), d, name="code_in")(x) if cfg.code_in else x
    x = Conv(cfg.widths[-1], (3, 3), d, C.conv2d, name="conv_in")(x)
    x = Middle(cfg, name="mid")(x)
    for i, width in reversed(list(enumerate(cfg.widths))):
      for j in range(cfg.blocks + 1):
        x = _block(cfg, width)(name=f"up_{i}_block_{j}")(x)
      if i:
        x = Conv(width, (3, 3), d, C.upsample_space, name=f"up_{i}_space")(x)
    x = _norm(cfg)(d, name="norm_out")(x)
    return Conv(cfg.in_channels, (3, 3), d, C.conv2d, name="conv_out")(x).astype(jnp.float32)


class AutoencoderKL(nn.Module):
  """Encoder and decoder, with the methods of `vftok.models.vae.VAE`; latents are scaled and shifted."""

  cfg: KLConfig

  def setup(self):
    self.encoder = Encoder(self.cfg)
    self.decoder = Decoder(self.cfg)

  def posterior(self, video_BxFxHxWx3):
    """(mean, logvar) float32 [B, F, h, w, Z] as the networks give them, logvar within [-30, 20].

    Raises:
      ValueError: the shape is not [B, F, H, W, 3], or H or W is no multiple of the stride.
    """
    shape, n = video_BxFxHxWx3.shape, self.cfg.space_stride
    if len(shape) != 5 or shape[-1] != self.cfg.in_channels or not shape[1]:
      raise ValueError(f"expected pictures [B, F, H, W, {self.cfg.in_channels}], got {shape}")
    if shape[2] % n or shape[3] % n:
      raise ValueError(f"height and width must be multiples of {n}, got {shape[2]}x{shape[3]}")
    mean, logvar = jnp.split(self.encoder(video_BxFxHxWx3), 2, -1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)

  def encode(self, video_BxFxHxWx3):
    """(mean, logvar) float32 [B, F, h, w, Z] of the posterior of latents. Raises as `posterior`."""
    mean, logvar = self.posterior(video_BxFxHxWx3)
    return (mean - self.cfg.shift) * self.cfg.scaling, logvar + 2 * jnp.log(self.cfg.scaling)

  def decode(self, z_BxFxhxwxZ):
    """Latents -> pictures float32 [B, F, H, W, 3], nominally in [-1, 1], not clipped.

    Raises:
      ValueError: the shape is not [B, F, h, w, Z].
    """
    if z_BxFxhxwxZ.ndim != 5 or z_BxFxhxwxZ.shape[-1] != self.cfg.z_channels or not z_BxFxhxwxZ.shape[1]:
      raise ValueError(f"expected latents [B, F, h, w, {self.cfg.z_channels}], got {z_BxFxhxwxZ.shape}")
    return self.decoder(z_BxFxhxwxZ / self.cfg.scaling + self.cfg.shift)

  def __call__(self, video_BxFxHxWx3):
    """Decoded posterior mean; touches every parameter."""
    return self.decode(self.encode(video_BxFxHxWx3)[0])


def _norm(cfg: KLConfig):
  return partial(GroupNorm, groups=cfg.groups)


def _block(cfg: KLConfig, width: int):
  return partial(ResBlock, width, (3, 3), cfg.dtype, C.conv2d, norm=_norm(cfg))
