"""Bad input of every kind gives one sentence that names what is wrong, and never reaches a program."""

import copy
import json
import re
import shutil
import struct
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import vftok
from vftok.types import VideoTokens

KEY = jax.random.key(0)
VIDEO = np.zeros((1, 17, 32, 32, 3), np.uint8)
FLOAT = np.zeros((1, 17, 32, 32, 3), np.float32)
IDS = np.zeros((1, 5, 8), np.int32)
FULL = VideoTokens.full(IDS)
NOISE = np.zeros((1, 5, 4, 4, 16), np.float32)


def sentence(error) -> str:
  """The message, if it is one sentence: one line, ends with a full stop, no other full stop inside."""
  text = str(error)
  assert "\n" not in text and text.endswith(".") and len(text) < 500, text
  assert ". " not in re.sub(r"/\S+", "PATH", text), text
  return text


def with_value(value):
  video = FLOAT.copy()
  video[0, 3, 4, 5, 1] = value
  return video


def tokens(ids=IDS, keep=None):
  return VideoTokens(ids, np.full((1, 5), 8, np.int32) if keep is None else keep)


def encode(video, **options):
  return lambda tok, params: tok.encode(params, video, **options)


def decode(tokens=FULL, key=KEY, **options):
  return lambda tok, params: tok.decode(params, tokens, key, **{"steps": 1, **options})


def latents(tokens=FULL, key=KEY, **options):
  return lambda tok, params: tok.decode_latents(params, tokens, key, **{"steps": 1, **options})


def truncate(keep):
  return lambda tok, params: FULL.truncate(keep)


def pieces(*shapes, dtype=np.uint8):
  return lambda tok, params: list(tok.encode_stream(params, [np.zeros(s, dtype) for s in shapes]))


BAD_INPUT = {
  # name: (call, what the sentence must name)
  "no frame": (encode(VIDEO[:, :0]), "(1, 0, 32, 32, 3)"),
  "one frame": (encode(VIDEO[:, :1]), "has 1 frames"),
  "F too small": (encode(VIDEO[:, :16]), "has 16 frames, expected a count that fits chunks such as 17"),
  "F between chunks": (encode(np.zeros((1, 40, 32, 32, 3), np.uint8)), "33 or 49"),
  "fit unknown": (encode(VIDEO, fit="crop"), "'crop'"),
  "height": (encode(np.zeros((1, 17, 64, 32, 3), np.uint8)), "64x32, expected 32x32"),
  "width": (encode(np.zeros((1, 17, 32, 31, 3), np.uint8)), "32x31"),
  "channels first": (encode(np.zeros((1, 3, 17, 32, 32), np.uint8)), "(1, 3, 17, 32, 32)"),
  "one channel": (encode(VIDEO[..., :1]), "(1, 17, 32, 32, 1)"),
  "alpha channel": (encode(np.zeros((1, 17, 32, 32, 4), np.uint8)), "(1, 17, 32, 32, 4)"),
  "no batch axis": (encode(VIDEO[0]), "(17, 32, 32, 3)"),
  "empty batch": (encode(VIDEO[:0]), "(0, 17, 32, 32, 3)"),
  "above 1": (encode(with_value(1.2)), "1.2"),
  "below -1": (encode(with_value(-1.5)), "-1.5"),
  "NaN": (encode(with_value(np.nan)), "NaN"),
  "infinite": (encode(with_value(np.inf)), "infinite"),
  "0..255 floats": (encode(with_value(255.0)), "0..255"),
  "jax array, 0..255": (encode(jnp.asarray(with_value(200.0))), "0..255"),
  "int32 video": (encode(VIDEO.astype(np.int32)), "int32"),
  "bool video": (encode(VIDEO.astype(bool)), "bool"),
  "text video": (encode(np.full(VIDEO.shape, "x")), "<U1"),
  "ragged list": (encode([[[0, 1], [2]]]), "ragged"),
  "ragged stream": (pieces((1, 5, 32, 32, 3), (2, 5, 32, 32, 3)), "(2, 5, 32, 32, 3)"),
  "stream of another size": (pieces((1, 5, 32, 32, 3), (1, 5, 16, 32, 3)), "16x32"),
  "stream of nothing": (pieces(), "0 frames"),
  "stream left over": (pieces((1, 5, 32, 32, 3), (1, 14, 32, 32, 3)), "has 19 frames"),
  "latents of 16 frames": (lambda tok, params: tok.encode_latents(params, VIDEO[:, :16]), "13 or 17"),
  "latents of no frame": (lambda tok, params: tok.encode_latents(params, VIDEO[:, :0]), "(1, 0, 32, 32, 3)"),
  "id too large": (decode(tokens(np.full((1, 5, 8), 64000))), "64000, expected 0..63999"),
  "id negative": (decode(tokens(np.full((1, 5, 8), -1))), "-1"),
  "float ids": (decode(tokens(IDS.astype(np.float32))), "float32"),
  "list ids": (decode(tokens(IDS.tolist())), "list"),
  "bool keep": (decode(tokens(keep=np.ones((1, 5), bool))), "bool"),
  "ids cut": (decode(tokens(IDS[:, :, :4])), "(1, 5, 4)"),
  "ids of rank 2": (decode(tokens(IDS[0])), "(5, 8)"),
  "empty ids": (decode(tokens(IDS[:0], np.zeros((0, 5), np.int32))), "(0, 5, 8)"),
  "keep of another T": (decode(tokens(keep=np.zeros((1, 4), np.int32))), "(1, 4)"),
  "keep in tokens > K": (decode(tokens(keep=np.full((1, 5), 9))), "9, expected 0..8"),
  "keep in tokens < 0": (decode(tokens(keep=np.full((1, 5), -2))), "-2"),
  "truncate < 0": (truncate(-1), "-1, expected 0..8"),
  "truncate > K": (truncate(9), "9, expected 0..8"),
  "truncate one of T": (truncate([8, 8, 12, 8, 8]), "12"),
  "truncate ragged": (truncate([[1, 2], [3]]), "ragged"),
  "truncate wrong T": (truncate([1, 2, 3]), "(3,)"),
  "truncate float": (truncate(2.5), "2.5"),
  "truncate text": (truncate("all"), "'all'"),
  "truncate None": (truncate(None), "None"),
  "steps 0": (decode(steps=0), "steps is 0"),
  "steps negative": (latents(steps=-3), "steps is -3"),
  "steps fraction": (latents(steps=2.5), "2.5"),
  "steps bool": (latents(steps=True), "True"),
  "unknown solver": (decode(solver="rk4"), "'rk4'"),
  "guidance a number": (decode(guidance=3.0), "3.0"),
  "guidance of a wrong length": (decode(guidance=vftok.CFG(scale=jnp.ones(3))), "(3,)"),
  "guidance text": (decode(guidance=vftok.CFG(scale="high")), "'high'"),
  "first_frames 2": (decode(first_frames=VIDEO[:, :2]), "first_frames has 2"),
  "first_frames 17": (decode(first_frames=VIDEO), "first_frames has 17"),
  "first_frames none": (decode(first_frames=VIDEO[:, :0]), "first_frames"),
  "first_frames size": (decode(first_frames=VIDEO[:, :1, :16]), "16x32"),
  "first_frames batch": (decode(first_frames=np.zeros((2, 1, 32, 32, 3), np.uint8)), "first_frames"),
  "first_frames range": (decode(first_frames=with_value(99.0)[:, 3:4]), "0..255"),
  "noise shape": (decode(key=None, noise=[NOISE[:, :4]]), "(1, 4, 4, 4, 16)"),
  "noise entries": (decode(key=None, noise=[]), "noise has 0"),
  "noise one array": (decode(key=None, noise=NOISE), "noise"),
  "noise dtype": (latents(key=None, noise=NOISE.astype(np.int32)), "int32"),
  "latents' noise shape": (latents(key=None, noise=NOISE[..., :8]), "(1, 5, 4, 4, 8)"),
  "no key and no noise": (decode(key=None), "neither key nor noise"),
  "no key for latents": (latents(key=None), "neither key nor noise"),
  "key a number": (decode(key=0), "key"),
  "first_mode": (latents(first_mode="soft"), "'soft'"),
  "first_latents shape": (latents(first_latents=NOISE[:, :1, :2]), "(1, 1, 2, 4, 16)"),
  "first_latents rank": (latents(first_latents=NOISE[0]), "first_latents"),
  "T of no chunk": (decode(VideoTokens.full(IDS[:, :4])), "4 time steps"),
  "T between chunks": (decode(VideoTokens.full(np.zeros((1, 7, 8), np.int32))), "7 time steps"),
  "two chunks of latents": (latents(VideoTokens.full(np.zeros((1, 9, 8), np.int32))), "9 time steps"),
  "no pieces": (lambda tok, params: VideoTokens.concat([]), "no token pieces"),
  "pieces of different K": (
    lambda tok, params: VideoTokens.concat([FULL, VideoTokens.full(IDS[:, :, :4])]),
    "(1, 5, 4)",
  ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(small, name):
  call, named = BAD_INPUT[name]
  with pytest.raises(ValueError) as caught:
    call(*small[:2])
  assert named in sentence(caught.value)


def test_a_model_without_null_vector_is_not_guided(small_dir, tmp_path):
  config, weights = (
    json.loads((small_dir / "config.json").read_text()),
    load_file(small_dir / "model.safetensors"),
  )
  del config["video_flex_tok"]["decoder"]["module_dict"]["dec_latent_dropout"]
  weights = {key: value for key, value in weights.items() if "nullcond" not in key}
  tok, params = vftok.Tokenizer.load(write(tmp_path / "m", config, weights))
  for guidance in (vftok.CFG(scale=3.0), vftok.APG(scale=20.0)):
    with pytest.raises(ValueError, match="no null vector") as caught:
      tok.decode_latents(params, FULL, KEY, guidance=guidance)
    sentence(caught.value)


# ---- checkpoints


def write(directory, config, weights):
  directory.mkdir()
  save_file(weights, directory / "model.safetensors")
  (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
  return directory


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
  "raw pickle": (text("model.safetensors", b"\x80\x04\x95\x10\x00\x00"), "pickle"),
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
  "format a list": (text("config.json", b'{"format": []}'), "[]"),
  "config of the future": (
    text("config.json", b'{"format": "vftok-tokenizer", "version": 9}'),
    "9, expected 1",
  ),
  "config without parts": (text("config.json", b'{"format": "vftok-tokenizer", "version": 1}'), "'vae'"),
  "unknown target": (configure(set_target), "'os.system'"),
  "part missing": (configure(lambda t: t.pop("regularizer")), "'regularizer'"),
  "vae text": (configure(lambda t: t.update(vae="vidtok")), "vae = 'vidtok'"),
  "levels text": (configure(lambda t: t["regularizer"].update(levels="8")), "levels = '8'"),
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
    vftok.hub.save_files(small_dir / "config.json", {}, {})
  sentence(caught.value)


METADATA = {
  "list": ({"config": "[1, 2]"}, "no config"),
  "neither JSON nor YAML": ({"config": "{a: [}"}, "neither JSON nor YAML"),
  "looping YAML": ({"config": "&a {video_flex_tok: *a}"}, "neither JSON nor YAML"),
  "deep": ({"config": "[" * 5000 + "]" * 5000}, "nested too deeply"),
  "deep YAML": ({"config": "{video_flex_tok: " + "[" * 200 + "]" * 200 + "}"}, "nested deeper"),
  "date": ({"config": "{video_flex_tok: 2001-01-01}"}, "date"),
  "number keys": ({"config": "{1: 2}"}, "keys that are not text"),
  "python object": ({"config": "!!python/object/apply:os.getcwd []"}, "neither JSON nor YAML"),
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


# ---- configs changed at random: a sentence or a model, never another exception


@pytest.fixture(scope="module")
def own_dir(small, tmp_path_factory):
  directory = tmp_path_factory.mktemp("own") / "small"
  small[0].save(small[1], directory)
  return directory


def load_with(model, directory, config):
  """Loads `config` with the weights of `model`."""
  directory.mkdir(exist_ok=True)
  link = directory / "model.safetensors"
  if not link.exists():
    link.symlink_to(model / "model.safetensors")
  (directory / "config.json").write_text(json.dumps(config))
  return vftok.Tokenizer.load(directory)


def places(tree, path=()):
  """Paths of all values in plain JSON."""
  children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  for key, value in children:
    yield (*path, key)
    yield from places(value, (*path, key))


WORDS = [
  "",
  "full",
  "causal",
  "flexible",
  "sincos",
  "learnable_prod",
  "mask",
  "null",
  "float32",
  "videoflextok.FSQ",
]
SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-2, 40),
  st.sampled_from([64, 2**31, 2**63, 10**30, 10**400]),
  st.floats(),
  st.sampled_from(WORDS),
  st.text(max_size=8),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.sampled_from([*WORDS, "_target_"]), inner, max_size=3)
  ),
  max_leaves=6,
)


@st.composite
def mutated(draw, config):
  config = copy.deepcopy(config)
  for _ in range(draw(st.integers(1, 3))):
    paths = list(places(config))
    if not paths:
      break
    *parents, last = draw(st.sampled_from(paths))
    inner = config
    for parent in parents:
      inner = inner[parent]
    how = draw(st.sampled_from(["drop", "replace", "copy", "wrap", "rename", "deepen"]))
    if how == "drop":
      del inner[last]
    elif how == "replace":
      inner[last] = draw(VALUES)
    elif how == "copy":  # a value of another place: right kind, wrong meaning
      *others, name = draw(st.sampled_from(paths))
      source = config
      for parent in others:
        source = source[parent]
      inner[last] = copy.deepcopy(source[name])
    elif how == "wrap":
      inner[last] = draw(st.sampled_from([[inner[last]], {"x": inner[last]}, str(inner[last])]))
    elif how == "rename" and isinstance(inner, dict):
      inner[draw(st.text(max_size=6))] = inner.pop(last)
    elif how == "deepen":
      for _ in range(draw(st.sampled_from([3, 70, 300]))):
        inner[last] = [inner[last]]
  return config


def loads_or_says_why(model, directory, config):
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      load_with(model, directory, config)
  except (ValueError, FileNotFoundError) as error:
    assert "\n" not in str(error) and str(error).endswith("."), str(error)


FUZZ = settings(
  deadline=None,
  max_examples=60,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(data=st.data())
def test_any_released_config(small_dir, tmp_path, data):
  config = json.loads((small_dir / "config.json").read_text())
  loads_or_says_why(small_dir, tmp_path / "m", data.draw(mutated(config)))


@FUZZ
@given(data=st.data())
def test_any_own_config(own_dir, tmp_path, data):
  config = json.loads((own_dir / "config.json").read_text())
  loads_or_says_why(own_dir, tmp_path / "m", data.draw(mutated(config)))
