"""From files to (config, parameters) of a generator and back: vftok's own layout and SemanTok's."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax

from vftok.convert import semantok_ar
from vftok.io import hub
from vftok.io.layout import converted, exported, read_leaves, save_leaves
from vftok.io.leaves import leaves_of
from vftok.models.config import GeneratorConfig
from vftok.models.config_json import FORMAT_GENERATOR, from_json, to_json
from vftok.models.init import init_generator
from vftok.runtime.words import brief, cut


def abstract_params(cfg: GeneratorConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  return leaves_of(cfg, functools.partial(init_generator, cfg))


def load(name: str | os.PathLike) -> tuple[GeneratorConfig, dict[str, Any]]:
  """See `Generator.load`."""
  checkpoint = hub.open_checkpoint(name)
  kind = checkpoint.config.get("format")
  if kind == FORMAT_GENERATOR:
    cfg = from_json(GeneratorConfig, checkpoint.config)
    return cfg, read_leaves(checkpoint, abstract_params(cfg))
  if kind is not None or "seq_len" not in checkpoint.config:
    raise ValueError(
      f"{cut(checkpoint.path, 150)} is no generator: its config has no seq_len and format {brief(kind)}."
    )
  cfg = GeneratorConfig(ar=semantok_ar.parse(checkpoint.config))
  return cfg, converted(checkpoint.path, semantok_ar.rules(cfg.ar), checkpoint.sources(), abstract_params(cfg))


def save(cfg: GeneratorConfig, params, directory: str | os.PathLike) -> None:
  """vftok's own layout."""
  save_leaves(params, to_json(cfg), directory)


def export(cfg: GeneratorConfig, params, directory: str | os.PathLike) -> None:
  """SemanTok's layout.

  Raises:
    ValueError: a model that it cannot hold.
  """
  config = semantok_ar.config_of(cfg.ar)
  hub.save_files(directory, exported(semantok_ar.rules(cfg.ar), params), config)
