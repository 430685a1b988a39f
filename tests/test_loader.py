"""Batches are a function of (config, seed, number), whatever happens around them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from video_files import encode, scene

from vftok.data import ClipSpec, bad_clips, make_loader, window
from vftok.data.bad_clips import read, report
from vftok.data.examples import LISTED, mix
from vftok.data.latents import write_latents
from vftok.data.sources import DATASETS

SPEC = ClipSpec(frames=5, size=(16, 16), fps=8.0, flip=True, scale=(0.5, 1.0))


class OneByOne:
  """Shapes without `take`: for the loader of clips that are decoded one by one."""

  def __init__(self, split, **options):
    self._shapes = DATASETS["shapes"](split, **options)

  def __len__(self):
    return len(self._shapes)

  def __getitem__(self, index):
    return self._shapes[index]


def mix_of(kind):
  return {
    "a": dict(kind=kind, size=24, frames=9, count=10, weight=0.3),
    "b": dict(kind=kind, size=(20, 30), frames=6, count=7, weight=0.7, split="other"),
  }


MIX = mix_of("one_by_one")
BOTH = pytest.mark.parametrize("sources", [MIX, mix_of("shapes")], ids=["grain", "memory"])
ONE = dict(process_index=0, process_count=1)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch):
  monkeypatch.setitem(DATASETS, "one_by_one", OneByOne)


def take(n, sources=MIX, spec=SPEC, batch_size=8, **options):
  with make_loader(sources, spec, batch_size, **ONE | options) as loader:
    batches = iter(loader)
    return [next(batches) for _ in range(n)]


def assert_equal(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)


def ids(batches):
  return [(int(s), int(i)) for batch in batches for s, i in zip(batch["source"], batch["index"], strict=True)]


@BOTH
def test_a_batch(sources):
  (batch,) = take(1, sources)
  kinds = {key: (value.shape, value.dtype) for key, value in batch.items()}
  assert kinds == {
    "video": ((8, 5, 16, 16, 3), np.uint8),
    "_mask": ((8,), bool),
    "label": ((8,), np.int32),
    "source": ((8,), np.int32),
    "index": ((8,), np.int64),
    "caption": ((8,), object),
  }
  assert batch["_mask"].all() and all(caption.startswith("a ") for caption in batch["caption"])
  assert not np.array_equal(batch["video"], take(1, sources, seed=1)[0]["video"])


@BOTH
def test_start_is_any_number_of_examples(sources):
  """A run goes on with another batch size where it was: no example is repeated or left out."""
  assert ids(take(1, sources, batch_size=12, start=20)) == ids(take(6, sources))[20:32]


@BOTH
def test_start_is_continuing(sources):
  batches = take(9, sources)
  assert_equal(batches[4:], take(5, sources, start=32))
  assert_equal(batches, take(9, sources))
  assert ids(batches) != ids(take(9, sources, seed=1))


@BOTH
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("hosts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hosts_join_to_the_global_batch(hosts, train, sources):
  n = 4 if train else 3
  parts = [take(n, sources, train=train, process_index=host, process_count=hosts) for host in range(hosts)]
  joined = [
    {key: np.concatenate([part[key] for part in batch]) for key in batch[0]} for batch in zip(*parts, strict=True)
  ]
  assert_equal(joined, take(n, sources, train=train))


def test_two_workers_give_the_same_batches(tmp_path):
  """In a process of its own: workers import its main script, and grain is noisy when a process ends."""
  for i in range(5):
    encode(tmp_path / f"{i}.mp4", scene(30, seed=i), g=10)
  (tmp_path / "bad.mp4").write_bytes(b"text")
  script = tmp_path / "script.py"
  script.write_text(
    textwrap.dedent(f"""
      import numpy as np
      from vftok.data import ClipSpec, make_loader
      if __name__ == "__main__":
        folder = dict(kind="video_folder", path={str(tmp_path)!r}, split="all")
        sources = dict(shapes=dict(kind="shapes", size=24, count=9), files=folder)
        spec = ClipSpec(frames=5, size=(16, 16), flip=True)
        log = {str(tmp_path / "bad.jsonl")!r}
        found = []
        for workers, start in ((0, 0), (2, 12)):
          options = dict(workers=workers, start=start, bad_clips=log, process_index=0, process_count=1)
          with make_loader(sources, spec, 6, **options) as loader:
            batches = iter(loader)
            found.append([next(batches) for _ in range(5 - start // 6)])
        for a, b in zip(found[0][2:], found[1], strict=True):
          for key in a:
            assert np.array_equal(a[key], b[key]), key
        print("same", loader.wait_seconds > 0)
    """)
  )
  done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 0 and done.stdout.strip() == "same True", done.stderr[-2000:]
  assert "Traceback" not in done.stderr and "leaked" not in done.stderr
  assert {row["name"] for row in read(tmp_path / "bad.jsonl")} == {"bad.mp4"}


def test_workers_end_with_a_killed_run(tmp_path):
  encode(tmp_path / "a.mp4", scene(30), g=10)
  script = tmp_path / "script.py"
  script.write_text(
    textwrap.dedent(f"""
      import multiprocessing, os, signal
      from vftok.data import ClipSpec, make_loader
      if __name__ == "__main__":
        files = dict(a=dict(kind="video_folder", path={str(tmp_path)!r}, split="all"))
        loader = make_loader(files, ClipSpec(frames=2, size=(16, 16)), 2, workers=1, process_index=0, process_count=1)
        batches = iter(loader)
        next(batches)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
  )
  done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  (pid,) = (int(pid) for pid in done.stdout.split())
  for _ in range(300):
    if not alive(pid):
      return
    time.sleep(0.1)
  os.kill(pid, signal.SIGKILL)
  pytest.fail("the worker lives on")


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  stat = Path(f"/proc/{pid}/stat")  # a container may have nobody to bury the dead
  return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.parametrize("length", [1, 7, LISTED, LISTED + 1])
def test_every_epoch_of_a_source_shows_each_example_once(length):
  order = mix([length], [1.0], seed=3)
  epochs = [[order[epoch * length + place] for place in range(length)] for epoch in range(2)]
  assert all(sorted(epoch) == [(0, index) for index in range(length)] for epoch in epochs)
  assert length == 1 or epochs[0] != epochs[1]
  assert order[2**40] == mix([length], [1.0], seed=3)[2**40], "far into a run, without what came before"


@BOTH
def test_weights_and_epochs(sources):
  found = ids(take(30, sources))
  assert np.mean([source for source, _ in found]) == pytest.approx(0.7, abs=0.01)
  for source, length in ((0, 10), (1, 7)):
    drawn = [index for s, index in found if s == source]
    epochs = [drawn[i : i + length] for i in range(0, len(drawn) - length + 1, length)]
    assert len(epochs) > 5 and all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5  # shuffled anew


@BOTH
@pytest.mark.parametrize("hosts", [1, 4])
def test_evaluation_sees_every_example_once(hosts, sources):
  seen, lengths = [], []
  for host in range(hosts):
    with make_loader(sources, SPEC, 8, train=False, process_index=host, process_count=hosts) as loader:
      for _ in range(2):  # again from the beginning
        batches = list(loader)
      assert len(batches) == len(loader) == 3 and loader.examples == 17
      lengths.append({len(batch["_mask"]) for batch in batches})
    for batch in batches:
      seen += [pair for pair, valid in zip(ids([batch]), batch["_mask"], strict=True) if valid]
      padding = ~batch["_mask"]
      assert (batch["index"][padding] == -1).all() and not batch["video"][padding].any()
      assert (batch["label"][padding] == -1).all() and (batch["caption"][padding] == "").all()
  assert sorted(seen) == [(0, i) for i in range(10)] + [(1, i) for i in range(7)]
  assert lengths == [{8 // hosts}] * hosts
  if hosts == 1:
    assert seen == sorted(seen)


def test_latents_are_passed_on(tmp_path):
  values = np.random.default_rng(0).normal(size=(5, 2, 4, 4, 8)).astype(np.float16)
  write_latents(
    tmp_path / "set", {"train": [dict(latents=v, label=i) for i, v in enumerate(values)]}, {"fingerprint": "a"}
  )
  source = dict(kind="latents", directory=tmp_path / "set", fingerprint="a")
  for batch in take(3, {"it": source}, batch_size=4):
    assert "video" not in batch and np.array_equal(batch["latents"], values[batch["index"]])
  last = take(2, {"it": source}, batch_size=4, train=False)[1]
  assert last["_mask"].tolist() == [True, False, False, False]
  assert last["latents"].shape == (4, 2, 4, 4, 8) and last["latents"].dtype == np.float16
  with pytest.raises(ValueError, match="some sources give stored arrays and others video"):
    make_loader({"it": source, **MIX}, SPEC, 4, **ONE)


# ---- clips that cannot be used


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
  """A set as the world writes it: {name: what the log says, None for those that are fine}."""
  folder = tmp_path_factory.mktemp("corrupt")
  good = encode(folder / "good.mp4", scene(30), g=10)
  (folder / "cut.mp4").write_bytes(good.read_bytes()[:-1500])  # the index comes last
  encode(folder / "cut.mkv", scene(30, seed=1), g=300)
  (folder / "cut.mkv").write_bytes((folder / "cut.mkv").read_bytes()[: len((folder / "cut.mkv").read_bytes()) // 5])
  (folder / "text.mp4").write_text("not a video at all\n" * 20)
  (folder / "empty.mp4").write_bytes(b"")
  encode(folder / "one.mp4", scene(1))
  encode(folder / "odd.mkv", scene(30, 33, 47), "ffv1", pix_fmt="bgr0")
  (folder / "雪 ünï.mp4").write_bytes(good.read_bytes())
  pq = {"x265-params": "log-level=none"}
  encode(folder / "hdr.mp4", scene(30), "libx265", pix_fmt="yuv420p10le", colour=(9, 16, 9), **pq)
  reasons = {
    "cut.mp4": "cut short or not a video",
    "cut.mkv": "cut short|damaged|no frame that can be decoded",
    "text.mp4": "not a video",
    "empty.mp4": "empty",
    "one.mp4": "has 0 frames|has 1 frames",
  }
  return folder, reasons, {"good.mp4", "odd.mkv", "雪 ünï.mp4", "hdr.mp4"}


def test_training_goes_on_and_names_each_bad_clip_once(corrupt, tmp_path):
  folder, reasons, good = corrupt
  source, log = {"files": dict(kind="video_folder", path=folder, split="all")}, tmp_path / "bad.jsonl"
  names = sorted([*reasons, *good])
  batches = take(8, source, bad_clips=log)
  assert {names[index] for _, index in ids(batches)} == good and all(batch["_mask"].all() for batch in batches)
  rows = read(log)
  assert sorted(row["name"] for row in rows) == sorted(reasons)
  for row in rows:
    assert row.keys() - {"kind"} == {"source", "name", "reason"} and row["source"] == "files"
    assert ("kind" in row) == ("expected at least" in row["reason"])
    assert any(part in row["reason"] for part in reasons[row["name"]].split("|")), row
  assert_equal(take(4, source, start=32), batches[4:])
  take(2, source, bad_clips=log)
  assert read(log) == rows


def test_evaluation_masks_bad_clips(corrupt, tmp_path):
  folder, reasons, good = corrupt
  source = {"files": dict(kind="video_folder", path=folder, split="all")}
  batches = take(2, source, train=False, bad_clips=tmp_path / "eval.jsonl")
  names, mask = sorted([*reasons, *good]), np.concatenate([batch["_mask"] for batch in batches])
  assert [name in good for name in names] == mask[: len(names)].tolist() and not mask[len(names) :].any()
  assert {row["name"] for row in read(tmp_path / "eval.jsonl")} == set(reasons)


def test_a_clip_that_hangs_is_waited_for_once(corrupt, tmp_path, monkeypatch):
  folder, _, good = corrupt
  rows = "path\n" + "\n".join(str(folder / name) for name in sorted(good))
  (tmp_path / "set.csv").write_text(rows, encoding="utf-8")
  waited, real = [], window.decoded
  real_packets = window._packets

  def packets(video, *arguments):
    if video.endswith("odd.mkv"):
      waited.append(video)
      raise TimeoutError(f"{video} took longer than 60 s")
    return real_packets(video, *arguments)

  monkeypatch.setattr(window, "_packets", packets)
  monkeypatch.setattr(window, "decoded", real)
  source = {"hangs": dict(kind="video_folder", path=tmp_path / "set.csv", split="all")}
  batches = take(6, source, bad_clips=tmp_path / "bad.jsonl")
  assert all(batch["_mask"].all() for batch in batches)
  assert [row["reason"].rsplit("odd.mkv ")[1] for row in read(tmp_path / "bad.jsonl")] == ["took longer than 60 s"]
  assert len(waited) <= 2  # two threads of this process may meet it at once


def test_nothing_but_bad_clips_is_an_error(tmp_path):
  (tmp_path / "a.mp4").write_text("text")
  sources = {"files": dict(kind="video_folder", path=tmp_path, split="all"), "fine": MIX["a"]}
  with pytest.raises(
    ValueError, match=r"32 clips in a row of source 'files' could not be used, the last one because: .*a\.mp4"
  ):
    take(4, sources, bad_clips=tmp_path / "bad.jsonl")


def test_the_log_is_not_torn(tmp_path, caplog):
  path = str(tmp_path / "bad.jsonl")
  for _ in range(2):
    report(path, "s", "ü\udcff.mp4", "because\nof it")
  with open(path, "a") as file:
    file.write('{"source": "s", "na')
  assert read(path) == [{"source": "s", "name": "ü\udcff.mp4", "reason": "because\nof it"}]
  report(None, "s", "a.mp4", "no reason")
  assert "left out a.mp4 of s: no reason" in caplog.text


def test_the_log_is_counted_by_what_is_new(tmp_path):
  path = tmp_path / "bad.jsonl"
  count = bad_clips.Tally(path)
  assert count() == {"bad": 0, "short": 0}
  for i in range(300):
    report(str(path), "s", f"{i}.mp4", "because", short=i % 3 == 0)
  assert count() == {"bad": 200, "short": 100}
  with path.open("a") as file:
    file.write('{"source": "s", "na')
  assert count() == {"bad": 200, "short": 100}
  assert count._offset == path.read_bytes().rfind(b"\n") + 1, "the next call reads from here"
  said = bad_clips.told(count(), "LOG")
  assert said == "200 clips could not be read and 100 are too short: LOG names each and says why."
  assert bad_clips.told({"bad": 0, "short": 0}, "LOG") is None


def test_short_clips_are_counted_apart(tmp_path):
  source = {"a": dict(kind="one_by_one", size=24, frames=9, count=4), "b": dict(kind="one_by_one", frames=4, count=4)}
  with make_loader(source, SPEC, 4, train=False, bad_clips=tmp_path / "log", **ONE) as loader:
    assert sum(int(batch["_mask"].sum()) for batch in loader) == 4
  assert bad_clips.Tally(tmp_path / "log")() == {"bad": 0, "short": 4}


BAD = [
  (dict(batch_size=0), "batch_size is 0"),
  (dict(batch_size=7, process_index=0, process_count=2), "batch_size is 7, expected a multiple of the 2 processes"),
  (dict(start=-8), "start is -8"),
  (dict(seed=-1), "seed is -1"),
  (dict(workers=-1), "workers -1"),
  (dict(sources={}), "sources is empty"),
  (dict(sources={"a": dict(weight=1)}), "source 'a' has no kind"),
  (dict(sources={"a": dict(kind="film")}), "kind is 'film', expected one of"),
  (dict(sources={"a": dict(kind="shapes", weight=0)}), "source 'a' has weight 0"),
]


@pytest.mark.parametrize("arguments, sentence", BAD)
def test_bad_arguments(arguments, sentence):
  arguments = dict(sources=MIX, spec=SPEC, batch_size=8) | ONE | arguments
  with pytest.raises(ValueError, match=sentence):
    make_loader(**arguments)


def test_importing_data_is_cheap():
  code = "import sys, vftok.data as d; print(sorted({'jax', 'grain', 'av', 'tensorflow_datasets'} & set(sys.modules)))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"
