"""One writer at a time; signals and kill -9 leave nothing half-written; the user's umask; sentences about files."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from vftok.runtime import files, lock
from vftok.runtime.ending import exit_code, or_exit
from vftok.runtime.process import ended_by_signals, local
from vftok.runtime.words import sentence

HOLD = """
import sys, time
from vftok.runtime.lock import locked
with locked(sys.argv[1]):
  print("held", flush=True)
  time.sleep(600)
"""
WRITE = """
import sys, time
from pathlib import Path
from vftok.runtime.ending import exit_code
from vftok.runtime.files import whole_file

def run(_):
  with whole_file(sys.argv[1]) as path:
    path.write_text("half")
    print("begun", flush=True)
    time.sleep(600)

sys.exit(exit_code("tool", run, None))
"""


@contextlib.contextmanager
def process(code, *words, **options):
  command = [sys.executable, "-c", code, *map(str, words)]
  child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
  try:
    assert child.stdout.readline()
    yield child
  finally:
    child.kill()
    child.communicate()


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
  with process(HOLD, tmp_path / "run") as other:
    with pytest.raises(lock.InUse) as error, lock.locked(tmp_path / "run"):
      pass
    said = str(error.value)
    assert f"{tmp_path / 'run'} is in use by process {other.pid} of host {socket.gethostname()} since 20" in said
    assert len(said) < 400
    other.kill()
    other.wait()
    with lock.locked(tmp_path / "run"), lock.locked(tmp_path / "run"):  # kill -9 leaves it free; twice is one holder
      assert (tmp_path / ".run.lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_holds_while_it_is_fresh(tmp_path):
  file = tmp_path / ".set.lock"
  file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01 00:00:00"}))
  with (
    pytest.raises(lock.InUse, match="in use by process 1 of host elsewhere since 2026"),
    lock.locked(tmp_path / "set"),
  ):
    pass
  os.utime(file, (time.time() - 2 * lock.STALE,) * 2)
  with lock.locked(tmp_path / "set"):
    assert json.loads(file.read_text())["pid"] == os.getpid()


@pytest.fixture
def heard():
  """Under nohup this process, and with it every child, ignores SIGHUP."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_no_part(name, tmp_path, heard):
  with process(WRITE, tmp_path / "file") as child:
    (part,) = tmp_path.iterdir()
    assert part.name.endswith(".part")
    child.send_signal(getattr(signal, name))
    assert child.wait(30) == 128 + getattr(signal, name)
    assert f"stopped by {name}: the same command goes on" in child.stderr.read()
  assert not list(tmp_path.iterdir())


def test_an_ignored_hangup_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with ended_by_signals():
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and callable(signal.getsignal(signal.SIGTERM))
  finally:
    signal.signal(signal.SIGHUP, before)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_parts_of_the_killed_are_cleared(tmp_path):
  with process(WRITE, tmp_path / "file") as child:
    (left,) = tmp_path.iterdir()
    child.kill()
    child.wait()
  living = left.with_name(left.name.replace(f"-{child.pid}-", f"-{os.getpid()}-"))
  others = left.with_name(".x.000000-1-00000000.part")
  for path in (living, others, tmp_path / ".mine.part"):
    path.write_text("")
  files._cleared.clear()
  with files.whole_file(tmp_path / "other") as path:
    path.write_text("")
  assert {path.name for path in tmp_path.iterdir()} == {living.name, others.name, ".mine.part", "other"}
  os.utime(others, (0, 0))
  files._cleared.clear()
  files.clear_parts(tmp_path)
  assert not others.exists()


def test_umask_is_kept(tmp_path):
  import numpy as np

  from vftok.data import bad_clips
  from vftok.io import hub

  before = os.umask(0o027)
  try:
    hub.save_files(tmp_path / "model", {"a": np.zeros(3, np.float32)}, {"format": "x"})
    bad_clips.report(str(tmp_path / "bad.jsonl"), "s", "n", "r")
    with files.whole_file(tmp_path / "file") as path:
      path.touch(0o600)
  finally:
    os.umask(before)
  modes = {p.name: oct(p.stat().st_mode & 0o777) for p in tmp_path.rglob("*")}
  assert modes.pop("model") == "0o750" and set(modes.values()) == {"0o640"}, modes


def test_sentences_about_files_and_folders(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  below = tmp_path / "file" / "x"
  for run in (below.mkdir, (tmp_path / "file").mkdir, lambda: os.listdir("/no")):
    assert exit_code("tool", lambda _, run=run: run(), None) == 2
    said = capsys.readouterr().err
    assert said.startswith("tool: error: /") and "cannot be used (" in said and "Errno" not in said
  assert sentence(OSError(28, "No space left on device", "/x")) == (
    "/x cannot be used (No space left on device): make room there."
  )
  assert sentence(FileNotFoundError("my own words.")) == "my own words."
  with pytest.raises(ValueError, match="--workdir is gs://b/run, expected a folder: mount the bucket"):
    local("gs://b/run", "--workdir")
  with pytest.raises(ValueError, match="a file, expected a folder"):
    local(tmp_path / "file", "--workdir")


def test_how_programs_end(monkeypatch, capsys):
  def raises(error):
    raise error

  refused = jax.errors.JaxRuntimeError("INTERNAL: wrong")
  assert exit_code("tool", lambda args: args, 1) == 1 and exit_code("tool", lambda _: None, None) == 0
  assert or_exit(lambda: "result") == "result"
  with pytest.raises(SystemExit, match=r"^error: no steps\.$"):
    or_exit(lambda: raises(ValueError("no\nsteps.")))
  with pytest.raises(SystemExit) as ended:
    or_exit(lambda: raises(KeyboardInterrupt()))
  assert ended.value.code == exit_code("tool", raises, KeyboardInterrupt()) == 130
  assert "tool: stopped: the same command goes on" in capsys.readouterr().err
  for mistake in (refused, TypeError("ours")):  # where they were made is what helps
    for run in (lambda e=mistake: exit_code("tool", raises, e), lambda e=mistake: or_exit(lambda: raises(e))):
      with pytest.raises(type(mistake)):
        run()
  monkeypatch.setenv("VFTOK_TRACEBACK", "1")
  with pytest.raises(ValueError, match="no steps"):
    exit_code("tool", raises, ValueError("no steps."))


@pytest.mark.slow
@pytest.mark.parametrize("workdir", ["gs://bucket/run", "FILE"])
def test_workdirs_that_are_none(workdir, tmp_path):
  path = tmp_path / "FILE"
  path.write_text("")
  words = ["--config=configs/vae.py:smoke", f"--workdir={path if workdir == 'FILE' else workdir}"]
  root = Path(__file__).parents[1]
  command = [sys.executable, "-m", "vftok.main", *words]
  done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: --workdir is ")
  assert "Traceback" not in done.stderr and not (root / "gs:").exists()
