"""Panda-70M's CSV, Kinetics' CSVs and UCF-101's lists are read as they were published."""

import copy
import csv

import numpy as np
import pytest

from vftok.data.folder import opened_once
from vftok.data.sources import make_source
from vftok.tools import prepare_videos


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
  return root


def write(path, *rows):
  with path.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(rows)
  return path


HEADER = ["videoID", "url", "timestamp", "caption", "matching_score", "desirable_filtering", "shot_boundary_detection"]
CAPTIONS = """['A dog runs.', "It's a\\ncat, \\"here\\"."]"""
TIMES = "[['0:00:02.085', '0:00:05.464'], ['1:02:03.5', '1:02:09.000']]"
PANDA = [
  HEADER,
  ["--a", "https://x", TIMES, CAPTIONS, "[0.4, 0.5]", "['d', 'd']", "[]"],
  ["gone", "https://y", "[['0:00:00.000', '0:00:01.000']]", "['x']", "[0.1]", "['d']", "[]"],
  ["bß", "https://z", "[['0:00:00.000', '0:00:04.100']]", "['雪 falls, slowly']", "[0.6]", "['d']", "[]"],
]


def test_panda(tmp_path):
  path, root = write(tmp_path / "panda.csv", *PANDA), touch(tmp_path / "v", "0/--a.mp4", "1/bß.webm")
  with pytest.warns(UserWarning, match="1 of the listed videos are not in"):
    source = make_source("panda70m", "all", dict(path=str(path), root=str(root)))
  records = [source[i] for i in range(len(source))]
  assert [r["caption"] for r in records] == ["A dog runs.", 'It\'s a\ncat, "here".', "雪 falls, slowly"]
  assert [(r["start"], r["end"]) for r in records] == [
    (pytest.approx(2.085), pytest.approx(5.464)),
    (3723.5, 3729.0),
    (0.0, pytest.approx(4.1)),
  ]
  assert records[2]["path"] == f"{root}/1/bß.webm" and records[1]["name"] == "0/--a.mp4@3723.5"
  assert all(r["label"] == -1 for r in records)
  part = copy.deepcopy(source.only(np.array([2])))
  assert len(part) == 1 and part[0] == records[2] and part.files == ["1/bß.webm"]


def test_panda_splits_by_video(tmp_path):
  rows = [[f"v{i}", "", "[['0:00:00.0', '0:00:01.0'], ['0:00:01.0', '0:00:02.0']]", "['a', 'b']"] for i in range(60)]
  path = write(tmp_path / "panda.csv", HEADER[:4], *rows)
  root = touch(tmp_path / "v", *(f"v{i}.mp4" for i in range(60)))
  with opened_once():
    parts = [make_source("panda70m", s, dict(path=str(path), root=str(root), holdout=0.3)) for s in ("train", "val")]
  train, val = ({source[i]["path"] for i in range(len(source))} for source in parts)
  assert len(train | val) == 60 and not train & val and 8 < len(val) < 30 and sum(map(len, parts)) == 120


KINETICS = [
  ["label", "youtube_id", "time_start", "time_end", "split"],
  ["abseiling", "-a_b", "7", "17", "train"],
  ["zumba", "whole", "35", "45", "train"],
  ["air drumming", "c", "0", "10", "validate"],
  ["zumba", "gone", "1", "11", "test"],
]


@pytest.mark.filterwarnings("ignore:1 of the listed")
def test_kinetics(tmp_path):
  root = touch(tmp_path / "v", "train/abseiling/-a_b_000007_000017.mp4", "whole.mkv", "val/c_000000_000010.mp4")
  write(tmp_path / "train.csv", KINETICS[0], *KINETICS[1:3])
  write(tmp_path / "val.csv", KINETICS[0], *KINETICS[3:])
  options = dict(path=str(tmp_path), root=str(root))
  train, val = (make_source("kinetics", split, options) for split in ("train", "val"))
  assert train.label_names == val.label_names == ("abseiling", "air drumming", "zumba")
  cut, whole = train[0], train[1]
  assert (cut["caption"], cut["label"], cut["start"], cut["end"]) == ("abseiling", 0, None, None)
  assert (whole["label"], whole["start"], whole["end"]) == (2, 35.0, 45.0)
  assert len(val) == 1 and val[0]["path"].endswith("val/c_000000_000010.mp4")
  with pytest.raises(ValueError, match="split is 'test', expected one of train, val, all"):
    make_source("kinetics", "test", options)


def ucf(tmp_path):
  lists = tmp_path / "ucfTrainTestlist"
  lists.mkdir()
  (lists / "classInd.txt").write_text("1 Archery\n2 Zumba\n")
  (lists / "trainlist02.txt").write_text("Archery/v_Archery_g08_c01.avi 1\nZumba/v_Zumba_g08_c01.avi 2\n")
  (lists / "testlist02.txt").write_text("Zumba/v_Zumba_g01_c01.avi\n\n")
  names = ("Archery/v_Archery_g08_c01.avi", "Zumba/v_Zumba_g08_c01.avi", "Zumba/v_Zumba_g01_c01.avi")
  return lists, touch(tmp_path / "v", *names)


def test_ucf101(tmp_path):
  lists, root = ucf(tmp_path)
  options = dict(path=str(lists), root=str(root), fold=2)
  train, test = (make_source("ucf101", split, options) for split in ("train", "test"))
  assert train.label_names == ("Archery", "Zumba") and [train[i]["label"] for i in range(2)] == [0, 1]
  assert len(test) == 1 and test[0]["name"] == "Zumba/v_Zumba_g01_c01.avi" and test[0]["caption"] == "Zumba"
  with pytest.raises(FileNotFoundError, match=r"trainlist01.txt does not exist"):
    make_source("ucf101", "train", options | dict(fold=1))


BAD = [
  ("panda70m", [["videoID", "caption"]], "line 1 has no column 'timestamp'"),
  ("panda70m", [HEADER[:4], ["a", "", "[['0:00:01', '0:00:00']]", "['x']"]], "expected an end after the start"),
  ("panda70m", [HEADER[:4], ["a", "", "[['1', '2']]", "['x']"]], "expected .'h:mm:ss.fff'"),
  ("panda70m", [HEADER[:4], ["a", "", "__import__('os')", "['x']"]], "line 2 has .*expected a list"),
  ("panda70m", [HEADER[:4], ["a", "", "[" * 5000, "['x']"]], "expected a list"),
  ("panda70m", [HEADER[:4], ["a", "", "[['0:00:00', '0:00:01']]", "['x', 'y']"]], "1 timestamps and 2 captions"),
  ("panda70m", [HEADER[:4], ["a", "", "[]"]], "line 2 has 3 columns, expected 4"),
  ("panda70m", [HEADER[:4], ["b", "", "[]", "[]"]], "has none of the listed videos .1 are missing"),
  ("kinetics", [KINETICS[0], ["x", "a", "ten", "20", "train"]], "line 2 has times 'ten', '20', expected seconds"),
  ("kinetics", [KINETICS[0], ["x", "a", "1e400", "20", "train"]], "line 2 has times"),
  ("kinetics", [KINETICS[0], ["x", "a", "30", "20", "train"]], "expected seconds that rise"),
]


@pytest.mark.parametrize("kind, rows, sentence", BAD)
def test_bad_lists_are_sentences(kind, rows, sentence, tmp_path):
  path, root = write(tmp_path / "list.csv", *rows), touch(tmp_path / "v", "a.mp4")
  with pytest.raises(ValueError, match=sentence) as error:
    make_source(kind, "all", dict(path=str(path), root=str(root)))
  assert len(str(error.value)) < 400 + 2 * len(str(tmp_path))


def test_prepare_videos_takes_them(tmp_path, capsys):
  from vftok.io.video_writer import write_video

  lists, root = ucf(tmp_path)
  for i, path in enumerate(sorted(root.rglob("*.avi"))):
    path.unlink()
    write_video(path.with_suffix(".mp4"), np.full((8, 16, 16, 3), 90 * i, np.uint8), 8)
  for fold in (1,):
    for name in ("train", "test"):
      (lists / f"{name}list{fold:02d}.txt").write_text((lists / f"{name}list02.txt").read_text())
  words = ["--videos", lists, "--kind", "ucf101", "--out", tmp_path / "set", "--size", 16, "--workers", 1]
  assert prepare_videos.main([str(w) for w in words]) == 2 and "expected --root beside it" in capsys.readouterr().err
  assert prepare_videos.main([str(w) for w in (*words, "--root", root)]) == 0
  train = make_source("prepared", "train", dict(directory=str(tmp_path / "set")))
  assert train.label_names == ("Archery", "Zumba") and len(train) == 2 and train[1]["caption"] == "Zumba"
