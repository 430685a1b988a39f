import json
import os
import pickle
import warnings

import numpy as np
import pytest
from video_files import encode, scene

from vftok.data.folder import video_folder
from vftok.data.latents import latents, write_latents
from vftok.data.shapes import COLOURS, ShapesSource
from vftok.data.sides import name_hash
from vftok.data.sources import make_source


def tree(root, files):
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"video")
  return root


def every(source):
  return [source[i] for i in range(len(source))]


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


# ---- manifests

ROWS = [
  dict(path="v/a.mp4", caption='she says "no",\nthen leaves', label="wave", start=1.5, end=4.0),
  dict(path="/abs/ü.mp4", caption="", label="archery", start=None, end=2),
  dict(path="b.mp4", caption="蛙", label=None, start=None, end=None),
]


def written(path, rows):
  if path.suffix == ".jsonl":
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path
  mark = "\t" if path.suffix == ".tsv" else ","
  quote = lambda v: "" if v is None else '"' + str(v).replace('"', '""') + '"' if isinstance(v, str) else str(v)
  lines = [mark.join(rows[0])] + [mark.join(quote(v) for v in row.values()) for row in rows]
  path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8", newline="")
  return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_manifests(tmp_path, ending):
  source = video_folder("all", path=written(tmp_path / f"set.{ending}", ROWS))
  assert source.label_names == ("archery", "wave")
  first, second, third = every(source)
  assert first["path"] == str(tmp_path / "v/a.mp4") and second["path"] == "/abs/ü.mp4"
  assert first["caption"].replace("\r", "") == 'she says "no",\nthen leaves' and third["caption"] == "蛙"
  assert [r["label"] for r in (first, second, third)] == [1, 0, -1]
  assert [(r["start"], r["end"]) for r in (first, second, third)] == [(1.5, 4), (None, 2), (None, None)]
  assert first["name"] == "v/a.mp4@1.5" and third["name"] == "b.mp4"
  assert pickle.loads(pickle.dumps(source))[0] == first
  elsewhere = video_folder("all", path=tmp_path / f"set.{ending}", root=tmp_path / "videos")
  assert elsewhere[2]["path"] == str(tmp_path / "videos" / "b.mp4")


def test_manifest_with_numbers_splits_and_other_names(tmp_path):
  rows = [dict(videoID=f"{i}.mp4", label=str(9 - i), split="validation" if i % 2 else "train", x=1) for i in range(4)]
  source = video_folder("val", path=written(tmp_path / "a.csv", rows), columns={"path": "videoID"})
  assert [(r["name"], r["label"]) for r in every(source)] == [("1.mp4", 8), ("3.mp4", 6)]
  assert source.label_names == ()


MANIFESTS = [
  ("a.csv", "", "lists no clips"),
  ("a.csv", "path,label\n", "lists no clips"),
  ("a.csv", "a.mp4,wave\nb.mp4,wave\n", r"line 1 has columns a\.mp4, wave, expected 'path'"),
  ("a.csv", "path,label\na.mp4,x\n\nb.mp4\n", "line 4 has 1 columns, expected 2"),
  ("a.csv", "path,label\na.mp4,x,y\n", "line 2 has 3 columns, expected 2"),
  ("a.csv", "path,label\n,x\n", "line 2, column 'path' is '', expected the path"),
  ("a.csv", "path,start\na.mp4,soon\n", "line 2, column 'start' is 'soon', expected seconds"),
  ("a.csv", "path,start\na.mp4,-1\n", "line 2, column 'start' is '-1', expected seconds of at least 0"),
  ("a.csv", "path,end\na.mp4,inf\n", "line 2, column 'end' is 'inf', expected seconds"),
  (
    "a.csv",
    'path,caption,start,end\na.mp4,"two\nlines",0,1\nb.mp4,,3,2\n',
    "line 4, column 'end' is '2', expected more",
  ),
  ("a.csv", 'path,caption\na.mp4,"open\n', "line 2: "),
  ("a.csv", b"path\n\xff\xfe.mp4\n", "line 2 is not UTF-8 at byte 0"),
  ("a.jsonl", '{"path": "a.mp4"}\n{"path": "b.mp4",}\n', "line 2, column 18: .* expected one JSON object per line"),
  ("a.jsonl", "[1]\n", r"line 1 is \[1\], expected a JSON object"),
  ("a.jsonl", '{"file": "a.mp4"}\n', "line 1, column 'path' is None, expected the path"),
  ("a.jsonl", '{"path": "a", "label": [1]}\n', r"line 1, column 'label' is \[1\], expected a name or a whole number"),
  ("a.jsonl", '{"path": "a", "caption": 3}\n', "line 1, column 'caption' is 3, expected text"),
  ("a.jsonl", '{"path": "a", "start": "x"}\n', "line 1, column 'start' is 'x', expected seconds"),
  ("a.csv", "path;caption\na.mp4;x\n", "line 1 has columns path;caption, expected 'path' among them: .* commas"),
  ("a.csv", "path,caption,path\na.mp4,x,b.mp4\n", "line 1 has column path twice"),
  ("a.csv", "path,label\na.mp4,1.5\n", "line 2, column 'label' is '1.5', expected a name, or a whole number"),
  ("a.csv", "path,label\na.mp4,1.0\nb.mp4,10.0\n", r"line 2, column 'label' is '1\.0'"),
  ("a.csv", "path,label\na.mp4,0\nb.mp4,2147483648\n", "line 3, column 'label' is '2147483648', .* to 2147483647"),
  ("a.csv", "path,label\na.mp4,-2\n", "line 2, column 'label' is '-2'"),
  ("a.csv", "path,label\na.mp4,nan\n", "line 2, column 'label' is 'nan'"),
  ("a.csv", "path,label\na.mp4,0\nb.mp4,cat\n", "line 3, column 'label' is 'cat', expected a number, as 0 in line 2"),
  ("a.csv", f"path,label\na.mp4,{'9' * 5000}\n", "line 2, column 'label' is '9+"),
  ("a.csv", f"path,caption\na.mp4,{'x' * 200_000}\n", "line 2: field larger than"),
  ("a.csv", "path,start\na.mp4,1e999\n", "line 2, column 'start' is '1e999', expected seconds of at least 0"),
  ("a.csv", "path,start\na.mp4,1_0\n", "line 2, column 'start' is '1_0', expected seconds"),
  ("a.csv", "path\na\0.mp4\n", r"line 2, column 'path' is 'a\\x00.mp4', expected text|line 2: line contains NUL"),
  ("a.csv", ",".join(f"column{i}" * 9 for i in range(99)) + "\na\n", "line 1 has columns column0"),
  ("a.jsonl", '{"path": "a", "path": "b"}\n', "line 1: key path comes twice"),
  (
    "a.jsonl",
    '{"path": "a", "caption": {"text": "x"}}\n',
    r"line 1, column 'caption' is \{'text': 'x'\}, expected text",
  ),
  ("a.jsonl", '{"path": "a"}\n{"path": ' + "[" * 100_000 + "\n", "line 2 is nested too deeply"),
  ("a.jsonl", '{"path": "a", "label": ' + "9" * 5000 + "}\n", "line 1: Exceeds the limit"),
  ("a.jsonl", '{"path": "a", "label": 4294967296}\n', "line 1, column 'label' is 4294967296"),
  ("a.jsonl", '{"path": "a", "label": 2.0}\n', r"line 1, column 'label' is 2\.0"),
  ("a.jsonl", '{"path": "a", "label": NaN}\n', "line 1, column 'label' is nan"),
  ("a.jsonl", '{"path": "a", "label": true}\n', "line 1, column 'label' is True"),
  ("a.jsonl", '{"path": "a", "start": true}\n', "line 1, column 'start' is True, expected seconds"),
  (
    "a.jsonl",
    '{"path": "a", "end": 1' + "0" * 400 + "}\n",
    "line 1, column 'end' is 10+.*expected seconds of at least 0",
  ),
  (
    "a.jsonl",
    '{"path": "a", "caption": "\\ud800"}\n',
    "line 1, column 'caption' is .*expected text that UTF-8 can hold",
  ),
  ("a.txt", "a.mp4 1\n", "ends in '.txt', expected"),
]


@pytest.mark.parametrize("name, text, sentence", MANIFESTS, ids=range(len(MANIFESTS)))
def test_bad_manifests(tmp_path, name, text, sentence):
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=sentence) as caught:
    video_folder("all", path=tmp_path / name)
  message = str(caught.value)
  assert str(tmp_path / name) in message and "\n" not in message and len(message) - len(str(tmp_path)) < 350


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_named_columns_are_there(tmp_path, ending):
  path = written(
    tmp_path / f"a.{ending}", [dict(path="a.mp4", sentence="a dog", n=3), dict(path="b.mp4", sentence="", n=4)]
  )
  with pytest.raises(
    ValueError, match=r"columns names 'sentense' for the caption, expected a column of .*path, sentence, n"
  ):
    video_folder("all", path=path, columns={"caption": "sentense"})
  with pytest.warns(UserWarning, match=r"2 captions are empty, the first one in line \d"):
    found = every(video_folder("all", path=path, columns={"caption": "sentence"}))
  assert [record["caption"] for record in found] == ["a dog", ""]
  with pytest.warns(
    UserWarning, match="no column 'caption' in line 1, so all captions are empty; it has sentence: pass"
  ):
    assert video_folder("all", path=path)[0]["caption"] == ""
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # nothing that could be a caption is there: nothing to say
    video_folder("all", path=written(tmp_path / f"b.{ending}", [dict(path="a.mp4", label="dog", n=3)]))


def test_one_label_map_for_all_splits_and_sets(tmp_path):
  rows = [("a.mp4", "wave", "train"), ("b.mp4", "archery", "val"), ("c.mp4", "archery", "train")]
  path = written(tmp_path / "a.csv", [dict(zip(("path", "label", "split"), row, strict=True)) for row in rows])
  train, val = (video_folder(split, path=path) for split in ("train", "val"))
  assert train.label_names == val.label_names == ("archery", "wave")
  assert (train[0]["label"], val[0]["label"]) == (1, 0)
  (tmp_path / "names.txt").write_text("wave\n\nswim\narchery\n", encoding="utf-8")
  for labels in (("wave", "swim", "archery"), tmp_path / "names.txt"):
    source = video_folder("all", path=path, labels=labels)
    assert source.label_names == ("wave", "swim", "archery")
    assert [record["label"] for record in every(source)] == [0, 2, 2]
  tree(tmp_path / "set", ["archery/1.mp4", "2.mp4"])
  assert [r["label"] for r in every(video_folder("all", path=tmp_path / "set", labels=["wave", "archery"]))] == [-1, 1]
  with pytest.raises(ValueError, match="line 3, column 'label' is 'archery', expected one of the 2 labels"):
    video_folder("all", path=path, labels=["wave", "swim"])
  with pytest.raises(ValueError, match="has the folder 'archery', expected one of the 1 labels"):
    video_folder("all", path=tmp_path / "set", labels=["wave"])
  with pytest.raises(ValueError, match="labels name wave twice"):
    video_folder("all", path=path, labels=["wave", "wave"])
  with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
    video_folder("all", path=path, labels=tmp_path / "none.txt")


def test_links_of_files_out_of_the_tree(tmp_path):
  tree(tmp_path, ["set/a/1.mp4", "other/2.mp4"])
  (tmp_path / "set/a/2.mp4").symlink_to(tmp_path / "other/2.mp4")
  (tmp_path / "set/a/3.mp4").symlink_to("1.mp4")
  (tmp_path / "set/b").symlink_to("../other")
  with pytest.warns(UserWarning, match="2 links in .*set lead out of it and are not followed"):
    found = every(video_folder("all", path=tmp_path / "set"))
  assert [record["name"] for record in found] == ["a/1.mp4", "a/3.mp4"]
  assert len(video_folder("all", path=tmp_path / "set", links=True)) == 4


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
  with pytest.raises(ValueError, match="columns names"):
    video_folder("all", path=written(tmp_path / "a.csv", ROWS), columns={"video": "path"})
  with pytest.raises(ValueError, match="kind is 'clip', expected one of clips, video_folder"):
    make_source("clip", "train", {})
  with pytest.raises(ValueError, match="shapes does not take these options"):
    make_source("shapes", "train", {"colour": "red"})
  (tmp_path / "one").mkdir()
  tree(tmp_path / "one", ["a.mp4"])
  with pytest.raises(ValueError, match="no clips in split 'val'"):
    make_source("video_folder", "val", {"path": tmp_path / "one", "holdout": 0})


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
