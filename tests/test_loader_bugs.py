"""An error in code is not a bad clip: it ends the run with its own line, and is never counted as 32 of them."""

import numpy as np
import pytest

from vftok.data import bad_clips, sources
from vftok.data.clip import ClipSpec
from vftok.data.loader import make_loader

SPEC = ClipSpec(frames=5, size=(8, 8))


class Broken:
  """Clips of which those in `broken` raise what `how` does."""

  def __init__(self, split, how, broken=range(40)):
    self.how, self.broken = how, broken

  def __len__(self):
    return 40

  def __getitem__(self, index):
    if index in self.broken:
      self.how()
    return dict(frames=np.zeros((5, 8, 8, 3), np.uint8), caption="", label=-1, name=f"clip {index}", fps=8.0)


HOW = {
  "AttributeError": lambda: None.shape,
  "TypeError": lambda: len(3),
  "KeyError": lambda: {}["name"],
  "NameError": lambda: undefined,  # noqa: F821
}


def batches(monkeypatch, tmp_path, **options):
  monkeypatch.setitem(sources.DATASETS, "broken", Broken)
  entry = dict(kind="broken", **options)
  with make_loader(
    {"mine": entry}, SPEC, 4, bad_clips=tmp_path / "bad.jsonl", process_index=0, process_count=1
  ) as loader:
    return [batch for batch, _ in zip(loader, range(20), strict=False)]


@pytest.mark.parametrize("kind", HOW)
def test_an_error_in_code_ends_the_run_and_says_where(kind, monkeypatch, tmp_path):
  with pytest.raises(
    RuntimeError, match=rf"source 'mine' failed before any clip .* with {kind}: .*line \d+ of test_"
  ) as caught:
    batches(monkeypatch, tmp_path, how=HOW[kind])
  assert type(caught.value.__cause__).__name__ == kind and len(str(caught.value)) < 400
  assert not bad_clips.read(tmp_path / "bad.jsonl")


def test_files_that_are_bad_are_still_named_one_by_one(monkeypatch, tmp_path):
  def bad():
    raise ValueError("not a video")

  with pytest.raises(ValueError, match="32 clips in a row of source 'mine' could not be used"):
    batches(monkeypatch, tmp_path, how=bad)
  assert {row["reason"] for row in bad_clips.read(tmp_path / "bad.jsonl")} == {"not a video"}


def test_one_odd_file_does_not_end_a_run_that_has_used_others(monkeypatch, tmp_path):
  """Its line stands in the log, kind of error and place."""
  import vftok.data.examples as examples

  monkeypatch.setitem(sources.DATASETS, "broken", Broken)
  source = sources.source_of(dict(kind="broken", how=HOW["TypeError"], broken=(7,)))
  part = examples.Part(0, 4, 0, 1)
  log = str(tmp_path / "bad.jsonl")
  read = examples.Examples(("mine",), (source,), SPEC, 0, None, part, log, None)
  assert read(0)["_mask"] and not read(7)["_mask"] and read(8)["_mask"]
  (row,) = bad_clips.read(log)
  assert (
    row["name"] == "number 7" and row["reason"].startswith("TypeError: ") and "of test_loader_bugs.py" in row["reason"]
  )


def test_a_type_error_inside_a_source_is_not_a_wrong_option(monkeypatch):
  def opens(split, path):
    return len(3)

  monkeypatch.setitem(sources.DATASETS, "opens", opens)
  with pytest.raises(TypeError, match="has no len"):
    sources.source_of(dict(kind="opens", path="x"))
  with pytest.raises(ValueError, match="opens does not take these options"):
    sources.source_of(dict(kind="opens", paths="x"))
