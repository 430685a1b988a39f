"""Which module of a released config does what: found by its `_target_` and the data keys it reads and writes.

Module names and key names are free. Nothing is instantiated; unknown targets and broken wiring are errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from vftok.runtime.words import brief, is_number

MODELS = ("VideoFlexTok", "VideoFlowMatchingResampler")
PLUMBING = ("channels_first_to_last", "channels_last_to_first")
NOISE = ("PrefixMinRFNoiseModule", "MinRFNoiseModule")
COMMON = (*PLUMBING, "FSQ", "SequentialModuleDictWrapper")
# Keywords that steer training, compilation or naming only: they do not change what the loaded graph computes.
HARMLESS = frozenset(
  """
  flatten_patches n_patches_write_key register_sizes_read_write_key size_sampling_mode n_min block_mask_write_key
  inner_packed_shapes_write_key outer_packed_shapes_write_key inner_packed_shapes_read_key
  outer_packed_shapes_read_key pad_to_multiple compile_block_mask emb_packing_fn_write_key block_mask_read_key
  adaLN_packing_fn_read_key weight_init_style dtype_override eval_keep_k_read_key train_keep_k_write_key
  prefix_len_read_key eval_prefix_len_read_key eval_drop_flag_read_key dropout_prob drop_path_rate drop
  use_act_checkpoint intermediate_layers intermediate_layers_write_key per_sample_op
  """.split()
)

# What each argument that decides the graph must be, where it is given at all.
_COUNTS = (
  "dim",
  "dim_in",
  "dim_out",
  "depth",
  "head_dim",
  "channels_in",
  "channels_out",
  "t_max",
  "n_max",
  "n_eval",
  "adaLN_expansion",
)
_FLAGS = ["per_subseq_embs", "gated_mlp", "qk_norm", "qkv_bias", "proj_bias", "mlp_bias", "use_mup_readout"]
_IS_COUNT = lambda v: type(v) is int
_IS_COUNTS = lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(map(_IS_COUNT, v))
_IS_NAMES = lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(isinstance(n, str) for n in v)
ARGUMENTS = {
  **{name: (_IS_COUNT, "a whole number") for name in (*_COUNTS, "frequency_embedding_size")},
  **{name: (is_number, "a finite number") for name in ("mlp_ratio", "max_timestep")},
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


def check_targets(tree: Any, known: Collection[str] = (), what: str = "a VideoFlexTok module") -> None:
  """Raises ValueError naming the first `_target_` in the tree that no released model has; `known`: another family's."""
  known = known or {*MODELS, *NOISE, *COMMON, *Wiring.HANDLERS, "VidTokVAE", "VideoMinRFPipeline"}
  if isinstance(tree, Mapping):
    if "_target_" in tree and class_of(tree) not in known:
      raise ValueError(f"the config names the unknown target {brief(target_of(tree))}, expected {what}.")
    for value in tree.values():
      check_targets(value, known, what)
  elif isinstance(tree, (list, tuple)):
    for value in tree:
      check_targets(value, known, what)


def check_arguments(name: str, spec: Mapping[str, Any], known: Mapping[str, Any]) -> None:
  """Raises ValueError naming the first argument of a module that is not of the kind it must be."""
  for key, value in spec.items():
    ok, what = known.get(key, (None, ""))
    if ok is None and key.endswith("_key") and key not in HARMLESS:
      ok, what = (lambda v: isinstance(v, str)), "a name"
    if ok is not None and value is not None and not ok(value):
      raise ValueError(f"module {brief(name)} of the config has {key} = {brief(value)}, expected {what}.")


def target_of(spec) -> Any:
  return spec.get("_target_") if isinstance(spec, Mapping) else spec


def class_of(spec) -> str:
  return str(target_of(spec)).rsplit(".", 1)[-1]


def need(spec: Mapping[str, Any], key: str, name: str) -> Any:
  if spec.get(key) is None:
    raise ValueError(f"module {brief(name)} of the config lacks the argument {brief(key)}: the config is incomplete.")
  return spec[key]


class Wiring:
  """Follows the data keys through one ordered module dict; what each key holds decides each module's role."""

  RANKS = {"patch_positions": 3, "register_positions": 2}  # axes of the grids that have positions

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
      handler = self.HANDLERS.get(class_of(spec))
      if handler is None:
        raise ValueError(
          f"module {brief(name)} has the unknown target {brief(target_of(spec))}, expected a VideoFlexTok module."
        )
      check_arguments(name, spec, ARGUMENTS)
      used = handler(self, name, spec)
      extra = sorted(set(spec) - HARMLESS - {"_target_", "_partial_"} - set(used.split()))
      if extra:
        self.unknown(name, spec, extra)

  def unknown(self, name: str, spec: Mapping[str, Any], extra: list[str]) -> None:
    """What is done about arguments that are not known."""
    warnings.warn(f"argument {brief(extra[0])} of module {brief(name)} is not known and was left out.", stacklevel=3)

  @property
  def registers_first(self) -> bool:
    return self.packed == ["registers", "patches"]

  def _read(self, name: str, key: str, *expected: str) -> str:
    kind = self.kinds.get(key)
    if kind is None and self.free_input and "latents" in expected:
      return "latents"
    if kind is None:
      raise ValueError(f"module {brief(name)} of the {self.part} reads {brief(key)}, which no module before it writes.")
    if kind not in expected:
      raise ValueError(
        f"module {brief(name)} of the {self.part} reads {brief(key)}, which holds {kind}, expected {expected[0]}."
      )
    return kind

  def _before_packing(self, name: str, key: str, *expected: str) -> str:
    """As `_read`; what comes after the packer would change nothing."""
    if "packer" in self.names:
      raise ValueError(
        f"module {brief(name)} of the {self.part} comes after {brief(self.names['packer'])}, which packs what it "
        "changes, expected before: move it."
      )
    return self._read(name, key, *expected)

  def _moved(self, key: str, new: str | None, left: str) -> None:
    """What `key` held is changed and written to `new`; under `key` remains, where that is another, what `left` says."""
    kind, self.kinds[key] = self.kinds[key], left
    self.kinds[new or key] = kind

  def _read_time(self, name: str, spec: Mapping[str, Any]) -> None:
    if spec.get("adaLN_emb_read_key") is not None:
      self._read(name, spec["adaLN_emb_read_key"], "time")

  def _claim(self, role: str, name: str, spec: Mapping[str, Any]) -> None:
    if role in self.names:
      raise ValueError(
        f"modules {brief(self.names[role])} and {brief(name)} of the {self.part} both act as {role}, expected one."
      )
    self.names[role], self.modules[role] = name, spec

  def role(self, role: str) -> Mapping[str, Any]:
    if role not in self.modules:
      raise ValueError(f"the {self.part} of the config has no module that acts as {role}: the config is incomplete.")
    return self.modules[role]

  def _per_sample_op(self, name, spec):
    self.kinds[need(spec, "write_key", name)] = self._read(name, need(spec, "read_key", name), "latents", "velocity")
    return "read_key write_key"

  def _patch_embedder(self, name, spec):
    self._read(name, need(spec, "input_tensor_list_read_key", name), "latents")
    self.kinds[need(spec, "patches_list_write_key", name)] = "patches"
    self._claim("patch_in", name, spec)
    return "input_tensor_list_read_key patches_list_write_key patch_sizes channels_in dim"

  def _positions(self, name, spec):
    kind = self._before_packing(name, need(spec, "read_key", name), "patches", "registers")
    self._moved(spec["read_key"], spec.get("write_key"), f"{kind} without positions")
    self._claim("patch_positions" if kind == "patches" else "register_positions", name, spec)
    if kind == "registers" and self.order:
      raise ValueError(
        f"module {brief(name)} adds positions after registers were overwritten: this order is not supported."
      )
    return "read_key write_key dim max_sizes posemb_type posemb_scaling"

  def _registers(self, name, spec):
    self._read(name, need(spec, "input_tensor_list_read_key", name), "patches", "patches without positions")
    self.kinds[need(spec, "registers_write_key", name)] = "registers"
    self._claim("registers", name, spec)
    need(spec, "n_max", name)
    if spec.get("n_eval") not in (None, spec["n_max"]):
      raise ValueError(
        f"module {brief(name)} has n_eval={brief(spec['n_eval'])}, expected n_max={brief(spec['n_max'])}."
      )
    return "input_tensor_list_read_key registers_write_key dim t_max n_max n_eval"

  def _linear_layer(self, name, spec):
    self._read(name, need(spec, "read_key", name), "codes")
    self.kinds[need(spec, "write_key", name)] = "registers"
    self._claim("codes_in", name, spec)
    return "read_key write_key dim_in dim"

  def _replacement(self, role):
    def handle(self, name, spec):
      self._before_packing(name, need(spec, "read_write_key", name), "registers")
      self._claim(role, name, spec)
      self.order.append(role)
      return "read_write_key dim"

    return handle

  def _packer(self, name, spec):
    keys = need(spec, "input_list_read_keys", name)
    self.packed = [self._read(name, key, "patches", "registers") for key in keys]
    if sorted(self.packed) != ["patches", "registers"]:
      raise ValueError(f"module {brief(name)} packs {', '.join(self.packed)}, expected patches and registers.")
    self.kinds[need(spec, "packed_seq_write_key", name)] = "sequence"
    self._claim("packer", name, spec)
    return "input_list_read_keys packed_seq_write_key mask_mode cross_timestep_attention_config per_subseq_embs"

  def _transformer(self, name, spec):
    self._read(name, need(spec, "input_seq_read_key", name), "sequence")
    self._moved(spec["input_seq_read_key"], need(spec, "output_seq_write_key", name), "the transformer's input")
    self._claim("stack", name, spec)
    self._read_time(name, spec)
    return (
      "input_seq_read_key output_seq_write_key dim depth head_dim mlp_ratio gated_mlp qk_norm qkv_bias proj_bias"
      " mlp_bias adaLN_emb_read_key adaLN_expansion"
    )

  def _unpacker(self, name, spec):
    self._read(name, need(spec, "packed_seq_read_key", name), "sequence")
    if "stack" not in self.names:
      raise ValueError(
        f"module {brief(name)} of the {self.part} unpacks before a transformer, expected after: move it."
      )
    keys = need(spec, "inner_seq_write_keys", name)
    if len(keys) != len(self.packed):
      raise ValueError(
        f"module {brief(name)} unpacks {len(keys)} sequences, expected the {len(self.packed)} that were packed."
      )
    self.kinds.update({key: f"{kind}_out" for key, kind in zip(keys, self.packed, strict=True)})
    return "packed_seq_read_key inner_seq_write_keys"

  def _linear_head(self, name, spec):
    self._read(name, need(spec, "read_key", name), "registers_out")
    self.kinds[need(spec, "write_key", name)] = "z"
    self._claim("head", name, spec)
    self._refuse_mup(name, spec)
    return "read_key write_key dim dim_out use_mup_readout proj_bias"

  def _to_patches(self, name, spec):
    self._read(name, need(spec, "read_key", name), "patches_out")
    self.kinds[need(spec, "write_key", name)] = "velocity"
    self._claim("head", name, spec)
    self._read_time(name, spec)
    self._refuse_mup(name, spec)
    return "read_key write_key dim channels_out patch_sizes use_mup_readout adaLN_emb_read_key proj_bias"

  def _transformer_head(self, name, spec):
    self._claim("readout", name, spec)
    return " ".join(spec)

  def _time(self, name, spec):
    self._read(name, need(spec, "timesteps_read_key", name), "timesteps")
    self.kinds[need(spec, "time_embedding_write_key", name)] = "time"
    self._claim("time", name, spec)
    return "timesteps_read_key time_embedding_write_key dim frequency_embedding_size max_timestep"

  def _refuse_mup(self, name, spec):
    if spec.get("use_mup_readout"):
      raise ValueError(
        f"module {brief(name)} has use_mup_readout=true, expected false: its base width is not in the file."
      )

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
