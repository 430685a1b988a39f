"""From files to (config, parameters) and back: vftok's own layout and the released ones, strict in both directions."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from vftok.convert import reference_config, reference_weights, vidtok
from vftok.convert.reference_weights import VAE_PREFIX
from vftok.io import hub
from vftok.io.layout import converted, read_leaves, save_leaves
from vftok.io.leaves import leaves_of
from vftok.models.config import TokenizerConfig
from vftok.models.config_checks import check
from vftok.models.config_json import FORMAT, FORMAT_VAE, from_json, to_json
from vftok.models.init import init_tokenizer
from vftok.models.vae import VAE, VAEConfig
from vftok.runtime.words import brief, cut


@functools.cache
def abstract_params(cfg: TokenizerConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  return leaves_of(cfg, functools.partial(init_tokenizer, cfg))


def load(name: str | os.PathLike, vae: str | os.PathLike | None = None) -> tuple[TokenizerConfig, dict[str, Any]]:
  """See `Tokenizer.load`."""
  checkpoint = hub.open_checkpoint(name)
  if "format" in checkpoint.config:
    return _load_own(checkpoint)
  return _load_reference(checkpoint, vae)


def save(cfg: TokenizerConfig, params, directory: str | os.PathLike) -> None:
  """vftok's own layout."""
  save_leaves(params, to_json(cfg), directory)


def load_vae(name: str | os.PathLike) -> tuple[VAEConfig, dict[str, Any]]:
  """(config, parameters) of a VAE: of its own file (`save_vae`), or out of any tokenizer that `load` reads."""
  checkpoint = hub.open_checkpoint(name)
  if checkpoint.config.get("format") != FORMAT_VAE:
    cfg, params = load(name)
    return cfg.vae, params["vae"]
  cfg = from_json(VAEConfig, checkpoint.config)
  video = jax.ShapeDtypeStruct((1, 1, cfg.space_stride, cfg.space_stride, cfg.in_channels), np.float32)
  return cfg, read_leaves(checkpoint, leaves_of(cfg, lambda key, video: VAE(cfg).init(key, video)["params"], video))


def save_vae(cfg: VAEConfig, params, directory: str | os.PathLike) -> None:
  """A VAE by itself, in vftok's layout: what `configs/tokenizer.py` trains on."""
  save_leaves(params, to_json(cfg), directory)


def _load_own(checkpoint: hub.Checkpoint) -> tuple[TokenizerConfig, dict[str, Any]]:
  if checkpoint.config["format"] != FORMAT:
    which, kind = cut(checkpoint.path, 150), brief(checkpoint.config["format"])
    raise ValueError(f"{which} has format {kind}, expected {FORMAT!r}: it is no tokenizer.")
  cfg = from_json(TokenizerConfig, checkpoint.config)
  return cfg, read_leaves(checkpoint, abstract_params(cfg))


def _load_reference(checkpoint: hub.Checkpoint, vae) -> tuple[TokenizerConfig, dict[str, Any]]:
  if {"seq_len", "n_layer"} & checkpoint.config.keys():
    which = cut(checkpoint.path, 150)
    raise ValueError(
      f"{which} is a generator, expected a tokenizer: open it by vftok.Generator.load or `vftok sample`."
    )
  sources = {key: (checkpoint, name) for key, name in reference_weights.plain_keys(checkpoint.shapes).items()}
  if not any(key.startswith(VAE_PREFIX) for key in sources):
    other = hub.open_weights(_vae_source(checkpoint, vae))
    plain = reference_weights.plain_keys(other.shapes)
    sources |= {key: (other, name) for key, name in plain.items() if key.startswith(VAE_PREFIX)}
  shapes = {key: file.shapes[name] for key, (file, name) in sources.items()}

  try:
    vae_cfg = vidtok.infer_config(
      {k.removeprefix(VAE_PREFIX): s for k, s in shapes.items() if k.startswith(VAE_PREFIX)}
    )
  except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
    reason = str(error).rstrip(".")
    which = cut(checkpoint.path, 150)
    raise ValueError(f"{which} has no whole VAE under '{VAE_PREFIX}' ({cut(reason, 150)}): fetch it again.") from None
  cfg, names = reference_config.parse(checkpoint.config, vae_cfg)
  if "readout" in names.decoder:
    readout = reference_weights.infer_readout(shapes, f"decoder.module_dict.{names.decoder['readout']}")
    cfg = dataclasses.replace(cfg, decoder=dataclasses.replace(cfg.decoder, readout=readout))
    check(cfg)

  rules = reference_weights.rules(cfg, names)
  return cfg, converted(checkpoint.path, rules, sources, abstract_params(cfg))


def _vae_source(checkpoint: hub.Checkpoint, vae):
  """Where `vae.*` is when the file has none: the caller's word, else the config's `hub_vae`."""
  if vae is not None:
    return vae
  named = checkpoint.config.get("hub_vae")
  named = named.get("repo") if isinstance(named, dict) else None
  if not isinstance(named, str):
    raise ValueError(f"{checkpoint.path} has no VAE tensors and its config names no source: pass vae=.")
  try:
    hub.open_weights(named)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f"{checkpoint.path} has no VAE of its own and takes it from {named}: pass vae=, or {error}"
    ) from None
  return named
