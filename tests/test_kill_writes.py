"""kill -9 at moments of a run that ends in files, and the same command again: the same bytes. Slow."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from vftok.io.video_writer import write_video

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

LABEL = dedent("""
  import sys
  sys.path.insert(0, "tests")
  from router_files import config
  from vftok.tools import label_budgets
  from vftok.runtime.ending import or_exit

  label_budgets.CHUNK = 2
  cfg = config((sys.argv[1],), sys.argv[2])
  or_exit(lambda: print(label_budgets.label(cfg, sys.argv[2])))
""")


@pytest.fixture(scope="module")
def inputs(random_model, tmp_path_factory):
  """(directory of a model, a video of 200 frames, workdir of a finished run)."""
  root = tmp_path_factory.mktemp("inputs")
  video = write_video(root / "clip.mp4", np.random.default_rng(0).integers(0, 255, (200, 16, 16, 3), np.uint8), 8)
  run([*TRAIN, f"--workdir={root / 'run'}"]).wait(300)
  return random_model[0], video or root / "clip.mp4", root / "run"


TRAIN = ["-m", "vftok.main", "--config=configs/vae.py:smoke"]
COMMANDS = dict(
  encode=lambda model, video, _, out: ["-m", "vftok.cli", "encode", model, video, out / "clip.vft"],
  label_budgets=lambda model, _, __, out: ["-c", LABEL, model, out / "set"],
  evaluation=lambda _, __, trained, out: [
    *TRAIN,
    "--mode=eval",
    f"--workdir={out}",
    f"--config.init_from={trained}/model",
  ],
)


def run(words):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, *map(str, words)]
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def files(directory):
  found = {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
  return {name: data for name, data in found.items() if not name.endswith(".lock")}


def state(directory):
  """What a watcher sees of a folder: names, sizes and times."""
  found = set()
  for folder, _, names in os.walk(directory):
    for path in (Path(folder, name) for name in names):
      with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
        found.add((str(path), path.stat().st_size, path.stat().st_mtime_ns))
  return found


def killed(process, directory, changes):
  """Whether it was alive to be killed right after so many changes of the folder."""
  seen = state(directory)
  while process.poll() is None:
    if (now := state(directory)) != seen:
      seen, changes = now, changes - 1
      if not changes:
        process.kill()
        return process.wait() == -signal.SIGKILL
    time.sleep(0.002)
  return False


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_bytes(name, inputs, tmp_path):
  def whole(out):
    process = run(COMMANDS[name](*inputs, out))
    assert process.wait(300) == 0, process.stderr.read().decode()[-2000:]
    return files(out)

  for again in ("first", "whole", "1", "2", "4"):
    (tmp_path / again).mkdir()
  assert whole(tmp_path / "first") == whole(tmp_path / "whole") and files(tmp_path / "whole")
  for changes in (1, 2, 4):
    out = tmp_path / str(changes)
    cut = killed(run(COMMANDS[name](*inputs, out)), out, changes)
    assert cut or changes > 1  # the first write is not the last thing that a command does
    assert whole(out) == files(tmp_path / "whole"), changes
