"""Two processes are one run: same numbers, and what happens to one is known to the other. Slow."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vftok.runtime.process import VARIABLES
from vftok.train.writer import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
STEPS = 16


def start(workdir, cache, processes=1, *more, index=None, devices=1):
  """The processes of one job (or its `index`-th alone), each with so many simulated devices."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  config = ["--config=configs/tokenizer.py:smoke", f"--config.steps={STEPS}", "--config.save_every=4", *more]
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  jobs = []
  for i in range(processes) if index is None else [index]:
    environment = {**os.environ, "VFTOK_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment |= dict(zip(VARIABLES, (address, str(processes), str(i)), strict=True))
    command = [sys.executable, "-m", "vftok.main", f"--workdir={workdir}", *config]
    command += ["--distributed"] if processes > 1 else []
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    jobs.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipe))
  return jobs


def finished(jobs, code=0, seconds=240):
  texts = [job.communicate(timeout=seconds)[0] for job in jobs]
  assert [job.returncode for job in jobs] == [code] * len(jobs), texts[0][-3000:]
  return texts


def losses(workdir):
  return [(row["step"], row["loss"]) for row in read_metrics(workdir / "metrics.jsonl")]


def wait_for(path, jobs):
  while not path.exists() and all(job.poll() is None for job in jobs):
    time.sleep(0.01)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone")
  finished(start(workdir, cache))
  return losses(workdir)


def same(ours, theirs):
  assert [step for step, _ in ours] == [step for step, _ in theirs]
  assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)


@pytest.mark.parametrize("mesh", [("data", 2), ("fsdp", 4)])
def test_two_processes_equal_one(mesh, alone, cache, tmp_path):
  axis, devices = mesh
  sizes = [f"--config.mesh.{name}={devices if name == axis else 1}" for name in ("data", "fsdp")]
  texts = finished(start(tmp_path, cache, 2, *sizes, devices=devices // 2))
  for i, text in enumerate(texts):
    assert f"process {i} of 2, {devices // 2} of {devices} devices" in text
  same(losses(tmp_path), alone)
  from vftok import Tokenizer

  tok, params = Tokenizer.load(tmp_path / "model")  # gathered from both
  assert tok.registers == 4 and params["decoder"]


def test_scores_and_videos_while_training(cache, tmp_path):
  """The first process makes them by itself on its two devices; the second waits and goes on in step."""
  more = ["--config.steps=4", "--config.eval_every=2", "--config.media_every=2", "--config.eval.clips=8"]
  more += [
    "--config.eval.rfvd=False",
    "--config.eval.steps=2",
    "--config.eval.keeps=(1,4)",
    "--config.eval.probe=False",
  ]
  for name, processes in (("one", 1), ("two", 2)):
    finished(start(tmp_path / name, cache, processes, *more, "--config.mesh.fsdp=2", devices=2))
  scores = {}
  for name in ("one", "two"):
    rows = read_metrics(tmp_path / name / "metrics.jsonl")
    rows = {row["step"]: row for row in rows if any(key.startswith("eval/") for key in row)}
    scores[name] = {(step, key): v for step, row in rows.items() for key, v in row.items() if key.startswith("eval/")}
  assert {step for step, _ in scores["one"]} == {2, 4} and len(scores["one"]) > 10
  numbers = {key: v for key, v in scores["one"].items() if isinstance(v, float) and "seconds" not in key[1]}
  assert {key: scores["two"][key] for key in numbers} == pytest.approx(numbers, rel=1e-3, nan_ok=True)
  names = [sorted(p.name for p in (tmp_path / name / "media").iterdir()) for name in ("one", "two")]
  assert names[0] == names[1] != []


def test_a_killed_worker_ends_the_job_and_one_process_goes_on(alone, cache, tmp_path):
  jobs = start(tmp_path, cache, 2)
  wait_for(tmp_path / "checkpoints" / "4", jobs)
  jobs[1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  text = jobs[0].communicate(timeout=150)[0]
  assert jobs[0].returncode not in (0, None) and time.monotonic() - began < 150
  assert re.search(r"lost the others|distributed service|coordination service", text), text[-2000:]
  finished(start(tmp_path, cache))  # another number of hosts, another mesh
  same(losses(tmp_path), alone)


def test_a_notice_to_one_process_saves_in_both(alone, cache, tmp_path):
  jobs = start(tmp_path, cache, 2, "--config.steps=400")
  wait_for(tmp_path / "checkpoints" / "4", jobs)
  jobs[1].send_signal(signal.SIGTERM)
  texts = finished(jobs)
  step = int(re.search(r"at step (\d+)", texts[0][texts[0].rindex("at step") - 10 :])[1])
  assert 4 <= step < 400 and (tmp_path / "checkpoints" / str(step)).exists()


def test_nobody_there(cache, tmp_path):
  began = time.monotonic()
  (job,) = start(tmp_path, cache, 2, index=1)
  text = job.communicate(timeout=120)[0]
  assert job.returncode and time.monotonic() - began < 100
  assert "process 1 of 2: waiting for all of them at localhost" in text and "60 s" in text
