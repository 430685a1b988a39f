"""A released config.json of LARP or AdapTok <-> ours: every key is known, and what is written says what was read."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any

from vftok.families.query.config import PriorConfig, QueryConfig, VQConfig
from vftok.families.query.masks import DECODER_MODES, ENCODER_MODES
from vftok.models.config_checks import MAX_CODEBOOK, MAX_DEPTH, MAX_SIZE, MAX_TOKENS
from vftok.runtime.words import brief, cut, is_number, is_whole
from vftok.tokenizer.families import is_adaptok

NORMS = ("none", "ln_d", "ln_nd")
PRIOR_SIZES = {  # layers, heads, width; heads of S are published, others inferred to have 64 channels too
  "S": (12, 6, 384),
  "XS": (6, 6, 384),
  "XXS": (6, 4, 256),
  "M": (12, 8, 512),
  "B": (12, 12, 768),
  "L": (24, 16, 1024),
}
PRIOR_HEADS = {name: heads for name, (_, heads, _) in PRIOR_SIZES.items()}
FULL = ("none", "full_bi_attn")
DROPPING = ("with_mask", "with_drop")  # two ways to the same pictures
PLAIN = {f.name for f in dataclasses.fields(QueryConfig)}
PLAIN -= {
  "vq",
  "groups",
  "group_tokens",
  "nested",
  "prior",
  "scorer",
  "read_frames",
  "leading",
  "dtype",
  "remat",
  "rest",
}
TYPES = {name: kind for name, kind in typing.get_type_hints(QueryConfig).items() if name in PLAIN}
NAMES = ("transformer_name", "encoder_name", "decoder_name")
ADAPTOK = {"encoder_attn_type", "decoder_attn_type"} | {name for name in PLAIN if name.startswith("scorer_")}
CHECKED = {"bottleneck", "prior_model", "in_channels", "decoder_temporal_patch_size", "decoder_patch_size", *NAMES}
TRAINING = {"encoder_query_gaussian_init"}
OF_BOTTLENECK = {"bottleneck_dim", "norm", "regularizer"}
OF_VQ = {f.name for f in dataclasses.fields(VQConfig)} - {*OF_BOTTLENECK, "norm_module"}
OF_VQ |= {"entropy_loss_weight", "entropy_loss_temperature", "eval_deterministic"}  # of training, or of what is sampled


def parse(config: Mapping[str, Any]) -> QueryConfig:
  """The architecture of config.json, without what only the file's tensors say (see `weights.with_parts_of`).

  Raises:
    ValueError: the first key that is missing, unknown, mistyped, or has a value that no model has.
  """
  adaptok = is_adaptok(config)
  _check_keys(config, adaptok)
  values = {}
  for name in PLAIN if adaptok else PLAIN - ADAPTOK:
    default = getattr(QueryConfig, name, None)
    values[name] = _value(config, name, TYPES[name], default)
  if adaptok:
    values |= _groups(config)
    _known(config, "scorer_attn_type", FULL, "none")
    _known(config, "scorer_name", ("none", "transformer_scorer"), "none")
    _known(config, "decode_mode", DROPPING, "with_mask")
    for name, modes in (("encoder_attn_type", ENCODER_MODES), ("decoder_attn_type", DECODER_MODES)):
      if name not in config:
        raise ValueError(f"the config lacks {name!r}, expected one of {', '.join(modes)}: add it.")
      _known(config, name, modes, "")
  values.setdefault("group_tokens", values["bottleneck_token_num"])
  cfg = QueryConfig(**values, vq=_vq(config), rest=json.dumps(config))
  _check(cfg, config)
  return cfg


def to_json(cfg: QueryConfig) -> dict[str, Any]:
  """Inverse of `parse`: config.json as it was read, with the values that `cfg` has; what it left out stays out."""
  config = json.loads(cfg.rest)
  read = bool(config)
  fields = {name: getattr(cfg, name) for name in (PLAIN if cfg.nested else PLAIN - ADAPTOK)}
  _overwrite(config, fields, QueryConfig, read)
  bottleneck = config.setdefault("bottleneck", {"name": "bottleneck"})
  args = bottleneck.setdefault("args", {})
  vq = {f.name: getattr(cfg.vq, f.name) for f in dataclasses.fields(VQConfig) if f.name != "norm_module"}
  _overwrite(args, {name: vq.pop(name) for name in ("bottleneck_dim", "norm")}, VQConfig, read)
  _overwrite(args.setdefault("regularizer", {"name": "vq"}).setdefault("args", {}), vq, VQConfig, read)
  if cfg.nested:
    sizes = {"total_toks": cfg.group_tokens, "tot_groups": cfg.groups}
    _overwrite(config.setdefault("mask_generator", {}), sizes, QueryConfig, read)
  if cfg.scorer and not read:
    config["scorer_name"] = "transformer_scorer"
  if not read:
    config.setdefault("prior_model", _prior_json(cfg.prior))
  return config


def _prior_json(prior: PriorConfig | None) -> dict[str, Any]:
  """Of a prior that was made here; what is read keeps its own."""
  if prior is None:
    return {"name": "none"}
  name = next((name for name, size in PRIOR_SIZES.items() if size == (prior.depth, prior.heads, prior.dim)), "own")
  args = {"n_head": prior.heads, "l2_normalized": prior.l2_normalized}
  return {"name": f"gptc-{name}", "args": args, "latent_ce_temperature": prior.temperature}


def _overwrite(config: dict[str, Any], values: Mapping[str, Any], kind: type, read: bool) -> None:
  """Puts values where they differ: 10000 stays 10000 where 10000.0 is meant, and null where it means the default.

  Of a config that was `read`, a default that it leaves out stays out.
  """
  for name, value in values.items():
    default = (read or name in config) and config.get(name) is None and value == getattr(kind, name, ...)
    if config.get(name) != value and not default:
      config[name] = value


def _check_keys(config: Mapping[str, Any], adaptok: bool) -> None:
  """LARP's config.json is what its constructor takes. AdapTok's may hold more, which its loader passes over."""
  known = PLAIN | CHECKED | TRAINING
  known = known if adaptok else known - ADAPTOK
  unknown = sorted(key for key in config if key not in known)
  switches = [key for key in unknown if key.startswith(("learned_", "use_")) and config[key]]
  if bad := switches or (not adaptok and unknown):
    raise ValueError(f"the config has {brief(bad[0])} = {brief(config[bad[0]])}, which vftok does not know.")


def _groups(config: Mapping[str, Any]) -> dict[str, Any]:
  masks = config["mask_generator"]
  if not isinstance(masks, Mapping):
    raise ValueError(f"the config has mask_generator = {brief(masks)}, expected an object.")
  steps, tokens = (_value(masks, key, int, None, "mask_generator.") for key in ("tot_groups", "total_toks"))
  return {"groups": steps, "group_tokens": tokens, "nested": True}


def _vq(config: Mapping[str, Any]) -> VQConfig:
  args = _args(config["bottleneck"], "bottleneck", "bottleneck")
  regularizer = _args(args.get("regularizer"), "vq", where := "bottleneck.args.regularizer")
  for place, known, at in ((args, OF_BOTTLENECK, "bottleneck.args."), (regularizer, OF_VQ, f"{where}.args.")):
    if unknown := sorted(place.keys() - known):
      raise ValueError(f"the config has {at}{cut(unknown[0])} = {brief(place[unknown[0]])}, which vftok does not know.")
  values = {}
  for field in dataclasses.fields(VQConfig):
    inside = field.name in ("bottleneck_dim", "norm")
    default = None if field.default is dataclasses.MISSING else field.default
    kind = typing.get_type_hints(VQConfig)[field.name]
    if field.name != "norm_module":
      at = (args, "bottleneck.args.") if inside else (regularizer, f"{where}.args.")
      values[field.name] = _value(at[0], field.name, kind, default, at[1])
  if values["norm"] not in NORMS:
    raise ValueError(f"the config has bottleneck.args.norm = {brief(values['norm'])}, expected {', '.join(NORMS)}.")
  if values["stochastic_temperature"] == 0:
    raise ValueError("the config has stochastic_temperature = 0, expected one above 0, or below 0 for a learned one.")
  return VQConfig(**values)


def _args(part: Any, name: str, where: str) -> Mapping[str, Any]:
  if not isinstance(part, Mapping) or not isinstance(part.get("args"), Mapping):
    raise ValueError(f"the config has {where} = {brief(part)}, expected an object with 'name' and 'args'.")
  if part.get("name", name) != name:
    raise ValueError(f"the config has {where}.name = {brief(part['name'])}, expected {name!r}.")
  return part["args"]


def _value(config: Mapping[str, Any], name: str, kind: type, default: Any, where: str = "") -> Any:
  """A checked value of a config; `default`: None where the key must be there."""
  if config.get(name) is None and default is not None:
    return default
  if name not in config:
    raise ValueError(f"the config lacks {where + name!r}, expected its value: add it.")
  value = config[name]
  if kind is float and is_number(value):
    return float(value)
  if kind is int and isinstance(value, int) and not isinstance(value, bool):
    least = 0 if default == 0 else 1
    if least <= value <= (MAX_CODEBOOK if name == "codebook_size" else MAX_SIZE):
      return value
  if kind in (bool, str) and isinstance(value, kind):
    return value
  expected = {int: "a whole number of a model's size", float: "a number", bool: "true or false", str: "text"}[kind]
  raise ValueError(f"the config has {where}{name} = {brief(value)}, expected {expected}.")


def _known(config: Mapping[str, Any], name: str, values: tuple[str, ...], default: str) -> None:
  if config.get(name, default) not in values:
    known = ", ".join(map(repr, values))
    raise ValueError(f"the config has {name} = {brief(config[name])}, expected {known}: vftok knows no other.")


def _check(cfg: QueryConfig, config: Mapping[str, Any]) -> None:
  for name in NAMES:
    known = (
      ("transformer_encoder_parallel",) if name == "transformer_name" else ("none", "transformer_encoder_parallel")
    )
    _known(config, name, known, known[0])
  channels = config.get("in_channels", 3)
  if not is_whole(channels) or channels != 3:
    raise ValueError(f"the config has in_channels = {brief(channels)}, expected 3, red, green and blue.")
  for name in ("temporal_patch_size", "patch_size"):
    theirs, ours = config.get(f"decoder_{name}", getattr(cfg, name)), getattr(cfg, name)
    if not is_whole(theirs) or theirs != ours:
      raise ValueError(f"the config has decoder_{name} = {brief(theirs)}, expected the encoder's {name}, {ours}.")
  for size, part, what in (
    ("input_size", "patch_size", "patches"),
    ("frame_num", "temporal_patch_size", "patches"),
    ("encoder_hidden_size", "encoder_num_heads", "heads"),
    ("decoder_hidden_size", "decoder_num_heads", "heads"),
  ):
    if getattr(cfg, size) % getattr(cfg, part):
      raise ValueError(
        f"the config has {size} = {getattr(cfg, size)} and {part} = {getattr(cfg, part)}, expected a multiple: whole "
        f"{what}."
      )
  for name, of_patches, of_tokens in (
    ("encoder_hidden_size", cfg.learned_encoder_patch_pe, cfg.learned_encoder_latent_query_embed),
    ("decoder_hidden_size", cfg.learned_decoder_patch_query_embed, cfg.learned_decoder_latent_pe),
  ):
    width, part = getattr(cfg, name), 4 if not of_patches else 2 if not of_tokens else 1
    if width % part:
      raise ValueError(f"the config has {name} = {width}, expected a multiple of {part}, as fixed positions need it.")
  if max(cfg.encoder_depth, cfg.decoder_depth, cfg.scorer_depth) > MAX_DEPTH:
    raise ValueError(f"the config has a depth above {MAX_DEPTH}, expected fewer layers.")
  t, h, w = cfg.grid
  if t * h * w + cfg.bottleneck_token_num > MAX_TOKENS:
    raise ValueError(
      f"the config asks for {t * h * w} patches beside its tokens, expected at most {MAX_TOKENS} in all."
    )
  if cfg.groups * cfg.group_tokens != cfg.bottleneck_token_num or t % cfg.groups:
    raise ValueError(
      f"the config has {cfg.groups} groups of {cfg.group_tokens} tokens, expected {cfg.bottleneck_token_num} tokens in "
      f"all and groups that divide its {t} patches of time."
    )
  if cfg.latent_pe_scale_factor <= 0:
    raise ValueError(
      f"the config has latent_pe_scale_factor = {cut(cfg.latent_pe_scale_factor)}, expected one above 0."
    )
