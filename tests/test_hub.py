"""Models in several files, and models of the Hugging Face Hub by its real client against a server on this machine."""

import json

import numpy as np
import pytest
from hub_server import serving
from model_files import sentence
from safetensors.numpy import load_file, save, save_file

from vftok import Tokenizer
from vftok.io import hub, remote
from vftok.io.weight_index import INDEX

CONFIG = {"format": "nothing", "a": 1}
TENSORS = {f"part{i}/kernel": np.full((3, i + 1), i, np.float32) for i in range(4)}


def shard(tensors, parts: int) -> dict[str, bytes]:
  """Files of the tensors in so many shards, with their index."""
  names = [f"model-{i + 1:05d}-of-{parts:05d}.safetensors" for i in range(parts)]
  where = {key: names[i % parts] for i, key in enumerate(sorted(tensors))}
  files = {name: save({k: v for k, v in tensors.items() if where[k] == name}) for name in names}
  return files | {INDEX: json.dumps({"metadata": {}, "weight_map": where}).encode()}


def written(directory, files):
  directory.mkdir(exist_ok=True)
  for name, data in files.items():
    (directory / name).write_bytes(data)
  return directory


def same(checkpoint, tensors=TENSORS):
  found = dict(checkpoint.tensors(checkpoint.shapes))
  assert found.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(found[key], value)


# ---- several files


def test_a_model_in_three_files_is_the_model(random_model, tmp_path):
  path, tok, params = random_model
  tensors = load_file(f"{path}/model.safetensors")
  config = {"config.json": (path / "config.json").read_bytes()}
  loaded, theirs = Tokenizer.load(written(tmp_path / "m", shard(tensors, 3) | config))
  assert loaded.cfg == tok.cfg and loaded.fingerprint(theirs) == tok.fingerprint(params)


BAD_SHARDS = {
  # name: (change to {file: bytes}, what the sentence must name)
  "missing": (lambda f: f.pop("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
  "cut": (lambda f: f.update({"model-00002-of-00002.safetensors": b"\x40" + bytes(20)}), "no whole safetensors file"),
  "of another model": (
    lambda f: f.update({"model-00001-of-00002.safetensors": save({"x": np.ones(2)})}),
    "does not hold part0",
  ),
  "leaves the folder": (lambda f: index(f, dict.fromkeys(TENSORS, "../secret.safetensors")), "no weight_map"),
  "absolute": (lambda f: index(f, dict.fromkeys(TENSORS, "/etc/passwd")), "no weight_map"),
  "hidden": (lambda f: index(f, dict.fromkeys(TENSORS, ".x")), "no weight_map"),
  "numbers": (lambda f: index(f, dict.fromkeys(TENSORS, 3)), "no weight_map"),
  "a list": (lambda f: index(f, ["a"]), "no weight_map"),
  "empty": (lambda f: index(f, {}), "no weight_map"),
  "thousands": (lambda f: index(f, {f"k{i}": f"f{i}.safetensors" for i in range(5000)}), "names 5000 files"),
  "no JSON": (lambda f: f.update({INDEX: b"{"}), "no JSON"),
  "long names": (lambda f: index(f, {"k" * 9000: "model-00001-of-00002.safetensors"}), "otherwise than"),
  "long files": (lambda f: index(f, {"k": "f" * 9000}), "no weight_map"),
  "no config": (lambda f: f.pop("config.json"), "has no config.json"),
}


def index(files, where):
  files[INDEX] = json.dumps({"weight_map": where}).encode()


@pytest.mark.parametrize("name", BAD_SHARDS)
def test_bad_shards(tmp_path, name):
  change, named = BAD_SHARDS[name]
  files = shard(TENSORS, 2) | {"config.json": json.dumps(CONFIG).encode()}
  (tmp_path / "secret.safetensors").write_bytes(save(TENSORS))
  same(hub.open_checkpoint(written(tmp_path / "good", files)))
  change(files)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    hub.open_checkpoint(written(tmp_path / "bad", files))
  assert named in sentence(caught.value) and len(str(caught.value)) < 400


def test_one_whole_file_goes_before_an_index(tmp_path):
  directory = written(tmp_path / "m", {INDEX: b"{", "config.json": b"{}"})
  save_file(TENSORS, directory / "model.safetensors")
  same(hub.open_weights(directory))


def test_a_directory_whose_file_has_the_config_inside(tmp_path):
  """As released files carry it, an entry per key; a config.json beside it goes before."""
  (tmp_path / "m").mkdir()
  save_file(TENSORS, tmp_path / "m" / "model.safetensors", metadata={"_target_": "a.Model", "levels": "[8, None]"})
  first = hub.open_checkpoint(tmp_path / "m")
  same(first)
  assert first.config == {"_target_": "a.Model", "levels": [8, None]}
  (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
  assert hub.open_checkpoint(tmp_path / "m").config == CONFIG


# ---- the Hub


@pytest.fixture
def server(tmp_path, monkeypatch):
  constants = pytest.importorskip("huggingface_hub.constants")
  with serving() as server:
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    yield server


def whole(**more) -> dict[str, bytes]:
  tensors = {"model.safetensors": save({k: v + more.get("add", 0) for k, v in TENSORS.items()})}
  return tensors | {"config.json": json.dumps(CONFIG).encode(), "README.md": b"#", "pytorch_model.bin": b"\x80"}


def test_a_model_of_the_hub(server):
  """By redirects, only what is read, and by its etag not a second time."""
  server.repositories["org/model"] = {"main": whole()}
  first = hub.open_checkpoint("org/model")
  same(first)
  assert first.config == CONFIG and sorted(p.name for p in first.path.parent.iterdir()) == [
    "config.json",
    "model.safetensors",
  ]
  assert sum(path.startswith("/files/") for method, path in server.asked if method == "GET") == 2
  server.asked.clear()
  same(hub.open_checkpoint("org/model"))
  assert not [path for method, path in server.asked if path.startswith("/files/")]


def test_a_revision_of_the_hub(server):
  server.repositories["org/model"] = {"main": whole(), "v1.0": whole(add=1), "refs/pr/3": whole(add=2)}
  for name, add in (("org/model", 0), ("org/model@v1.0", 1), ("org/model@main", 0)):
    same(hub.open_checkpoint(name), {k: v + add for k, v in TENSORS.items()})
  commit = server.commit("org/model", "v1.0")
  same(hub.open_checkpoint(f"org/model@{commit}"), {k: v + 1 for k, v in TENSORS.items()})
  with pytest.raises(FileNotFoundError, match=r"org/model@v9 .*has no revision 'v9'") as caught:
    hub.open_checkpoint("org/model@v9")
  sentence(caught.value)


def test_a_sharded_model_of_the_hub(server):
  server.repositories["org/big"] = {"main": shard(TENSORS, 2) | {"config.json": b'{"a": 1}', "model.bin": b"\x80"}}
  same(hub.open_checkpoint("org/big"))
  assert not [path for _, path in server.asked if path.endswith(".bin")]


def test_what_may_not_be_entered_or_is_not_there(server):
  server.gated.add("org/gated")
  server.repositories["org/empty"] = {"main": {"README.md": b"#"}}
  for name, named in (
    ("org/gated", "is gated: ask for access"),
    ("org/none", "is not there, or private"),
    ("org/none@v1", "is not there, or private"),
    ("org/empty", "has no model.safetensors"),
  ):
    with pytest.raises(FileNotFoundError) as caught:
      hub.open_checkpoint(name)
    assert named in sentence(caught.value) and len(str(caught.value)) < 400


def test_a_download_that_is_cut_goes_on_where_it_stopped(server, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own attempts
  server.repositories["org/model"] = {"main": whole()}
  server.cuts = 1
  try:
    same(hub.open_checkpoint("org/model"))
  except FileNotFoundError as error:  # clients that do not try again by themselves
    sentence(error)
    same(hub.open_checkpoint("org/model"))


def test_a_download_that_is_always_cut_is_never_half_a_model(server, monkeypatch):
  monkeypatch.setattr("time.sleep", lambda _: None)
  server.repositories["org/model"] = {"main": whole()}
  server.cuts = 10**6
  with pytest.raises(FileNotFoundError, match="could not be fetched") as caught:
    hub.open_checkpoint("org/model")
  sentence(caught.value)
  server.cuts = 0
  same(hub.open_checkpoint("org/model"))


def test_without_a_network_what_is_there_is_used(server):
  server.repositories["org/model"] = {"main": whole()}
  same(hub.open_checkpoint("org/model"))
  server.shutdown()
  server.socket.close()
  same(hub.open_checkpoint("org/model"))
  with pytest.raises(FileNotFoundError) as caught:
    hub.open_checkpoint("org/other")
  assert len(sentence(caught.value)) < 400


@pytest.mark.parametrize(
  "name",
  ["a/b/c", "a/b@", "@v1", "a/b@../x", "a/b@-v", ".a/b", "a b/c", "a/b@v 1", "x" * 5000, "a/\x00", "a/b\n", "-"],
)
def test_no_name_of_the_hub(name):
  assert not remote.is_id(name) or name == "a/b@v/../x"
  with pytest.raises(FileNotFoundError) as caught:
    hub.open_checkpoint(name)
  assert len(sentence(caught.value)) < 400
