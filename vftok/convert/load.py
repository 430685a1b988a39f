"""From files to (config, parameters) and back: vftok's own layout and the released ones, strict in both directions."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import numpy as np

from vftok import hub
from vftok.config import FORMAT, FORMAT_VAE, TokenizerConfig, from_json, to_json, vae_from_json, vae_to_json
from vftok.convert import reference_config, reference_weights, vidtok
from vftok.convert.leaves import leaves_of
from vftok.convert.reference_weights import VAE_PREFIX
from vftok.int8 import SCALES
from vftok.models.vae import VAE, VAEConfig


@functools.cache
def abstract_params(cfg: TokenizerConfig) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  from vftok.tokenizer import Tokenizer

  return leaves_of(cfg, Tokenizer(cfg).init)


def load(name: str | os.PathLike, vae: str | os.PathLike | None = None) -> tuple[TokenizerConfig, dict[str, Any]]:
  """See `Tokenizer.load`."""
  checkpoint = hub.open_checkpoint(name)
  if "format" in checkpoint.config:
    return _load_own(checkpoint)
  return _load_reference(checkpoint, vae)


def save(cfg: TokenizerConfig, params, directory: str | os.PathLike) -> None:
  """vftok's own layout."""
  save_leaves(params, to_json(cfg), directory)


def save_leaves(params, config: dict[str, Any], directory: str | os.PathLike) -> None:
  """Any model in vftok's layout: one tensor per leaf, named by its path. `read_leaves` is the inverse."""
  flat = traverse.flatten_dict(nn.unbox(params), sep="/")
  hub.save_files(directory, {key: np.asarray(value) for key, value in flat.items()}, config)


def load_vae(name: str | os.PathLike) -> tuple[VAEConfig, dict[str, Any]]:
  """(config, parameters) of a VAE: of its own file (`save_vae`), or out of any tokenizer that `load` reads."""
  checkpoint = hub.open_checkpoint(name)
  if checkpoint.config.get("format") != FORMAT_VAE:
    cfg, params = load(name)
    return cfg.vae, params["vae"]
  cfg = vae_from_json(checkpoint.config)
  video = jax.ShapeDtypeStruct((1, 1, cfg.space_stride, cfg.space_stride, cfg.in_channels), np.float32)
  return cfg, read_leaves(checkpoint, leaves_of(cfg, lambda key, video: VAE(cfg).init(key, video)["params"], video))


def save_vae(cfg: VAEConfig, params, directory: str | os.PathLike) -> None:
  """A VAE by itself, in vftok's layout: what `configs/tokenizer.py` trains on."""
  save_leaves(params, vae_to_json(cfg), directory)


def _load_own(checkpoint: hub.Checkpoint) -> tuple[TokenizerConfig, dict[str, Any]]:
  if checkpoint.config["format"] != FORMAT:
    raise ValueError(
      f"{checkpoint.path} has format {checkpoint.config['format']!r}, expected {FORMAT!r}: it is no tokenizer."
    )
  cfg = from_json(checkpoint.config)
  return cfg, read_leaves(checkpoint, abstract_params(cfg))


def read_leaves(checkpoint: hub.Checkpoint, leaves: dict[tuple[str, ...], jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """The tree of a file in vftok's layout, strict in both directions. Tensors may be int8, see `vftok/int8.py`."""
  expected = {"/".join(path): leaf.shape for path, leaf in leaves.items()}
  scales = {key + SCALES for key in expected}  # of tensors in int8; `tensors` reads them along
  found = {key: shape for key, shape in checkpoint.shapes.items() if key not in scales}
  hub.report_keys(checkpoint.path, expected.keys() - found.keys(), found.keys() - expected.keys())
  for key, shape in expected.items():
    hub.report_shape(checkpoint.path, key, found[key], shape)
  # device_put, for jnp.asarray compiles a program per shape.
  flat = {key: jax.device_put(_widened(value)) for key, value in checkpoint.tensors(expected)}
  return traverse.unflatten_dict(flat, sep="/")


def _widened(value: np.ndarray) -> np.ndarray:
  """float16 only saves space in files: nothing is computed in it."""
  return value.astype(np.float32) if value.dtype == np.float16 else value


def _load_reference(checkpoint: hub.Checkpoint, vae) -> tuple[TokenizerConfig, dict[str, Any]]:
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
    raise ValueError(f"{checkpoint.path} has no whole VAE under '{VAE_PREFIX}' ({reason}): fetch it again.") from None
  cfg, names = reference_config.parse(checkpoint.config, vae_cfg)
  if "readout" in names.decoder:
    readout = reference_weights.infer_readout(shapes, f"decoder.module_dict.{names.decoder['readout']}")
    cfg = dataclasses.replace(cfg, decoder=dataclasses.replace(cfg.decoder, readout=readout))

  rules = reference_weights.rules(cfg, names)
  hub.report_keys(checkpoint.path, rules.keys() - shapes.keys(), shapes.keys() - rules.keys())
  return cfg, converted(rules, sources, abstract_params(cfg))


def converted(rules, sources, leaves, dtypes=None) -> dict[str, Any]:
  """Our tree out of another layout's tensors.

  Args:
    rules: their key -> Rule. sources: their key -> (Checkpoint, name in its file). leaves: path -> shape of our leaf.
    dtypes: path -> dtype to read a leaf in; None: as it is stored.

  Raises:
    ValueError: a tensor of another shape than its leaf.
  """
  slots = {key: np.broadcast_to(np.int8(0), leaves[rule.path].shape)[rule.index] for key, rule in rules.items()}
  for key, rule in rules.items():
    file, name = sources[key]
    hub.report_shape(file.path, key, file.shapes[name], rule.to_theirs(slots[key]).shape)
  flat: dict[tuple[str, ...], np.ndarray] = {}
  for file in {id(file): file for file, _ in sources.values()}.values():
    names_here = {name: key for key, (owner, name) in sources.items() if owner is file}
    for name, value in file.tensors(names_here):
      key = names_here[name]
      path, index = rules[key].path, rules[key].index
      if path not in flat:
        flat[path] = np.empty(leaves[path].shape, dtypes[path] if dtypes else value.dtype)
      if not dtypes and flat[path].dtype != value.dtype:  # tensors of mixed precision share a leaf: keep the finer one
        flat[path] = flat[path].astype(np.promote_types(flat[path].dtype, value.dtype))
      flat[path][index] = rules[key].to_ours(value, slots[key].shape)
  return traverse.unflatten_dict({path: jax.device_put(flat.pop(path)) for path in list(flat)})


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
