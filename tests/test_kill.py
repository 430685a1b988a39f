"""kill -9 at any moment and the same command again: the trace of a run that was never killed, bit for bit. Slow."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vftok.train.writer import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
STEPS = 60


def command(workdir, *more, steps=STEPS, config="configs/tokenizer.py:smoke"):
  keys = [f"--config.steps={steps}", "--config.save_every=4", *more]
  return [sys.executable, "-m", "vftok.main", f"--config={config}", f"--workdir={workdir}", *keys]


def run(args, cache, devices=1, **options):
  flags = f"--xla_force_host_platform_device_count={devices}"
  environment = {**os.environ, "VFTOK_CACHE": str(cache), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(args, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def trace(workdir):
  return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
  ("config", "workers"),
  [
    ("configs/tokenizer.py:smoke", 0),
    ("configs/tokenizer.py:smoke", 2),
    *((f"configs/{name}.py:smoke", 0) for name in ("larp", "adaptok", "evatok", "flextok")),
  ],
)
def test_kill_9_leaves_no_trace(config, workers, cache, tmp_path):
  more = (f"--config.data.workers={workers}",)
  whole = run(command(tmp_path / "whole", *more, config=config), cache)
  assert whole.wait() == 0, whole.stderr.read().decode()[-3000:]
  chance, killed, writing = random.Random(workers), 0, 0
  while killed < 3:
    process = run(command(tmp_path / "cut", *more, config=config), cache)
    at = _steps_done(tmp_path / "cut") + chance.randint(4, 14)
    wants_writing = killed == 1
    while process.poll() is None and _steps_done(tmp_path / "cut") < at:
      time.sleep(0.01)
    while wants_writing and process.poll() is None and not _being_written(tmp_path / "cut"):
      time.sleep(0.001)
    writing += bool(_being_written(tmp_path / "cut"))
    assert process.poll() is None, process.stderr.read().decode()[-3000:]
    process.kill()
    process.wait()
    killed += 1
  assert writing
  last = run(command(tmp_path / "cut", *more, config=config), cache)
  assert last.wait() == 0, last.stderr.read().decode()[-3000:]
  assert trace(tmp_path / "cut") == trace(tmp_path / "whole")
  assert len(trace(tmp_path / "cut")) == STEPS


def test_other_meshes_go_on_with_the_same_run(cache, tmp_path):
  keys, steps = ("--config.batch_size=8",), 12
  whole = run(command(tmp_path / "whole", *keys, steps=steps), cache)
  assert whole.wait() == 0, whole.stderr.read().decode()[-3000:]
  for devices, until, mesh in ((8, 4, "fsdp"), (4, 8, "data"), (1, steps, "data")):
    sizes = [f"--config.mesh.{axis}={devices if axis == mesh else 1}" for axis in ("data", "fsdp")]
    part = run(command(tmp_path / "cut", *keys, *sizes, steps=steps), cache, devices)
    while part.poll() is None and devices > 1 and not (tmp_path / "cut" / "checkpoints" / str(until)).exists():
      time.sleep(0.01)
    if devices > 1:
      part.kill()
    part.wait()
  pairs = list(zip(trace(tmp_path / "cut"), trace(tmp_path / "whole"), strict=True))
  assert len(pairs) == steps
  for ours, theirs in pairs:
    assert ours["data/ids"] == theirs["data/ids"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def _steps_done(workdir) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def _being_written(workdir) -> list[Path]:
  return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
