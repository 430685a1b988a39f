"""Released files of LARP's autoregressive models <-> our parameters: strict in both directions."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vftok.families.query.larp_ar_net import LarpAR, LarpARConfig
from vftok.io import hub
from vftok.io.layout import LEADING, LINEAR, LINEAR_2IN, SAME, Rules, converted, exported
from vftok.io.leaves import leaves_of
from vftok.models.config_checks import MAX_DEPTH, MAX_SIZE, MAX_TOKENS
from vftok.models.sincos import sincos_1d
from vftok.runtime.words import brief, cut

FIELDS = tuple(f.name for f in dataclasses.fields(LarpARConfig) if f.name not in ("dtype", "rest"))
NEEDED = ("dim", "n_layer", "n_head", "vocab_size", "max_seq_len")
OPTIONAL = ("n_kv_head", "ffn_dim_multiplier")  # may be null
TRAINING = (
  "dropout",
  "drop",
  "initializer_range",
  "caption_dim",
  "model_type",
  "max_batch_size",
)  # name parts that change no inference

BLOCKS = ("group", "toks", "block", "separator", "sep_")  # name parts of what AdapTok's models have beside LARP's
ADAPTOK = (
  "this is AdapTok's generator, whose order of tokens and separators was never published: train one on AdapTok's "
  "tokens with configs/c2v.py."
)


def is_larp(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is of an autoregressive model of LARP, or of its relative AdapTok, which is refused."""
  return {"n_layer", "n_head"} <= config.keys() and "format" not in config


def parse(config: Mapping[str, Any]) -> LarpARConfig:
  """The model's config.

  Raises:
    ValueError: the first key that is missing, unknown, mistyped, or has a value that no model has.
  """
  for key in NEEDED:
    if key not in config:
      raise ValueError(f"the generator's config lacks {key!r}, expected {', '.join(NEEDED)}: is this LARP's AR model?")
  if any(part in key for key in config if key not in FIELDS for part in BLOCKS):
    raise ValueError(ADAPTOK)
  hints, values = typing.get_type_hints(LarpARConfig), {}
  for key, value in config.items():
    if key in FIELDS and not (value is None and key in OPTIONAL):
      values[key] = _value(key, value, hints[key])
    elif key not in FIELDS and not any(part in key for part in TRAINING):
      raise ValueError(f"the generator's config has {brief(key)}, expected only {', '.join(FIELDS)} and dropouts.")
  cfg = LarpARConfig(**values, rest=json.dumps(config))
  _check(cfg)
  return cfg


def _value(key: str, value: Any, kind: type) -> Any:
  if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
    return float(value)
  if kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**24:
    return value
  if kind is bool and isinstance(value, bool):
    return value
  expected = {int: "a whole number from 0 on", float: "a number from 0 on", bool: "true or false"}[kind]
  raise ValueError(f"the generator's config has {key} = {brief(value)}, expected {expected}.")


def _check(cfg: LarpARConfig) -> None:
  for key in (*NEEDED, "multiple_of", "cls_token_num", "norm_eps"):
    if not getattr(cfg, key):
      raise ValueError(f"the generator's config has {key} = 0, expected 1 or more.")
  if cfg.ffn_dim_multiplier and not 1e-3 <= cfg.ffn_dim_multiplier <= 1e3:  # `hidden` is made of it
    found = f"ffn_dim_multiplier = {cfg.ffn_dim_multiplier}"
    raise ValueError(f"the generator's config has {found}, expected 0.001 to 1000.")
  for key, most in (("dim", MAX_SIZE), ("n_layer", MAX_DEPTH), ("length", MAX_TOKENS), ("hidden", 8 * MAX_SIZE)):
    if getattr(cfg, key) > most:
      raise ValueError(f"the generator's config has {key} = {getattr(cfg, key)}, expected at most {most}.")
  if cfg.dim % cfg.n_head or cfg.n_head % cfg.kv_heads:
    found = f"dim = {cfg.dim}, n_head = {cfg.n_head} and n_kv_head = {cfg.kv_heads}"
    raise ValueError(f"the generator's config has {found}, expected each a multiple of the next.")
  if not cfg.frame_prediction and cfg.cls_token_num != 1:
    raise ValueError(f"the generator's config has cls_token_num = {cfg.cls_token_num}, expected 1 for a class.")


def to_json(cfg: LarpARConfig) -> dict[str, Any]:
  """Inverse of `parse`: config.json as it was read, with the values that `cfg` has; what it left out stays out."""
  config, defaults = json.loads(cfg.rest), LarpARConfig()
  read = bool(config)
  for key in FIELDS:
    value = getattr(cfg, key)
    left_out = read and key not in config and value == getattr(defaults, key)
    null = config.get(key, 0) is None and not value
    if not (left_out or null or config.get(key) == value):
      config[key] = value
  return config


def rules(cfg: LarpARConfig) -> Rules:
  """Their key -> where and how it is ours."""
  table = Rules()
  table.add("tok_embeddings.weight", ("token_table",))
  table.add("abs_pe", ("position_table",), LEADING)
  table.norm("norm", ("norm",), bias=False)
  table.add("output.weight", ("head",), LINEAR)
  if not cfg.frame_prediction:
    table.add("cls_embedding.embedding_table.weight", ("class_table",))
  for i in range(cfg.n_layer):
    at = f"layers.{i}"
    for key, path, how in (
      ("attention_norm", ("n1", "scale"), SAME),
      ("ffn_norm", ("n2", "scale"), SAME),
      ("attention.wqkv", ("qkv",), LINEAR),
      ("attention.wo", ("proj",), LINEAR_2IN),
      ("feed_forward.w2", ("down",), LINEAR),
    ):
      table.add(f"{at}.{key}.weight", ("blocks", *path), how, (i,))
    for branch, key in enumerate(("w1", "w3")):  # silu(w1 x) * w3 x
      table.add(f"{at}.feed_forward.{key}.weight", ("blocks", "up"), LINEAR, (i, slice(None), branch))
  return table


def init(cfg: LarpARConfig, key: jax.Array) -> dict[str, Any]:
  """Fresh parameters, in boxes that carry their logical axis names."""
  params = init_learned(cfg, key)
  if cfg.use_fixed_pe:
    params["position_table"] = params["position_table"].replace_boxed(jnp.asarray(sincos_1d(cfg.length, cfg.dim)))
  return params


def init_learned(cfg: LarpARConfig, key: jax.Array) -> dict[str, Any]:
  return LarpAR(cfg).init(key, jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 0), jnp.int32))["params"]


@functools.cache
def abstract_params(cfg: LarpARConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  return leaves_of(cfg, functools.partial(init_learned, cfg))


def load(name: str | os.PathLike) -> tuple[LarpARConfig, dict[str, Any]]:
  """(config, parameters) of a released model. Tensors keep the dtype they are stored in."""
  checkpoint = hub.open_checkpoint(name)
  try:
    cfg = parse(checkpoint.config)
  except ValueError as error:
    raise ValueError(f"{cut(checkpoint.path, 120)} is no LARP generator: {error}") from None
  rows = checkpoint.shapes.get("tok_embeddings.weight", (0,))[:1]
  if not cfg.frame_prediction and rows > (cfg.vocab_size,):  # ids that a class-to-video model of LARP never reads
    raise ValueError(f"{cut(checkpoint.path, 120)} has {rows[0]} ids of {cfg.vocab_size}: {ADAPTOK}")
  return cfg, converted(checkpoint.path, rules(cfg), checkpoint.sources(), abstract_params(cfg))


def save(cfg: LarpARConfig, params: Any, directory: str | os.PathLike) -> None:
  """Writes the released layout, whole or not at all."""
  hub.save_files(directory, exported(rules(cfg), params), to_json(cfg))
