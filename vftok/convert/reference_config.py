"""Reads the module tree of a released VideoFlexTok (or SemanTok) config, and writes one.

Module *names* inside the tree are free: what a module is comes from its `_target_`, what it works on from the data keys
it reads and writes. Nothing is instantiated; unknown targets are errors.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from vftok.config import TokenizerConfig, check, short
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.layers import POSITION_KINDS, PositionConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig

MODELS = ("VideoFlexTok", "VideoFlowMatchingResampler")
PLUMBING = ("channels_first_to_last", "channels_last_to_first")
NOISE = ("PrefixMinRFNoiseModule", "MinRFNoiseModule")
# Keywords that steer training, compilation or naming only: they do not change what the loaded graph computes.
HARMLESS = frozenset(
  "flatten_patches n_patches_write_key register_sizes_read_write_key size_sampling_mode n_min block_mask_write_key"
  " inner_packed_shapes_write_key outer_packed_shapes_write_key inner_packed_shapes_read_key"
  " outer_packed_shapes_read_key pad_to_multiple compile_block_mask emb_packing_fn_write_key block_mask_read_key"
  " adaLN_packing_fn_read_key weight_init_style dtype_override eval_keep_k_read_key train_keep_k_write_key"
  " prefix_len_read_key eval_prefix_len_read_key eval_drop_flag_read_key dropout_prob drop_path_rate drop"
  " use_act_checkpoint intermediate_layers intermediate_layers_write_key per_sample_op".split()
)

# What each argument that decides the graph must be, where it is given at all.
_COUNTS = "dim dim_in dim_out depth head_dim channels_in channels_out t_max n_max n_eval adaLN_expansion".split()
_FLAGS = "per_subseq_embs gated_mlp qk_norm qkv_bias proj_bias mlp_bias use_mup_readout".split()
_IS_COUNT = lambda v: type(v) is int
_IS_COUNTS = lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(map(_IS_COUNT, v))
_IS_NAMES = lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(isinstance(n, str) for n in v)
ARGUMENTS = {
  **{name: (_IS_COUNT, "a whole number") for name in (*_COUNTS, "frequency_embedding_size")},
  **{name: (lambda v: type(v) in (int, float), "a number") for name in ("mlp_ratio", "max_timestep")},
  **{name: (lambda v: isinstance(v, bool), "true or false") for name in _FLAGS},
  **{name: (lambda v: isinstance(v, str), "text") for name in ("posemb_type", "posemb_scaling", "mask_mode")},
  **{name: (_IS_COUNTS, "a list of whole numbers") for name in ("patch_sizes", "max_sizes", "levels")},
  **{name: (_IS_NAMES, "a list of names") for name in ("input_list_read_keys", "inner_seq_write_keys")},
  "cross_timestep_attention_config": (lambda v: isinstance(v, Mapping), "an object"),
}
WRAPPER = {
  "chunk_size": (_IS_COUNT, "a whole number"),
  "overlap_size_frames": (_IS_COUNT, "a whole number"),
  "vae_video_sizes": (lambda v: _IS_COUNTS(v) and len(v) == 3, "3 whole numbers"),
}


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
        raise ValueError(f"the config has {name} = {short(value)}, expected an object.")
    if "videoflextok" in inner:
      raise ValueError("the config has 'videoflextok' inside 'videoflextok', expected 'video_flex_tok' there.")
    return unwrap(inner)[0], dict(more)
  if "video_flex_tok" in config:
    return dict(config), {}
  if _class(config) in MODELS:
    return {"video_flex_tok": dict(config)}, {}
  raise ValueError("config.json has none of the keys 'video_flex_tok', 'videoflextok', 'format': it is no tokenizer's.")


def parse(config: Mapping[str, Any], vae: VAEConfig) -> tuple[TokenizerConfig, Names]:
  """The model a released config describes; `vae` comes from the tensors, whose width the config does not tell.

  Raises:
    ValueError: unknown target, wiring that leads nowhere, or a switch no known model has; the sentence names it.
  """
  wrapper, semantok = unwrap(config)
  tree = wrapper["video_flex_tok"]
  if not isinstance(tree, Mapping) or _class(tree) not in MODELS:
    raise ValueError(f"the config gives video_flex_tok the unknown target {short(_target(tree))}, expected one of {', '.join(MODELS)}.")
  check_targets(tree)
  check_arguments("wrapper", wrapper, WRAPPER)
  for part in ("vae", "encoder", "decoder", "regularizer"):
    if part not in tree:
      raise ValueError(f"the config has no part {part!r} in video_flex_tok: it is incomplete.")
  fsq, noise = tree["regularizer"], tree.get("flow_matching_noise_module") or {}
  for part, spec in (("vae", tree["vae"]), ("regularizer", fsq), ("flow_matching_noise_module", noise)):
    if not isinstance(spec, Mapping):
      raise ValueError(f"the config has {part} = {short(spec)}, expected a module.")
    check_arguments(part, spec, ARGUMENTS)
  levels = tuple(_need(fsq, "levels", "regularizer"))
  dino = bool(semantok.get("dino_input"))
  encoder = _Walk("encoder", tree["encoder"])
  encoder.kinds[tree["vae"].get("vae_latents_write_key", "vae_latents")] = "latents"
  encoder.free_input = dino
  encoder.run()
  decoder = _Walk("decoder", tree["decoder"])
  decoder.kinds[fsq.get("quants_write_key", "quants")] = "codes"
  decoder.kinds[noise.get("noised_images_write_key", "vae_latents_noised")] = "latents"
  decoder.kinds[noise.get("timesteps_write_key", "timesteps")] = "timesteps"
  decoder.run()
  sizes = wrapper.get("vae_video_sizes") or (5, 32, 32)
  cfg = TokenizerConfig(
    vae=vae,
    encoder=encoder.encoder_config(len(levels), semantok),
    decoder=decoder.decoder_config(len(levels), encoder.modules["registers"]["n_max"]),
    levels=levels,
    chunk_frames=int(wrapper.get("chunk_size") or 17),
    overlap_frames=int(wrapper["overlap_size_frames"] if wrapper.get("overlap_size_frames") is not None else 1),
    latent_size=(int(sizes[1]), int(sizes[2])),
    dino_frames=str(semantok.get("dino_frame_agg") or "avg") if dino else "",
  )
  check(cfg)
  return cfg, Names(encoder.names, decoder.names, decoder.registers_first)


def check_targets(tree: Any) -> None:
  """Raises ValueError naming the first `_target_` in the tree that no released model has."""
  known = {*MODELS, *PLUMBING, *NOISE, *_Walk.HANDLERS, "VidTokVAE", "VideoMinRFPipeline", "FSQ", "SequentialModuleDictWrapper"}
  if isinstance(tree, Mapping):
    if "_target_" in tree and _class(tree) not in known:
      raise ValueError(f"the config names the unknown target {short(_target(tree))}, expected a VideoFlexTok module.")
    for value in tree.values():
      check_targets(value)
  elif isinstance(tree, (list, tuple)):
    for value in tree:
      check_targets(value)


def check_arguments(name: str, spec: Mapping[str, Any], known: Mapping[str, Any]) -> None:
  """Raises ValueError naming the first argument of a module that is not of the kind it must be."""
  for key, value in spec.items():
    ok, what = known.get(key, (None, ""))
    if ok is None and key.endswith("_key") and key not in HARMLESS:
      ok, what = (lambda v: isinstance(v, str)), "a name"
    if ok is not None and value is not None and not ok(value):
      raise ValueError(f"module {name!r} of the config has {key} = {short(value)}, expected {what}.")


def _target(spec) -> Any:
  return spec.get("_target_") if isinstance(spec, Mapping) else spec


def _class(spec) -> str:
  return str(_target(spec)).rsplit(".", 1)[-1]


def _need(spec: Mapping[str, Any], key: str, name: str) -> Any:
  if spec.get(key) is None:
    raise ValueError(f"module {name!r} of the config lacks the argument {key!r}: the config is incomplete.")
  return spec[key]


class _Walk:
  """Follows the data keys through one ordered module dict; what each key holds decides each module's role."""

  def __init__(self, part: str, spec: Mapping[str, Any]):
    self.part = part
    self.module_dict = spec.get("module_dict") if isinstance(spec, Mapping) else None
    if not isinstance(self.module_dict, Mapping) or not self.module_dict:
      raise ValueError(f"the {part} of the config has no module_dict: the config is incomplete.")
    self.kinds: dict[str, str] = {}
    self.names: dict[str, str] = {}
    self.modules: dict[str, Mapping[str, Any]] = {}
    self.order: list[str] = []  # of the learned vectors that overwrite registers
    self.packed: list[str] = []
    self.free_input = False

  def run(self) -> None:
    for name, spec in self.module_dict.items():
      handler = self.HANDLERS.get(_class(spec))
      if handler is None:
        raise ValueError(f"module {name!r} has the unknown target {short(_target(spec))}, expected a VideoFlexTok module.")
      check_arguments(name, spec, ARGUMENTS)
      used = handler(self, name, spec)
      extra = sorted(set(spec) - HARMLESS - {"_target_", "_partial_"} - set(used.split()))
      if extra:
        warnings.warn(f"argument {extra[0]!r} of module {name!r} is not known and was left out.", stacklevel=2)

  @property
  def registers_first(self) -> bool:
    return self.packed == ["registers", "patches"]

  def _read(self, name: str, key: str, *expected: str) -> str:
    kind = self.kinds.get(key)
    if kind is None and self.free_input and "latents" in expected:
      return "latents"
    if kind is None:
      raise ValueError(f"module {name!r} of the {self.part} reads {key!r}, which no module before it writes.")
    if kind not in expected:
      raise ValueError(f"module {name!r} of the {self.part} reads {key!r}, which holds {kind}, expected {expected[0]}.")
    return kind

  def _claim(self, role: str, name: str, spec: Mapping[str, Any]) -> None:
    if role in self.names:
      raise ValueError(f"modules {self.names[role]!r} and {name!r} of the {self.part} both act as {role}, expected one.")
    self.names[role], self.modules[role] = name, spec

  def _role(self, role: str) -> Mapping[str, Any]:
    if role not in self.modules:
      raise ValueError(f"the {self.part} of the config has no module that acts as {role}: the config is incomplete.")
    return self.modules[role]

  def _per_sample_op(self, name, spec):
    self.kinds[_need(spec, "write_key", name)] = self._read(name, _need(spec, "read_key", name), "latents", "velocity")
    return "read_key write_key"

  def _patch_embedder(self, name, spec):
    self._read(name, _need(spec, "input_tensor_list_read_key", name), "latents")
    self.kinds[_need(spec, "patches_list_write_key", name)] = "patches"
    self._claim("patch_in", name, spec)
    return "input_tensor_list_read_key patches_list_write_key patch_sizes channels_in dim"

  def _positions(self, name, spec):
    kind = self._read(name, _need(spec, "read_key", name), "patches", "registers")
    self.kinds[spec.get("write_key") or spec["read_key"]] = kind
    self._claim("patch_positions" if kind == "patches" else "register_positions", name, spec)
    if kind == "registers" and self.order:
      raise ValueError(f"module {name!r} adds positions after registers were overwritten: this order is not supported.")
    return "read_key write_key dim max_sizes posemb_type posemb_scaling"

  def _registers(self, name, spec):
    self._read(name, _need(spec, "input_tensor_list_read_key", name), "patches")
    self.kinds[_need(spec, "registers_write_key", name)] = "registers"
    self._claim("registers", name, spec)
    _need(spec, "n_max", name)
    if spec.get("n_eval") not in (None, spec["n_max"]):
      raise ValueError(f"module {name!r} has n_eval={spec['n_eval']}, expected n_max={spec['n_max']}.")
    return "input_tensor_list_read_key registers_write_key dim t_max n_max n_eval"

  def _linear_layer(self, name, spec):
    self._read(name, _need(spec, "read_key", name), "codes")
    self.kinds[_need(spec, "write_key", name)] = "registers"
    self._claim("codes_in", name, spec)
    return "read_key write_key dim_in dim"

  def _replacement(self, role):
    def handle(self, name, spec):
      self._read(name, _need(spec, "read_write_key", name), "registers")
      self._claim(role, name, spec)
      self.order.append(role)
      return "read_write_key dim"

    return handle

  def _packer(self, name, spec):
    keys = _need(spec, "input_list_read_keys", name)
    self.packed = [self._read(name, key, "patches", "registers") for key in keys]
    if sorted(self.packed) != ["patches", "registers"]:
      raise ValueError(f"module {name!r} packs {', '.join(self.packed)}, expected patches and registers.")
    self.kinds[_need(spec, "packed_seq_write_key", name)] = "sequence"
    self._claim("packer", name, spec)
    return "input_list_read_keys packed_seq_write_key mask_mode cross_timestep_attention_config per_subseq_embs"

  def _transformer(self, name, spec):
    self._read(name, _need(spec, "input_seq_read_key", name), "sequence")
    self.kinds[_need(spec, "output_seq_write_key", name)] = "sequence"
    self._claim("stack", name, spec)
    return (
      "input_seq_read_key output_seq_write_key dim depth head_dim mlp_ratio gated_mlp qk_norm qkv_bias proj_bias"
      " mlp_bias adaLN_emb_read_key adaLN_expansion"
    )

  def _unpacker(self, name, spec):
    self._read(name, _need(spec, "packed_seq_read_key", name), "sequence")
    keys = _need(spec, "inner_seq_write_keys", name)
    if len(keys) != len(self.packed):
      raise ValueError(f"module {name!r} unpacks {len(keys)} sequences, expected the {len(self.packed)} that were packed.")
    self.kinds.update({key: f"{kind}_out" for key, kind in zip(keys, self.packed, strict=True)})
    return "packed_seq_read_key inner_seq_write_keys"

  def _linear_head(self, name, spec):
    self._read(name, _need(spec, "read_key", name), "registers_out")
    self.kinds[_need(spec, "write_key", name)] = "z"
    self._claim("head", name, spec)
    self._refuse_mup(name, spec)
    return "read_key write_key dim dim_out use_mup_readout"

  def _to_patches(self, name, spec):
    self._read(name, _need(spec, "read_key", name), "patches_out")
    self.kinds[_need(spec, "write_key", name)] = "velocity"
    self._claim("head", name, spec)
    self._refuse_mup(name, spec)
    return "read_key write_key dim channels_out patch_sizes use_mup_readout adaLN_emb_read_key"

  def _transformer_head(self, name, spec):
    self._claim("readout", name, spec)
    return " ".join(spec)

  def _time(self, name, spec):
    self._read(name, _need(spec, "timesteps_read_key", name), "timesteps")
    self.kinds[_need(spec, "time_embedding_write_key", name)] = "time"
    self._claim("time", name, spec)
    return "timesteps_read_key time_embedding_write_key dim frequency_embedding_size max_timestep"

  def _refuse_mup(self, name, spec):
    if spec.get("use_mup_readout"):
      raise ValueError(f"module {name!r} has use_mup_readout=true, expected false: its base width is not in the file.")

  HANDLERS = {
    "PerSampleOp": _per_sample_op,
    "PatchEmbedder": _patch_embedder,
    "PositionalEmbeddingAdder": _positions,
    "RegistersTemporal2D": _registers,
    "LinearLayer": _linear_layer,
    "MaskedNestedDropout": _replacement(None, "mask"),
    "MaskedPrefixDropout": _replacement(None, "prefix"),
    "LearnedNullCond": _replacement(None, "null"),
    "BlockWiseSequenceInterleavePacker": _packer,
    "FlexTransformer": _transformer,
    "SequenceInterleavedUnpacker": _unpacker,
    "LinearHead": _linear_head,
    "ToPatchesLinearHead": _to_patches,
    "TransformerHead": _transformer_head,
    "TimestepEmbedder": _time,
  }

  def encoder_config(self, code_dim: int, semantok: Mapping[str, Any]) -> EncoderConfig:
    patch, registers, head = self._role("patch_in"), self._role("registers"), self._role("head")
    if _need(head, "dim_out", self.names["head"]) != code_dim:
      raise ValueError(f"the encoder's head gives {head['dim_out']} values, expected one per FSQ level, {code_dim}.")
    mask, cross = self._mask()
    if self.registers_first and mask not in ("full", "time_block_causal"):
      raise ValueError(f"the encoder packs registers before patches under mask {mask!r}: this order is not supported.")
    return EncoderConfig(
      stack=self._stack(),
      patch=tuple(_need(patch, "patch_sizes", self.names["patch_in"])),
      channels=int(_need(patch, "channels_in", self.names["patch_in"])),
      positions=self._position("patch_positions", 3),
      t_max=int(_need(registers, "t_max", self.names["registers"])),
      registers=int(registers["n_max"]),
      out_dim=code_dim,
      mask=mask,
      cross=cross,
      global_token=1024 if semantok.get("global_token") else 0,
    )

  def decoder_config(self, code_dim: int, registers: int) -> DecoderConfig:
    patch, head, time = self._role("patch_in"), self._role("head"), self._role("time")
    self._role("codes_in")
    mask, cross = self._mask()
    stack = self._stack()
    if stack.adaln == 0:
      raise ValueError(f"the decoder's transformer {self.names['stack']!r} reads no time embedding: set adaLN_emb_read_key.")
    if self.registers_first and mask not in ("full", "time_block_causal"):
      raise ValueError(f"the decoder packs registers before patches under mask {mask!r}: this order is not supported.")
    return DecoderConfig(
      stack=stack,
      patch=tuple(_need(patch, "patch_sizes", self.names["patch_in"])),
      channels=int(_need(head, "channels_out", self.names["head"])),
      code_dim=code_dim,
      registers=int(registers),
      positions=self._position("patch_positions", 3),
      register_positions=self._position("register_positions", 2),
      replacements=tuple(self.order),
      mask=mask,
      cross=cross,
      head_adaln=head.get("adaLN_emb_read_key") is not None,
      time_features=int(time.get("frequency_embedding_size") or 256),
      max_timestep=float(time.get("max_timestep") or 1.0),
    )

  def _stack(self) -> StackConfig:
    spec, name = self._role("stack"), self.names["stack"]
    adaln = spec.get("adaLN_emb_read_key") is not None
    expansion = int(spec.get("adaLN_expansion") or 1) if adaln else 0
    if expansion > 2:
      raise ValueError(f"module {name!r} has adaLN_expansion={expansion}, expected 1 or 2 (patches and registers).")
    if expansion == 2 and not self._role("packer").get("per_subseq_embs"):
      raise ValueError(f"module {name!r} has adaLN_expansion=2, expected per_subseq_embs=true in {self.names['packer']!r}.")
    flags = {k: bool(spec[k]) for k in ("gated_mlp", "qk_norm", "qkv_bias", "proj_bias", "mlp_bias") if spec.get(k) is not None}
    return StackConfig(
      dim=int(_need(spec, "dim", name)),
      depth=int(_need(spec, "depth", name)),
      head_dim=int(spec.get("head_dim") or 64),
      mlp_ratio=float(spec.get("mlp_ratio") or 4.0),
      adaln=expansion,
      **flags,
    )

  def _position(self, role: str, rank: int) -> PositionConfig | None:
    if role not in self.modules:
      return None
    spec, name = self.modules[role], self.names[role]
    kind, sizes = spec.get("posemb_type") or "learnable_sum", tuple(_need(spec, "max_sizes", name))
    if kind not in POSITION_KINDS or len(sizes) != rank or (kind == "sincos" and rank != 2):
      known = ", ".join(POSITION_KINDS)
      raise ValueError(f"module {name!r} has {kind!r} positions of sizes {sizes}, expected {rank}-D of {known} (sincos: 2-D).")
    if spec.get("posemb_scaling") not in (None, "absolute"):
      raise ValueError(f"module {name!r} has posemb_scaling={spec['posemb_scaling']!r}, expected 'absolute'.")
    return PositionConfig(kind, sizes)

  def _mask(self) -> tuple[str, tuple[str, ...]]:
    spec, name = self._role("packer"), self.names["packer"]
    mode, cross = spec.get("mask_mode") or "full", spec.get("cross_timestep_attention_config")
    if cross is not None:
      found = {str(k).replace("_to_", "2").removesuffix("_attention"): v for k, v in dict(cross).items()}
      order = ("prefix2prefix", "prefix2nonprefix", "nonprefix2prefix", "nonprefix2nonprefix")
      if set(found) != set(order):
        raise ValueError(f"module {name!r} has the cross-step keys {sorted(cross)}, expected {', '.join(order)}.")
      return "flexible", tuple(str(found[k]) for k in order)
    if mode not in ("full", "causal", "time_block_causal", "time_block_causal_last"):
      raise ValueError(f"module {name!r} has mask_mode={mode!r}, expected full, causal or time_block_causal(_last).")
    return mode, ("full",) * 4
