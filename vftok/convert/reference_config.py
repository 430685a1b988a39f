"""Reads the module tree of a released VideoFlexTok or SemanTok config into ours; `export` writes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vftok.convert.wiring import (
  ARGUMENTS,
  MODELS,
  WRAPPER,
  Wiring,
  check_arguments,
  check_targets,
  class_of,
  need,
  target_of,
)
from vftok.models.config import TokenizerConfig
from vftok.models.config_checks import check
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.layers import POSITION_KINDS, PositionConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig
from vftok.runtime.words import brief


@dataclasses.dataclass(frozen=True)
class Names:
  """Where each part of ours lives in the checkpoint: our role -> module name inside the encoder or decoder."""

  encoder: Mapping[str, str]
  decoder: Mapping[str, str]
  registers_first: bool = False  # the decoder packs registers before patches: adaLN halves are swapped


def unwrap(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(wrapper dict with `video_flex_tok`, SemanTok's own dict or {}) of any released layout."""
  if "videoflextok" in config:
    inner, more = config["videoflextok"], config.get("semantok") or {}
    for name, value in (("videoflextok", inner), ("semantok", more)):
      if not isinstance(value, Mapping):
        raise ValueError(f"the config has {name} = {brief(value)}, expected an object.")
    if "videoflextok" in inner:
      raise ValueError("the config has 'videoflextok' inside 'videoflextok', expected 'video_flex_tok' there.")
    return unwrap(inner)[0], dict(more)
  if "video_flex_tok" in config:
    return dict(config), {}
  if class_of(config) in MODELS:
    return {"video_flex_tok": dict(config)}, {}
  raise ValueError("config.json has none of the keys 'video_flex_tok', 'videoflextok', 'format': it is no tokenizer's.")


def parse(config: Mapping[str, Any], vae: VAEConfig) -> tuple[TokenizerConfig, Names]:
  """The model a released config describes; `vae` comes from the tensors, whose width the config does not tell.

  Raises:
    ValueError: unknown target, wiring that leads nowhere, or a switch no known model has; the sentence names it.
  """
  wrapper, semantok = unwrap(config)
  tree = wrapper["video_flex_tok"]
  if not isinstance(tree, Mapping) or class_of(tree) not in MODELS:
    raise ValueError(
      f"the config gives video_flex_tok the unknown target {brief(target_of(tree))}, expected {' or '.join(MODELS)}."
    )
  check_targets(tree)
  check_arguments("wrapper", wrapper, WRAPPER)
  for part in ("vae", "encoder", "decoder", "regularizer"):
    if part not in tree:
      raise ValueError(f"the config has no part {brief(part)} in video_flex_tok: it is incomplete.")
  fsq, noise, pipeline = (tree.get(k) or {} for k in ("regularizer", "flow_matching_noise_module", "pipeline"))
  parts = {"vae": tree["vae"], "regularizer": fsq, "flow_matching_noise_module": noise, "pipeline": pipeline}
  for part, spec in parts.items():
    if not isinstance(spec, Mapping):
      raise ValueError(f"the config has {part} = {brief(spec)}, expected a module.")
    check_arguments(part, spec, ARGUMENTS)
  levels = tuple(need(fsq, "levels", "regularizer"))
  dino = bool(semantok.get("dino_input"))
  encoder = Wiring("encoder", tree["encoder"])
  encoder.kinds[tree["vae"].get("vae_latents_write_key", "vae_latents")] = "latents"
  encoder.free_input = dino
  encoder.run()
  decoder = Wiring("decoder", tree["decoder"])
  decoder.kinds[fsq.get("quants_write_key", "quants")] = "codes"
  decoder.kinds.update(noise_keys(noise, pipeline, "videos"))
  decoder.run()
  sizes = wrapper.get("vae_video_sizes") or (5, 32, 32)
  cfg = TokenizerConfig(
    vae=vae,
    encoder=encoder_config(encoder, len(levels), semantok),
    decoder=decoder_config(decoder, len(levels), encoder.modules["registers"]["n_max"]),
    levels=levels,
    chunk_frames=int(wrapper.get("chunk_size") or 17),
    overlap_frames=int(wrapper["overlap_size_frames"] if wrapper.get("overlap_size_frames") is not None else 1),
    latent_size=(int(sizes[1]), int(sizes[2])),
    dino_frames=str(semantok.get("dino_frame_agg") or "avg") if dino else "",
    dino_class=str(semantok.get("global_token_mode") or "per_frame"),
  )
  check(cfg)
  return cfg, Names(encoder.names, decoder.names, decoder.registers_first)


def noise_keys(noise: Mapping[str, Any], pipeline: Mapping[str, Any], what: str) -> dict[str, str]:
  """{data key: what it holds} of what a decoder is given beside codes; `what` the pipeline calls its clips by."""

  def first(noise_key: str, pipeline_key: str, default: str) -> str:  # as one writes it, else as the other reads it
    return noise.get(noise_key) or pipeline.get(pipeline_key) or default

  return {
    first("noised_images_write_key", f"noised_{what}_read_key", "vae_latents_noised"): "latents",
    first("timesteps_write_key", "timesteps_read_key", "timesteps"): "timesteps",
  }


def encoder_config(wiring: Wiring, code_dim: int, semantok: Mapping[str, Any]) -> EncoderConfig:
  patch, registers, head = wiring.role("patch_in"), wiring.role("registers"), wiring.role("head")
  if need(head, "dim_out", wiring.names["head"]) != code_dim:
    raise ValueError(
      f"the encoder's head gives {brief(head['dim_out'])} values, expected one per FSQ level, {code_dim}."
    )
  mask, cross = _mask(wiring)
  if wiring.registers_first and mask not in ("full", "time_block_causal"):
    raise ValueError(
      f"the encoder packs registers before patches under mask {brief(mask)}: this order is not supported."
    )
  return EncoderConfig(
    stack=_stack(wiring),
    patch=tuple(need(patch, "patch_sizes", wiring.names["patch_in"])),
    channels=int(need(patch, "channels_in", wiring.names["patch_in"])),
    positions=_position(wiring, "patch_positions"),
    t_max=int(need(registers, "t_max", wiring.names["registers"])),
    registers=int(registers["n_max"]),
    out_dim=code_dim,
    mask=mask,
    cross=cross,
    global_token=1024 if semantok.get("global_token") else 0,
    head_bias=head.get("proj_bias") is not False,
  )


def decoder_config(wiring: Wiring, code_dim: int, registers: int) -> DecoderConfig:
  patch, head, time = wiring.role("patch_in"), wiring.role("head"), wiring.role("time")
  wiring.role("codes_in")
  mask, cross = _mask(wiring)
  stack = _stack(wiring)
  if stack.adaln == 0:
    raise ValueError(
      f"the decoder's transformer {brief(wiring.names['stack'])} reads no time embedding: set adaLN_emb_read_key."
    )
  if wiring.registers_first and mask not in ("full", "time_block_causal"):
    raise ValueError(
      f"the decoder packs registers before patches under mask {brief(mask)}: this order is not supported."
    )
  return DecoderConfig(
    stack=stack,
    patch=tuple(need(patch, "patch_sizes", wiring.names["patch_in"])),
    channels=int(need(head, "channels_out", wiring.names["head"])),
    code_dim=code_dim,
    registers=int(registers),
    positions=_position(wiring, "patch_positions"),
    register_positions=_position(wiring, "register_positions"),
    replacements=tuple(wiring.order),
    mask=mask,
    cross=cross,
    head_adaln=head.get("adaLN_emb_read_key") is not None,
    head_bias=head.get("proj_bias") is not False,
    time_features=int(time.get("frequency_embedding_size") or 256),
    max_timestep=float(time.get("max_timestep") or 1.0),
  )


def _stack(wiring: Wiring) -> StackConfig:
  spec, name = wiring.role("stack"), wiring.names["stack"]
  adaln = spec.get("adaLN_emb_read_key") is not None
  expansion = int(spec.get("adaLN_expansion") or 1) if adaln else 0
  if expansion > 2:
    raise ValueError(
      f"module {brief(name)} has adaLN_expansion={brief(expansion)}, expected 1 or 2 (patches and registers)."
    )
  if expansion == 2 and not wiring.role("packer").get("per_subseq_embs"):
    raise ValueError(
      f"module {brief(name)} has adaLN_expansion=2, expected per_subseq_embs=true in {brief(wiring.names['packer'])}."
    )
  flags = {
    k: bool(spec[k]) for k in ("gated_mlp", "qk_norm", "qkv_bias", "proj_bias", "mlp_bias") if spec.get(k) is not None
  }
  return StackConfig(
    dim=int(need(spec, "dim", name)),
    depth=int(need(spec, "depth", name)),
    head_dim=int(spec.get("head_dim") or 64),
    mlp_ratio=float(spec.get("mlp_ratio") or 4.0),
    adaln=expansion,
    **flags,
  )


def _position(wiring: Wiring, role: str) -> PositionConfig | None:
  if role not in wiring.modules:
    return None
  spec, name, rank = wiring.modules[role], wiring.names[role], wiring.RANKS[role]
  kind, sizes = spec.get("posemb_type") or "learnable_sum", tuple(need(spec, "max_sizes", name))
  if kind not in POSITION_KINDS or len(sizes) != rank or (kind == "sincos" and rank != 2):
    found, known = f"{brief(kind)} positions of sizes {brief(sizes)}", ", ".join(POSITION_KINDS)
    raise ValueError(f"module {brief(name)} has {found}, expected {rank}-D of {known} (sincos: 2-D).")
  if spec.get("posemb_scaling") not in (None, "absolute"):
    raise ValueError(f"module {brief(name)} has posemb_scaling={brief(spec['posemb_scaling'])}, expected 'absolute'.")
  return PositionConfig(kind, sizes)


def _mask(wiring: Wiring) -> tuple[str, tuple[str, ...]]:
  spec, name = wiring.role("packer"), wiring.names["packer"]
  mode, cross = spec.get("mask_mode") or "full", spec.get("cross_timestep_attention_config")
  if cross is not None:
    found = {str(k).replace("_to_", "2").removesuffix("_attention"): v for k, v in dict(cross).items()}
    order = ("prefix2prefix", "prefix2nonprefix", "nonprefix2prefix", "nonprefix2nonprefix")
    if set(found) != set(order):
      raise ValueError(
        f"module {brief(name)} has the cross-step keys {brief(sorted(cross))}, expected {', '.join(order)}."
      )
    return "flexible", tuple(str(found[k]) for k in order)
  if mode not in ("full", "causal", "time_block_causal", "time_block_causal_last"):
    raise ValueError(
      f"module {brief(name)} has mask_mode={brief(mode)}, expected full, causal or time_block_causal(_last)."
    )
  return mode, ("full",) * 4
