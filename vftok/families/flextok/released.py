"""Reads the module tree of a released FlexTok config into ours: VideoFlexTok's reader, for pictures."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from vftok.convert import reference_weights, wiring
from vftok.convert.reference_config import Names, decoder_config, encoder_config, noise_keys
from vftok.convert.wiring import HARMLESS, Wiring, check_arguments, check_targets, class_of, need, target_of
from vftok.families.flextok import vae_weights
from vftok.families.flextok.config import FlexTokConfig
from vftok.families.flextok.vae import KLConfig
from vftok.io.layout import Rules
from vftok.models.config_checks import check
from vftok.runtime.words import brief, is_number

VAE_PREFIX = "vae.vae."
VAE, NOISE, PIPELINE = "StableDiffusionVAE", "MinRFNoiseModule", "MinRFPipeline"
PACKER, UNPACKER, REGISTERS = "BlockWiseSequencePacker", "SequenceUnpacker", "Registers1D"
MASKS = {"causal_last": "time_block_causal_last", "full": "full", "causal": "causal"}  # of one time step: ours
POSITION_SCALING = ("absolute", "interpolate")
_IS_FLAG = lambda v: isinstance(v, bool)
VAE_ARGUMENTS = {
  "latent_channels": (lambda v: type(v) is int and v > 0, "a whole number of 1 or more"),
  "scaling_factor": (lambda v: is_number(v) and v > 0, "a number above 0"),
  "shift_factor": (is_number, "a number"),
  "sample_posterior": (_IS_FLAG, "true or false"),  # ours is the mean whatever it says
  "frozen": (_IS_FLAG, "true or false"),
}
ORDERED = {"ordering_mode": (lambda v: v == "nested", "'nested'")}


class ImageWiring(Wiring):
  """Modules of pictures, described as their relatives for video with one time step."""

  RANKS = {"patch_positions": 2, "register_positions": 1}

  def __init__(self, part: str, spec: Any):
    super().__init__(part, spec)
    self.interpolated: list[str] = []  # roles whose table is resized to the grid

  def unknown(self, name: str, spec: Mapping[str, Any], extra: list[str]) -> None:
    if used := [key for key in extra if spec[key] not in (None, False, 0, "", [], {})]:
      raise ValueError(
        f"module {brief(name)} of the {self.part} has the unknown argument {brief(used[0])} = {brief(spec[used[0]])}, "
        "expected a FlexTok's: this switch is not known, take it out if it changes nothing."
      )

  def _picture_patches(self, name, spec):
    used = self._patch_embedder(name, spec)
    self.modules["patch_in"] = {**spec, "patch_sizes": [1, *self._two(name, spec)]}
    return used

  def _picture_head(self, name, spec):
    used = self._to_patches(name, spec)
    sizes = self._two(name, spec)
    if sizes != self.role("patch_in")["patch_sizes"][1:]:
      raise ValueError(
        f"module {brief(name)} has patch_sizes = {brief(sizes)}, expected those that go in: correct the config."
      )
    return used

  @staticmethod
  def _two(name, spec) -> list[int]:
    sizes = list(need(spec, "patch_sizes", name))
    if len(sizes) != 2:
      raise ValueError(
        f"module {brief(name)} of the config has patch_sizes = {brief(sizes)}, expected 2: height and width."
      )
    return sizes

  def _picture_positions(self, name, spec):
    scaling = spec.get("posemb_scaling")
    if scaling not in (None, *POSITION_SCALING):
      raise ValueError(
        f"module {brief(name)} has posemb_scaling={brief(scaling)}, expected one of {', '.join(POSITION_SCALING)}."
      )
    used = self._positions(name, {**spec, "posemb_scaling": "absolute"})
    if scaling == "interpolate":
      self.interpolated.append(next(role for role, named in self.names.items() if named == name))
    return used

  def _picture_registers(self, name, spec):
    check_arguments(name, spec, ORDERED)
    used = self._registers(name, spec)
    self.modules["registers"] = {**spec, "t_max": 1}
    return f"{used} ordering_mode"

  def _picture_packer(self, name, spec):
    used = self._packer(name, spec)
    mode = spec.get("mask_mode") or "full"
    if mode not in MASKS:
      raise ValueError(f"module {brief(name)} has mask_mode={brief(mode)}, expected one of {', '.join(MASKS)}.")
    self.modules["packer"] = {**spec, "mask_mode": MASKS[mode]}
    return used.replace(" cross_timestep_attention_config", "")

  HANDLERS = {
    **{
      name: handler
      for name, handler in Wiring.HANDLERS.items()
      if name not in ("RegistersTemporal2D", "BlockWiseSequenceInterleavePacker", "SequenceInterleavedUnpacker")
    },
    "PatchEmbedder": _picture_patches,
    "ToPatchesLinearHead": _picture_head,
    "PositionalEmbeddingAdder": _picture_positions,
    REGISTERS: _picture_registers,
    PACKER: _picture_packer,
    UNPACKER: Wiring.HANDLERS["SequenceInterleavedUnpacker"],
  }


def parts_of(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The model's parts, {} for those that only training or the sampler need and a config may lack.

  Raises:
    ValueError: an unknown target, a part that is missing or no module.
  """
  check_targets(
    config, {class_of(config), VAE, NOISE, PIPELINE, *wiring.COMMON, *ImageWiring.HANDLERS}, "a FlexTok module"
  )
  parts = {}
  for name in ("vae", "encoder", "decoder", "regularizer", "flow_matching_noise_module", "pipeline"):
    spec = config.get(name)
    if spec is None and name in ("vae", "encoder", "decoder", "regularizer"):
      raise ValueError(f"the config has no part {brief(name)}: it is incomplete.")
    if spec is not None and not isinstance(spec, Mapping):
      raise ValueError(f"the config has {name} = {brief(spec)}, expected a module.")
    parts[name] = spec or {}
  for name, known in (("vae", VAE), ("regularizer", "FSQ")):
    if class_of(parts[name]) != known:
      raise ValueError(f"the config gives {name} the target {brief(target_of(parts[name]))}, expected {known}.")
  return parts


def vae_config(spec: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> KLConfig:
  """The VAE of a config's part and of its tensors (plain keys without prefix), which know the sizes."""
  check_arguments("vae", spec, {**wiring.ARGUMENTS, **VAE_ARGUMENTS})
  known = {*VAE_ARGUMENTS, "_target_", *HARMLESS}
  for name in sorted(key for key in spec if key not in known and not key.endswith("_key")):
    warnings.warn(f"argument {brief(name)} of the VAE is not known and was left out.", stacklevel=2)
  scaling, shift = float(need(spec, "scaling_factor", "vae")), float(spec.get("shift_factor") or 0.0)
  cfg = vae_weights.infer_config(shapes, scaling=scaling, shift=shift)
  if wrong := vae_weights.stated_otherwise(cfg, spec):
    raise ValueError(f"the VAE has a config of {wrong}: check that both are of one model.")
  return cfg


def parse(config: Mapping[str, Any], vae: KLConfig) -> tuple[FlexTokConfig, Names]:
  """The model a released config describes; `vae` as `vae_config` gives it.

  The size of pictures is not in the config: it is that which the tables of patch positions cover.

  Raises:
    ValueError: unknown target, wiring that leads nowhere, or a switch no known model has; the sentence names it.
  """
  parts = parts_of(config)
  fsq, noise, pipeline = (parts[k] for k in ("regularizer", "flow_matching_noise_module", "pipeline"))
  for name, spec in (("regularizer", fsq), ("flow_matching_noise_module", noise), ("pipeline", pipeline)):
    check_arguments(name, spec, wiring.ARGUMENTS)
  levels = tuple(need(fsq, "levels", "regularizer"))
  encoder, decoder = ImageWiring("encoder", parts["encoder"]), ImageWiring("decoder", parts["decoder"])
  encoder.kinds[parts["vae"].get("vae_latents_write_key") or "vae_latents"] = "latents"
  encoder.run()
  if encoder.kinds.get(key := fsq.get("latents_read_key")) != "z" and key is not None:
    raise ValueError(
      f"the regularizer reads {brief(key)}, expected what the encoder's head writes: correct the config."
    )
  decoder.kinds[fsq.get("quants_write_key") or "quants"] = "codes"
  decoder.kinds.update(noise_keys(noise, pipeline, "images"))
  decoder.run()
  cfg = FlexTokConfig(
    vae=vae,
    encoder=encoder_config(encoder, len(levels), {}),
    decoder=decoder_config(decoder, len(levels), encoder.role("registers")["n_max"]),
    levels=levels,
    latent_size=_latent_size(encoder, decoder),
    rest=json.dumps(config),
  )
  check(cfg)
  _check_interpolated(cfg, encoder, decoder)
  return cfg, Names(encoder.names, decoder.names, decoder.registers_first)


def _latent_size(*parts: ImageWiring) -> tuple[int, int]:
  """The largest grid of latents that the tables of patch positions cover; 256 pixels' where there are none."""
  covered = []
  for part in parts:
    if "patch_positions" in part.modules:
      sizes = need(part.modules["patch_positions"], "max_sizes", part.names["patch_positions"])
      patch = part.role("patch_in")["patch_sizes"][1:]
      if len(sizes) == len(patch):  # else refused by its name later
        covered.append([n * p for n, p in zip(sizes, patch, strict=True)])
  return (min(h for h, _ in covered), min(w for _, w in covered)) if covered else (32, 32)


def _check_interpolated(cfg: FlexTokConfig, encoder: ImageWiring, decoder: ImageWiring) -> None:
  """Tables that would be resized to another grid are not: raises ValueError where one would."""
  for part, of in ((encoder, cfg.encoder), (decoder, cfg.decoder)):
    grid = tuple(n // p for n, p in zip(cfg.latent_size, of.patch[1:], strict=True))
    for role in part.interpolated:
      sizes = tuple(part.modules[role]["max_sizes"])
      needed = grid if role == "patch_positions" else (cfg.encoder.registers,)
      if sizes != needed:
        found = f"posemb_scaling='interpolate' from {brief(sizes)} to {needed}"
        raise ValueError(
          f"module {brief(part.names[role])} has {found}, expected a table of that size: resizing it is not supported."
        )


def rules(cfg: FlexTokConfig, names: Names) -> Rules:
  """Torch key -> Rule, for every tensor the config asks for."""
  table = reference_weights.network_rules(cfg, names)
  table.update({VAE_PREFIX + key: rule for key, rule in vae_weights.rules(cfg.vae, ("vae",)).items()})
  registers = f"encoder.module_dict.{names.encoder['registers']}.registers"
  table.add(registers, ("encoder", "registers"), index=(0,))  # flat, without an axis of time
  return table
