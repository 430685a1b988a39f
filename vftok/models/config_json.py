"""Configs as plain data and back, every key and type checked: what stands in config.json and in experiment files."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from vftok.models.config import GeneratorConfig, TokenizerConfig
from vftok.models.config_checks import check, check_generator, check_vae
from vftok.models.router import RouterConfig
from vftok.models.vae import VAEConfig
from vftok.runtime.words import brief, cut, is_whole

FORMAT, FORMAT_VAE, FORMAT_GENERATOR = "vftok-tokenizer", "vftok-vae", "vftok-generator"
FORMAT_ROUTER = "vftok-router"
FORMAT_VERSION = 1


KINDS = {  # dataclass -> (its format, what checks its values)
  TokenizerConfig: (FORMAT, check),
  VAEConfig: (FORMAT_VAE, check_vae),
  GeneratorConfig: (FORMAT_GENERATOR, check_generator),
  RouterConfig: (FORMAT_ROUTER, lambda cfg: None),  # its own __post_init__
}
Config = typing.TypeVar("Config", TokenizerConfig, VAEConfig, GeneratorConfig, RouterConfig)


def to_json(cfg: Config) -> dict[str, Any]:
  """What stands in config.json: format, version and all fields."""
  return {"format": KINDS[type(cfg)][0], "version": FORMAT_VERSION, **dataclasses.asdict(cfg)}


def from_json(kind: type[Config], data: dict[str, Any]) -> Config:
  """Inverse of `to_json`. Raises ValueError naming the first unknown, missing or mistyped key, or another version."""
  version = data.get("version")
  if not is_whole(version) or version != FORMAT_VERSION:
    raise ValueError(f"config version is {brief(version)}, expected {FORMAT_VERSION}: update vftok to read this model.")
  return from_dict(kind, {k: v for k, v in data.items() if k not in ("format", "version")})


def from_dict(kind: type[Config], data: dict[str, Any], where: str = "config") -> Config:
  """A checked config of plain data, `dataclasses.asdict` undone; `where`: what sentences call it."""
  cfg = build(kind, data, where)
  KINDS[kind][1](cfg)
  return cfg


def build(kind: Any, value: Any, where: str) -> Any:
  """Makes a dataclass, tuple or scalar of the annotated type `kind` from plain data; `where` it stands in a sentence.

  Raises:
    ValueError: the first unknown, missing or mistyped key, or what the dataclass itself refuses.
  """
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return None if value is None else build(next(a for a in args if a is not type(None)), value, where)
  if isinstance(kind, type) and dataclasses.is_dataclass(kind):
    if not isinstance(value, dict):
      raise ValueError(f"{where} is {brief(value)}, expected an object with the fields of {kind.__name__}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
      raise ValueError(
        f"{where} has the unknown key {brief(unknown[0])}, expected one of {cut(', '.join(sorted(hints)), 200)}."
      )
    missing = [
      f.name
      for f in dataclasses.fields(kind)
      if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
      raise ValueError(f"{where} lacks the key {missing[0]!r}: add it.")
    fields = {k: build(hints[k], v, f"{where}.{k}") for k, v in value.items()}
    try:
      return kind(**fields)
    except ValueError as error:
      raise ValueError(f"{where} cannot be built ({cut(str(error).rstrip('.'), 250)}): correct the config.") from None
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      raise ValueError(f"{where} is {brief(value)}, expected a list.")
    variadic = len(args) == 2 and args[1] is Ellipsis
    if not variadic and len(args) != len(value):
      raise ValueError(f"{where} has {len(value)} entries, expected {len(args)}.")
    return tuple(
      build(args[0] if variadic else a, v, where) for a, v in zip(args if not variadic else value, value, strict=True)
    )
  if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
    return float(value)
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise ValueError(f"{where} is {brief(value)}, expected {kind.__name__}.")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where} is {value}, expected a finite number.")
  return value
