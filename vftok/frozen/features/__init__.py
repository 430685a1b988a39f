"""Frozen nets whose features the tokenizer is trained to predict (REPA, SemanTok's heads).

net, params = features.load("dinov2", "facebook/dinov2-large")
targets = net.targets(params, video, net.grid(latents.shape, patch))  # float32 [B, T, h, w, net.dim]
"""

from __future__ import annotations

import os
from typing import Any

from vftok.frozen.features.frames import FeatureNet


def _dinov2(path, **options):
  from vftok.frozen.features import convert

  return convert.load("dinov2", path, **options)


def _vjepa2(path, **options):
  from vftok.frozen.features import convert

  return convert.load("vjepa2", path, **options)


def _vgg16(path, **options):
  from vftok.frozen.features import vgg16

  return vgg16.load(path, **options)


FEATURES = {"vgg16": _vgg16, "dinov2": _dinov2, "vjepa2": _vjepa2}


def load(kind: str, path: str | os.PathLike | None = None, **options) -> tuple[FeatureNet, dict[str, Any]]:
  """A frozen net (hashable, so static under `jit`) and its parameters.

  Args:
    kind: a key of `FEATURES`.
    path: weights of "dinov2" and "vjepa2": a safetensors file, a directory with model.safetensors, or a Hub id.
      "vgg16" takes none: it comes with a package.
    options: see `convert.load` and `vgg16.load`.

  Raises:
    FileNotFoundError: there are no such weights.
    ValueError: kind or an option is not known, or the weights are not those of this net.
  """
  if kind not in FEATURES:
    raise ValueError(f"features are {kind!r}, expected one of {', '.join(FEATURES)}.")
  if (path is None) != (kind == "vgg16"):
    hint = "a directory, a .safetensors file or a Hub id" if path is None else "none: its weights come with a package"
    raise ValueError(f"the path of the {kind} weights is {path!r}, expected {hint}.")
  return FEATURES[kind](path, **options)
