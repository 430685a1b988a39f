"""Families of generators: which one a model's config names, one row each. `vftok.Generator.load` opens any of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vftok.families.query.larp_ar_weights import is_larp
from vftok.models.config_json import FORMAT_GENERATOR
from vftok.tokenizer.families import Family, opened


def _own(config: Mapping[str, Any]) -> bool:
  """vftok's own layout, or SemanTok's."""
  return config.get("format") == FORMAT_GENERATOR or ("format" not in config and "seq_len" in config)


FAMILIES = (
  Family("larp", "vftok.generator.larp", is_larp),
  Family("ar", "vftok.generator.api", lambda config: True),  # last: it says what is wrong with the rest
)


def is_generator(config: Mapping[str, Any]) -> bool:
  """Whether a config.json is a generator's and no tokenizer's."""
  return is_larp(config) or _own(config)


def load(name: str | os.PathLike, **options: Any):
  """(generator, params) of a directory, a safetensors file with its config inside, a shipped name, or a Hub id.

  Reads vftok's own layout, SemanTok's, and LARP's class-to-video and frame prediction models.

  Args:
    options: dtype="float32" or "bfloat16".

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  return opened(FAMILIES, name, options)
