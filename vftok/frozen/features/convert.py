"""Released DINOv2 and V-JEPA 2 weights -> (net, params), strict: every tensor is used or listed here as not needed.

Layouts, told apart by their keys: `transformers` ("dinov2", "dinov2_with_registers", "vjepa2", also below the prefix
of a classifier) and, for DINOv2, the original torch.hub one, saved again as safetensors. Sizes are those of the
tensors; the number of heads is not in them, it follows from heads of 64 channels.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.dinov2 import DINOv2, DINOv2Module
from vftok.frozen.features.frames import FeatureNet
from vftok.frozen.features.vit import ViTConfig
from vftok.frozen.features.vjepa2 import VJEPA2, VJEPA2Module
from vftok.io import hub
from vftok.io.layout import LEADING, LINEAR, LINEAR_2IN, VECTOR, Rules, converted, convolution, exported
from vftok.models.config_checks import MAX_DEPTH, MAX_SIZE
from vftok.runtime.words import brief, cut

HEADS = {1280: 16}  # V-JEPA 2 ViT-H has heads of 80; all others have heads of 64

_LAYER = r"(norm[12]|attention\.(query|key|value|proj)|mlp\.fc[12])\.(weight|bias)"
_POOLER_LAYER = r"(layer_norm[12]|cross_attn\.[qkv]_proj|self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.(weight|bias)"
# Known and not needed for features: masks of pre-training, the predictor, pooler and classifier on top.
UNUSED = {
  "dinov2": r"(embeddings\.)?mask_token|classifier\.(weight|bias)",
  "vjepa2": (
    rf"predictor\.(embeddings\.(mask_tokens|predictor_embeddings\.(weight|bias))|layer\.\d+\.{_LAYER}"
    r"|(layernorm|proj)\.(weight|bias))"
    rf"|pooler\.(query_tokens|(cross_attention_layer|self_attention_layers\.\d+)\.{_POOLER_LAYER})"
    r"|classifier\.(weight|bias)"
  ),
}
PREFIXES = {"dinov2": ("dinov2.", "dinov2_with_registers."), "vjepa2": ("vjepa2.",)}
SOURCES = {"dinov2": "facebook/dinov2-large", "vjepa2": "facebook/vjepa2-vitl-fpc64-256"}


@dataclasses.dataclass(frozen=True)
class Names:
  """Keys of a layout. `qkv` is one fused tensor or three; a name ending in nothing takes .weight and .bias."""

  patch: str
  layer: str
  qkv: tuple[str, ...]
  proj: str
  norm: str
  class_token: str = ""
  positions: str = ""
  registers: str = ""
  scales: tuple[str, ...] = ()


LAYOUTS = {
  "dinov2": (
    Names(
      patch="embeddings.patch_embeddings.projection",
      layer="encoder.layer",
      qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
      proj="attention.output.dense",
      norm="layernorm",
      class_token="embeddings.cls_token",
      positions="embeddings.position_embeddings",
      registers="embeddings.register_tokens",
      scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    ),
    Names(
      patch="patch_embed.proj",
      layer="blocks",
      qkv=("attn.qkv",),
      proj="attn.proj",
      norm="norm",
      class_token="cls_token",
      positions="pos_embed",
      registers="register_tokens",
      scales=("ls1.gamma", "ls2.gamma"),
    ),
  ),
  "vjepa2": (
    Names(
      patch="encoder.embeddings.patch_embeddings.proj",
      layer="encoder.layer",
      qkv=("attention.query", "attention.key", "attention.value"),
      proj="attention.proj",
      norm="encoder.layernorm",
    ),
  ),
}


def load(kind: str, path: str | os.PathLike, heads: int | None = None, **options) -> tuple[FeatureNet, dict[str, Any]]:
  """Net and float32 parameters from a safetensors file, a directory with model.safetensors, or a Hub id.

  Args:
    kind: "dinov2" or "vjepa2".
    heads: attention heads, where a model of unusual size has not 64 channels a head.
    options: fields of the net (min_patches, position_offset), or dtype of its matrix products.

  Raises:
    FileNotFoundError: nothing there. ValueError: a pickle, a damaged file, or tensors missing, unknown or misshapen.
  """
  _check_options(kind, options)
  file = hub.open_weights(path)
  keys = {_plain(kind, key): key for key in file.shapes}
  if len(keys) < len(file.shapes):
    raise ValueError(f"{file.path} holds tensors both with and without the prefix {PREFIXES[kind][0]!r}: split it.")
  shapes = {plain: file.shapes[key] for plain, key in keys.items() if not re.fullmatch(UNUSED[kind], plain)}
  names = next((n for n in LAYOUTS[kind] if f"{n.patch}.weight" in shapes), LAYOUTS[kind][0])
  net = _infer(kind, file.path, shapes, names, heads, options)
  table = rules(net, names)
  leaves, sources = abstract_params(net), {key: (file, keys[key]) for key in shapes}
  return net, converted(file.path, table, sources, leaves, dict.fromkeys(leaves, np.float32), _named(kind))


def save(net: FeatureNet, params, directory: str | os.PathLike) -> None:
  """Writes the parameters in the layout of `transformers`, as model.safetensors; whole or not at all."""
  kind = "dinov2" if isinstance(net, DINOv2) else "vjepa2"
  tensors = exported(rules(net, LAYOUTS[kind][0]), params)
  hub.save_files(directory, tensors, {"model_type": kind, "num_attention_heads": net.vit.heads})


def abstract_params(net: FeatureNet) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  if isinstance(net, DINOv2):
    init = lambda: DINOv2Module(net).init(jax.random.key(0), jnp.zeros((1, net.patch, net.patch, 3)))
  else:
    init = lambda: VJEPA2Module(net).init(jax.random.key(0), jnp.zeros((1, net.tubelet, net.patch, net.patch, 3)))
  return traverse.flatten_dict(nn.unbox(jax.eval_shape(init))["params"])


def rules(net: FeatureNet, names: Names) -> Rules:
  """Plain torch key -> where it goes, for every tensor the net needs."""
  table = Rules()
  add, norm = table.add, table.norm
  window = (net.tubelet, net.patch, net.patch) if isinstance(net, VJEPA2) else (net.patch, net.patch)
  table.linear(names.patch, ("patch_in",), how=convolution(window))
  if names.class_token:
    add(names.class_token, ("class_token",), (VECTOR[0], lambda a: a[None, None]))
    add(names.positions, ("positions",), LEADING)
    if net.registers:
      add(names.registers, ("registers",), LEADING)
  norm(names.norm, ("blocks", "norm"))
  at = ("blocks", "layers")
  for i in range(net.vit.depth):
    layer = f"{names.layer}.{i}"
    for name in ("norm1", "norm2"):
      norm(f"{layer}.{name}", (*at, name), (i,))
    for j, name in enumerate(names.qkv):
      table.layer(f"{layer}.{name}", (*at, "qkv"), i, None if len(names.qkv) == 1 else j)
    for name, ours, how in ((names.proj, "proj", LINEAR_2IN), ("mlp.fc1", "up", LINEAR), ("mlp.fc2", "down", LINEAR)):
      table.layer(f"{layer}.{name}", (*at, ours), i, how=how)
    for j, name in enumerate(names.scales):
      add(f"{layer}.{name}", (*at, f"scale{j + 1}"), VECTOR, (i,))
  return table


def _infer(kind, path, shapes: Mapping[str, tuple[int, ...]], names: Names, heads, options) -> FeatureNet:
  """The net whose sizes the tensors have."""

  def size(key: str, rank: int) -> tuple[int, ...]:
    if key not in shapes:
      hub.report_keys(path, [key], [], _named(kind))
    if len(shapes[key]) != rank:
      raise ValueError(f"{path} holds {key} with shape {tuple(shapes[key])}, expected {rank} axes: fetch it again.")
    if not all(0 < n <= MAX_SIZE for n in shapes[key]):
      found = f"{key} with shape {brief(tuple(shapes[key]))}"
      raise ValueError(f"{cut(path, 150)} holds {found}, expected sizes of 1..{MAX_SIZE}: fetch it again.")
    return shapes[key]

  dim = size(f"{names.norm}.weight", 1)[0]
  hidden = size(f"{names.layer}.0.mlp.fc1.bias", 1)[0]
  found = [int(m[1]) for key in shapes if (m := re.match(re.escape(names.layer) + r"\.(\d{1,6})\.", key))]
  depth = 1 + max(found)
  if depth > MAX_DEPTH:
    raise ValueError(f"{path} has a layer {depth - 1}, expected at most {MAX_DEPTH}: fetch it again.")
  heads = HEADS.get(dim, dim // 64) if heads is None else heads
  if heads < 1 or dim % heads or dim // heads % 2:
    raise ValueError(f"{path} has width {dim}, which {heads} heads do not divide into even parts: pass heads=.")
  window = size(f"{names.patch}.weight", 5 if kind == "vjepa2" else 4)[2:]
  vit = ViTConfig(dim, depth, heads, hidden, kind == "dinov2", options.pop("dtype", "float32"))
  if kind == "vjepa2":
    return VJEPA2(vit, window[1], window[0], **options)
  positions = size(names.positions, 3)[1] - 1
  table = math.isqrt(max(positions, 0))
  registers = size(names.registers, 3)[1] if names.registers in shapes else 0
  return DINOv2(vit, window[0], table, registers, **options)


def _check_options(kind: str, options) -> None:
  known = ("dtype", "min_patches") + (("position_offset",) if kind == "dinov2" else ())
  for name in options:
    if name not in known:
      raise ValueError(f"{kind} has no option {name!r}, expected one of heads, {', '.join(known)}.")
  if options.get("min_patches", 1) < 1:
    raise ValueError(f"min_patches is {options['min_patches']}, expected patches per side: pass 1 or more.")


def _plain(kind: str, key: str) -> str:
  return next((key.removeprefix(p) for p in PREFIXES[kind] if key.startswith(p)), key)


def _named(kind: str) -> str:
  return f"{kind} net like {SOURCES[kind]}"
