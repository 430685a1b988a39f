"""kill -9 while the tools write, and the same command again: the same bytes, and nothing left over. Slow."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from vftok.io.video_writer import write_video
from vftok.runtime.process import VARIABLES

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

TOKENIZE = dedent("""
  import sys
  sys.path.insert(0, "tests")
  from configs import c2v
  from test_walk import Means
  from vftok import Tokenizer
  from vftok.tools import tokenize_dataset
  from vftok.runtime.ending import or_exit

  Tokenizer.load = lambda *a, **k: (Means(), {})
  tokenize_dataset.CHUNK = 2
  cfg = c2v.get_config("smoke")
  cfg.tokenize.update(dict(tokenizer="means", batch_size=1))
  source = dict(videos=dict(kind="video_folder", path=sys.argv[1], holdout=0.3))
  with cfg.unlocked():
    cfg.tokenize.splits = dict(train=source, val=source)
  or_exit(lambda: print(tokenize_dataset.tokenize(cfg, sys.argv[2])))
""")
PREPARE = "--size 16 --fps 8 --chunk 1 --workers 2 --holdout 0.3".split()
COMMANDS = dict(
  prepare_videos=lambda videos, out: ["-m", "vftok.tools.prepare_videos", "--videos", videos, "--out", out, *PREPARE],
  tokenize_dataset=lambda videos, out: ["-c", TOKENIZE, videos, out],
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  root = tmp_path_factory.mktemp("videos")
  for i in range(16):
    write_video(root / f"{i:02d}.mp4", np.full((20, 64, 64, 3), 12 * i, np.uint8), 8)
  (root / "bad.mp4").write_text("no video")
  return root


def start(name, videos, out):
  words = [sys.executable, *map(str, COMMANDS[name](videos, out))]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def files(directory):
  return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_bytes(name, videos, tmp_path):
  whole = start(name, videos, tmp_path / "whole")
  assert whole.wait(300) == 0, whole.stderr.read().decode()[-2000:]
  shards, chance, killed = tmp_path / ".cut.shards", random.Random(0), 0
  done = lambda: sum(1 for path in shards.glob("*.json") if path.name != "recipe.json") if shards.is_dir() else 0
  while killed < 3:
    process, until = start(name, videos, tmp_path / "cut"), done() + chance.randint(1, 3)
    while process.poll() is None and done() < until:
      time.sleep(0.002)
    time.sleep(chance.random() / 50)
    assert process.poll() is None, process.stderr.read().decode()[-2000:]
    process.kill()
    process.wait()
    killed += 1
    time.sleep(1)  # workers see that their parent is gone
  last = start(name, videos, tmp_path / "cut")
  assert last.wait(300) == 0, last.stderr.read().decode()[-2000:]
  assert files(tmp_path / "cut") == files(tmp_path / "whole")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


SHARED = TOKENIZE.replace(
  "cfg = c2v",
  dedent("""
    from vftok.runtime.process import begin
    begin([], distributed=True)
    import jax

    def fails(error):
      def raising(*args):
        raise error
      return raising

    if jax.process_index() == int(sys.argv[3]):
      name = "_encode" if sys.argv[4] == "in its chunk" else "_text_encoder"
      setattr(tokenize_dataset, name, fails(ValueError("the disk of this host is full: make room.")))
    cfg = c2v"""),
)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("where", ["in its chunk", "before the first"])
def test_a_host_that_fails_ends_the_others(failing, where, videos, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  words = [sys.executable, "-c", SHARED, str(videos), str(tmp_path / "set"), str(failing), where]
  jobs = [
    subprocess.Popen(
      words,
      cwd=ROOT,
      env=environment | dict(zip(VARIABLES, (address, "2", str(i)), strict=True)),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  said = [job.communicate(timeout=120)[1] for job in jobs]
  assert [job.returncode for job in jobs] == [1, 1], said
  assert "error: the disk of this host is full: make room.\n" in said[failing]
  heard = f"error: process {failing} of 2 ended, so this one does: error: the disk of this host is full: make room.\n"
  assert heard in said[1 - failing] and "Traceback" not in "".join(said)
