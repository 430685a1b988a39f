"""Convolutions of a causal video network: channels last, exact up to rounding, written for speed.

Video is [B, T, H, W, C]. Padding in time is always in front, so frame t never sees a later frame. Kernels
are [*window, C, D]; the window of a 3-D one is (height, width, time): seen as [h, w, 3C, D] it is, without a
copy, the kernel of a 2-D convolution over three neighbouring frames laid side by side in the channels.

What is done here and not left to the compiler:
  * nearest upsampling followed by a convolution runs at the low resolution, with kernels whose taps that see
    the same input are summed beforehand (4/9 of the products in space, 2/3 in time);
  * on CPU every convolution is a 2-D one of the kind that XLA hands to its fastest routine, or of tiny pictures a
    matrix product, see `_conv`.
"""

import math

import einops
import jax.numpy as jnp
from jax import lax

from vftok.runtime import target


def on_cpu() -> bool:
  """The one switch between lowerings; every branch on it computes the same numbers."""
  return target.platform() == "cpu"


def _conv(x_NxHxWxC, kernel_hxwxCxD, stride, padding):
  """2-D convolution; padding is ((top, bottom), (left, right))."""
  dilation = (1, 1)
  if on_cpu():
    if math.prod(x_NxHxWxC.shape[1:3]) < math.prod(kernel_hxwxCxD.shape[:2]):
      return _of_windows(x_NxHxWxC, kernel_hxwxCxD, stride, padding)
    # Spreading input, kernel and stride by two along the width changes nothing in the result, but sends the
    # convolution to Eigen: on two cores up to 1.2x the default's speed, strided 1.8x, weight gradients 3x.
    dilation = (1, 2)
  return lax.conv_general_dilated(
    x_NxHxWxC,
    kernel_hxwxCxD,
    [stride * e for e in dilation],
    [(lo * e, hi * e) for (lo, hi), e in zip(padding, dilation, strict=True)],
    lhs_dilation=dilation,
    rhs_dilation=dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _of_windows(x_NxHxWxC, kernel_hxwxCxD, stride, padding):
  """`_conv` as one matrix product; of pictures smaller than the window XLA's own takes 20 to 70 times as long."""
  h, w, c, d = kernel_hxwxCxD.shape
  x = jnp.pad(x_NxHxWxC, ((0, 0), *padding, (0, 0)))
  rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
  taps = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(h) for j in range(w)]
  return jnp.concatenate(taps, -1) @ kernel_hxwxCxD.reshape(h * w * c, d)


def pointwise(x, kernel_CxD):
  """1x1 convolution: [..., C] -> [..., D]."""
  return x @ kernel_CxD


def conv2d(x_BxTxHxWxC, kernel_hxwxCxD, stride=1, padding=((1, 1), (1, 1))):
  """The same 2-D convolution on every frame: [B, T, H, W, C] -> [B, T, H', W', D]."""
  b, t, *hwc = x_BxTxHxWxC.shape
  y = _conv(x_BxTxHxWxC.reshape(b * t, *hwc), kernel_hxwxCxD, stride, padding)
  return y.reshape(b, t, *y.shape[1:])


def causal_conv1d(x_BxTxHxWxC, kernel_3xCxD):
  """Convolution over time at every pixel, two zero frames in front."""
  b, t, h, w, c = x_BxTxHxWxC.shape
  y = _conv(x_BxTxHxWxC.reshape(b, t, h * w, c), kernel_3xCxD[:, None], 1, ((2, 0), (0, 0)))
  return y.reshape(b, t, h, w, -1)


def pad_front(x_BxTxHxWxC, n):
  """n zero frames before the first."""
  return jnp.pad(x_BxTxHxWxC, ((0, 0), (n, 0), (0, 0), (0, 0), (0, 0))) if n else x_BxTxHxWxC


def windows(x_BxTxHxWxC, front, stride=1):
  """The three inputs of a causal window, each [B, T', H, W, C], after `front` zero frames; oldest first."""
  x = pad_front(x_BxTxHxWxC, front)
  span = x.shape[1] - 2
  return [x[:, i : i + span : stride] for i in range(3)]


def conv3d(x_BxTxHxWxC, kernel_3x3x3xCxD, front=2, stride=1):
  """3x3x3 convolution, same size in space, `front` zero frames before the first; `stride` only in time."""
  x, kernel = x_BxTxHxWxC, kernel_3x3x3xCxD
  c, d = kernel.shape[-2:]
  if not on_cpu():
    return lax.conv_general_dilated(
      x,
      jnp.moveaxis(kernel, 2, 0),
      (stride, 1, 1),
      ((front, 0), (1, 1), (1, 1)),
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  if 3 * d < c:  # far fewer channels out than in: all three taps of a frame at once, summed afterwards
    y = conv2d(x, kernel.swapaxes(2, 3).reshape(3, 3, c, 3 * d))
    return sum(jnp.split(w, 3, -1)[i] for i, w in enumerate(windows(y, front, stride)))
  return conv2d(jnp.concatenate(windows(x, front, stride), -1), kernel.reshape(3, 3, 3 * c, d))


def downsample_space(x_BxTxHxWxC, kernel_3x3xCxD):
  """3x3 convolution with stride 2 and one zero at the right and the bottom: H, W -> H/2, W/2."""
  return conv2d(x_BxTxHxWxC, kernel_3x3xCxD, 2, ((0, 1), (0, 1)))


def _phase_kernels(kernel, axis):
  """Three taps on a doubled axis as two phases of two taps on the original one: [2 phases, 2 taps, ...]."""
  k0, k1, k2 = (lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
  return jnp.stack([jnp.stack([k0, k1 + k2]), jnp.stack([k0 + k1, k2])])


def upsample_space(x_BxTxHxWxC, kernel_3x3xCxD):
  """Nearest x2 in height and width, then a 3x3 convolution: [B, T, H, W, C] -> [B, T, 2H, 2W, D].

  Output row 2i sees input rows i-1, i, i and row 2i+1 sees i, i, i+1, so each of the four phases is a 2x2
  convolution. All four run as one of 4D channels on the (H+1) x (W+1) windows of the padded input.
  """
  b, t, h, w, _ = x_BxTxHxWxC.shape
  d = kernel_3x3xCxD.shape[-1]
  k = _phase_kernels(_phase_kernels(kernel_3x3xCxD, 0), 2)  # [phase_w, w, phase_h, h, C, D]
  k = k.transpose(3, 1, 4, 2, 0, 5).reshape(2, 2, -1, 4 * d)
  y = conv2d(x_BxTxHxWxC, k).reshape(b, t, h + 1, w + 1, 2, 2, d)
  phases = [[y[:, :, i : i + h, j : j + w, i, j] for j in range(2)] for i in range(2)]
  y = jnp.stack([jnp.stack(row, 4) for row in phases], 3)  # [B, T, H, 2, W, 2, D]
  return y.reshape(b, t, 2 * h, 2 * w, d)


def downsample_time(x_BxTxHxWxC, kernel_3x3x3xCxD):
  """Causal 3x3x3 convolution with stride 2 in time and one zero frame in front: T -> T/2."""
  return conv3d(x_BxTxHxWxC, kernel_3x3x3xCxD, front=1, stride=2)


def mean_time(x_BxTxHxWxC):
  """Mean over the windows of `downsample_time`; the zero frame counts."""
  return sum(windows(x_BxTxHxWxC, 1, 2)) / 3


def upsample_time(x_BxTxHxWxC, kernel_3x3x3xCxD):
  """Nearest x2 in time, then a causal 3x3x3 convolution: [B, T, H, W, C] -> [B, 2T, H, W, D].

  Output frame 2i sees input frames i-1, i-1, i and frame 2i+1 sees i-1, i, i: one 2-D convolution from the
  channels of frames i-1 and i to those of both outputs.
  """
  k0, k1, k2 = (kernel_3x3x3xCxD[:, :, i] for i in range(3))
  before, now = jnp.concatenate([k0 + k1, k0], -1), jnp.concatenate([k2, k1 + k2], -1)
  both = jnp.concatenate([pad_front(x_BxTxHxWxC, 1)[:, :-1], x_BxTxHxWxC], -1)
  y = conv2d(both, jnp.concatenate([before, now], -2))
  return einops.rearrange(y, "b t h w (i d) -> b (t i) h w d", i=2)


def repeat_time(x_BxTxHxWxC):
  """Nearest x2 in time."""
  return jnp.repeat(x_BxTxHxWxC, 2, 1)
