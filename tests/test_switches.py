"""Every switch a released config can set: random checkpoints against the numpy oracle in oracle.py.

Names of modules, data keys and tensors are those of the golden file; each model changes some switches.
"""

import copy
import dataclasses
import functools
import json
import pathlib
import re
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Oracle, mask
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vftok import APG, CFG, Tokenizer, VideoTokens
from vftok.convert import load
from vftok.programs import ids_of, vae_encode

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

THOROUGH = ("k600_like", "registers_first")


@pytest.fixture(scope="module", autouse=True)
def quick():
  """Programs run once here: XLA need not polish them. A config's shapes are found once, not at every load."""
  found = functools.cache(load.abstract_params)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(load, "abstract_params", found)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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


@pytest.fixture(scope="module")
def base():
  return build(MODELS["golden_like"])


def same_leaves(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)


@pytest.mark.parametrize("name", MODELS)
def test_model(name, tmp_path):
  model = MODELS[name]
  config, tensors = build(model)
  path = write(tmp_path / "released", config, tensors | golden()[1])
  tok, params = Tokenizer.load(path)
  oracle = Oracle(config["video_flex_tok"], tensors)
  assert (tok.overlap_frames, tok.registers, tok.chunk_steps) == (model.overlap, K, 5)
  step = 5 if model.overlap == 0 else 5 - (model.overlap + 3) // 4
  assert tok.steps_for(17 + 2 * (17 - model.overlap)) == 5 + 2 * step

  latents, ids, noise = inputs(tok.codebook_size)
  assert tok.codebook_size == np.prod(model.levels)
  z = tok.features(params, last(latents))
  expected = oracle.features(latents)
  assert relative(z, expected) < TOLERANCE
  bounded = oracle.fsq.bounded(expected)
  sure = (np.abs(bounded - np.rint(bounded)) < 0.499).all(-1)
  assert sure.mean() > 0.9 and (np.asarray(ids_of(tok.cfg, z)) == oracle.fsq.ids(expected))[sure].all()
  assert len(np.unique(oracle.fsq.ids(expected))) > 10

  all_kept = VideoTokens.full(ids)
  has = set(model.overwrite)
  # (keep, null, prefix, collapse); programs take long to compile, so most models run each switch once
  mixed, some = (MIXED, SOME) if "mask" in has else (None, None)
  prefix = 1 if "prefix" in has else 0
  cases = [(mixed, False, prefix, False)]
  if name in THOROUGH:
    cases = [(keep, False, 0, False) for keep in (None, MIXED, SOME)]
    cases += [(None, False, 0, True), (SOME, False, 0, True)]
    cases += [(SOME, False, 1, True), (SOME, False, 1, False)] if "prefix" in has else []
    cases += [(None, True, 0, True), (None, True, 0, False)]
  results = {}
  for keep, null, prefix, collapse in cases:
    expected = last(oracle.velocity(ids, noise, TIMES, keep, null=null, prefix=prefix))
    what = (str(keep), null, prefix)
    assert all(relative(expected, other) > 1e-2 for key, other in results.items() if key != what)
    results[what] = expected
    tokens = all_kept if keep is None else all_kept.truncate(keep)
    v = tok.velocity(params, tokens, last(noise), TIMES, null=null, prefix=prefix, collapse=collapse)
    assert relative(v, expected) < TOLERANCE, (what, collapse)

  if "mask" not in has:
    with pytest.raises(ValueError, match="no mask vector"):
      tok.velocity(params, all_kept.truncate(SOME), last(noise), TIMES)
  if "null" not in has:
    with pytest.raises(ValueError, match="no null vector"):
      tok.decode_latents(params, all_kept, guidance=CFG(3.0), steps=4, noise=last(noise))
  tokens = all_kept if some is None else all_kept.truncate(some)
  if "null" not in has:
    guidance, options = None, {}
  elif list(MODELS).index(name) % 2:
    guidance, options = CFG(3.0), {"cfg": 3.0}
  else:
    guidance, options = APG(5.0, 0.5, -0.5, 0.6), {"apg": (5.0, 0.5, -0.5, 0.6)}
  x = tok.decode_latents(params, tokens, guidance=guidance, steps=4, noise=last(noise))
  assert relative(x, last(oracle.sample(ids, noise, 4, some, **options))) < TOLERANCE

  def run(tok, params):  # the last program again: it is compiled already
    return np.asarray(tok.velocity(params, tokens, last(noise), TIMES, null=null, prefix=prefix, collapse=collapse))

  tokens = all_kept
  tok.save(params, tmp_path / "saved")
  tok.export(params, tmp_path / "exported")
  for copy_of in ("saved", "exported"):
    again, params_again = Tokenizer.load(tmp_path / copy_of)
    assert again == tok
    assert again.fingerprint(params_again) == tok.fingerprint(params)
    same_leaves(params, params_again)
    np.testing.assert_array_equal(run(tok, params), run(again, params_again))
  exported = load_file(tmp_path / "exported" / "model.safetensors")
  original = {PREFIX + k: v for k, v in (tensors | golden()[1]).items()}
  assert exported.keys() == original.keys()
  for key, value in original.items():
    if model.registers_first and model.adaln == 2 and "dec_transformer" in key and "adaLN" in key:
      patches_first = np.concatenate(np.split(value, 2)[::-1])
      np.testing.assert_array_equal(exported[key], patches_first, strict=True)
    else:
      np.testing.assert_array_equal(exported[key], value, strict=True)


# ---- other names and other files for the same model


def renamed(config, tensors):
  """Every module, data key and `_target_` package under another name."""
  config = copy.deepcopy(config)
  rng = np.random.Generator(np.random.PCG64(3))
  keys: dict[str, str] = {}

  def fresh(key):
    return keys.setdefault(key, f"k{len(keys)}_{rng.integers(10**6)}")

  def walk(spec):
    for name, value in spec.items():
      if name == "_target_":
        spec[name] = f"somewhere.else_{rng.integers(100)}.{value.rsplit('.', 1)[-1]}"
      elif isinstance(value, dict):
        walk(value)
      elif name.endswith("_key") and value is not None:
        spec[name] = fresh(value)
      elif name.endswith("_keys"):
        spec[name] = [fresh(v) for v in value]

  tree = config["video_flex_tok"]
  walk(tree)
  table = {}
  for part in ("encoder", "decoder"):
    modules = tree[part]["module_dict"]
    table |= {f"{part}.module_dict.{name}": f"{part}.module_dict.m{rng.integers(10**6)}" for name in modules}
    names = [table[f"{part}.module_dict.{name}"].rsplit(".", 1)[-1] for name in modules]
    tree[part]["module_dict"] = dict(zip(names, modules.values(), strict=True))
  return config, {".".join([table[".".join(k.split(".")[:3])], *k.split(".")[3:]]): v for k, v in tensors.items()}


def python_text(config):
  return {key: str(value).replace("None", "null") for key, value in config.items()}


@pytest.fixture(scope="module")
def loaded(base, tmp_path_factory):
  config, tensors = base
  path = write(tmp_path_factory.mktemp("base"), config, tensors | golden()[1])
  return path, *Tokenizer.load(path)


@pytest.mark.parametrize("variant", ["renamed", "wrapped", "no_prefix", "json_metadata", "text_metadata"])
def test_same_model_in_another_dress(variant, base, loaded, tmp_path):
  config, tensors = base
  prefix, metadata = PREFIX, None
  if variant == "renamed":
    config, tensors = renamed(config, tensors)
    assert Oracle(config["video_flex_tok"], tensors).features(inputs(8)[0]).shape == (3, STEPS, K, 6)
  elif variant == "wrapped":
    tensors = {re.sub(r"(blocks\.\d+\.)", r"\1_checkpoint_wrapped_module.", k): v for k, v in tensors.items()}
    assert any("_checkpoint_wrapped_module" in key for key in tensors)
  elif variant == "no_prefix":
    prefix = ""
  elif variant == "json_metadata":
    metadata = {"config": json.dumps(config), "format": "pt"}
  else:
    metadata = python_text(config)
    assert "null" in metadata["video_flex_tok"] and len(metadata["video_flex_tok"]) > 5000
  path = write(tmp_path / "released", config, tensors | golden()[1], prefix, metadata)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    again, params_again = Tokenizer.load(path)
  _, tok, params = loaded
  assert again == tok
  same_leaves(params, params_again)
  again.export(params_again, tmp_path / "exported")
  exported = load_file(tmp_path / "exported" / "model.safetensors")
  assert exported.keys() == {PREFIX + k for k in base[1] | golden()[1]}
  for key, value in base[1].items():
    np.testing.assert_array_equal(exported[PREFIX + key], value, strict=True)


def test_bfloat16_tensors(base, tmp_path):
  config, tensors = base
  half = {k: v.astype(jnp.bfloat16) for k, v in (tensors | golden()[1]).items()}
  tok, params = Tokenizer.load(write(tmp_path / "released", config, half))
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"bfloat16"}
  latents = inputs(8)[0]
  expected = Oracle(config["video_flex_tok"], {k: half[k] for k in tensors}).features(latents)
  assert relative(tok.features(params, last(latents)), expected) < TOLERANCE
  tok.export(params, tmp_path / "exported")
  for key, value in load_file(tmp_path / "exported" / "model.safetensors").items():
    assert value.dtype == jnp.bfloat16 and (value == half[key.removeprefix(PREFIX)]).all()


def test_semantok_layout(loaded, base, tmp_path):
  other, base_tok, _ = loaded
  config = copy.deepcopy(base[0])
  config["video_flex_tok"]["encoder"]["module_dict"]["enc_patch_emb"]["channels_in"] = 1024 + 16
  tensors = tensors_of(config["video_flex_tok"])
  rng = np.random.Generator(np.random.PCG64(5))
  tensors["global_token_input.proj.weight"] = rng.standard_normal((32, 1024)).astype(np.float32)
  tensors["global_token_input.proj.bias"] = rng.standard_normal(32).astype(np.float32)
  config = {
    "videoflextok": config,
    "semantok": {
      "dino_input": True,
      "global_token": True,
      "dino_frame_agg": "first",
      "global_token_mode": "per_frame",
    },
    "hub_vae": {"repo": "nobody/nothing", "revision": None},
  }
  path = write(tmp_path / "released", config, tensors, prefix="")
  tok, params = Tokenizer.load(path, vae=other)
  assert tok.cfg.vae == base_tok.cfg.vae and tok.cfg.encoder.channels == 1040
  _, ids, noise = inputs(64000)
  oracle = Oracle(config["videoflextok"]["video_flex_tok"], tensors)
  tokens = VideoTokens.full(ids).truncate(MIXED)
  v = tok.velocity(params, tokens, last(noise), TIMES, collapse=False)
  assert relative(v, last(oracle.velocity(ids, noise, TIMES, MIXED))) < TOLERANCE
  for refused, words in (
    (lambda: tok.encode(params, np.zeros((1, 17, 32, 32, 3), np.float32)), "pass dino='facebook/dinov2-large'"),
    (lambda: tok.features(params, last(inputs(8)[0])), "beside latents, which have none: use encode"),
  ):
    with pytest.raises(ValueError, match=f"reads DINOv2 features.*{words}"):
      refused()
  tok.export(params, tmp_path / "exported")
  exported = load_file(tmp_path / "exported" / "model.safetensors")
  assert exported.keys() == (tensors | golden()[1]).keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(exported[key], value, strict=True)
  again, params_again = Tokenizer.load(tmp_path / "exported")
  assert again == tok
  same_leaves(params, params_again)


def test_global_token_alone_refuses_to_encode(base, tmp_path):
  """A class vector from DINO is an input of the encoder too: without it the ids would be silently wrong."""
  config, tensors = base
  rng = np.random.Generator(np.random.PCG64(5))
  tensors = tensors | {
    "global_token_input.proj.weight": rng.standard_normal((32, 1024)).astype(np.float32),
    "global_token_input.proj.bias": rng.standard_normal(32).astype(np.float32),
  }
  config = {"videoflextok": config, "semantok": {"dino_input": False, "global_token": True}}
  tok, params = Tokenizer.load(write(tmp_path / "released", config, tensors | golden()[1], prefix=""))
  with pytest.raises(ValueError, match="beside latents, which have none: use encode"):
    tok.features(params, last(inputs(8)[0]))
  with pytest.raises(ValueError, match="reads DINOv2 features beside the video: pass dino="):
    tok.encode(params, np.zeros((1, 17, 32, 32, 3), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 5])
def test_chunks(overlap, tmp_path):
  """Two chunks: tokens and pixels as section 1.3 composes them from encoder, sampler and VAE."""
  config, tensors = build(dataclasses.replace(MODELS["golden_like"], overlap=overlap))
  tok, params = Tokenizer.load(write(tmp_path / "released", config, tensors | golden()[1]))
  oracle = Oracle(config["video_flex_tok"], tensors)
  frames, again = 34 - overlap, 2 if overlap else 0  # of the second chunk's steps, how many stand twice
  rng = np.random.Generator(np.random.PCG64(11))
  video = np.repeat(rng.uniform(-1, 1, (1, frames, 8, 8, 3)), 4, 2).repeat(4, 3).astype(np.float32)

  def first(x):
    return np.moveaxis(np.asarray(x), -1, 1)

  z = [oracle.features(first(tok.encode_latents(params, video[:, start : start + 17]))) for start in (0, 17 - overlap)]
  z = np.concatenate([z[0], z[1][:, again:]], 1)
  tokens = tok.encode(params, video)
  edge = np.abs(oracle.fsq.bounded(z) - np.rint(oracle.fsq.bounded(z))).max(-1) > 0.499
  assert tokens.ids.shape == (1, 10 - again, K) and (np.asarray(tokens.ids) == oracle.fsq.ids(z))[~edge].all()

  ids, keep = np.asarray(tokens.ids), np.full((1, 5), 2)
  noise = rng.standard_normal((2, 1, 16, 5, GRID, GRID)).astype(np.float32)
  pieces = [tok.decode_pixels(params, last(oracle.sample(ids[:, :5], noise[0], 2, keep, cfg=3.0)))]
  given = first(vae_encode(tok.cfg, params, pieces[0][:, -overlap:])[0]) if overlap else None
  ids = np.concatenate([oracle.fsq.ids(oracle.features(given)), ids[:, 5:]], 1) if overlap else ids[:, 5:]
  second = oracle.sample(ids, noise[1], 2, np.full((1, 5), 2), cfg=3.0, first=given)
  pieces.append(tok.decode_pixels(params, last(second))[:, overlap:])
  expected = np.concatenate([np.clip(p, -1, 1) for p in pieces], 1)
  # frames go from chunk to chunk as the VAE gives them, not clipped
  ours = tok.decode(params, tokens.truncate(2), steps=2, guidance=CFG(3.0), noise=[last(n) for n in noise])
  assert relative(ours, expected) < TOLERANCE


def test_the_oracle_itself():
  """Its numbers are the reference's, on the golden file; its masks too."""
  tensors = load_file(DATA / "small.safetensors")
  weights = {k.removeprefix("w." + PREFIX): v for k, v in tensors.items() if k.startswith("w.")}
  oracle = Oracle(golden()[0]["video_flex_tok"], weights)
  assert relative(oracle.features(tensors["in.latents"]), tensors["enc.prequant"]) < 1e-5
  ids, x, t, keep = tensors["enc.token_ids"], tensors["dec.xt"], tensors["dec.t"], np.full((1, 5), 3)
  for name, options in {
    "v_all": {},
    "v_keep0": {"keep": 0 * keep},
    "v_keep3": {"keep": keep},
    "v_keep3_prefix1": {"keep": keep, "prefix": 1},
    "v_null": {"null": True},
  }.items():
    assert relative(oracle.velocity(ids, x, t, **options), tensors[f"dec.{name}"]) < 1e-5
  for name, options in {
    "keep3_cfg3": {"cfg": 3, "keep": keep},
    "apg5_eta.5_mom-.5_thr2.5": {"apg": (5, 0.5, -0.5, 2.5)},
    "cond_clean_apg5": {"apg": (5, 0, 0, 0.6), "first": tensors["in.cond_latents"]},
  }.items():
    assert relative(oracle.sample(ids, tensors["in.noise"], 4, **options), tensors[f"samp4.{name}"]) < 1e-5
  masks = load_file(DATA / "masks.safetensors")
  flexible = {
    "n2n_none": ("full", "none", "full", "none"),
    "p2n_none_n2n_causal": ("full", "none", "full", "causal"),
    "p2p_only": ("full", "none", "none", "none"),
  }
  for mode in ("full", "causal", "time_block_causal", "time_block_causal_last", *flexible):
    cross = named_cross(flexible[mode]) if mode in flexible else None
    key = f"B1.flexible.{mode}" if mode in flexible else f"B1.{mode}"
    assert (mask(mode, 3, (5, 4), cross) == masks[key][:27, :27]).all(), mode
