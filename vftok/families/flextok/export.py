"""Writes a FlexTok in the layout of released models, under the names it was read with, else under canonical ones."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from vftok.convert.export import CANONICAL
from vftok.convert.export_config import decoder_part, encoder_part
from vftok.convert.reference_config import Names
from vftok.families.flextok.config import FlexTokConfig
from vftok.families.flextok.released import MASKS, PACKER, REGISTERS, UNPACKER, parse, rules
from vftok.io import hub
from vftok.io.layout import exported

_PICTURES = {
  "RegistersTemporal2D": REGISTERS,
  "BlockWiseSequenceInterleavePacker": PACKER,
  "SequenceInterleavedUnpacker": UNPACKER,
}
_VIDEO_ONLY = ("t_max", "cross_timestep_attention_config", "compile_block_mask")


def save(cfg: FlexTokConfig, params, directory: str | os.PathLike) -> None:
  """Writes config.json and model.safetensors, whole or not at all: names and config as they were read, if they were."""
  config, names = as_read(cfg) or (released_config(cfg), CANONICAL)
  hub.save_files(directory, exported(rules(cfg, names), params), config)


def as_read(cfg: FlexTokConfig) -> tuple[dict[str, Any], Names] | None:
  """(config.json, module names) that a config came from, where it still says what `cfg` is."""
  if not cfg.rest:
    return None
  config = json.loads(cfg.rest)
  read, names = parse(config, cfg.vae)
  if ("readout" in names.decoder) != (cfg.decoder.readout is not None):
    return None
  read = dataclasses.replace(read, decoder=dataclasses.replace(read.decoder, readout=cfg.decoder.readout))
  return (config, names) if read.with_dtype("float32") == cfg.with_dtype("float32") else None


def released_config(cfg: FlexTokConfig) -> dict[str, Any]:
  """The config.json that describes `cfg` in the released models' terms."""
  shift = {"shift_factor": cfg.vae.shift} if cfg.vae.shift else {}
  return {
    "_target_": "flextok.flextok_wrapper.FlexTok",
    "vae": {
      "_target_": "flextok.vae_wrapper.StableDiffusionVAE",
      "images_read_key": "rgb",
      "vae_latents_read_key": "vae_latents_reconst",
      "vae_latents_write_key": "vae_latents",
      "images_reconst_write_key": "rgb_reconst",
      "latent_channels": cfg.vae.z_channels,
      "scaling_factor": cfg.vae.scaling,
      **shift,
      "sample_posterior": False,
      "frozen": True,
    },
    "encoder": _picture(encoder_part(cfg)),
    "decoder": _picture(decoder_part(cfg)),
    "regularizer": {
      "_target_": "flextok.regularizers.quantize_fsq.FSQ",
      "latents_read_key": "enc_registers_latents",
      "quants_write_key": "quants",
      "tokens_write_key": "token_ids",
      "levels": list(cfg.levels),
    },
    "flow_matching_noise_module": {
      "_target_": "flextok.flow_matching.noise_modules.MinRFNoiseModule",
      "clean_images_read_key": "vae_latents",
      "noised_images_write_key": "vae_latents_noised",
      "timesteps_write_key": "timesteps",
      "sigmas_write_key": "sigmas",
      "ln": False,
      "mode_scale": 0.25,
    },
    "pipeline": {
      "_target_": "flextok.flow_matching.pipelines.MinRFPipeline",
      "_partial_": True,
      "target_sizes_read_key": "target_sizes",
      "latents_read_key": "quants",
      "timesteps_read_key": "timesteps",
      "noised_images_read_key": "vae_latents_noised",
      "reconst_write_key": "vae_latents_reconst",
      "out_channels": cfg.decoder.channels,
    },
  }


def _picture(spec: Any) -> Any:
  """A video model's module tree with one time step, as an image model's."""
  if not isinstance(spec, dict):
    return spec
  out = {key: _picture(value) for key, value in spec.items() if key not in _VIDEO_ONLY}
  if "_target_" in out:
    package, _, name = out["_target_"].rpartition(".")
    out["_target_"] = f"{package.replace('videoflextok', 'flextok', 1)}.{_PICTURES.get(name, name)}"
  if "patch_sizes" in out:
    out["patch_sizes"] = out["patch_sizes"][1:]
  if "mask_mode" in out:
    out["mask_mode"] = {ours: theirs for theirs, ours in MASKS.items()}[out["mask_mode"]]
  return out
