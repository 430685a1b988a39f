"""Lists of clips: what is read, and one sentence with file and line, or a warning, for whatever is wrong."""

import json
import pickle
import warnings

import jax
import pytest
from video_files import every, tree

from vftok.data.folder import video_folder
from vftok.runtime import meeting
from vftok.tools import tokenize_dataset
from vftok.tools.chunks import present_splits

SETS = (("train", "a"), ("val", "b"))


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
  ("a.jsonl", '{"path": "a.mp4"}\n{"path": "b.mp4",}\n', "line 2, column 1[78]: .* expected one JSON object per line"),
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


def test_one_process_of_a_job_warns(tmp_path, monkeypatch):
  file = tmp_path / "list.csv"
  file.write_text("path,caption\na.mp4,\n")
  monkeypatch.setattr(meeting, "is_shared", lambda: True)
  for process in (0, 1):
    monkeypatch.setattr(jax, "process_index", lambda process=process: process)
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter("always")
      assert len(video_folder("all", path=file)) == 1
    assert [str(w.message).endswith("1 of 1 captions are empty, the first one in line 2.") for w in said] == [True] * (
      1 - process
    )


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


def test_a_number_means_one_label_in_all_splits_of_a_token_set(tmp_path):
  tree(tmp_path, ["a/cat/1.mp4", "a/dog/1.mp4", "b/dog/1.mp4"])
  entry = lambda directory, options: dict(kind="video_folder", path=str(tmp_path / directory), split="all", **options)
  opened = lambda **options: present_splits({s: dict(films=entry(d, options)) for s, d in SETS}, "splits")
  with pytest.raises(ValueError, match=r"the source films has 1 label names in val and 2 in train, .* pass labels="):
    tokenize_dataset._check_label_names(opened())
  tokenize_dataset._check_label_names(opened(labels=("cat", "dog")))


def test_columns_that_are_not_ours(tmp_path):
  with pytest.raises(ValueError, match="columns names video, expected some of path"):
    video_folder("all", path=written(tmp_path / "a.csv", ROWS), columns={"video": "path"})
