"""A folder of videos becomes a set, shard by shard, by any engine, whatever is wrong with some of them."""

import json
import sys

import numpy as np
import pytest

from vftok.data.clip import ClipSpec, load_clip
from vftok.data.sources import make_source
from vftok.io.video_writer import write_video
from vftok.tools import prepare_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  """train: 5 of two classes, one of them no video; val: 2. Each has a brightness of its own that grows by 1 a frame."""
  root = tmp_path_factory.mktemp("videos")
  for k, name in enumerate(("train/cat/a", "train/cat/b", "train/dög/c", "train/dög/d", "val/cat/e", "val/dög/f")):
    path = root / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.full((40, 48, 64, 3), 20 + 30 * k, np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    write_video(path, frames, 16)
  (root / "train/cat/bad.mp4").write_text("no video")
  return root


def command(videos, out, *more):
  words = ["--videos", videos, "--out", out, "--size", 32, "--fps", 8, "--seconds", 2, "--chunk", 2, "--workers", 1]
  return [str(word) for word in (*words, *more)]


def check(out):
  train, val = (
    make_source("tfds", split, dict(directory=str(out), video="mp4", caption="caption")) for split in ("train", "val")
  )
  assert (len(train), len(val)) == (4, 2) and train.label_names == ("cat", "dög")
  spec = ClipSpec(frames=9, size=(32, 32), fps=8.0)
  for source, levels in ((train, (20, 50, 80, 110)), (val, (140, 170))):
    for i, level in enumerate(levels):
      clip = load_clip(source[i], spec)
      steps = clip.mean((1, 2, 3)) - level
      assert steps[-1] - steps[0] == pytest.approx(16, abs=4) and (np.diff(steps) >= 0).all()  # every second frame
      assert 0 <= steps[0] <= 16 and source[i]["caption"] == source.label_names[source[i]["label"]]
  bad = [json.loads(line) for line in (out / "bad_clips.jsonl").read_text().splitlines()]
  assert len(bad) == 1 and "bad.mp4" in bad[0]["name"] and "not a video" in bad[0]["reason"]


def test_interrupted_and_gone_on_with(videos, tmp_path, monkeypatch, capsys):
  out, prepare, made = tmp_path / "set", prepare_videos.prepare_shard, []

  def interrupted(job, source):
    if len(made) == 2:
      raise KeyboardInterrupt
    return made.append(job) or prepare(job, source)

  monkeypatch.setattr(prepare_videos, "prepare_shard", interrupted)
  assert prepare_videos.main(command(videos, out)) == 130 and not out.exists()
  monkeypatch.setattr(prepare_videos, "prepare_shard", lambda job, source: made.append(job) or prepare(job, source))
  assert prepare_videos.main(command(videos, out)) == 0
  assert len(made) == len({job.path for job in made}) == 4, "three shards of train and one of val, each made once"
  check(out)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
  assert "train 4, val 2 clips; 1 could not be read" in capsys.readouterr().out
  assert prepare_videos.main(command(videos, out)) == 0 and "already there" in capsys.readouterr().out


def test_processes(videos, tmp_path):
  assert prepare_videos.main(command(videos, tmp_path / "set", "--workers", 2)) == 0
  check(tmp_path / "set")


@pytest.mark.slow
def test_ray(videos, tmp_path):
  pytest.importorskip("ray")
  assert prepare_videos.main(command(videos, tmp_path / "set", "--engine", "ray")) == 0
  check(tmp_path / "set")


@pytest.mark.parametrize(
  "text, sentence",
  [
    ("path;caption\na.mp4;x\n", "line 1 has columns path;caption, expected 'path' among them"),
    ("path,label\na.mp4,1.5\n", "line 2, column 'label' is '1.5', expected a name, or a whole number"),
  ],
)
def test_what_is_wrong_with_a_manifest_is_said(text, sentence, tmp_path, capsys):
  (tmp_path / "list.csv").write_text(text)
  assert prepare_videos.main(command(tmp_path / "list.csv", tmp_path / "set")) == 2
  assert sentence in capsys.readouterr().err and not (tmp_path / "set").exists()


@pytest.mark.parametrize(
  "more, sentence",
  [
    (["--fps", 0], "fps is 0.0"),
    (["--size", 0], "--size is 0, expected more than 0"),
    (["--splits", "dev"], "has no clips in dev"),
    (["--labels", "nowhere.txt"], "nowhere.txt does not exist"),
    (["--videos", "nowhere"], "nowhere does not exist"),
    (["--engine", "ray"], "pip install ray"),
  ],
)
def test_bad_words(more, sentence, videos, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ray", None)
  assert prepare_videos.main(command(videos, tmp_path / "set", *more)) == 2
  assert sentence in capsys.readouterr().err and not (tmp_path / "set").exists()
