"""What the VAE is made of: norms, convolutions, residual blocks and attention, causal in time, channels last."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vftok.models import conv as C
from vftok.models import cudnn
from vftok.models.layers import partitioned, ranked
from vftok.runtime import target

EPS = 1e-6
LECUN = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1)


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
  """LayerNorm over channels in float32 (eps 1e-6), then SiLU if `act`."""

  dtype: str
  act: bool = True

  @nn.compact
  def __call__(self, x):
    c = x.shape[-1]
    names = ("conv_in",)
    scale = self.param("scale", partitioned(nn.initializers.ones, *names), (c,))
    bias = self.param("bias", partitioned(nn.initializers.zeros, *names), (c,))
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    inv = lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + EPS)
    if C.on_cpu():  # statistics in one pass, everything else in a second one, fused with its neighbours
      mean, inv = lax.optimization_barrier((mean, inv))
    y = (x - mean) * inv * ranked(scale, x.ndim) + ranked(bias, x.ndim)
    return (silu(y) if self.act else y).astype(self.dtype)


class Conv(nn.Module):
  """op(x, kernel) + bias, with kernel [*shape, in, features]; the window of a 3-D one is (h, w, t)."""

  features: int
  shape: tuple[int, ...]  # window, () for 1x1
  dtype: str
  op: Callable = C.pointwise
  init: Callable = LECUN
  bias_init: Callable = nn.initializers.zeros

  @nn.compact
  def __call__(self, x):
    names = (*(None for _ in self.shape), "conv_in", "conv_out")
    shape = (*self.shape, x.shape[-1], self.features)
    kernel = self.param("kernel", partitioned(self.init, *names), shape)
    bias = self.param("bias", partitioned(self.bias_init, *names[-1:]), shape[-1:])
    return self.op(x, kernel.astype(self.dtype)) + ranked(bias.astype(self.dtype), x.ndim)


class Resample(nn.Module):
  """Half or double rate in time: a * plain(x) + (1 - a) * conv(x), a = sigmoid of a learned scalar."""

  dtype: str
  plain: Callable
  op: Callable

  @nn.compact
  def __call__(self, x):
    init = partitioned(nn.initializers.constant(2.0), None)
    a = ranked(nn.sigmoid(self.param("mix_factor", init, (1,))).astype(self.dtype), x.ndim)
    conv = Conv(x.shape[-1], (3, 3, 3), self.dtype, self.op, name="conv")
    return a * self.plain(x) + (1 - a) * conv(x)


class ResBlock(nn.Module):
  """x + conv(act(norm(conv(act(norm(x)))))) with a 1x1 convolution on x where the width changes."""

  features: int
  shape: tuple[int, ...]
  dtype: str
  op: Callable
  last_init: Callable = LECUN
  norm: Callable = Norm

  @nn.compact
  def __call__(self, x):
    conv = partial(Conv, self.features, self.shape, self.dtype, self.op)
    h = conv(name="conv1")(self.norm(self.dtype, name="norm1")(x))
    h = conv(self.last_init, name="conv2")(self.norm(self.dtype, name="norm2")(h))
    if x.shape[-1] != self.features:
      x = Conv(self.features, (), self.dtype, name="shortcut")(x)
    return x + h


def time_block(features, dtype, name):
  """Residual block of causal convolutions over time at every pixel; the identity at the start of training."""
  return ResBlock(features, (3,), dtype, C.causal_conv1d, nn.initializers.zeros, name=name)


class Attention(nn.Module):
  """Single-head attention over the h*w positions within each frame; softmax in float32."""

  dtype: str
  norm: Callable = Norm

  @nn.compact
  def __call__(self, x_BxTxHxWxC):
    b, t, h, w, c = x_BxTxHxWxC.shape
    y = self.norm(self.dtype, act=False, name="norm")(x_BxTxHxWxC).reshape(b * t, h * w, c)
    q, k, v = (Conv(c, (), self.dtype, name=n)(y) for n in "qkv")
    if target.attention(self.dtype) == "cudnn" and cudnn.fits(c):
      y = cudnn.attend(q[:, None], k[:, None], v[:, None], scale=c**-0.5)[:, :, 0]
    else:
      logits = jnp.einsum("nqc,nkc->nqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
      y = jnp.einsum("nqk,nkc->nqc", nn.softmax(logits).astype(self.dtype), v)
    return x_BxTxHxWxC + Conv(c, (), self.dtype, name="out")(y).reshape(b, t, h, w, c)


class Middle(nn.Module):
  dtype: str

  @nn.compact
  def __call__(self, x):
    block = partial(ResBlock, x.shape[-1], (3, 3, 3), self.dtype, C.conv3d)
    x = Attention(self.dtype, name="attn")(block(name="block_1")(x))
    return block(name="block_2")(x)
