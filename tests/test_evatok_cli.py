"""The command line over an EVATok model: counts are asked for at encoding, files keep them, the rest is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import runner
from evatok_files import GOLDEN

from vftok.cli import commands
from vftok.io.vft import read_vft
from vftok.io.video import read_video
from vftok.io.video_writer import write_video
from vftok.tools.parity_evatok import write_model


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A folder with a model, a clip of 9 frames (two chunks of 6, the second padded) and its tokens."""
  directory = tmp_path_factory.mktemp("evatok")
  (directory / "model").mkdir()
  write_model(GOLDEN, directory / "model")
  clip = np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), np.uint8)
  write_video(directory / "clip.mp4", clip, 8)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(directory)
    assert commands.main("encode model clip.mp4 good.vft --keep 8".split()) == 0
    (directory / "bad.vft").write_bytes(b"no tokens")
  return directory


@pytest.fixture
def run(work, monkeypatch, capsys):
  monkeypatch.chdir(work)
  return runner(capsys)


def test_info_names_the_counts(run):
  facts = json.loads(run("info model --json"))
  assert facts["counts"] == [2, 4, 8, 16, 32] and facts["nested"] is False
  facts = json.loads(run("info good.vft --json"))
  assert (facts["tokens"], facts["frames"], facts["nested"]) == (48, 9, False)


def test_counts_go_to_a_file_and_back(run):
  assert run("encode model clip.mp4 all.vft").startswith("all.vft: 9 frames, 6 time steps, 192 tokens;")
  run("encode model clip.mp4 some.vft --keep 2,32,4,8,8,16")
  vft = read_vft("some.vft")
  assert vft.keep.tolist() == [2, 32, 4, 8, 8, 16] and not vft.nested
  assert read_vft("good.vft").ids[:8].tolist() != read_vft("all.vft").ids[:8].tolist()  # not a prefix
  assert run("decode model some.vft some.mp4").startswith("some.mp4: 9 frames, 70 tokens;")
  video, fps = read_video("some.mp4")
  assert (video.shape, fps) == ((9, 16, 16, 3), 8.0)
  assert run("truncate some.vft same.vft --keep 32") == "same.vft: 6 time steps, 70 tokens\n"
  assert Path("same.vft").read_bytes() == Path("some.vft").read_bytes()


@pytest.mark.slow
def test_reconstructions_are_encoded_anew_for_every_count(run):
  facts = json.loads(run("reconstruct model clip.mp4 out.mp4 --json"))
  assert [row["keep"] for row in facts["rows"]] == [2, 4, 8, 16, 32]
  run("decode model good.vft good.mp4")
  one = json.loads(run("reconstruct model clip.mp4 one.mp4 --keep 8 --json"))["rows"]
  rows = {row["keep"]: row for row in facts["rows"]}
  assert one[0]["psnr"] == pytest.approx(rows[8]["psnr"]) and rows[8]["psnr"] != rows[32]["psnr"]


BAD = [
  ("encode model clip.mp4 out.vft --keep 5", "asks for 5 tokens in a time step, expected one of 2, 4, 8, 16, 32"),
  ("encode model clip.mp4 out.vft --keep 0", "asks for 0 tokens"),
  ("encode model clip.mp4 out.vft --keep 64", "--keep is 64, expected 0 to 32"),
  ("encode model clip.mp4 out.vft --keep 8,8", "counts for 3 time steps or more"),
  ("encode model clip.mp4 out.vft --keep 8,8,8,8,8,8,8", "counts for 7 time steps, expected 6"),
  ("encode model clip.mp4 out.vft --budget auto:8", "no router that comes with vftok"),
  ("encode model clip.mp4 out.vft --keep 8 --budget auto:8", "expected one of the two"),
  ("encode model clip.mp4 out.vft --dino x", "'dino' is no option"),
  ("encode model clip.mp4 out.vft --fit error", "9 frames, expected a count that fits chunks such as 6 or 12"),
  ("decode model good.vft out.mp4 --keep 4", "encode again with a budget"),
  ("decode model good.vft out.mp4 --steps 4", "decodes in one pass"),
  ("decode model good.vft out.mp4 --first-frames clip.mp4", "decodes in one pass"),
  ("decode model bad.vft out.mp4", "does not start with the .vft mark"),
  ("decode vftok-mini good.vft out.mp4", "was made by model"),
  ("truncate good.vft out.vft --keep 4", "encode again with a budget"),
  ("truncate good.vft out.vft --keep 8,8", "one for each of the 6 time steps"),
  ("reconstruct model clip.mp4 out.mp4 --keep 2,3", "asks for 3 tokens"),
  ("reconstruct model clip.mp4 out.mp4 --keep 2 --guidance cfg", "decodes in one pass"),
]


@pytest.mark.parametrize("words, names", BAD)
def test_bad_input_is_one_sentence(work, monkeypatch, capsys, words, names):
  monkeypatch.chdir(work)
  before = {path.name for path in work.iterdir()}
  assert commands.main(words.split()) == 2
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.startswith("vftok: error: ") and captured.err.count("\n") == 1
  assert names in captured.err and len(captured.err) < 420
  assert {path.name for path in work.iterdir()} == before  # nothing half-written is left
