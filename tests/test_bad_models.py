"""Checkpoints that are damaged, foreign or hostile give one sentence."""

import json
import shutil
import struct

import numpy as np
import pytest
from model_files import load_with, sentence
from safetensors.numpy import load_file, save_file

import vftok

ONE = "video_tokenizer.encoder.module_dict.enc_to_latents.proj.bias"
VAE_ONE = "video_tokenizer.vae.vidtok.encoder.conv_in.conv.weight"


def cut(at):
  def harm(d):
    path = d / "model.safetensors"
    path.write_bytes(path.read_bytes()[:at])

  return harm


def change(edit):
  def harm(d):
    weights = load_file(d / "model.safetensors")
    edit(weights)
    save_file(weights, d / "model.safetensors")

  return harm


def text(name, content):
  return lambda d: (d / name).write_bytes(content)


def configure(edit):
  def harm(d):
    config = json.loads((d / "config.json").read_text())
    edit(config["video_flex_tok"])
    (d / "config.json").write_text(json.dumps(config))

  return harm


def both(*harms):
  return lambda d: [harm(d) for harm in harms]


def remove(name):
  return lambda d: (d / name).unlink()


def pickled(name):
  return both(remove("model.safetensors"), text(name, b"PK\x03\x04archive/data.pkl"))


def set_target(tree):
  tree["decoder"]["module_dict"]["dec_transformer"]["_target_"] = "os.system"


BAD_MODELS = {
  "cut in the header": (cut(1000), "model.safetensors"),
  "cut in the tensors": (cut(2_000_000), "model.safetensors"),
  "one byte short": (cut(-1), "model.safetensors"),
  "empty file": (cut(0), "model.safetensors"),
  "header too long": (text("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"), "model.safetensors"),
  "zip pickle": (text("model.safetensors", b"PK\x03\x04archive/data.pkl"), "pickle"),
  "raw pickle": (
    text("model.safetensors", b"\x80\x04\x95\x10\x00\x00"),
    "torch.save(torch.load(FILE), OTHER) writes one",
  ),
  "only a .bin": (pickled("pytorch_model.bin"), "pytorch_model.bin is a pickle"),
  "only a .ckpt": (pickled("last.ckpt"), "last.ckpt is a pickle"),
  "no weights": (remove("model.safetensors"), "has no model.safetensors"),
  "no config": (remove("config.json"), "has no config.json"),
  "key missing": (change(lambda w: w.pop(ONE)), "lacks encoder.module_dict.enc_to_latents.proj.bias"),
  "VAE key missing": (change(lambda w: w.pop(VAE_ONE)), "encoder.conv_in.conv.weight"),
  "VAE flat": (change(lambda w: w.update({VAE_ONE: np.zeros(3, np.float32)})), "vae.vidtok"),
  "VAE of zero width": (
    change(lambda w: w.update({VAE_ONE: np.zeros((0, 3, 3, 3, 3), np.float32)})),
    "vae.vidtok",
  ),
  "no VAE": (change(lambda w: [w.pop(k) for k in list(w) if ".vae." in k]), "has no VAE tensors"),
  "key extra": (
    change(lambda w: w.update({"video_tokenizer.spare": np.ones(2, np.float32)})),
    "unused spare",
  ),
  "misshapen": (
    change(lambda w: w.update({ONE: np.ones(7, np.float32)})),
    "enc_to_latents.proj.bias with shape (7,)",
  ),
  "transposed": (change(lambda w: w.update({ONE: np.ones((6, 1), np.float32)})), "(6, 1), expected (6,)"),
  "integers": (change(lambda w: w.update({ONE: np.ones(6, np.int64)})), "enc_to_latents.proj.bias as int64"),
  "NaN": (change(lambda w: w[ONE].__setitem__(2, np.nan)), "holds NaN or infinite values in "),
  "infinite VAE": (change(lambda w: w[VAE_ONE].__setitem__(0, -np.inf)), "NaN or infinite values in"),
  "beyond float32": (change(lambda w: w.update({ONE: np.full(6, 1e39)})), "NaN or infinite values in"),
  "no tensors": (change(lambda w: w.clear()), "model.safetensors"),
  "config empty": (text("config.json", b""), "config.json is no JSON"),
  "config cut": (text("config.json", b'{"video_flex_tok": {"enc'), "config.json is no JSON"),
  "config binary": (text("config.json", b"\xff\xfe\x00{"), "config.json is no JSON"),
  "config a list": (text("config.json", b"[]"), "holds list"),
  "config a number": (text("config.json", b"3"), "holds int"),
  "config {}": (text("config.json", b"{}"), "video_flex_tok"),
  "config deep": (
    text("config.json", b'{"video_flex_tok": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "config.json",
  ),
  "config rather deep": (text("config.json", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}"), "nested deeper"),
  "config of another format": (text("config.json", b'{"format": "gguf"}'), "'gguf'"),
  "format huge": (text("config.json", b'{"format": 1' + b"0" * 400 + b"}"), "has format 1000"),
  "format long": (text("config.json", b'{"format": "' + b"x" * 4000 + b'"}'), "has format 'xxx"),
  "format a list": (text("config.json", b'{"format": []}'), "[]"),
  "config of the future": (
    text("config.json", b'{"format": "vftok-tokenizer", "version": 9}'),
    "9, expected 1",
  ),
  "version no number": (
    text("config.json", b'{"format": "vftok-tokenizer", "version": true}'),
    "version is True, expected 1",
  ),
  "config without parts": (text("config.json", b'{"format": "vftok-tokenizer", "version": 1}'), "'vae'"),
  "config of NaN": (text("config.json", b'{"video_flex_tok": {}, "note": NaN}'), "holds nan, expected finite numbers"),
  "config of half a pair": (text("config.json", b'{"note": "\\udfff"}'), "holds '\\udfff', expected"),
  "unknown target": (configure(set_target), "'os.system'"),
  "part missing": (configure(lambda t: t.pop("regularizer")), "'regularizer'"),
  "vae text": (configure(lambda t: t.update(vae="vidtok")), "vae = 'vidtok'"),
  "levels text": (configure(lambda t: t["regularizer"].update(levels="8")), "levels = '8'"),
  "a level that is no number": (configure(lambda t: t["regularizer"].update(levels=[8, 8, 8, True])), "levels = [8,"),
  "levels of ones": (configure(lambda t: t["regularizer"].update(levels=[1] * 6)), "levels"),
  "module dict a list": (configure(lambda t: t["encoder"].update(module_dict=[1])), "encoder"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model(small_dir, tmp_path, name):
  harm, named = BAD_MODELS[name]
  model = tmp_path / "model"
  shutil.copytree(small_dir, model)
  harm(model)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    vftok.Tokenizer.load(model)
  assert named in sentence(caught.value)
  assert str(model) in str(caught.value) or "config" in str(caught.value)


OWN = {
  "no chunks": (("chunk_frames", 16), "chunk_frames = 16"),
  "overlap beyond chunk": (("overlap_frames", 17), "overlap_frames = 17"),
  "overlap negative": (("overlap_frames", -1), "overlap_frames = -1"),
  "unknown key": (("colour", "blue"), "'colour'"),
  "mistyped": (("levels", "8"), "config.levels is '8'"),
  "flag as a count": (("chunk_frames", True), "True"),
  "null": (("encoder", None), "config.encoder is None"),
  "mask": (("encoder.mask", "diagonal"), "'diagonal'"),
  "dtype": (("encoder.stack.dtype", "float8"), "'float8'"),
  "depth": (("decoder.stack.depth", 10**9), "1000000000"),
  "width zero": (("decoder.stack.dim", 0), "dim = 0"),
  "head_dim": (("encoder.stack.head_dim", 48), "head_dim = 48"),
  "huge number": (("decoder.max_timestep", 10**400), "max_timestep"),
  "infinite": (("decoder.max_timestep", float("inf")), "inf"),
  "remat": (("encoder.stack.remat", "some"), "'some'"),
  "VAE levels": (("vae.ch_mult", [1]), "ch_mult"),
  "VAE blocks": (("vae.num_res_blocks", 65_536), "num_res_blocks = 65536, expected at most 32"),
  "VAE times": (("vae.time_levels", [10**400, 0]), "the VAE needs two of its levels"),
  "VAE spaces": (("vae.space_levels", [10**400]), "space_levels=(1000"),
  "steps": (("chunk_frames", 65_533), "chunk_frames = 65533, expected at most 1021"),
  "VAE levels zero": (("vae.ch_mult", [1, 0, 4, 4]), "ch_mult"),
}


@pytest.mark.parametrize("name", OWN)
def test_bad_own_config(own_dir, tmp_path, name):
  (path, value), named = OWN[name]
  config = json.loads((own_dir / "config.json").read_text())
  *parents, last = path.split(".")
  inner = config
  for parent in parents:
    inner = inner[parent]
  inner[last] = value
  with pytest.raises(ValueError) as caught:
    load_with(own_dir, tmp_path / "m", config)
  assert named in sentence(caught.value)


def test_no_such_model(monkeypatch, tmp_path, small_dir):
  hub = pytest.importorskip("huggingface_hub")

  def offline(*args, **kwargs):
    raise OSError("Cannot reach https://huggingface.co. Check your connection.\nMore on a second line.")

  monkeypatch.setattr(hub, "snapshot_download", offline)
  for name in ("nobody/no-such-model", str(tmp_path / "nowhere"), "nowhere", "a/b/c", "../no/where", ""):
    with pytest.raises(FileNotFoundError) as caught:
      vftok.Tokenizer.load(name)
    assert name in sentence(caught.value)
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors") as caught:
    vftok.Tokenizer.load(empty)
  sentence(caught.value)
  # One file: its config must be in its metadata.
  with pytest.raises(ValueError, match="no config in its metadata") as caught:
    vftok.Tokenizer.load(small_dir / "model.safetensors")
  sentence(caught.value)
  with pytest.raises(ValueError, match="is a file") as caught:
    vftok.io.hub.save_files(small_dir / "config.json", {}, {})
  sentence(caught.value)


METADATA = {
  "list": ({"config": "[1, 2]"}, "no config"),
  "neither JSON nor YAML": ({"config": "{a: [}"}, "neither JSON nor YAML"),
  "looping YAML": ({"config": "&a {video_flex_tok: *a}"}, "neither JSON nor YAML"),
  "deep": ({"config": "[" * 100_000 + "]" * 100_000}, "nested too deeply"),
  "deep YAML": ({"config": "{video_flex_tok: " + "[" * 200 + "]" * 200 + "}"}, "nested deeper"),
  "date": ({"config": "{video_flex_tok: 2001-01-01}"}, "date"),
  "number keys": ({"config": "{1: 2}"}, "keys that are not text"),
  "python object": ({"config": "!!python/object/apply:os.getcwd []"}, "neither JSON nor YAML"),
  "not a number": ({"config": '{"video_flex_tok": {"a": [NaN]}}'}, "holds nan, expected finite numbers"),
  "YAML's infinity": ({"config": "{video_flex_tok: -.inf}"}, "holds -inf, expected finite numbers"),
  "a literal's infinity": ({"config": "{'video_flex_tok': (1e999,)}"}, "holds inf, expected finite numbers"),
  "half a pair": ({"config": '{"video_flex_tok": {"a": "x\\ud800"}}'}, "holds 'x\\ud800', expected"),
  "half a pair in a key": ({"config": '{"a\\udc00": 1}'}, "keys that are not text ('a\\udc00')"),
  "other keys only": ({"format": "pt", "author": "x"}, "no config"),
  "one key": ({"video_flex_tok": "{}"}, "no VAE tensors"),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata(tmp_path, name):
  metadata, named = METADATA[name]
  save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors", metadata=metadata)
  with pytest.raises(ValueError) as caught:
    vftok.Tokenizer.load(tmp_path / "model.safetensors")
  assert named in sentence(caught.value)
