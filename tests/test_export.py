"""`vftok export`: released names in, the same names, bytes and config out, for every family that has a layout."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from evatok_files import random_model as random_evatok
from flextok_files import changed, written
from query_models import random_model, small_config, write_golden
from safetensors.numpy import load_file, save_file
from test_query import SWITCHES

import vftok
from vftok.cli import commands
from vftok.families.flextok import export
from vftok.families.query.larp_ar_weights import abstract_params, parse, rules
from vftok.generator.larp import Larp

pytestmark = pytest.mark.filterwarnings("ignore:released FlexTok weights")


def parts(directory):
  """(bytes, shape and dtype by name, config) of a released directory."""
  tensors = load_file(directory / "model.safetensors")
  plain = {key: (value.tobytes(), value.shape, value.dtype) for key, value in tensors.items()}
  return plain, json.loads((directory / "config.json").read_text())


def exported(directory, out, capsys):
  assert commands.main(["export", str(directory), str(out)]) == 0, capsys.readouterr()
  assert f"{out}: {len(parts(out)[0])} tensors in model.safetensors" in capsys.readouterr().out
  return parts(out)


KINDS = [("larp", "config"), ("adaptok", "config"), ("evatok", "config"), ("larp", "ar_config"), ("larp", "fp_config")]


@pytest.mark.parametrize(("family", "config"), KINDS)
def test_goldens_come_out_as_they_went_in(family, config, tmp_path, capsys):
  source = write_golden(tmp_path / "in", f"{family}_small", config)
  assert exported(source, tmp_path / "out", capsys) == parts(source)
  # Half precision is kept too, where a family keeps what is stored.
  if family != "evatok":
    half = {key: value.astype(np.float16) for key, value in load_file(source / "model.safetensors").items()}
    save_file(half, source / "model.safetensors")
    assert exported(source, tmp_path / "out", capsys) == parts(source)


RENAMED = {"enc_posemb_module": "places", "dec_from_latents": "codes", "dec_to_patches": "out"}


@pytest.mark.parametrize("renamed", [{}, RENAMED], ids=["released names", "other names of modules"])
def test_a_picture_tokenizer_comes_out_as_it_went_in(renamed, image_parts, tmp_path, capsys):
  weights, config, _ = image_parts
  config = changed(config, ("vae.sample_posterior", True), ("dec/dec_nested_dropout.size_sampling_mode", "pow2"))
  for part in ("encoder", "decoder"):
    modules = config[part]["module_dict"]
    config[part]["module_dict"] = {renamed.get(name, name): spec for name, spec in modules.items()}
  words = lambda key: ".".join(renamed.get(word, word) for word in key.split("."))
  source = written(tmp_path / "in", {words(key): value for key, value in weights.items()}, config)
  assert exported(source, tmp_path / "out", capsys) == parts(source)
  tok, params = vftok.load(source)
  other = dataclasses.replace(tok, cfg=dataclasses.replace(tok.cfg, rest=""))
  other.export(params, tmp_path / "canonical")
  assert parts(tmp_path / "canonical")[0].keys() == weights.keys()
  assert export.as_read(dataclasses.replace(tok.cfg, levels=(3, 3, 3))) is None  # no longer what was read


@pytest.mark.parametrize("changes", [c for c, _, _ in SWITCHES], ids=[str([*c]) for c, _, _ in SWITCHES])
def test_every_switch(changes, tmp_path, capsys):
  """LARP's and AdapTok's: the file that a model is saved as is what its export gives after loading."""
  tok, params = random_model(small_config(**changes))
  tok.save(params, tmp_path / "in")
  assert parts(tmp_path / "in")[1] == small_config(**changes)
  assert exported(tmp_path / "in", tmp_path / "out", capsys) == parts(tmp_path / "in")


@pytest.mark.slow
def test_other_layouts(tmp_path, capsys):
  tok, params = random_evatok(neck=6, norm_in=True)
  tok.save(params, tmp_path / "ours")
  tok.export(params, tmp_path / "theirs")
  assert exported(tmp_path / "ours", tmp_path / "out", capsys) == parts(tmp_path / "theirs")
  scorer = {"scorer_hidden_size": 16, "scorer_num_heads": 2, "scorer_depth": 1, "scorer_step": 2}
  tok, params = random_model(small_config(True, **scorer), scorer=True)
  tok.save(params, tmp_path / "scored")
  found = exported(tmp_path / "scored", tmp_path / "scored2", capsys)
  assert found == parts(tmp_path / "scored") and "scorer.ffn.2.bias" in found[0]


AR = {"dim": 16, "n_layer": 1, "n_head": 4, "multiple_of": 8, "vocab_size": 12, "max_seq_len": 5, "num_classes": 3}
AR_SWITCHES = [
  {"n_kv_head": 2},
  {"n_kv_head": None, "ffn_dim_multiplier": None, "resid_dropout_p": 0.1},
  {"ffn_dim_multiplier": 1.3, "norm_eps": 1e-6},
  {"use_fixed_pe": True, "cls_token_num": 1},
  {"frame_prediction": True, "cls_token_num": 6},
]


@pytest.mark.parametrize("changes", AR_SWITCHES, ids=[str([*c]) for c in AR_SWITCHES])
def test_every_switch_of_a_generator(changes, tmp_path, capsys):
  cfg = parse(AR | changes)
  shapes = {
    key: rule.to_theirs(np.zeros(abstract_params(cfg)[rule.path].shape)[rule.index]).shape
    for key, rule in rules(cfg).items()
  }
  rng = np.random.default_rng(0)
  (tmp_path / "in").mkdir()
  save_file(
    {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "in/model.safetensors"
  )
  (tmp_path / "in/config.json").write_text(json.dumps(AR | changes))
  gen, _ = vftok.Generator.load(tmp_path / "in")
  assert type(gen) is Larp and gen.net.cfg == cfg
  assert exported(tmp_path / "in", tmp_path / "out", capsys) == parts(tmp_path / "in")


def test_an_output_without_a_name(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for out in ("", "/"):
    assert commands.main(["export", "vftok-mini", out]) == 2
    said = capsys.readouterr().err
    assert f"{out!r} is no directory to save a model in, expected a name" in said and len(said) < 420
  write_golden(tmp_path / "in", "larp_small", "ar_config")
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  assert exported(tmp_path / "in", Path(), capsys) == parts(tmp_path / "in")


@pytest.mark.slow
def test_what_has_no_such_layout(own_dir, tmp_path, capsys):
  assert commands.main(["export", str(own_dir), str(tmp_path / "out")]) == 0  # VideoFlexTok's, of a model in ours
  assert vftok.load(tmp_path / "out")[0] == vftok.load(own_dir)[0]
  (tmp_path / "file").write_text("")
  for words, sentence in (
    (("nothing", tmp_path / "new"), "does not exist"),
    ((own_dir, tmp_path / "file"), "is a file, expected a directory"),
    (("vftok-mini", tmp_path / "new"), "save() keeps it whole"),
    (("vftok-mini-t2v", tmp_path / "new"), "has no place in SemanTok's layout"),
  ):
    assert commands.main(["export", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said) < 420
  assert not (tmp_path / "new").exists()
