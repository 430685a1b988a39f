"""Families of tokenizers: which one a model's config names, one row each. `vftok.load` opens a model of any of them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vftok.io import hub
from vftok.tokenizer.checks import check_dtype, check_options


@dataclasses.dataclass(frozen=True)
class Family:
  """`knows`: whether a config.json is of this family. `module` has `load(name, *, dtype=None, ...)`; as the name it is
  given the open `hub.Checkpoint`.
  """

  name: str
  module: str
  knows: Callable[[Mapping[str, Any]], bool]


def _class(config: Mapping[str, Any]) -> str:
  return str(config.get("_target_")).rsplit(".", 1)[-1]


def is_adaptok(config: Mapping[str, Any]) -> bool:
  """Whether a config.json of LARP's architecture is of one with blocks of time."""
  return {"bottleneck", "mask_generator"} <= config.keys()


FAMILIES = (
  Family("flextok", "vftok.families.flextok.api", lambda config: _class(config).startswith("FlexTok")),
  Family("adaptok", "vftok.families.query.tokenizer", is_adaptok),
  Family(
    "larp", "vftok.families.query.tokenizer", lambda config: {"bottleneck", "bottleneck_token_num"} <= config.keys()
  ),
  Family(
    "evatok",
    "vftok.families.evatok.api",
    lambda config: config.get("format") == "vftok-evatok" or "spatial_token_num_choices" in config,
  ),
  Family("flow", "vftok.tokenizer.api", lambda config: True),  # last: it says what is wrong with the rest
)


def family_of(config: Mapping[str, Any], families: Sequence[Family]) -> Family:
  """The first row that knows this config.json."""
  return next(family for family in families if family.knows(config))


def load(name: str | os.PathLike, **options: Any):
  """(tokenizer, params) of a directory, a safetensors file with its config inside, a shipped name, or a Hub id.

  Whose functions the tokenizer has is the same for all families: `encode`, `decode`, their streams, `truncate` of what
  they give. What a family cannot do it refuses in one sentence.

  Args:
    options: dtype="float32" or "bfloat16" for every family; what else one takes is said by its own `load`.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  return opened(FAMILIES, name, options)


def opened(families: Sequence[Family], name: str | os.PathLike, options: Mapping[str, Any]):
  """What the module of the first of `families` that knows a model's config makes of it."""
  check_dtype(options.get("dtype"))  # before anything is fetched
  checkpoint = hub.open_checkpoint(name)
  family = family_of(checkpoint.config, families)
  open_model = importlib.import_module(family.module).load
  options = {key: value for key, value in options.items() if value is not None}  # None: not asked for
  known = [p for p in inspect.signature(open_model).parameters if p != "name"]
  check_options(options, known, f"loading a model of the family {family.name}")
  return open_model(checkpoint, **options)
