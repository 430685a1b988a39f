"""The golden image model as files, whole or changed."""

import copy
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "data" / "flextok_small.safetensors"


def golden_parts():
  """(weights, config, the other arrays) of the golden file."""
  with safe_open(GOLDEN, "np") as file:
    arrays = {key: file.get_tensor(key) for key in file.keys()}
    config = json.loads(file.metadata()["config"])
  weights = {key[2:]: value for key, value in arrays.items() if key.startswith("w.")}
  return weights, config, {key: value for key, value in arrays.items() if not key.startswith("w.")}


def written(directory, weights, config) -> Path:
  directory.mkdir(parents=True, exist_ok=True)
  save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, directory / "model.safetensors")
  (directory / "config.json").write_text(json.dumps(config))
  return directory


def changed(config, *changes):
  """A copy of a config with values put at dotted places, `...` takes one out; "enc/" and "dec/" begin module dicts."""
  config = copy.deepcopy(config)
  for place, value in changes:
    place = place.replace("enc/", "encoder.module_dict.").replace("dec/", "decoder.module_dict.")
    *way, last = place.split(".")
    node = config
    for name in way:
      node = node[name]
    if value is ...:
      del node[last]
    else:
      node[last] = value
  return config


def pictures(x):
  """torch's [B, C, H, W] -> [B, 1, H, W, C]."""
  return np.moveaxis(x, 1, -1)[:, None]
