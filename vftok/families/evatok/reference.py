"""Other people's EVATok checkpoints <-> ours: one table of names, strict in both directions.

EVATok's released names are not known to us. The table has those of GigaTok, the code that it grew from: halves called
`encoder` and `decoder`, or `s2to1encoder` and `s1to2decoder`, under "ema." or "model." where a file holds both. Every
other name is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vftok.families.evatok.config import EvatokConfig, QFormerConfig, check
from vftok.io import hub
from vftok.io.layout import LINEAR, LINEAR_2IN, VECTOR, Rules, converted, exported
from vftok.runtime.words import brief, is_whole

NUMBERS = {  # their key -> (our field, index in it)
  "frame_num": "frames",
  "input_size": "frame_size",
  "temporal_patch_size": "patch",
  "patch_size": "patch",
  "spatial_token_num_choices": "counts",
  "codebook_size": "codebook_size",
  "codebook_embed_dim": "code_dim",
}
HALVES = tuple(f"{half}_{field}" for half in ("encoder", "decoder") for field in ("width", "depth", "heads"))
OPTIONAL = {"neck_width": 0, "ln_pre": False}
TRAINING = ("rot", "codebook_show_usage")  # switches of GigaTok's configs that change nothing after training
ALIASES = {"s2to1encoder.": "encoder.", "s1to2decoder.": "decoder."}
STATISTICS = ("quantize.codebook_used",)  # which codes were used lately: training's, no part of the model
TABLE = (lambda a, shape: a[:, 0], lambda a: a[:, None])  # [n, 1, D]


def parse(config: Mapping[str, Any]) -> EvatokConfig:
  """A checked config.

  Raises:
    ValueError: a missing, unknown or impossible entry, by name.
  """
  known = [*NUMBERS, *HALVES, *OPTIONAL]
  unknown = sorted(set(config) - {*known, *TRAINING})
  if unknown:
    raise ValueError(f"the config has the unknown key {brief(unknown[0])}, expected only {', '.join(known)}.")
  missing = [key for key in known if key not in config and key not in OPTIONAL]
  if missing:
    raise ValueError(f"the config lacks the key {missing[0]!r}: add it.")
  values = {**OPTIONAL, **config}
  for key in ("ln_pre", *TRAINING):
    if not isinstance(values.get(key, False), bool):
      raise ValueError(f"the config has {key} = {brief(values[key])}, expected true or false.")
  choices = values["spatial_token_num_choices"]
  if (
    not isinstance(choices, list) or not choices or not all(map(is_whole, choices)) or len(set(choices)) < len(choices)
  ):
    raise ValueError(
      f"the config has spatial_token_num_choices = {brief(choices)}, expected a list of different whole numbers."
    )
  for key in ("frame_num", "temporal_patch_size", "codebook_size", "codebook_embed_dim", "neck_width", *HALVES):
    if not is_whole(values[key]):
      raise ValueError(f"the config has {key} = {brief(values[key])}, expected a whole number.")
  half = lambda name: QFormerConfig(*(values[f"{name}_{field}"] for field in ("width", "depth", "heads")))
  cfg = EvatokConfig(
    encoder=half("encoder"),
    decoder=half("decoder"),
    frames=values["frame_num"],
    frame_size=_pair(values, "input_size"),
    patch=(values["temporal_patch_size"], *_pair(values, "patch_size")),
    counts=tuple(sorted(choices)),
    codebook_size=values["codebook_size"],
    code_dim=values["codebook_embed_dim"],
    neck=values["neck_width"],
    norm_in=values["ln_pre"],
  )
  check(cfg)
  return cfg


def config_of(cfg: EvatokConfig) -> dict[str, Any]:
  """Inverse of `parse`.

  Raises:
    ValueError: a model that their layout cannot hold.
  """
  if {cfg.encoder.mlp_ratio, cfg.decoder.mlp_ratio} != {4}:
    raise ValueError("this model's MLPs are not 4 widths wide, expected 4 for the other layout: save it in ours.")
  both = lambda pair: pair[0] if pair[0] == pair[1] else list(pair)
  out = {
    "frame_num": cfg.frames,
    "input_size": both(cfg.frame_size),
    "temporal_patch_size": cfg.patch[0],
    "patch_size": both(cfg.patch[1:]),
    "spatial_token_num_choices": list(cfg.counts),
    "codebook_size": cfg.codebook_size,
    "codebook_embed_dim": cfg.code_dim,
  }
  for name in ("encoder", "decoder"):
    half = getattr(cfg, name)
    out |= {f"{name}_width": half.dim, f"{name}_depth": half.depth, f"{name}_heads": half.heads}
  return out | ({"neck_width": cfg.neck} if cfg.neck else {}) | ({"ln_pre": True} if cfg.norm_in else {})


def rules(cfg: EvatokConfig) -> Rules:
  """Their key -> where and how it is ours."""
  table = Rules()
  table.add("quantize.embedding.weight", ("quantizer", "codebook"))
  table.linear("patch_embed", ("encoder", "patch_in"))
  table.linear("encoder.global_proj", ("encoder", "pool_out"))
  table.linear("head", ("decoder", "head"))
  near = "conv" if cfg.neck else "proj"
  table.linear(f"quant_{near}", ("encoder", "head"))
  table.linear(f"post_quant_{near}", ("decoder", "codes_in"))
  if cfg.neck:
    table.linear("encoder.conv_out", ("encoder", "neck"))
    table.linear("decoder.decoder_embed", ("decoder", "neck"))
  for half, queries, refs in (("encoder", "latent_token_", ""), ("decoder", "", "latent_token_")):
    table.add(f"{half}.{queries}positional_embedding", (half, "qformer", "query_places"), TABLE)
    table.add(f"{half}.{refs}positional_embedding", (half, "qformer", "ref_places"), TABLE)
    if cfg.norm_in:
      table.norm(f"{half}.ln_pre", (half, "norm_in"))
    table.norm(f"{half}.ln_post", (half, "qformer", "norm"))
    for i in range(getattr(cfg, half).depth):
      _layer(table, f"{half}.transformer.{i}", (half, "qformer", "layers"), i)
  return table


def _layer(table: Rules, key: str, path: tuple[str, ...], i: int) -> None:
  for name, module in (("self", "self_attn"), ("cross", "multihead_attn")):
    table.add(f"{key}.{module}.in_proj_weight", (*path, f"{name}_qkv_kernel"), LINEAR, (i,))  # rows q, k, v
    table.add(f"{key}.{module}.in_proj_bias", (*path, f"{name}_qkv_bias"), VECTOR, (i,))
    table.layer(f"{key}.{module}.out_proj", (*path, f"{name}_out"), i, how=LINEAR_2IN)
  for name, module in (("up", "linear1"), ("down", "linear2")):
    table.layer(f"{key}.{module}", (*path, name), i)
  for name in ("norm1", "norm2", "norm3"):
    table.norm(f"{key}.{name}", (*path, name), (i,))


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
  """Name in our table -> name in the file, of the model's parts: the averaged weights where there are two."""
  keys = list(keys)
  for prefix in ("ema.", "model."):
    if any(key.startswith(prefix) for key in keys):
      others = ("ema.", "model.")
      keys = [key for key in keys if key.startswith(prefix) or not key.startswith(others)]
      break
  else:
    prefix = ""
  out = {}
  for key in keys:
    name = key.removeprefix(prefix)
    for theirs, ours in ALIASES.items():
      name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    if name not in STATISTICS:
      out[name] = key
  return out


def load(checkpoint: hub.Checkpoint, leaves_of) -> tuple[EvatokConfig, dict[str, Any]]:
  """(config, float32 parameters) of such a file; `leaves_of(config)` says what leaves a model has."""
  cfg = parse(checkpoint.config)
  leaves = leaves_of(cfg)
  sources = {key: (checkpoint, name) for key, name in plain_keys(checkpoint.shapes).items()}
  return cfg, converted(checkpoint.path, rules(cfg), sources, leaves, dict.fromkeys(leaves, np.float32))


def export(cfg: EvatokConfig, params, directory: str | os.PathLike) -> None:
  """Writes config.json and model.safetensors in that layout, whole or not at all."""
  config = config_of(cfg)
  hub.save_files(directory, exported(rules(cfg), params), config)


def _pair(values: Mapping[str, Any], key: str) -> tuple[int, int]:
  value = values[key]
  both = [value, value] if is_whole(value) else value
  if not isinstance(both, list) or len(both) != 2 or not all(map(is_whole, both)):
    raise ValueError(f"the config has {key} = {brief(value)}, expected a whole number, or two.")
  return both[0], both[1]
