"""Convolutions of a causal video network: channels last, exact up to rounding, written for speed.

What is done here and not left to the compiler:
  * nearest upsampling followed by a convolution runs at the low resolution, with kernels whose taps that see
    the same input are summed beforehand (4/9 of the products in space, 2/3 in time);
  * taps that only ever see the causal zero padding are skipped;
  * on CPU a 3-D convolution is a sum of 2-D ones, as the native one is about half as fast there.
Padding in time is always in front, so frame t never sees a later frame.
"""

import jax
import jax.numpy as jnp
from jax import lax


def on_cpu() -> bool:
  """The one switch between lowerings; every branch on it computes the same numbers."""
  return jax.default_backend() == "cpu"


def pointwise(x, kernel_CxD):
  """1x1 convolution: [..., C] -> [..., D]."""
  return x @ kernel_CxD


def conv2d(x_BxTxHxWxC, kernel_hxwxCxD, stride=1, padding=((1, 1), (1, 1))):
  """The same 2-D convolution on every frame: [B, T, H, W, C] -> [B, T, H', W', D]."""
  b, t, *hwc = x_BxTxHxWxC.shape
  y = lax.conv_general_dilated(
    x_BxTxHxWxC.reshape(b * t, *hwc),
    kernel_hxwxCxD,
    (stride, stride),
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(b, t, *y.shape[1:])


def time_major(x_BxTxPxC):
  """The layout `causal_conv1d` is fastest in: [B, P, T, C] on CPU, untouched [B, T, P, C] elsewhere."""
  return x_BxTxPxC.swapaxes(1, 2) if on_cpu() else x_BxTxPxC


def causal_conv1d(x, kernel_3xCxD):
  """Convolution over time with two zero frames in front, in the layout of `time_major`."""
  if on_cpu():
    b, p, t, c = x.shape
    y = lax.conv_general_dilated(
      x.reshape(b * p, t, c), kernel_3xCxD, (1,), ((2, 0),), dimension_numbers=("NHC", "HIO", "NHC")
    )
    return y.reshape(b, p, t, -1)
  return lax.conv_general_dilated(
    x, kernel_3xCxD[:, None], (1, 1), ((2, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def delay(x_BxTxHxWxC, n, mode="constant"):
  """x shifted n frames later in time; the first n frames become zero (or copies of the first: mode "edge")."""
  padding = ((0, 0), (n, 0), (0, 0), (0, 0), (0, 0))
  return jnp.pad(x_BxTxHxWxC[:, : x_BxTxHxWxC.shape[1] - n], padding, mode=mode) if n else x_BxTxHxWxC


def conv3d(x_BxTxHxWxC, kernel_3x3x3xCxD, front=2, stride_t=1):
  """3x3x3 convolution, same size in space, `front` zero frames before the first; stride only in time."""
  x, kernel = x_BxTxHxWxC, kernel_3x3x3xCxD
  if not on_cpu():
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride_t, 1, 1),
      ((front, 0), (1, 1), (1, 1)),
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  t_in, c, d = x.shape[1], *kernel.shape[-2:]
  t_out = (t_in + front - 3) // stride_t + 1
  if c * 3 <= 64:  # few input channels: the three frames become one wider one
    x = jnp.pad(x, ((0, 0), (front, 0), (0, 0), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, i : i + stride_t * (t_out - 1) + 1 : stride_t] for i in range(3)], -1)
    return conv2d(x, jnp.concatenate(list(kernel), -2))
  if d * 3 <= 128 and stride_t == 1:  # few output channels: all three taps at once, summed afterwards
    y = conv2d(x, jnp.concatenate(list(kernel), -1))
    y = jnp.pad(y, ((0, 0), (front, 0), (0, 0), (0, 0), (0, 0)))
    return sum(y[:, i : i + t_out, ..., i * d : (i + 1) * d] for i in range(3))
  total = 0
  for i in range(3):  # output j reads input frame stride_t * j + i - front
    skipped = -((i - front) // stride_t) if i < front else 0
    first = stride_t * skipped + i - front
    if skipped >= t_out:
      continue
    y = conv2d(x[:, first : first + stride_t * (t_out - skipped - 1) + 1 : stride_t], kernel[i])
    total = total + jnp.pad(y, ((0, 0), (skipped, 0), (0, 0), (0, 0), (0, 0)))
  return total


def upsample_space(x_BxTxHxWxC, kernel_3x3xCxD):
  """Nearest x2 in height and width, then a 3x3 convolution: [B, T, H, W, C] -> [B, T, 2H, 2W, D].

  Output row 2i sees input rows i-1, i, i and row 2i+1 sees i, i, i+1, so each of the four phases is a 2x2
  convolution. All four run as one of 4D channels on the (H+1) x (W+1) windows of the padded input.
  """
  b, t, h, w, _ = x_BxTxHxWxC.shape
  k, d = kernel_3x3xCxD, kernel_3x3xCxD.shape[-1]
  k = jnp.stack([jnp.stack([k[0], k[1] + k[2]]), jnp.stack([k[0] + k[1], k[2]])])  # [phase, 2, 3, C, D]
  k = jnp.stack(
    [jnp.stack([k[:, :, 0], k[:, :, 1] + k[:, :, 2]], 2), jnp.stack([k[:, :, 0] + k[:, :, 1], k[:, :, 2]], 2)], 1
  )  # [phase_h, phase_w, 2, 2, C, D]
  k = k.transpose(2, 3, 4, 0, 1, 5).reshape(2, 2, -1, 4 * d)
  y = conv2d(x_BxTxHxWxC, k).reshape(b, t, h + 1, w + 1, 2, 2, d)
  rows = [[y[:, :, i : i + h, j : j + w, i, j] for j in range(2)] for i in range(2)]
  y = jnp.stack([jnp.stack(row, 4) for row in rows], 3)  # [B, T, H, 2, W, 2, D]
  return y.reshape(b, t, 2 * h, 2 * w, d)


def upsample_time(x_BxTxHxWxC, kernel_3x3x3xCxD):
  """Nearest x2 in time, then a causal 3x3x3 convolution: [B, T, H, W, C] -> [B, 2T, H, W, D].

  Output frame 2i sees input frames i-1, i-1, i and frame 2i+1 sees i-1, i, i.
  """
  b, t, h, w, _ = x_BxTxHxWxC.shape
  k, d = kernel_3x3x3xCxD, kernel_3x3x3xCxD.shape[-1]
  previous = jnp.concatenate([k[0] + k[1], k[0]], -1)
  current = jnp.concatenate([k[2], k[1] + k[2]], -1)
  both = jnp.concatenate([delay(x_BxTxHxWxC, 1), x_BxTxHxWxC], -1)
  y = conv2d(both, jnp.concatenate([previous, current], -2))
  return y.reshape(b, t, h, w, 2, d).transpose(0, 1, 4, 2, 3, 5).reshape(b, 2 * t, h, w, d)


def add_identity(kernel, where, amount):
  """The kernel of `x -> amount * x[where] + conv(x, kernel)`; saves a pass over the activations."""
  return kernel.at[where].add(amount * jnp.eye(*kernel.shape[-2:], dtype=kernel.dtype))
