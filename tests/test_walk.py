"""From a folder of videos to a trained generator, by commands alone; what is listed is listed once."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import c2v
from vftok.data import folder, manifest
from vftok.data.sources import make_source
from vftok.io.video_writer import write_video
from vftok.tools import prepare_videos, tokenize_dataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """12 videos of two classes, 2.5 s at 8 frames per second, each of its own brightness; and a manifest of them."""
  root = tmp_path_factory.mktemp("videos")
  rows = []
  for i in range(12):
    path = root / ("cat" if i % 2 else "dog") / f"{i:02d}.mp4"
    path.parent.mkdir(exist_ok=True)
    frames = np.full((20, 24, 32, 3), 20 * i, np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
    write_video(path, frames, 8)
    split = "val" if i >= 8 else "train"
    rows.append([path.relative_to(root), f"clip {i}", path.parent.name, split])
  with (root / "list.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["path", "caption", "label", "split"], *rows])
  return root


@pytest.fixture
def listings(monkeypatch):
  """How often a tree was walked and a manifest was read from its beginning."""
  counts = SimpleNamespace(walks=0, reads=0)
  walk, rows = folder._walk, manifest.Manifest._rows

  def walked(*args):
    counts.walks += 1
    return walk(*args)

  def read(self, offset=None):
    counts.reads += offset is None
    return rows(self, offset)

  monkeypatch.setattr(folder, "_walk", walked)
  monkeypatch.setattr(manifest.Manifest, "_rows", read)
  return counts


def prepare(source, out, *more):
  words = ["--videos", source, "--out", out, "--size", 16, "--fps", 8, "--chunk", 2, "--workers", 1, *more]
  return prepare_videos.main([str(word) for word in words])


@pytest.mark.parametrize("name", ["list.csv", "."])
def test_prepare_lists_its_videos_once(name, videos, listings, tmp_path):
  assert prepare(videos / name, tmp_path / "set", "--holdout", 0.3) == 0
  assert (listings.walks, listings.reads) == ((0, 1) if name == "list.csv" else (1, 0)), "for 6 shards and 3 splits"
  splits = ["train", "val"]
  sets = {split: make_source("prepared", split, dict(directory=str(tmp_path / "set"))) for split in splits}
  assert sum(map(len, sets.values())) == 12 and sets["train"].label_names == ("cat", "dog")
  if name == "list.csv":
    assert [sets["val"][i]["caption"] for i in range(4)] == [f"clip {i}" for i in range(8, 12)]


class Means:
  """Stands in for a tokenizer: the first id of a clip is its brightness."""

  frame_size, registers, codebook_size, chunk_steps = (16, 16), 4, 256, 5
  nested, one_pass = True, False

  def steps_for(self, frames):
    return 5

  def fingerprint(self, params):
    return "f" * 16

  def encode(self, params, video):
    ids = jnp.zeros((len(video), 5, 4), jnp.int32).at[:, 0, 0].set(jnp.asarray(video).mean((1, 2, 3, 4)).astype(int))
    return SimpleNamespace(ids=ids)


@pytest.fixture
def tokenizing(monkeypatch):
  """(sources, out, wrapper of _encode) -> what tokenize_dataset says, three clips a chunk."""
  from vftok import Tokenizer

  monkeypatch.setattr(Tokenizer, "load", lambda *a, **k: (Means(), {}))
  monkeypatch.setattr(tokenize_dataset, "CHUNK", 3)

  def run(sources, out, encode=None, splits=("train", "val")):
    cfg = c2v.get_config("smoke")
    cfg.tokenize.update(dict(tokenizer="means", batch_size=1))
    with cfg.unlocked():
      cfg.tokenize.splits = dict.fromkeys(splits, sources)
    with pytest.MonkeyPatch.context() as patch:
      if encode:
        patch.setattr(tokenize_dataset, "_encode", encode)
      return tokenize_dataset.tokenize(cfg, out)

  return run


def files(directory):
  return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if ".array_record" in p.name}


@pytest.mark.slow
def test_tokenize_lists_its_videos_once_and_goes_on_with_the_same_bytes(videos, listings, tokenizing, tmp_path):
  sources = dict(videos=dict(kind="video_folder", path=str(videos / "list.csv")))
  calls, encode = [], tokenize_dataset._encode

  def breaks(*args):
    calls.append(1)
    if len(calls) == 7:
      raise KeyboardInterrupt
    return encode(*args)

  with pytest.raises(KeyboardInterrupt):
    tokenizing(sources, tmp_path / "a", breaks)
  assert listings.reads == 1, "for both splits and all chunks"
  said = tokenizing(sources, tmp_path / "a", breaks)
  assert "train 8, val 4 clips" in said and "bytes a clip" in said and listings.reads == 2
  assert len(calls) == 7 + 8 + 4 - 6, "two chunks of three were done"
  tokenizing(sources, tmp_path / "b")
  assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == 5
  stored = make_source("tokens", "val", dict(directory=str(tmp_path / "a")))
  for i in range(4):
    record = stored[i]
    assert abs(int(record["ids"][0, 0]) - 20 * (8 + i) - 9) <= 4 and record["caption"] == f"clip {8 + i}"
    assert stored.label_names[record["label"]] == ("cat" if i % 2 else "dog")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_split_that_the_one_source_lacks_is_left_out_and_said(videos, tokenizing, tmp_path, capsys):
  """`--config.tokenize.splits=video_folder:path=LIST` gives one source to all splits of the config."""
  source = dict(kind="video_folder", path=str(videos / "list.csv"))
  three = ("train", "val", "test")
  assert "train 8, val 4 clips" in tokenizing(dict(videos=source), tmp_path / "set", splits=three)
  assert capsys.readouterr().out == "config.tokenize.splits.test is left out: video_folder has no such split.\n"
  assert "already there" in tokenizing(dict(videos=source), tmp_path / "set", splits=three)
  assert list(json.loads((tmp_path / "set" / "recipe.json").read_text())["splits"]) == ["train", "val"]
  val_only = tmp_path / "val.csv"
  val_only.write_text("path,split\ndog/00.mp4,val\n")
  for sources, lacking in (
    (dict(videos=source | dict(split="test")), "test"),  # asked for by name
    (dict(a=source, b=source), "test"),
    (dict(videos=dict(kind="video_folder", path=str(val_only), root=str(videos))), "train"),
  ):
    with pytest.raises(ValueError, match=f"split is '{lacking}', expected one of"):
      tokenizing(sources, tmp_path / "none", splits=three)


def test_clips_that_are_too_short_are_told_apart(videos, tokenizing, tmp_path):
  write_video(videos / "cat" / "short.mp4", np.zeros((5, 24, 32, 3), np.uint8), 8)
  (videos / "cat" / "bad.mp4").write_text("no video")
  try:
    said = tokenizing(dict(videos=dict(kind="video_folder", path=str(videos), split="all")), tmp_path / "set")
  finally:
    for name in ("short", "bad"):
      (videos / "cat" / f"{name}.mp4").unlink()
  assert "1 clips could not be read and 1 are too short" in said and str(tmp_path / "set") in said


@pytest.mark.slow
def test_devices_share_a_batch():
  """In a process of its own: simulated devices are chosen before jax starts."""
  code = """
    import jax, numpy as np
    from vftok.tools import chunks
    video = np.arange(8 * 2 * 3, dtype=np.float32).reshape(8, 2, 3)
    params = chunks.cut({"w": np.ones((3, 4 * chunks.LARGE // 4), np.float32), "b": np.ones(3, np.float32)})
    made = jax.jit(lambda p, v: (v * p["b"] @ p["w"]).sum(1))(chunks.copied({**params}), chunks.shared(video))
    places = [len(x.sharding.device_set) for x in jax.tree.leaves(params)]
    print(len(made.sharding.device_set), int(np.asarray(made)[3, 0]), places)
    from vftok.runtime import sharding
    with jax.set_mesh(sharding.make_mesh({"data": -1})):
      for count in (8, 6):
        mask, words = np.ones(count, bool), np.array(["a"] * count)
        batch = sharding.spread({"video": video[:count], "_mask": mask, "caption": words})
        total = float(jax.jit(lambda v: v.sum())(batch["video"]))
        print(type(batch["_mask"]).__name__, type(batch["video"]).__name__, total == video[:count].sum())
    try:
      chunks.check_batch(6, "tokenize.batch_size")
    except ValueError as error:
      print(error)
  """
  flags = "--xla_force_host_platform_device_count=4"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", dedent(code)]
  done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
  numbers, *sentence = done.stdout.splitlines()
  assert numbers.split() == ["4", str(sum(range(18, 24))), "[4,", "4]"]
  assert sentence[:2] == ["ndarray ArrayImpl True", "ndarray ndarray True"]
  assert sentence[2:] == ["tokenize.batch_size is 6, expected a multiple of the 4 devices of this host: change it."]


def run(*words):
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", *map(str, words)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.slow
def test_from_videos_to_scores_by_commands_alone(videos, tokenizer, tmp_path):
  """No config is edited: prepare_videos, tokenize_dataset, training and evaluation."""
  config, tokens = "--config=configs/c2v.py:smoke", tmp_path / "tokens"
  said = run(
    "vftok.tools.prepare_videos", "--videos", videos, "--out", tmp_path / "set", "--size", 16, "--holdout", 0.4
  )
  assert "could not" not in said
  made = run(
    "vftok.tools.tokenize_dataset",
    config,
    f"--config.tokenize.splits=prepared:directory={tmp_path / 'set'}",
    f"--config.tokenize.tokenizer={tokenizer[2]}",
    f"--out={tokens}",
    "--workers=2",
  )
  assert "bytes a clip" in made
  where = (
    f"--config.data.sources=tokens:directory={tokens}",
    f"--config.eval.sets=tokens:directory={tokens}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert "done at step 4" in run("vftok.main", config, *where)
  scores = run("vftok.main", config, *where, "--mode=eval")
  assert "val/bits_per_token" in scores
  recipe = json.loads((tokens / "recipe.json").read_text())
  assert recipe["splits"]["val"] == {"prepared": dict(kind="prepared", directory=str(tmp_path / "set"))}
  assert not list(tmp_path.glob(".*")), "neither locks nor unfinished work"
