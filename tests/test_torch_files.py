"""PyTorch files as data: arrays and plain values come out, everything else is one sentence, and nothing is run."""

import json
import os
import pickle
import time
import zipfile

import evatok_files
import jax
import ml_dtypes
import numpy as np
import pytest
from query_models import golden, random_model, small_config, write_golden
from safetensors.numpy import load_file
from torch_files import View, opcodes, write_torch

import vftok
from vftok.io import hub, torch_pickle
from vftok.io.torch_file import MAX_PICKLE, TorchFile, contents, plain

RNG = np.random.default_rng(0)


def test_every_dtype_and_stride(tmp_path):
  base = np.arange(24, dtype=np.float32)
  arrays = {name: RNG.integers(0, 2, (2, 3)).astype(name) for name in ("float64", "float16", "int64", "int32", "uint8")}
  arrays |= {"bool": np.array([True, False]), "bfloat16": np.array([[1.5, -2]], ml_dtypes.bfloat16)}
  arrays |= {"scalar": np.array(3.0, np.float32), "empty": np.zeros((0, 3), np.float32)}
  views = {
    "turned": View(base, "base", (6, 4), (1, 6)),
    "part": View(base, "base", (2, 3), (4, 1), 9),
  }
  with TorchFile(write_torch(tmp_path / "a.pt", {**arrays, **views})) as file:
    assert set(file.keys()) == {*arrays, *views} and file.metadata() == {}
    assert file.get_slice("turned").get_shape() == (6, 4)
    for name, expected in arrays.items():
      found = file.get_tensor(name)
      assert found.dtype == expected.dtype and np.array_equal(found, expected), name
    assert np.array_equal(file.get_tensor("turned"), base.reshape(4, 6).T)
    assert np.array_equal(file.get_tensor("part"), base[9:].copy()[:12].reshape(3, 4)[:2, :3])


def test_what_torch_itself_writes():
  """The pickle of torch.save({"a": torch.nn.Parameter(torch.arange(3.)), "n": 1}), by its parts."""
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQ"
  tensor = (
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)Rt"
  )
  parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"R\x88h\x00)Rt"
  named = b"ccollections\nOrderedDict\nq\x00)R(X\x01\x00\x00\x00a" + parameter + b"RX\x01\x00\x00\x00nK\x01u"
  state = b"}X\x09\x00\x00\x00_metadatah\x00)Rsb."
  found = torch_pickle.parse(b"\x80\x02" + named + state)
  expected = torch_pickle.Tensor(torch_pickle.Storage("0", "float32", 3), 0, (3,), (1,), "float32")
  assert found == {"a": expected, "n": 1}
  third = tensor.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3").replace(
    b"ctorch\nFloatStorage", b"ctorch.storage\nUntypedStorage"
  )
  third = third.removesuffix(b"t") + b"\x8c\x05torch\x94\x8c\x08bfloat16\x93t"
  assert torch_pickle.parse(b"\x80\x04" + third + b"R.").dtype == "bfloat16"
  for protocol in (2, 3, 4, 5):
    plain = {"a": [1, 2.5, None, True, "x", -3, 2**40, b"b"], "b": (1, (2, 3, 4), (), {1: "y"})}
    expected = plain if protocol > 2 else None
    if expected:  # before that bytes are a call
      assert torch_pickle.parse(pickle.dumps(plain, protocol)) == plain


class Runs:
  def __reduce__(self):
    return (open, ("/nonexistent/executed", "w"))


def bomb():
  inner = b"]"
  for _ in range(2000):
    inner = b"](" + inner + b"e"
  return inner


BAD_PICKLES = [
  (pickle.dumps(Runs(), 2), "it asks for "),
  (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "it asks for os.system"),
  (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it asks for os.system"),
  (b"cbuiltins\neval\n.", "it asks for builtins.eval"),
  (b"cnumpy.core.multiarray\n_reconstruct\n.", "it asks for numpy.core.multiarray._reconstruct"),
  (b"(i__main__\nX\n.", "the opcode INST"),
  (b"ccollections\nOrderedDict\n)\x81.", "the opcode NEWOBJ"),
  (b"\x82\x01.", "the opcode EXT1"),
  (b"P0\n.", "the opcode PERSID"),
  (b"ccollections\nOrderedDict\n](X\x01\x00\x00\x00aK\x01\x86e\x85R.", "damaged"),
  (b"ctorch\nSize\n(K\x01l\x85R.", "of no tensor"),
  (b"ctorch\nFloatStorage\n)R.", "it calls torch.FloatStorage"),
  (b"K\x01)R.", "it calls what is no function"),
  (b"}]K\x01s.", "neither text nor numbers"),
  (b"]}b.", "attributes to something else"),
  (b"h\x00.", "damaged"),
  (b"0.", "damaged"),
  (b"(.", "damaged"),
  (b"K\x01K\x02.", "damaged"),
  (b"t.", "damaged"),
  (b"(K\x01a.", "damaged"),
  (b"]", "damaged after byte 0 of 1"),
  (b"X\xff\xff\xff\x7f", "damaged after byte 0 of 5"),
  (b"]\xff", "damaged after byte 0 of 2"),
  (b"(" * (torch_pickle.MAX_VALUES + 1), "more than"),
  (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns.", "neither text nor numbers"),
  (pickle.dumps({float(2**61 - 1): None}, 2), "neither text nor numbers"),
  (pickle.dumps({float("nan"): None}, 2), "neither text nor numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "sentence"), BAD_PICKLES, ids=[s for _, s in BAD_PICKLES])
def test_a_pickle_that_asks_for_more_is_a_sentence(data, sentence, tmp_path, monkeypatch):
  monkeypatch.setattr(pickle, "Unpickler", None)
  with pytest.raises(ValueError) as caught:
    TorchFile(write_torch(tmp_path / "a.pt", data=data))
  text = str(caught.value)
  assert sentence in text and len(text) < 400 and "\n" not in text and "is a pickle" in text


def tensor_of(size, shape, strides, offset=0):
  return {"a": View(np.zeros(size, np.float32), "0", shape, strides, offset)}


def overlapping():
  return {str(i): View(np.zeros(100, np.float32), "0", (99 - i % 2,), (1,), i // 2) for i in range(4)}


BAD_FILES = [
  (tensor_of(6, (2, 4), (4, 1)), "outside its storage of 6"),
  (tensor_of(6, (6,), (1,), 1), "outside its storage of 6"),
  (tensor_of(6, (2, 2), (8, 1)), "outside its storage of 6"),
  (tensor_of(6, (1000, 1000, 1000), (0, 0, 0)), "outside its storage of 6"),
  (tensor_of(6, (2**40, 2**40), (1, 1)), "outside its storage of 6"),
  (tensor_of(6, (2,), (-1,), 3), "of no tensor"),
  (tensor_of(6, (2, 3), (1,)), "a stride too many"),
  (tensor_of(6, (0,), (1,), 7), "outside its storage of 6"),
  (tensor_of(6, (0, 2**61, 2**61), (1, 1, 1)), "outside its storage of 6"),
  (overlapping(), "larger than its storages"),
  ({str(i): View(np.zeros(9, np.float32), "0") for i in range(40)}, "share their numbers more often"),
  ({"a": 3}, "it has a where tensors by name"),
  ({"model": {"sd": {"a": 3}}}, "it has a where tensors by name"),
  ({}, "holds no tensors"),
  ([1], "holds no dict"),
  ({"model": {"sd": tensor_of(1, (1,), (1,)), "args": {1: 2}}}, "keys that are not text"),
  ({"model": {"sd": tensor_of(1, (1,), (1,)), "args": {"a": np.zeros(2, np.float32)}}}, "its config holds a Tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES, ids=[s for _, s in BAD_FILES])
def test_tensors_are_inside_what_the_file_holds(content, sentence, tmp_path):
  with pytest.raises(ValueError) as caught:
    TorchFile(write_torch(tmp_path / "a.pt", content))
  assert sentence in str(caught.value) and len(str(caught.value)) < 400


def test_opcodes_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
  TorchFile(write_torch(tmp_path / "a.pt", {"a": np.zeros(2, np.float32)}))
  with pytest.raises(ValueError, match="more than 1000 opcodes"):
    TorchFile(write_torch(tmp_path / "a.pt", data=b")" + b"\x85" * 1000 + b"."))


def test_tied_weights_are_read_twice(tmp_path):
  one = View(np.arange(6, dtype=np.float32), "0")
  with TorchFile(write_torch(tmp_path / "a.pt", {"in": one, "out": one, "b": np.zeros(2, np.float32)})) as file:
    np.testing.assert_array_equal(file.get_tensor("in"), file.get_tensor("out"))


def test_a_number_of_a_config_has_64_bits():
  assert plain({"a": -(2**62)}) == {"a": -(2**62)}
  with pytest.raises(ValueError, match="beyond 64 bits"):
    plain({"a": [2**2000]})  # Python would not even print it


STRANGE = [  # of a config's dropout, which only training reads but `export` writes on
  (float("nan"), "holds nan, expected finite numbers"),
  ([0.1, {"a": float("-inf")}], "holds -inf, expected finite numbers"),
  ("a\ud800", "holds 'a\\ud800', expected"),
  ({"\udfff": 1}, "keys that are not text ('\\udfff')"),
]


@pytest.mark.parametrize(("value", "sentence"), STRANGE, ids=[s for _, s in STRANGE])
def test_a_config_is_what_json_can_hold(value, sentence, tmp_path):
  args = {"dim": 8, "n_layer": 1, "n_head": 2, "vocab_size": 4, "max_seq_len": 2, "dropout": value}
  path = write_torch(tmp_path / "a.pt", {"model": {"args": args, "sd": {"w": np.zeros(2, np.float32)}}})
  for call in (hub.open_checkpoint, vftok.Generator.load):
    with pytest.raises(ValueError) as caught:
      call(path)
    assert sentence in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_names_of_tensors_are_text(tmp_path):
  with pytest.raises(ValueError, match=r"it has a\\ud800 where tensors by name were expected"):
    TorchFile(write_torch(tmp_path / "a.pt", {"a\ud800": np.zeros(2, np.float32)}))


def test_only_regular_files_of_a_folder_are_weights(tmp_path):
  os.mkfifo(tmp_path / "a.pt")  # whoever opens it waits
  with pytest.raises(FileNotFoundError, match="has no model"):
    hub.open_weights(tmp_path)


def test_names_of_strangers_are_told_as_text(tmp_path):
  with pytest.raises(ValueError) as caught:
    TorchFile(write_torch(tmp_path / "a.pt", {"a\nb\x1bc": 3}))
  assert "a\\nb\\x1bc" in str(caught.value)


def test_bombs(tmp_path):
  start = time.monotonic()
  deep = (
    b"\x80\x02}(X\x05\x00\x00\x00model}(X\x02\x00\x00\x00sd}X\x04\x00\x00\x00args}X\x01\x00\x00\x00a" + bomb() + b"suu."
  )
  wide = b"]" + b"".join(b"q%c0](%se" % (i, b"h%c" % i * 9) for i in range(40))  # nine times nine times ...
  wide = b"}(X\x05\x00\x00\x00model}(X\x02\x00\x00\x00sd}X\x04\x00\x00\x00args}X\x01\x00\x00\x00a" + wide + b"suu."
  for data in (deep, wide):
    with pytest.raises(ValueError, match="larger or deeper than one can be"):
      TorchFile(write_torch(tmp_path / "a.pt", data=data))
  for options, sentence in (
    ({"compression": zipfile.ZIP_DEFLATED}, "is compressed, which torch never does"),
    ({"byteorder": b"big"}, "not little-endian"),
    ({"data": b"0" * (MAX_PICKLE + 1)}, "data.pkl has more than"),
  ):
    with pytest.raises(ValueError, match=sentence):
      TorchFile(write_torch(tmp_path / "a.pt", {"a": np.zeros(100, np.float32)}, **options))
  assert time.monotonic() - start < 20


def test_mutations_give_arrays_or_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setattr(pickle, "Unpickler", None)
  content = {
    "model": {
      "name": "n",
      "args": {"a": [1, 2.5, "x"]},
      "sd": {"w": np.ones((2, 3), np.float32), "b": np.ones(2, np.float64)},
    }
  }
  path, rng, seen = tmp_path / "a.pt", np.random.default_rng(0), {"read": 0, "refused": 0}
  storages = {}
  data = b"\x80\x02" + opcodes(content, storages) + b"."
  write_torch(path, content)
  whole = path.read_bytes()

  def attempt(read):
    try:
      read()
      seen["read"] += 1
    except ValueError as error:
      assert len(str(error)) < 400
      seen["refused"] += 1

  def arrays():
    with TorchFile(path) as file:
      assert all(file.get_tensor(key).nbytes < 1000 for key in file.keys())

  for number in range(3000):
    target = bytearray(whole if number % 10 == 0 else data)
    for _ in range(rng.integers(1, 4)):
      at = int(rng.integers(len(target)))
      kind = rng.integers(3)
      target[at : at + (kind == 0)] = bytes([int(rng.integers(256))]) if kind < 2 else b""
    if number % 10:
      attempt(lambda target=bytes(target): contents(torch_pickle.parse(target)))
    else:
      path.write_bytes(target)
      attempt(arrays)
  assert seen["read"] > 100 and seen["refused"] > 1000


# ---- models


def test_larps_training_checkpoint(tmp_path):
  tok, params = random_model(small_config())
  tok.save(params, tmp_path / "released")
  tensors, config = load_file(tmp_path / "released" / "model.safetensors"), small_config()
  zeros = {key: np.zeros_like(a) for key, a in tensors.items()}
  path = write_torch(
    tmp_path / "last.pth",
    {"model": {"name": "larp_tokenizer", "args": config, "sd": tensors, "ema_sd": {0.999: zeros}}, "epoch": 3},
  )
  again, loaded = vftok.load(path)
  assert again == vftok.load(tmp_path / "released")[0]
  jax.tree.map(np.testing.assert_array_equal, loaded, vftok.load(tmp_path / "released")[1])
  (tmp_path / "run").mkdir()
  path.rename(tmp_path / "run" / "last.pth")  # the only weights of a directory, config inside
  assert vftok.load(tmp_path / "run")[0].fingerprint(params) == tok.fingerprint(params)


def test_larps_generator(tmp_path):
  arrays, metadata = golden("larp_small")
  tensors = {key.removeprefix("ar.w."): a for key, a in arrays.items() if key.startswith("ar.w.")}
  model = {"name": "llama-abs-LP", "args": json.loads(metadata["ar_config"]), "sd": tensors}
  gen, params = vftok.Generator.load(write_torch(tmp_path / "ar.pt", {"model": model}))
  expected, own = vftok.Generator.load(write_golden(tmp_path / "ar", "larp_small", "ar_config"))
  assert gen == expected
  jax.tree.map(np.testing.assert_array_equal, params, own)


def test_evatoks_mean_goes_before_its_weights(tmp_path):
  tok, params = evatok_files.random_model()
  tok.export(params, tmp_path / "released")
  tensors = load_file(tmp_path / "released" / "model.safetensors")
  config = json.loads((tmp_path / "released" / "config.json").read_text())
  zeros = {key: np.zeros_like(a) for key, a in tensors.items()}
  for content in ({"ema": tensors, "model": zeros, "steps": 4}, {"model": tensors}, {"state_dict": tensors}, tensors):
    directory = tmp_path / str(len(content))
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    file = hub.open_checkpoint(write_torch(directory / "checkpoint.pt", content).parent)
    assert file.shapes == {key: a.shape for key, a in tensors.items()}
    assert all(np.array_equal(value, tensors[key]) for key, value in file.tensors(tensors))
    assert type(vftok.load(directory)[0]).__name__ == "EVATok"
  with pytest.raises(
    ValueError, match=r"carries no config in its metadata: pass the directory that holds config\.json"
  ):
    vftok.load(directory / "checkpoint.pt")
  write_torch(directory / "other.pt", tensors)
  with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt and 1 more are pickles, pass the one that is meant"):
    vftok.load(directory)
