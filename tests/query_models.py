"""Small LARP and AdapTok models: the golden ones as released directories, and random ones with any switches."""

import dataclasses
import json
from pathlib import Path

import flax.traverse_util as traverse
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vftok.families.query import released as released_config
from vftok.families.query.params import abstract_params
from vftok.families.query.positions import fixed_tables
from vftok.families.query.tokenizer import LARP, AdapTok

DATA = Path(__file__).parent / "data"
PREFIXES = {"config": "w.", "ar_config": "ar.w.", "fp_config": "fp.w."}


def golden(name):
  """(arrays by name, metadata) of a golden file."""
  with safe_open(DATA / f"{name}.safetensors", "np") as file:
    return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def write_golden(directory, name, config="config", without=()):
  """One of a golden file's models as it is released; `without`: tensors that start so are left out."""
  arrays, metadata = golden(name)
  prefix = PREFIXES[config]
  tensors = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
  directory.mkdir(parents=True)
  save_file({k: a for k, a in tensors.items() if not k.startswith(without or ("!",))}, directory / "model.safetensors")
  (directory / "config.json").write_text(metadata[config])
  return directory


def small_config(adaptok=False, **changes):
  """config.json of a tiny model; changes of `vq_` are the quantiser's, of `bottleneck_dim` and `norm` one above."""
  config = {
    "bottleneck": {
      "name": "bottleneck",
      "args": {"bottleneck_dim": 4, "norm": "none", "regularizer": {"name": "vq", "args": {"codebook_size": 24}}},
    },
    "prior_model": {"name": "none"},
    "bottleneck_token_num": 8,
    "input_size": 16,
    "frame_num": 8,
    "temporal_patch_size": 4,
    "patch_size": 8,
    "encoder_hidden_size": 16,
    "encoder_num_heads": 2,
    "encoder_depth": 1,
    "decoder_hidden_size": 16,
    "decoder_num_heads": 2,
    "decoder_depth": 1,
  }
  if adaptok:
    config |= {"encoder_attn_type": "full_causal_type1", "decoder_attn_type": "full_causal_type2"}
    config |= {"mask_generator": {"total_toks": 4, "tot_groups": 2}}
  args = config["bottleneck"]["args"]
  for key, value in changes.items():
    if key.startswith("vq_"):
      args["regularizer"]["args"][key.removeprefix("vq_")] = value
    else:
      (args if key in ("bottleneck_dim", "norm") else config)[key] = value
  return config


def random_params(cfg, leaves=abstract_params, seed=0, fixed=True):
  rng = np.random.default_rng(seed)
  flat = {path: rng.standard_normal(x.shape, np.float32) / np.float32(3) for path, x in leaves(cfg).items()}
  if fixed:
    flat |= {("fixed", name): table for name, table in fixed_tables(cfg).items()}
  return traverse.unflatten_dict(flat)


def random_model(config, **parts):
  """(tokenizer, params) of a config and parts that files tell, such as scorer=True."""
  cfg = dataclasses.replace(released_config.parse(json.loads(json.dumps(config))), **parts)
  return (AdapTok if cfg.nested else LARP)(cfg), random_params(cfg)


def random_video(tok, batch=1, chunks=1, seed=0):
  """uint8 noise."""
  shape = (batch, chunks * tok.chunk_frames, *tok.frame_size, 3)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
