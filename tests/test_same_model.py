"""One model under other names, in other files and layouts."""

import copy
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import Oracle
from safetensors.numpy import load_file
from switch_models import (
  MIXED,
  MODELS,
  PREFIX,
  STEPS,
  TIMES,
  TOLERANCE,
  K,
  build,
  golden,
  inputs,
  last,
  relative,
  same_leaves,
  tensors_of,
  write,
)

from vftok import Tokenizer, VideoTokens

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def base():
  return build(MODELS["golden_like"])


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
