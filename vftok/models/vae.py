"""VidTok's causal 3-D VAE: video <-> latents, 4x in time and 8x in height and width.

Frames and latent time steps are causal: latent step t sees frames 0..4t only, so a 17-frame clip gives 5 steps
and a single image gives 1. Everything is channels last.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vftok.models import conv as C

LOGVAR_RANGE = (-30.0, 20.0)
TIME_STRIDE = 4
SPACE_LEVELS = -1  # every level but the last halves height and width
TIME_LEVELS = (1, 2)  # these halve time too
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes of the VAE. Width at level i is `ch * ch_mult[i]`; the decoder has one block more per level."""

  ch: int = 128
  ch_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  z_channels: int = 16
  in_channels: int = 3
  dtype: str = "float32"  # compute dtype; norms and softmax stay float32

  @property
  def widths(self) -> tuple[int, ...]:
    return tuple(self.ch * m for m in self.ch_mult)

  @property
  def time_levels(self) -> tuple[int, ...]:
    return tuple(i for i in TIME_LEVELS if i < len(self.ch_mult) - 1)


@jax.custom_jvp
def silu(x):
  # One exp and one division; the compiler's own expansion of the logistic costs a third more on CPU.
  return x / (1 + jnp.exp(-x))


@silu.defjvp
def _silu_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  y, gate = silu(x), lax.logistic(x)  # the plain derivative of the quotient overflows below -88
  return y, dx * (gate + y * (1 - gate))


class Norm(nn.Module):
  """LayerNorm over channels in float32 (eps 1e-6), then SiLU unless `act` is None."""

  dtype: str
  act: bool = True

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    names = ("conv_in",)
    scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, names), (c,))
    bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names), (c,))
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    inv = lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + EPS)
    if C.on_cpu():  # statistics in one pass, everything else in a second one, fused with its neighbours
      mean, inv = lax.optimization_barrier((mean, inv))
    y = (x - mean) * inv * scale + bias
    return (silu(y) if self.act else y).astype(self.dtype)


class Conv(nn.Module):
  """Kernel and bias of a convolution; `apply` maps (x, kernel) to the sum without the bias."""

  features: int
  shape: tuple[int, ...]  # kernel size, () for 1x1
  dtype: str
  op: callable = C.pointwise
  init: callable = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)

  @nn.compact
  def __call__(self, x):
    kernel, bias = self.weights(x.shape[-1])
    return self.op(x, kernel) + bias

  def weights(self, c):
    names = (*(None for _ in self.shape), "conv_in", "conv_out")
    kernel = self.param("kernel", nn.with_logical_partitioning(self.init, names), (*self.shape, c, self.features))
    bias = self.param(
      "bias", nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)), (self.features,)
    )
    return kernel.astype(self.dtype), bias.astype(self.dtype)


class MixedConv(nn.Module):
  """Temporal resampling: a * plain + (1 - a) * conv, a = sigmoid(mix_factor), as ONE convolution.

  The plain path (a mean over three frames going down, the nearest frame going up) is itself a convolution with
  multiples of the identity, so it is added to the kernel.
  """

  dtype: str
  op: callable
  taps: tuple[float, float, float]  # weights of the plain path on the kernel's three time taps

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    names = (None, None, None, "conv_in", "conv_out")
    init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)
    kernel = self.param("kernel", nn.with_logical_partitioning(init, names), (3, 3, 3, c, c))
    bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, names[-1:]), (c,))
    mix = self.param(
      "mix_factor", nn.with_logical_partitioning(nn.initializers.constant(2.0), (None,)), (1,)
    )
    a = nn.sigmoid(mix[0])
    plain = jnp.asarray(self.taps)[:, None, None] * jnp.eye(c)
    kernel = ((1 - a) * kernel).at[:, 1, 1].add(a * plain)
    return self.op(x, kernel.astype(self.dtype)) + ((1 - a) * bias).astype(self.dtype)


class ResBlock(nn.Module):
  """x + conv(act(norm(conv(act(norm(x)))))) with a 1x1 convolution on x where the width changes."""

  features: int
  dtype: str
  shape: tuple[int, ...]
  op: callable
  init2: callable = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)

  @nn.compact
  def __call__(self, x):
    h = Norm(self.dtype, name="norm1")(x)
    h = Conv(self.features, self.shape, self.dtype, self.op, name="conv1")(h)
    h = Norm(self.dtype, name="norm2")(h)
    h = Conv(self.features, self.shape, self.dtype, self.op, self.init2, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = Conv(self.features, (), self.dtype, name="shortcut")(x)
    return x + h


class TimeBlock(nn.Module):
  """Residual block of causal convolutions over time at every pixel; the identity at the start of training."""

  dtype: str

  @nn.compact
  def __call__(self, x_BxTxHxWxC):
    b, t, h, w, c = x_BxTxHxWxC.shape
    y = C.time_major(x_BxTxHxWxC.reshape(b, t, h * w, c))
    conv = partial(Conv, c, (3,), self.dtype, C.causal_conv1d)
    y = conv(name="conv1")(Norm(self.dtype, name="norm1")(y))
    y = conv(init=nn.initializers.zeros, name="conv2")(Norm(self.dtype, name="norm2")(y))
    return x_BxTxHxWxC + C.time_major(y).reshape(b, t, h, w, c)


class Attention(nn.Module):
  """Single-head attention over the h*w positions within each frame; softmax in float32."""

  dtype: str

  @nn.compact
  def __call__(self, x_BxTxHxWxC):
    b, t, h, w, c = x_BxTxHxWxC.shape
    y = Norm(self.dtype, act=False, name="norm")(x_BxTxHxWxC).reshape(b * t, h * w, c)
    q, k, v = (Conv(c, (), self.dtype, name=n)(y) for n in "qkv")
    logits = jnp.einsum("nqc,nkc->nqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
    y = jnp.einsum("nqk,nkc->nqc", nn.softmax(logits).astype(self.dtype), v)
    return x_BxTxHxWxC + Conv(c, (), self.dtype, name="out")(y).reshape(b, t, h, w, c)


class Middle(nn.Module):
  dtype: str

  @nn.compact
  def __call__(self, x):
    block = partial(ResBlock, x.shape[-1], self.dtype, (3, 3, 3), C.conv3d)
    x = Attention(self.dtype, name="attn")(block(name="block_1")(x))
    return block(name="block_2")(x)


class Encoder(nn.Module):
  cfg: VAEConfig

  @nn.compact
  def __call__(self, x_BxFxHxWxC):
    """-> moments [B, T, h, w, 2Z] in float32."""
    cfg, d = self.cfg, self.cfg.dtype
    last = len(cfg.widths) - 1
    x = x_BxFxHxWxC.astype(d)
    if x.shape[1] % TIME_STRIDE:  # three copies of the first frame: 4m+1 frames fill m+1 steps
      x = jnp.concatenate([x[:, :1]] * (TIME_STRIDE - 1) + [x], 1)
    x = Conv(cfg.ch, (3, 3, 3), d, C.conv3d, name="conv_in")(x)
    for i, width in enumerate(cfg.widths):
      for j in range(cfg.num_res_blocks):
        x = ResBlock(width, d, (3, 3), C.conv2d, name=f"down_{i}_block_{j}")(x)
        x = TimeBlock(d, name=f"down_{i}_time_{j}")(x)
      if i < last:
        op = partial(C.conv2d, stride=2, padding=((0, 1), (0, 1)))
        x = Conv(width, (3, 3), d, op, name=f"down_{i}_space")(x)
      if i in cfg.time_levels:
        op = partial(C.conv3d, front=1, stride_t=2)
        x = MixedConv(d, op, (1 / 3, 1 / 3, 1 / 3), name=f"down_{i}_resample")(x)
    x = Middle(d, name="mid")(x)
    x = Norm(d, name="norm_out")(x)
    return Conv(2 * cfg.z_channels, (3, 3, 3), d, C.conv3d, name="conv_out")(x).astype(jnp.float32)


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
        x = ResBlock(width, d, (3, 3), C.conv2d, name=f"up_{i}_block_{j}")(x)
        x = TimeBlock(d, name=f"up_{i}_time_{j}")(x)
      if i > 0:
        x = Conv(width, (3, 3), d, C.upsample_space, name=f"up_{i}_space")(x)
      if i in cfg.time_levels:
        x = MixedConv(d, C.upsample_time, (0.0, 0.0, 1.0), name=f"up_{i}_resample")(x)
    # The first three frames of the output are dropped: frame 3 is the first whose three inputs are 1, 2, 3.
    x = Norm(d, name="norm_out")(x[:, TIME_STRIDE - 3 :])
    conv_out = Conv(cfg.in_channels, (3, 3, 3), d, partial(C.conv3d, front=0), name="conv_out")
    return conv_out(x).astype(jnp.float32)


class VAE(nn.Module):
  cfg: VAEConfig

  def setup(self):
    self.encoder = Encoder(self.cfg)
    self.decoder = Decoder(self.cfg)

  def encode(self, video_BxFxHxWxC):
    moments = self.encoder(video_BxFxHxWxC)
    mean, logvar = jnp.split(moments, 2, -1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)

  def decode(self, z_BxTxhxwxZ):
    return self.decoder(z_BxTxhxwxZ)

  def __call__(self, video_BxFxHxWxC):
    return self.decode(self.encode(video_BxFxHxWxC)[0])

  init_all = __call__
