import os
import pickle

import numpy as np
import pytest
from video_files import encode, every, scene, tree

from vftok.data import dataset_writer
from vftok.data.folder import video_folder
from vftok.data.latents import latents, write_latents
from vftok.data.shapes import COLOURS, ShapesSource
from vftok.data.sources import make_source
from vftok.io.sides import name_hash

# ---- folders

UCF = ["Archery/v_1.avi", "Archery/v_2.avi", "Band Marching/v_1.avi", "Band Marching/deep/er/v_2.avi", "notes.txt"]
KINETICS = ["train/archery/a_1.mp4", "train/juggling/b_1.mp4", "validation/archery/c_1.mp4", "test/archery/d.mp4"]
FLAT = ["b.mp4", "a.webm", "ü 蛙.MP4", ".hidden.mp4", ".cache/x.mp4"]
TRAIN_IS_A_LABEL = ["train/1.mp4", "bus/1.mp4"]

FOLDERS = [
  (UCF, "all", {"Archery/v_1.avi": 0, "Archery/v_2.avi": 0, "Band Marching/v_1.avi": 1, UCF[3]: 1}),
  (KINETICS, "train", {KINETICS[0]: 0, KINETICS[1]: 1}),
  (KINETICS, "val", {KINETICS[2]: 0}),
  (KINETICS, "test", {KINETICS[3]: 0}),
  (FLAT, "all", {"a.webm": -1, "b.mp4": -1, "ü 蛙.MP4": -1}),
  (TRAIN_IS_A_LABEL, "all", {"bus/1.mp4": 0, "train/1.mp4": 1}),
]


@pytest.mark.parametrize("files, split, expected", FOLDERS, ids=range(len(FOLDERS)))
def test_folders(tmp_path, files, split, expected):
  source = video_folder(split, path=tree(tmp_path, files))
  found = every(source)
  assert {record["name"]: record["label"] for record in found} == expected
  assert [record["name"] for record in found] == sorted(expected)
  for record in found:
    assert os.path.isfile(record["path"])
    assert record["caption"] == (source.label_names[record["label"]] if record["label"] >= 0 else "")
  assert every(pickle.loads(pickle.dumps(source))) == found


def test_folder_links_are_followed_once(tmp_path):
  tree(tmp_path / "real", ["a/1.mp4"])
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "a").symlink_to(tmp_path / "real" / "a")
  (tmp_path / "real" / "a" / "loop").symlink_to(tmp_path / "set")
  assert [r["name"] for r in every(video_folder("all", path=tmp_path / "set", links=True))] == ["a/1.mp4"]
  with (
    pytest.warns(UserWarning, match="1 links in .* lead out of it"),
    pytest.raises(ValueError, match="no video files"),
  ):
    video_folder("all", path=tmp_path / "set")


def test_links_of_files_out_of_the_tree(tmp_path):
  tree(tmp_path, ["set/a/1.mp4", "other/2.mp4"])
  (tmp_path / "set/a/2.mp4").symlink_to(tmp_path / "other/2.mp4")
  (tmp_path / "set/a/3.mp4").symlink_to("1.mp4")
  (tmp_path / "set/b").symlink_to("../other")
  with pytest.warns(UserWarning, match="2 links in .*set lead out of it and are not followed"):
    found = every(video_folder("all", path=tmp_path / "set"))
  assert [record["name"] for record in found] == ["a/1.mp4", "a/3.mp4"]
  assert len(video_folder("all", path=tmp_path / "set", links=True)) == 4


def test_holdout_is_stable_and_splits_by_file(tmp_path):
  names = [f"c{i % 7}/{i}.mp4" for i in range(400)]
  path = tree(tmp_path, names)
  parts = {split: {r["name"] for r in every(video_folder(split, path=path, holdout=0.2))} for split in ("train", "val")}
  assert parts["train"] | parts["val"] == set(names) and not parts["train"] & parts["val"]
  assert 0.14 < len(parts["val"]) / 400 < 0.26
  # For ever: another hash would leak held-out files of old runs into new ones.
  assert [name_hash(name) >> 63 for name in ("a.mp4", "b.mp4", "ü.mp4", "c/d.mp4", "1.avi")] == [1, 1, 1, 0, 1]
  wider = {r["name"] for r in every(video_folder("val", path=path, holdout=0.4))}
  assert parts["val"] < wider
  rows = "path,start\n" + "".join(f"{name},{second}\n" for name in names for second in (0, 3))
  (tmp_path / "list.csv").write_text(rows)
  held = [r["path"] for r in every(video_folder("val", path=tmp_path / "list.csv", holdout=0.2))]
  assert sorted({os.path.relpath(p, tmp_path) for p in held}) == sorted(parts["val"]) and len(held) == 2 * len(
    set(held)
  )


def test_bad_choices(tmp_path):
  with pytest.raises(FileNotFoundError, match="does not exist"):
    video_folder("train", path=tmp_path / "no")
  with pytest.raises(ValueError, match="holds no video files"):
    video_folder("train", path=tmp_path)
  tree(tmp_path, KINETICS)
  with pytest.raises(ValueError, match="split is 'dev', expected one of test, train, val, all"):
    video_folder("dev", path=tmp_path)
  with pytest.raises(ValueError, match=r"holdout is 1\.5"):
    video_folder("train", path=tmp_path, holdout=1.5)
  with pytest.raises(ValueError, match="kind is 'clip', expected one of clips, video_folder"):
    make_source("clip", "train", {})
  with pytest.raises(ValueError, match="shapes does not take these options"):
    make_source("shapes", "train", {"colour": "red"})
  (tmp_path / "one").mkdir()
  tree(tmp_path / "one", ["a.mp4"])
  with pytest.raises(ValueError, match="no clips in split 'val'"):
    make_source("video_folder", "val", {"path": tmp_path / "one", "holdout": 0})


@pytest.mark.parametrize(
  "kind, name, value, what",
  [
    ("world", "count", True, "a whole number"),
    ("world", "size", 32.0, "a whole number"),
    ("world", "keep", 1, "True or False"),
    ("sim", "frames", "17", "a whole number"),
    ("sim", "second_object", float("nan"), "a number"),
    ("shapes", "fps", None, "a number"),
    ("packed", "window", True, "a whole number"),
    ("video_folder", "holdout", "half", "a number"),
    ("image_folder", "links", "no", "True or False"),
    ("tfds", "fps", False, "a number"),
    ("tfds", "video", 3, "text"),
    ("ucf101", "fold", 1.5, "a whole number"),
  ],
)
def test_an_option_is_of_its_type(tmp_path, kind, name, value, what):
  where = dict(path=tmp_path / "x") if kind in ("packed", "video_folder", "image_folder") else {}
  where = dict(path=tmp_path, root=tmp_path) if kind == "ucf101" else where
  with pytest.raises(ValueError, match=rf"^{name} of {kind} is .*, expected {what}: pass {what}\.$"):
    make_source(kind, "train", {**where, name: value})


def test_what_may_be_left_open_is_none(tmp_path):
  with pytest.raises(FileNotFoundError):  # of the set, no longer of the option
    make_source("tfds", "train", dict(directory=tmp_path / "none", fps=None, caption=None))


# ---- shapes


def test_shapes_are_a_function_of_split_and_index():
  source = ShapesSource("train", size=(32, 48), frames=9, count=40)
  again = ShapesSource("train", size=(32, 48), frames=9, count=40)[17]
  assert source[17]["frames"].shape == (9, 32, 48, 3) and source[17]["frames"].dtype == np.uint8
  assert np.array_equal(source[17]["frames"], again["frames"]) and source[17]["caption"] == again["caption"]
  assert not np.array_equal(ShapesSource("val", size=(32, 48), frames=9)[17]["frames"], again["frames"])
  for record in every(source):
    _, colour, shape, _, direction = record["caption"].split()
    assert source.label_names[record["label"]] == shape
    change = np.abs(np.diff(record["frames"].astype(int), axis=0)).sum((0, 3))
    assert change.sum() > 0
    where = record["frames"][[0, -1]].astype(int) - np.array(COLOURS[colour])
    near = np.abs(where).sum(-1) < 30
    (y0, x0), (y1, x1) = (np.argwhere(mask).mean(0) for mask in near)
    moved = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
    assert max(moved, key=moved.get) == direction


def test_shapes_know_what_they_show():
  source = ShapesSource("test", size=32, frames=5, count=60, objects=3)
  known, (captions, labels) = source.attributes(np.arange(60)), source.describe(np.arange(60))
  named = {name: [source.attribute_names[name][i] for i in places] for name, places in known.items()}
  for i, record in enumerate(every(source)):
    assert record["caption"] == captions[i] == f"a {named['colour'][i]} {named['object'][i]} moves {named['motion'][i]}"
    assert record["label"] == labels[i] == known["object"][i]
    near = lambda name, frames=record["frames"]: (np.abs(frames - np.array(COLOURS[name], float)).sum(-1) < 2).any()
    seen = [name for name in COLOURS if near(name)]
    assert named["colour"][i] in seen and len(seen) <= known["count"][i] + 1
    front = source._drawn(i)[0][0]
    assert tuple(record["frames"][2, round(front.row), round(front.column)]) == COLOURS[named["colour"][i]]
  assert np.bincount(known["count"]).min() > 5 and len(np.bincount(known["count"])) == 3
  one = ShapesSource("test", size=32, frames=5, count=60).attributes(np.arange(60))
  assert not one["count"].any() and np.array_equal(one["motion"], known["motion"])  # the one in front is the same
  with pytest.raises(ValueError, match="objects is 4, expected 1 to 3"):
    ShapesSource(objects=4)


# ---- TFDS sets and latents


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A set like prepare_clips writes it."""
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp("tfds")
  data = encode(folder / "a.mp4", scene(6)).read_bytes()
  (folder / "a.mp4").unlink()

  class VftokClips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = dict(mp4=text, caption=text, source=text, start=np.float32, fps=np.float32)
      features["label"] = tfds.features.ClassLabel(names=["cat", "dog"])
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(5), "val": self._generate_examples(2)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, dict(mp4=data, caption=f"ü {i}", source="bikes", start=i / 2, fps=25.0, label=i % 2)

  VftokClips(data_dir=str(folder), file_format="array_record").download_and_prepare()
  return folder, data


def test_clips(prepared):
  folder, data = prepared
  source = make_source("clips", "train", {"directory": folder})
  assert len(source) == 5 and source.label_names == ("cat", "dog")
  found = sorted(every(pickle.loads(pickle.dumps(source))), key=lambda record: record["name"])
  assert found[3] == {"mp4": data, "caption": "ü 3", "label": 1, "name": "bikes@1.50", "fps": 25.0}
  with pytest.raises(ValueError, match="split is 'test', expected one of train, val"):
    make_source("clips", "test", {"directory": folder})


def test_clips_that_are_not_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"run `python -m vftok\.tools\.prepare_clips`"):
    make_source("clips", "train", {})


def test_any_tfds_set(prepared):
  folder, data = prepared
  source = make_source("tfds", "train[:2]", dict(directory=folder, video="mp4", caption="source", label=None))
  assert len(source) == 2 and source[0]["mp4"] == data
  assert (source[0]["caption"], source[0]["label"], source[0]["name"]) == ("bikes", -1, "vftok_clips/train[:2]:0")
  with pytest.raises(ValueError, match="video is 'video', expected a feature of vftok_clips"):
    make_source("tfds", "train", dict(directory=folder))
  with pytest.raises(ValueError, match="neither name nor directory"):
    make_source("tfds", "train", {})
  with pytest.raises(FileNotFoundError, match="there is no TFDS set 'nothing_here'"):
    make_source("tfds", "train", dict(name="nothing_here", directory=folder))


def test_latents_come_back(tmp_path):
  values = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 8)).astype(np.float16)
  examples = [dict(latents=v, caption=f"c{i}", label=i) for i, v in enumerate(values)]
  write_latents(tmp_path / "set", {"train": examples, "val": iter(examples[:1])}, {"fingerprint": "abc", "vae": "x"})
  source = latents("train", directory=tmp_path / "set", fingerprint="abc")
  assert source.shape == (2, 4, 4, 8) and source.meta["vae"] == "x"
  for i, record in enumerate(every(source)):
    assert record["latents"].dtype == np.float16 and np.array_equal(record["latents"], values[i])
    assert (record["caption"], record["label"], record["name"]) == (f"c{i}", i, f"train:{i}")
  assert len(latents("val", directory=tmp_path / "set")) == 1
  with pytest.raises(ValueError, match="made by the VAE abc, expected other"):
    latents("train", directory=tmp_path / "set", fingerprint="other")
  with pytest.raises(ValueError, match="exists already"):
    write_latents(tmp_path / "set", {"train": examples}, {"fingerprint": "abc"})


def test_the_same_latents_are_the_same_bytes(tmp_path, monkeypatch):
  """In every process: the fields of a record are in the alphabet's order, in all shards."""
  from tensorflow_datasets.proto import tf_example_pb2

  monkeypatch.setattr(dataset_writer, "PER_SHARD", 2)
  values = np.random.default_rng(0).normal(size=(5, 1, 2, 2, 3)).astype(np.float16)
  examples = [dict(latents=v, caption=f"c{i}", label=i) for i, v in enumerate(values)]
  for name in "ab":
    write_latents(tmp_path / name, {"val": examples[:4], "train": iter(examples)}, {"fingerprint": "abc"})
  files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
  assert len([path for path in files if ".array_record" in path.name]) == 2 + 3 and len(files) == 5 + 4
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
  source = latents("train", directory=tmp_path / "a")
  for i, record in enumerate(every(source)):
    assert np.array_equal(record["latents"], values[i]) and record["label"] == i
    stored = source._records[i]
    assert stored == tf_example_pb2.Example.FromString(stored).SerializeToString(deterministic=True)


BAD_LATENTS = [
  ([np.zeros((2, 4, 4, 8)), np.zeros((2, 4, 4, 4))], {"fingerprint": "a"}, r"train:1 have shape \(2, 4, 4, 4\)"),
  ([np.zeros((2, 4, 4, 8)), np.full((2, 4, 4, 8), 1e6)], {"fingerprint": "a"}, "train:1 are not finite"),
  ([np.zeros((4, 4, 8))], {"fingerprint": "a"}, r"shape \(4, 4, 8\), expected \[T, h, w, C\]"),
  ([], {"fingerprint": "a"}, "has no examples"),
  ([np.zeros((2, 4, 4, 8))], {}, "fingerprint None, expected"),
]


@pytest.mark.parametrize("values, meta, sentence", BAD_LATENTS, ids=range(len(BAD_LATENTS)))
def test_failed_latents_leave_nothing(tmp_path, values, meta, sentence):
  with pytest.raises(ValueError, match=sentence), np.errstate(over="ignore"):
    write_latents(tmp_path / "set", {"train": [{"latents": v} for v in values]}, meta)
  assert not list(tmp_path.iterdir())
  with pytest.raises(FileNotFoundError, match="holds no cached latents"):
    latents("train", directory=tmp_path / "set")
