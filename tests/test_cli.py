import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vftok.cli import commands
from vftok.cli.reconstruct import shared_slots
from vftok.io.vft import read_vft, write_vft
from vftok.io.video import read_video
from vftok.io.video_writer import write_video
from vftok.models.transformer import StackConfig
from vftok.tokens import VideoTokens


class Fake:
  """A tokenizer that keeps the mean grey of 8 upright strips of the first frame of each time step."""

  chunk_frames, overlap_frames, registers, levels, codebook_size, frame_size = (
    17,
    1,
    8,
    (8, 8, 8),
    512,
    (32, 48),
  )

  cfg = SimpleNamespace(
    decoder=SimpleNamespace(replacements=("mask", "prefix", "null"), patch=(1, 2, 2), stack=StackConfig(64, 2)),
    latent_size=(4, 6),
    guidance="apg",
    scale=20.0,
    solver_steps=30,
  )
  chunk_steps = 5
  nested, one_pass = True, False

  def __init__(self):
    self.calls = []

  def fingerprint(self, params):
    return f"{params:016x}"

  def describe(self, params):
    return {"frame_size": [32, 48], "parameters": {"total": 1234567}, "rate": 0.123456789}

  def slots(self, keep):
    return min(1 << max(int(keep) - 1, 0).bit_length(), 8)

  def frames_for(self, steps):
    return 1 + 4 * (steps - 1)

  def encode_stream(self, params, pieces, fit="error"):
    video, first = np.zeros((0, 32, 48, 3), np.uint8), True
    for piece in pieces:
      assert piece.dtype == np.uint8 and piece.shape[1:] == (32, 48, 3)
      video = np.concatenate([video, piece])
      if len(video) == 17:
        yield self._chunk(video, first, 17 if first else 16)
        video, first = video[-1:], False
    left = len(video) - (not first)
    if left and fit == "error":
      raise ValueError(f"the video leaves {left} frames over, expected 17 or 33: pass fit='pad'.")
    if left:
      yield self._chunk(np.pad(video, ((0, 17 - len(video)), (0, 0), (0, 0), (0, 0)), mode="edge"), first, left)

  def _chunk(self, video, first, frames):
    starts = video[[0, 1, 5, 9, 13]] if first else video[[1, 5, 9, 13]]
    grey = starts.reshape(len(starts), 32, 8, 6, 3).mean((1, 3, 4))
    return VideoTokens.full(np.round(grey).astype(np.int32)[None], frames)

  def decode_stream(self, params, tokens, key, first_frames=None, **options):
    self.calls.append(dict(options, params=params, key=key, first_frames=first_frames, keep=np.asarray(tokens.keep)))
    ids, keep = np.asarray(tokens.ids)[0], np.asarray(tokens.keep)[0]
    grey = np.where(np.arange(8) < keep[:, None], ids, 128)
    frames = np.repeat(grey, [1] + [4] * (len(grey) - 1), axis=0)[: tokens.frames]
    video = np.broadcast_to(np.repeat(frames, 6, axis=1)[:, None, :, None], (len(frames), 32, 48, 3))
    for start, stop in [(0, 17), *((i, i + 16) for i in range(17, len(video), 16))]:
      yield np.float32(video[None, start:stop] / 127.5 - 1)


@pytest.fixture
def tok(monkeypatch):
  fake = Fake()
  monkeypatch.setattr(commands, "load_tokenizer", lambda path, dino=None: (fake, int(str(path).removeprefix("model"))))
  return fake


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """40 frames at 16 fps, 64 x 96: eight strips that change brightness every frame."""
  level = (np.arange(40)[:, None] * 5 + np.arange(8) * 17) % 256
  frames = np.repeat(level, 12, axis=1)[:, None, :, None]
  path = tmp_path_factory.mktemp("clip") / "clip.mp4"
  write_video(path, np.broadcast_to(frames, (40, 64, 96, 3)).astype(np.uint8), 16)
  return str(path)


@pytest.fixture
def run(tok, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)

  def run(*words):
    code = commands.main([str(w) for w in words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == ""  # no progress bar where there is no terminal
    return captured.out

  return run


def test_help_does_not_wait_for_jax():
  code = (
    "import sys, vftok.cli.commands\n"
    "try: vftok.cli.commands.main(['--help'])\n"
    "except SystemExit as e: assert e.code == 0\n"
    "slow = {'jax', 'numpy', 'av', 'rich', 'matplotlib'} & set(sys.modules)\n"
    "assert not slow, slow"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert all(name in done.stdout for name in ("info", "encode", "decode", "truncate", "reconstruct"))


def test_runs_as_a_module(tmp_path):
  words = [sys.executable, "-m", "vftok.cli", "info", str(tmp_path / "no.vft")]
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("vftok: error: ") and done.stderr.count("\n") == 1


def test_encode_truncate_decode(run, tok, clip, tmp_path):
  out = run("encode", "model7", clip, "all.vft", "--fps", 8)
  assert out.startswith("all.vft: 20 frames, 9 time steps, 72 tokens; ")
  vft = read_vft("all.vft")
  assert (vft.frames, vft.fps, vft.size, vft.fingerprint) == (20, 8.0, (32, 48), "0000000000000007")
  original, _ = read_video(clip, (32, 48), 8)
  grey = original[[0, 1, 5, 9, 13, 17, 19, 19, 19]].reshape(9, 32, 8, 6, 3).mean((1, 3, 4))
  assert np.array_equal(vft.ids.reshape(9, 8), np.round(grey))  # the right frames reached the tokenizer

  assert run("truncate", "all.vft", "cut.vft", "--keep", 3) == "cut.vft: 9 time steps, 27 tokens\n"
  run("encode", "model7", clip, "three.vft", "--fps", 8, "--keep", 3)
  assert (tmp_path / "cut.vft").read_bytes() == (tmp_path / "three.vft").read_bytes()
  run("truncate", "all.vft", "steps.vft", "--keep", "8,7,6,5,4,3,2,1,0")
  assert read_vft("steps.vft").keep.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]

  assert run("decode", "model7", "all.vft", "all.mp4").startswith("all.mp4: 20 frames, 72 tokens; ")
  video, fps = read_video("all.mp4")
  assert video.shape == (20, 32, 48, 3) and fps == 8
  assert np.abs(video[1].astype(float) - original[1]).mean() < 4
  run("decode", "model7", "all.vft", "grey.gif", "--keep", 0)
  assert np.abs(read_video("grey.gif")[0].astype(float) - 128).max() <= 2
  run("decode", "model7", "all.vft", "mixed.mp4", "--keep", "8,7,6,5,4,3,2,1,0")
  assert tok.calls[-1]["keep"].tolist() == [[8, 7, 6, 5, 4, 3, 2, 1, 0]]
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
    ["all.vft", "cut.vft", "three.vft", "steps.vft", "all.mp4", "grey.gif", "mixed.mp4"]
  )


def test_start_and_max_frames(run, clip):
  run("encode", "model7", clip, "part.vft", "--start", 0.5, "--max-frames", 17, "--fit", "error")
  vft = read_vft("part.vft")
  assert (vft.frames, vft.fps, len(vft.keep)) == (17, 16.0, 5)
  part, _ = read_video(clip, (32, 48), start=0.5, max_frames=1)
  assert np.array_equal(vft.ids[:8], np.round(part[0].reshape(32, 8, 6, 3).mean((0, 2, 3))))


def test_sampler_options_and_first_frames(run, tok, clip):
  import jax

  from vftok import APG, CFG

  run("encode", "model7", clip, "a.vft", "--fps", 8)
  run("decode", "model7", "a.vft", "a.mp4")
  call = tok.calls[-1]
  assert (call["steps"], call["guidance"], call["solver"]) == (30, APG(scale=20.0), "euler")
  assert call["params"] == 7 and call["first_frames"] is None
  assert np.array_equal(jax.random.key_data(call["key"]), jax.random.key_data(jax.random.key(0)))
  run("decode", "model7", "a.vft", "a.mp4", "--guidance", "cfg", "--steps", 4, "--solver", "heun", "--seed", 5)
  call = tok.calls[-1]
  assert (call["steps"], call["guidance"], call["solver"]) == (4, CFG(scale=3.0), "heun")
  assert np.array_equal(jax.random.key_data(call["key"]), jax.random.key_data(jax.random.key(5)))
  run("decode", "model7", "a.vft", "a.mp4", "--scale", 2.5, "--first-frames", clip, "--first-count", 5)
  call = tok.calls[-1]
  assert call["guidance"] == APG(scale=2.5)
  assert np.array_equal(call["first_frames"][0], read_video(clip, (32, 48), 8, max_frames=5)[0])
  run("decode", "model7", "a.vft", "a.mp4", "--guidance", "none")
  assert tok.calls[-1]["guidance"] is None


def test_info(run, clip):
  run("encode", "model7", clip, "a.vft", "--fps", 8, "--keep", 3)
  facts = json.loads(run("info", "a.vft", "--json"))
  assert facts["frames"] == 20 and facts["seconds"] == 2.5 and facts["tokens"] == 27 and facts["bits"] == 27 * 9
  assert facts["tokens_per_step"] == {"least": 3, "most": 3, "possible": 8}
  assert facts["model"] == "0000000000000007"
  lines = dict(line.split(maxsplit=1) for line in run("info", "a.vft").splitlines())
  assert lines["tokens_per_step.most"] == "3" and lines["seconds"] == "2.5"
  assert json.loads(run("info", "model7", "--json"))["parameters"]["total"] == 1234567
  lines = dict(line.split(maxsplit=1) for line in run("info", "model7").splitlines())
  assert lines["parameters.total"] == "1,234,567" and lines["rate"] == "0.123457"


def test_reconstruct(run, tok, clip, tmp_path):
  out = run("reconstruct", "model7", clip, "out.mp4", "--fps", 16, "--keep", "8,1,4,4")
  assert [call["slots"] for call in tok.calls] == [8, 8, 8]  # one solver is compiled for all budgets
  head, *rows, last = out.splitlines()
  assert head.split()[:4] == ["keep", "tokens", "bits", "kbit/s"] and last == "wrote out.mp4 and out.png"
  assert [row.split()[:3] for row in rows] == [["1", "13", "117"], ["4", "52", "468"], ["8", "104", "936"]]
  psnr = [float(row.split()[4]) for row in rows]
  assert psnr[0] < psnr[1] < psnr[2]
  video, fps = read_video("out.mp4")
  assert fps == 16 and len(video) == 40 and video.shape[2] == 4 * (256 + 8) + 8
  original, _ = read_video(clip, (32, 48), 16)
  tile = np.asarray(Image.fromarray(original[20]).resize((256, 171), Image.Resampling.BICUBIC))
  assert np.abs(video[20, -180:-9, 8:264].astype(float) - tile).mean() < 6  # the original is on the left
  with Image.open("out.png") as image:
    assert image.size[0] > 1000
  assert len({str(call["key"]) for call in tok.calls}) == 1  # one noise for all columns

  later = ["--fps", 16, "--start", 0.5, "--max-frames", 20, "--keep", 8, "--json"]
  facts = json.loads(run("reconstruct", "model7", clip, "out.mp4", *later))
  assert facts["frames"] == 20 and facts["rows"][0]["psnr"] > 25  # compared with the right frames

  facts = json.loads(run("reconstruct", "model7", clip, "out.gif", "--fps", 8, "--keep", "0,8", "--json"))
  assert (facts["frames"], facts["time_steps"], facts["video"], facts["curves"]) == (
    20,
    9,
    "out.gif",
    "out.png",
  )
  assert [row["keep"] for row in facts["rows"]] == [0, 8]
  assert set(facts["rows"][0]) == {"keep", "tokens", "bits", "psnr", "ssim", "seconds"}
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gif", "out.mp4", "out.png"]


def test_budgets_share_a_solver_where_that_costs_less_than_compiling_another(tok):
  assert shared_slots(tok, [1, 4], 5, 60) == 4
  assert shared_slots(tok, [1, 8], 5 * 10**6, 60) is None  # a clip of a day
  tok.cfg = SimpleNamespace(
    **vars(tok.cfg) | {"decoder": SimpleNamespace(patch=(1, 1, 1), stack=StackConfig(1792, 28))}
  )
  assert shared_slots(tok, [1, 8], 5, 60) is None  # a large model
  tok.slots = lambda keep: None
  assert shared_slots(tok, [1, 8], 5, 60) is None  # one that computes all registers anyway


def test_equal_videos_have_no_finite_psnr_and_json_stays_json(run, tok, tmp_path, monkeypatch):
  write_video("flat.mp4", np.full((17, 32, 48, 3), 128, np.uint8), 8)
  flat, _ = read_video("flat.mp4")
  monkeypatch.setattr(tok, "decode_stream", lambda *_, **__: iter([flat[None]]))
  facts = json.loads(run("reconstruct", "model7", "flat.mp4", "out.mp4", "--keep", 1, "--json"))
  assert facts["rows"][0]["psnr"] is None and facts["rows"][0]["ssim"] == pytest.approx(1)


BAD = [
  ("encode model7 no.mp4 out.vft", "no.mp4 does not exist"),
  ("encode model7 empty.mp4 out.vft", "is empty"),
  ("encode model7 text.mp4 out.vft", "not a video"),
  ("encode model7 cut.mp4 out.vft", "at frame"),
  ("encode model7 CLIP out.mp4", "expected one that ends in .vft"),
  ("encode model7 CLIP no/out.vft", "is not a folder"),
  ("encode model7 CLIP out.vft --keep 9", "--keep is 9, expected 0 to 8"),
  ("encode model7 CLIP out.vft --keep -1", "--keep is -1, expected 0 to 8"),
  ("encode model7 CLIP out.vft --keep 1,2", "expected an int"),
  ("encode model7 CLIP out.vft --fps 0", "fps is 0"),
  ("encode model7 CLIP out.vft --start 9", "has 0 frames from 9 s on"),
  ("encode model7 CLIP out.vft --max-frames 0", "max_frames is 0"),
  ("encode model7 CLIP out.vft --max-frames 20 --fit error", "frames over, expected 17 or 33"),
  ("encode model7 CLIP out.vft --router r", "--router is 'r' without --budget"),
  ("decode model7 no.vft out.mp4", "no.vft does not exist"),
  ("decode model7 cut.vft out.mp4", "was cut short"),
  ("decode model7 CLIP out.mp4", "does not start with the .vft mark"),
  ("decode model8 good.vft out.mp4", "made by model 0000000000000007, but model8 is model 0000000000000008"),
  ("decode model7 odd.vft out.mp4", "contradicts the model it names"),
  ("decode model7 good.vft out.avi", "use .mp4 or .gif"),
  ("decode model7 good.vft out.mp4 --keep 9", "keep is 9, expected 0..8"),
  ("decode model7 good.vft out.mp4 --keep 1,2", "expected an int"),
  ("decode model7 good.vft out.mp4 --guidance none --scale 3", "without guidance"),
  ("decode model7 good.vft out.mp4 --first-frames no.mp4", "no.mp4 does not exist"),
  ("decode model7 good.vft out.mp4 --first-frames CLIP --first-count 99", "expected at least 99"),
  ("truncate good.vft out.vft --keep 9", "keep is 9, expected 0 to 8"),
  ("truncate good.vft out.vft --keep 1,2", "one for each of the 9 time steps"),
  ("truncate CLIP out.vft --keep 1", "does not start with the .vft mark"),
  ("reconstruct model7 CLIP out.mp4 --keep 1,9", "--keep is 9, expected 0 to 8"),
  ("reconstruct model7 CLIP out.png --keep 1", "use .mp4 or .gif"),
  ("reconstruct model7 cut.mp4 cut.mp4 --keep 1", "is the input itself"),
  ("info cut.vft", "was cut short"),
]


@pytest.mark.parametrize("words, sentence", BAD)
def test_bad_input_is_one_sentence(run, clip, capsys, words, sentence):
  run("encode", "model7", clip, "good.vft", "--fps", 8)
  good = read_vft("good.vft")
  write_vft("odd.vft", type(good)(**{**vars(good), "frames": 34}))
  tmp_path = Path.cwd()
  (tmp_path / "cut.vft").write_bytes((tmp_path / "good.vft").read_bytes()[:70])
  (tmp_path / "empty.mp4").write_bytes(b"")
  (tmp_path / "text.mp4").write_bytes(b"no video at all " * 99)
  data = Path(clip).read_bytes()
  (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 7 // 10])
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  assert commands.main([clip if word == "CLIP" else word for word in words.split()]) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith("vftok: error: ") and captured.err.count("\n") == 1
  assert sentence in captured.err
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before  # nothing half-written is left


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
  def info(args):
    raise ModuleNotFoundError("reading it needs more: pip install 'vftok[text]'.")

  monkeypatch.setattr(commands, "info", info)
  assert commands.main(["info", "model"]) == 2
  assert capsys.readouterr().err == "vftok: error: reading it needs more: pip install 'vftok[text]'.\n"


@pytest.mark.parametrize(
  "words",
  ["", "encode model7", "truncate a.vft b.vft --keep x", "decode a b c --solver rk4", f"decode a b c --seed {10**20}"],
)
def test_wrong_words_show_the_usage(words, capsys):
  with pytest.raises(SystemExit) as caught:
    commands.main(words.split())
  assert caught.value.code == 2 and "usage: vftok" in capsys.readouterr().err


def test_progress_on_a_terminal(run, clip, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "120")
  monkeypatch.setattr(sys, "stderr", terminal := Terminal())
  run("encode", "model7", clip, "a.vft", "--fps", 8)
  shown = terminal.getvalue()
  assert "encoding" in shown and "20/20 frames" in shown and "frames/s" in shown and "left" in shown


def test_stopped_by_hand(run, clip, tok, monkeypatch, capsys):
  run("encode", "model7", clip, "a.vft", "--fps", 8)

  def stop(*_, **__):
    raise KeyboardInterrupt
    yield

  monkeypatch.setattr(tok, "decode_stream", stop)
  assert commands.main(["decode", "model7", "a.vft", "a.mp4"]) == 130
  assert capsys.readouterr().err == "vftok: stopped.\n"
  assert os.listdir() == ["a.vft"]


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch, capsys):
  from vftok.show import progress

  clock = iter([0.0, 30.0, 90.0, 100.0, 160.0])
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  with progress.progress("evaluating", 8, "clips") as done:
    for _ in range(4):
      done(1)
  assert capsys.readouterr().err == "evaluating: 2/8 clips, 4.5 min left\nevaluating: 4/8 clips, 2.7 min left\n"
