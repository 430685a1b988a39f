"""diffusers' names of an AutoencoderKL <-> ours, and files that hold one by itself."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vftok.convert import vidtok
from vftok.families.flextok.vae import KLConfig
from vftok.io import hub
from vftok.io.layout import Rules, converted, exported
from vftok.io.leaves import Leaves, leaves_of
from vftok.runtime.words import brief, is_number, is_whole
from vftok.tokenizer.identity import parameter_counts

WEIGHTS = "diffusion_pytorch_model.safetensors"
_CONV, _POINT = vidtok.KINDS["conv2d"], vidtok.KINDS["point2d"]
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of older files


def rules(cfg: KLConfig, path: tuple[str, ...] = ()) -> Rules:
  """diffusers key -> Rule, for every tensor of the VAE; ours lie below `path`."""
  table = Rules()
  for side, way in (("encoder", "down"), ("decoder", "up")):
    _side(table, cfg, (*path, side), way)
  for key, side, name, there in (
    ("quant_conv", "encoder", "code_out", cfg.code_out),
    ("post_quant_conv", "decoder", "code_in", cfg.code_in),
  ):
    if there:
      table.linear(key, (*path, side, name), how=_POINT)
  return table


def _block(table: Rules, theirs: str, ours: tuple[str, ...], shortcut: bool = False) -> None:
  for n in "12":
    table.norm(f"{theirs}.norm{n}", (*ours, f"norm{n}"))
    table.linear(f"{theirs}.conv{n}", (*ours, f"conv{n}"), how=_CONV)
  if shortcut:
    table.linear(f"{theirs}.conv_shortcut", (*ours, "shortcut"), how=_POINT)


def _side(table: Rules, cfg: KLConfig, path: tuple[str, ...], way: str) -> None:
  side = path[-1]
  table.linear(f"{side}.conv_in", (*path, "conv_in"), how=_CONV)
  table.linear(f"{side}.conv_out", (*path, "conv_out"), how=_CONV)
  table.norm(f"{side}.conv_norm_out", (*path, "norm_out"))
  for n in (0, 1):
    _block(table, f"{side}.mid_block.resnets.{n}", (*path, "mid", f"block_{n + 1}"))
  if cfg.attention:
    theirs, ours = f"{side}.mid_block.attentions.0", (*path, "mid", "attn")
    table.norm(f"{theirs}.group_norm", (*ours, "norm"))
    for name, mine in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
      table.linear(f"{theirs}.{name}", (*ours, mine))
  levels = list(enumerate(cfg.widths))
  if way == "up":
    levels.reverse()  # in the file they come from the smallest picture on
  before = levels[0][1]
  for place, (i, width) in enumerate(levels):
    for j in range(cfg.blocks + (way == "up")):
      theirs = f"{side}.{way}_blocks.{place}.resnets.{j}"
      _block(table, theirs, (*path, f"{way}_{i}_block_{j}"), shortcut=j == 0 and before != width)
    before = width
    if place < len(levels) - 1:
      table.linear(f"{side}.{way}_blocks.{place}.{way}samplers.0.conv", (*path, f"{way}_{i}_space"), how=_CONV)


def plain_key(key: str) -> str:
  """The key as files of today have it: older ones name the attention's matrices otherwise."""
  return re.sub(r"(attentions\.0\.)(query|key|value|proj_attn)(?=\.)", lambda m: m[1] + _OLD_NAMES[m[2]], key)


def infer_config(shapes: Mapping[str, tuple[int, ...]], **known: Any) -> KLConfig:
  """The sizes that a file's tensor shapes (plain keys) imply; `known` are the fields that they do not tell.

  Raises:
    ValueError: a tensor is missing without which they cannot be told, or sizes that no such VAE has.
  """
  levels = {int(m[1]) for key in shapes if (m := re.match(r"encoder\.down_blocks\.(\d+)\.resnets\.", key))}
  blocks = {int(m[1]) for key in shapes if (m := re.match(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", key))}
  try:
    widths = [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(max(1, len(levels)))]
    channels = shapes["encoder.conv_in.weight"][1]
    z = shapes["decoder.conv_in.weight"][1]
  except (KeyError, IndexError) as error:
    raise ValueError(f"it is no AutoencoderKL of 2-D blocks, for it has no whole tensor {error}") from None
  has = lambda start: any(key.startswith(start) for key in shapes)
  return KLConfig(
    widths=tuple(map(int, widths)),
    blocks=len(blocks),
    z_channels=int(z),
    in_channels=int(channels),
    attention=has("encoder.mid_block.attentions."),
    code_in=has("post_quant_conv."),
    code_out=has("quant_conv."),
    **known,
  )


@functools.cache
def abstract_params(cfg: KLConfig) -> Leaves:
  """Path -> shape of every parameter, without making one."""
  video = jax.ShapeDtypeStruct((1, 1, cfg.space_stride, cfg.space_stride, cfg.in_channels), np.float32)
  return leaves_of(cfg, lambda key, video: cfg.module().init(key, video)["params"], video)


# What a diffusers config may say beside the sizes, and what each must be. Others only steer tiling, casts and training.
_MUST_BE = {
  "_class_name": ("AutoencoderKL",),
  "act_fn": ("silu", "swish"),
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
  "in_channels": (3,),
  "out_channels": (3,),
}


_NUMBERS = {  # our field -> (their key, what it becomes, what it must be)
  "scaling": ("scaling_factor", float, is_number),
  "shift": ("shift_factor", float, is_number),
  "groups": ("norm_num_groups", int, is_whole),
}


def load_vae(name: str | os.PathLike) -> tuple[KLConfig, dict[str, Any]]:
  """(config, parameters) of an AutoencoderKL in diffusers' layout, such as Stable Diffusion's, by itself.

  `config.module()` is the network: `.apply({"params": params}, video, method="encode")` gives (mean, logvar) of
  latents, `method="decode"` takes them back.

  Args:
    name: a folder with config.json and the weights, diffusion_pytorch_model.safetensors or model.safetensors.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  folder = pathlib.Path(name)
  if not (folder / hub.CONFIG).is_file():
    raise FileNotFoundError(f"{brief(str(folder), 150)} has no {hub.CONFIG}: pass the folder of a VAE by itself.")
  config = hub.read_json(folder / hub.CONFIG)
  weights = hub.open_weights(folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder)
  for key, allowed in _MUST_BE.items():
    stated = config.get(key, allowed[0])
    if any(value not in allowed for value in (stated if isinstance(stated, list) else [stated])):
      raise ValueError(f"{weights.path} is of a VAE with {key} = {brief(stated)}, expected {brief(allowed[0])}.")
  if any(config.get(key) for key in ("latents_mean", "latents_std")):
    raise ValueError(f"{weights.path} is of a VAE with a mean and deviation per latent channel, expected one for all.")
  known = {}
  for field, (key, kind, is_kind) in _NUMBERS.items():
    value = config.get(key)
    if value is not None and not is_kind(value):
      raise ValueError(f"{weights.path} is of a VAE with {key} = {brief(value)}, expected a number.")
    if value is not None:
      known[field] = kind(value)
  known.setdefault("scaling", 0.18215)  # diffusers' own, of configs older than the entry
  sources = {plain_key(key): (weights, key) for key in weights.shapes}
  try:
    cfg = infer_config({key: weights.shapes[own] for key, (_, own) in sources.items()}, **known)
  except ValueError as error:
    raise ValueError(f"{weights.path} cannot be read: {str(error).rstrip('.')}; pass another file.") from None
  if wrong := stated_otherwise(cfg, config):
    raise ValueError(f"{weights.path} has a config of {wrong}: check that both are of one model.")
  return cfg, converted(weights.path, rules(cfg), sources, abstract_params(cfg))


def save_vae(cfg: KLConfig, params, directory: str | os.PathLike) -> None:
  """Writes a VAE by itself as `load_vae` and diffusers' AutoencoderKL read it, whole or not at all."""
  levels = len(cfg.widths)
  config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "in_channels": cfg.in_channels,
    "out_channels": cfg.in_channels,
    "latent_channels": cfg.z_channels,
    "block_out_channels": list(cfg.widths),
    "layers_per_block": cfg.blocks,
    "norm_num_groups": cfg.groups,
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "mid_block_add_attention": cfg.attention,
    "use_quant_conv": cfg.code_out,
    "use_post_quant_conv": cfg.code_in,
    "scaling_factor": cfg.scaling,
    "shift_factor": cfg.shift,
  }
  hub.save_files(directory, exported(rules(cfg), params), config, WEIGHTS)


def describe(cfg: KLConfig, params) -> dict[str, Any]:
  """Stride, channels, scale, parameter counts of a VAE by itself: plain JSON."""
  n = cfg.space_stride
  return {
    "kind": "VAE of pictures",
    "strides": {"height": n, "width": n},
    "channels": cfg.z_channels,
    "latents": {f"{32 * n}x{32 * n}": [32, 32, cfg.z_channels]},
    "scaling": cfg.scaling,
    "shift": cfg.shift,
    "parameters": parameter_counts(params),
    "dtype": str(jax.tree.leaves(params)[0].dtype),
    "widths": list(cfg.widths),
  }


def stated_otherwise(cfg: KLConfig, config: Mapping[str, Any]) -> str:
  """The first entry of a config that the tensors contradict, "" where there is none."""
  for key, found in (
    ("latent_channels", cfg.z_channels),
    ("block_out_channels", list(cfg.widths)),
    ("layers_per_block", cfg.blocks),
  ):
    stated = config.get(key)
    if stated is not None and repr(stated) != repr(found):  # as JSON has them: true is not 1
      return f"{key} = {brief(stated)} and tensors of {found}"
  return ""
