"""Random checkpoints with any switch a released config can set, and what compares them with the oracle."""

import copy
import dataclasses
import functools
import json
import pathlib
import zlib

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

DATA = pathlib.Path(__file__).parent / "data"
PREFIX = "video_tokenizer."
# Three of a chunk's five time steps: every table is cropped, and programs compile faster.
K, STEPS, GRID = 4, 3, 4
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Part:
  """Switches of the encoder or the decoder. `stack`: changed arguments of the transformer."""

  mask: str
  cross: tuple[str, ...] | None = None
  patch: tuple[int, int, int] = (1, 2, 2)
  dim: int = 32
  positions: str | None = "learnable_sum"
  stack: tuple[tuple[str, object], ...] = ()
  head_bias: bool = True


@dataclasses.dataclass(frozen=True)
class Model:
  enc: Part = Part("time_block_causal_last")
  dec: Part = Part("time_block_causal")
  levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
  register_positions: tuple[str, tuple[int, int]] | None = ("learnable_sum", (8, 8))
  overwrite: tuple[str, ...] = ("mask", "prefix", "null")
  registers_first: bool = False
  adaln: int = 2
  head_adaln: bool = True
  frequencies: int = 256
  max_timestep: float = 1.0
  t_max: int = 5
  overlap: int = 1
  readout: int = 0  # blocks of a stored REPA head


def stack(**changed):
  return tuple(changed.items())


PLAIN_MLP = stack(gated_mlp=False, qk_norm=False, qkv_bias=True, proj_bias=True, mlp_bias=True, mlp_ratio=2.0)
MODELS = {
  "golden_like": Model(),
  "k600_like": Model(
    enc=Part("time_block_causal_last", patch=(1, 1, 1)),
    dec=Part("full", patch=(1, 1, 1)),
    register_positions=("sincos", (5, 4)),
    head_adaln=False,
    max_timestep=1000.0,
    overlap=0,
  ),
  "products": Model(
    enc=Part("full", positions="learnable_prod"),
    dec=Part("causal", positions="learnable_prod", dim=48),
    register_positions=("learnable_prod", (8, 8)),
    frequencies=128,
  ),
  "large_sincos_one_modulation": Model(
    enc=Part("time_block_causal"),
    dec=Part("time_block_causal_last"),
    register_positions=("sincos", (9, 16)),
    overwrite=("mask", "null"),
    adaln=1,
    t_max=7,
  ),
  "flexible": Model(
    enc=Part("time_block_causal_last", ("full", "none", "full", "causal"), positions=None),
    dec=Part("time_block_causal_last", ("causal", "full", "none", "full")),
    register_positions=None,
    overlap=5,
  ),
  "no_null": Model(
    enc=Part("causal"),
    dec=Part("full", positions=None),
    overwrite=("mask", "prefix"),
    levels=(8, 5, 5, 5),
    readout=2,
  ),
  "no_mask": Model(overwrite=("prefix", "null"), registers_first=True, overlap=5),
  "no_learned_vectors": Model(overwrite=(), register_positions=None, adaln=1, head_adaln=False),
  "registers_first": Model(
    dec=Part("full", dim=64, stack=stack(head_dim=16)),
    registers_first=True,
    levels=(8, 5, 5, 5),
    readout=2,
  ),
  "null_before_mask": Model(overwrite=("null", "prefix", "mask"), adaln=1, registers_first=True),
  "plain_mlp_with_biases": Model(
    enc=Part("time_block_causal_last", stack=PLAIN_MLP), dec=Part("time_block_causal", stack=PLAIN_MLP)
  ),
  "gated_mlp_with_biases": Model(
    enc=Part("time_block_causal", stack=stack(mlp_bias=True, mlp_ratio=2.0), dim=48),
    dec=Part("time_block_causal", patch=(1, 1, 1), stack=stack(qkv_bias=True, mlp_ratio=3.0)),
    readout=2,
  ),
  "no_qk_norm": Model(
    enc=Part("full", stack=stack(qk_norm=False)),
    dec=Part("full", stack=stack(qk_norm=False, proj_bias=True)),
    overwrite=("prefix", "mask", "null"),
  ),
  "heads_without_bias": Model(
    enc=Part("time_block_causal_last", head_bias=False), dec=Part("time_block_causal", head_bias=False)
  ),
}

# ---- making checkpoints


@functools.cache
def golden():
  with safe_open(DATA / "small.safetensors", "np") as file:
    config = json.loads(file.metadata()["config"])
  tensors = {k.removeprefix("w." + PREFIX): v for k, v in load_file(DATA / "small.safetensors").items()}
  return config, {k: v for k, v in tensors.items() if k.startswith("vae.")}


def config_of(model: Model):
  """The golden config with the model's switches set."""
  config = copy.deepcopy(golden()[0])
  tree = config["video_flex_tok"]
  tree["regularizer"]["levels"] = list(model.levels)
  config["overlap_size_frames"] = config["video_preprocess_args"]["overlap_size_frames"] = model.overlap
  enc, dec = tree["encoder"]["module_dict"], tree["decoder"]["module_dict"]
  for modules, part, head, patches in (
    (enc, model.enc, "enc_to_latents", "enc_patch_emb"),
    (dec, model.dec, "dec_to_patches", "dec_noise_patch_emb"),
  ):
    for spec in modules.values():
      if "dim" in spec:
        spec["dim"] = part.dim
    modules[patches]["patch_sizes"] = list(part.patch)
    side = head[:3]
    packer = modules[f"{side}_seq_packer"]
    packer["mask_mode"] = part.mask
    packer["cross_timestep_attention_config"] = None if part.cross is None else named_cross(part.cross)
    modules[f"{side}_transformer"] |= {"head_dim": 16, **dict(part.stack)}
    posemb = "enc_posemb_module" if side == "enc" else "dec_patches_posemb_module"
    modules[posemb]["posemb_type"] = part.positions
    if part.positions is None:
      del modules[posemb]
    if not part.head_bias:
      modules[head]["proj_bias"] = False
  enc["enc_register_module"] |= {"t_max": model.t_max, "n_min": K, "n_max": K}
  enc["enc_to_latents"]["dim_out"] = dec["dec_from_latents"]["dim_in"] = len(model.levels)
  dec["dec_to_patches"]["patch_sizes"] = list(model.dec.patch)
  if not model.head_adaln:
    del dec["dec_to_patches"]["adaLN_emb_read_key"]
  dec["dec_transformer"]["adaLN_expansion"] = model.adaln
  dec["dec_time_embedder"] |= {
    "frequency_embedding_size": model.frequencies,
    "max_timestep": model.max_timestep,
  }
  if model.registers_first:
    for spec, key in (("dec_seq_packer", "input_list_read_keys"), ("dec_unpacker", "inner_seq_write_keys")):
      dec[spec][key] = dec[spec][key][::-1]
  if model.register_positions is None:
    del dec["dec_registers_posemb_module"]
  else:
    kind, sizes = model.register_positions
    dec["dec_registers_posemb_module"] |= {"posemb_type": kind, "max_sizes": list(sizes)}
  modules = {"mask": "dec_nested_dropout", "prefix": "dec_prefix_masking", "null": "dec_latent_dropout"}
  ordered = {}
  for name, spec in dec.items():
    if name == "dec_nested_dropout":
      ordered |= {modules[role]: dec[modules[role]] for role in model.overwrite}
    elif name == "dec_to_patches" and model.readout:
      ordered["dec_repa_head"] = {
        "_target_": "videoflextok.model.postprocessors.heads.TransformerHead",
        "read_key": "dec_patches",
        "write_key": "dec_repa",
        "dim": model.dec.dim,
        "dim_out": 24,
        "depth": model.readout,
      }
    if name not in modules.values():
      ordered[name] = spec
  tree["decoder"]["module_dict"] = ordered
  return config


def named_cross(cross):
  names = ("prefix2prefix", "prefix2nonprefix", "nonprefix2prefix", "nonprefix2nonprefix")
  return dict(zip(names, cross, strict=True))


def tensors_of(tree):
  """Random tensors, none zero, in the names and shapes of the released layout; without the VAE's."""
  out = {}
  rng = np.random.Generator(np.random.PCG64(zlib.crc32(json.dumps(tree).encode())))

  def normal(name, scale, *shape):
    out[name] = (scale * rng.standard_normal(shape)).astype(np.float32)

  def linear(name, fan_in, fan_out, bias=True, gain=1.0):
    normal(f"{name}.weight", gain / np.sqrt(fan_in), fan_out, fan_in)
    if bias:
      normal(f"{name}.bias", 0.2, fan_out)

  def blocks(name, spec, adaln):
    dim, ratio = spec["dim"], spec.get("mlp_ratio", 4.0)
    hidden = int(2 * int(ratio * dim) / 3) if spec.get("gated_mlp", True) else int(ratio * dim)
    for i in range(spec["depth"]):
      at = f"{name}.blocks.{i}"
      for w in ("wq", "wk", "wv"):
        linear(f"{at}.attn.{w}", dim, dim, spec.get("qkv_bias", False))
      linear(f"{at}.attn.proj", dim, dim, spec.get("proj_bias", False))
      for fc in ("fc1", "fc3") if spec.get("gated_mlp", True) else ("fc1",):
        linear(f"{at}.mlp.{fc}", dim, hidden, spec.get("mlp_bias", False))
      linear(f"{at}.mlp.fc2", hidden, dim, spec.get("mlp_bias", False))
      if adaln:
        linear(f"{at}.adaLN_modulation.1", dim, adaln * 6 * dim, gain=0.7)

  for part in ("encoder", "decoder"):
    for name, spec in tree[part]["module_dict"].items():
      at, dim = f"{part}.module_dict.{name}", spec.get("dim")
      match spec["_target_"].rsplit(".", 1)[-1]:
        case "PatchEmbedder":
          linear(f"{at}.patch_proj", int(np.prod(spec["patch_sizes"])) * spec["channels_in"], dim)
        case "PositionalEmbeddingAdder" if spec["posemb_type"] == "sincos":
          out[f"{at}.posembs"] = sincos(*spec["max_sizes"], dim)
        case "PositionalEmbeddingAdder":
          normal(f"{at}.posembs", 0.5, len(spec["max_sizes"]), 1, dim, max(spec["max_sizes"]))
        case "RegistersTemporal2D":
          normal(f"{at}.registers", 0.5, spec["t_max"], spec["n_max"], dim)
        case "LinearLayer":
          linear(f"{at}.proj", spec["dim_in"], dim)
        case "MaskedNestedDropout" | "MaskedPrefixDropout":
          normal(f"{at}.dropout_mask_token", 0.5, dim)
        case "LearnedNullCond":
          normal(f"{at}.nullcond", 0.5, dim)
        case "TimestepEmbedder":
          linear(f"{at}.mlp.0", spec["frequency_embedding_size"], dim)
          linear(f"{at}.mlp.2", dim, dim)
        case "FlexTransformer":
          blocks(at, spec, spec.get("adaLN_expansion", 0))
        case "LinearHead":
          linear(f"{at}.proj", dim, spec["dim_out"], spec.get("proj_bias", True))
        case "ToPatchesLinearHead":
          size = int(np.prod(spec["patch_sizes"])) * spec["channels_out"]
          linear(f"{at}.proj", dim, size, spec.get("proj_bias", True))
          if spec.get("adaLN_emb_read_key"):
            linear(f"{at}.adaLN_modulation.1", dim, 2 * dim, gain=0.7)
        case "TransformerHead":  # SwiGLU, no biases, whatever the decoder's blocks have
          blocks(f"{at}.transformer", {"dim": dim, "depth": spec["depth"]}, 0)
          linear(f"{at}.out_proj", dim, 24, bias=False)
  return out


def sincos(h, w, dim):
  """[1, D, h, w]. Any fixed table would do: a loader must take the stored one."""
  row, col, d = np.arange(h)[:, None], np.arange(w)[:, None], dim // 4
  omega = 10000.0 ** (-np.arange(d) / d)
  table = np.zeros((dim, h, w), np.float32)
  table[:d], table[d : 2 * d] = (f(row * omega).T[:, :, None] for f in (np.sin, np.cos))
  table[2 * d : 3 * d], table[3 * d :] = (f(col * omega).T[:, None] for f in (np.sin, np.cos))
  return table[None]


def write(path, config, tensors, prefix=PREFIX, metadata=None):
  path.mkdir(exist_ok=True)
  tensors = {prefix + k: v for k, v in tensors.items()}
  save_file(tensors, path / "model.safetensors", metadata=metadata or {"format": "pt"})
  if metadata is None:
    (path / "config.json").write_text(json.dumps(config))
  return path if metadata is None else path / "model.safetensors"


# ---- comparing


def relative(ours, oracle):
  assert ours.shape == oracle.shape
  return np.linalg.norm(np.asarray(ours, np.float64) - oracle) / np.linalg.norm(oracle)


def last(x):
  return np.moveaxis(x, 1, -1)


@functools.cache
def inputs(size):
  """(latents [3, 16, T, h, w], ids [3, T, K], noise) that all models of one codebook share."""
  rng = np.random.Generator(np.random.PCG64(7))
  latents, noise = rng.standard_normal((2, 3, 16, STEPS, GRID, GRID)).astype(np.float32)
  return latents, rng.integers(0, size, (3, STEPS, K)), noise


SOME = np.array([[0] * STEPS, [1] * STEPS, [2, 0, 1]])  # at most 2 of 4: dropped ones can be merged
MIXED = np.array([[3] * STEPS, [4, 0, 2], [4] * STEPS])
TIMES = np.array([0.75, 0.25, 1.0], np.float32)


def build(model: Model):
  config = config_of(model)
  return config, tensors_of(config["video_flex_tok"])


def same_leaves(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)
