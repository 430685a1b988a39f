"""The launch scripts say exactly what they would run; none of it is run here."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
TRAIN = ["--config=configs/t2v.py:1.1b", "--workdir=/bucket/a run"]


def dry(script, *words, **settings):
  command = ["bash", str(LAUNCH / script), "--dry-run", *words]
  environment = {"PATH": os.environ["PATH"], "HOME": "/home/nobody", **settings}
  return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def words(script, *arguments, **settings):
  """What each printed command is made of, as a shell would read it."""
  done = dry(script, *arguments, **settings)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.replace("\\\n", "").splitlines()]


def test_shellcheck():
  shellcheck = Path(sys.executable).with_name("shellcheck")
  scripts = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
  assert len(scripts) == 5
  done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def test_tpu_vm():
  settings = dict(NAME="mine", TYPE="v6e-64", ZONE="z", PROJECT="p", SPOT="1")
  (create,) = words("tpu_vm.sh", "create", **settings)
  assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
  assert create[create.index("--runtime-version") + 1] == "v2-alpha-tpuv6e" and create[-1] == "--spot"
  (run,) = words("tpu_vm.sh", "run", "--", *TRAIN, **settings)
  inside = run[run.index("--command") + 1]
  assert "--worker=all" in run and "-m vftok.main --distributed --config=configs/t2v.py:1.1b" in inside
  assert "/bucket/a\\ run" in inside  # a space survives the second shell
  (delete,) = words("tpu_vm.sh", "delete", **settings)
  assert "--force" in delete and delete[4:6] == ["delete", "mine"]


def test_setup_is_one_command_for_all_hosts():
  done = dry("tpu_vm.sh", "setup", REPO="https://example.org/vftok.git", BUCKET="gs://mine")
  assert done.returncode == 0 and done.stdout.count("gcloud") >= 1
  assert "gcsfuse --implicit-dirs mine" in done.stdout.replace("\\", "")


def test_xpk():
  settings = dict(PROJECT="p", CLUSTER="c", JOB="j", REPO="https://example.org/vftok.git", BUCKET="gs://mine")
  cluster, storage = words("xpk.sh", "cluster", **settings)
  assert cluster[:3] == ["xpk", "cluster", "create"] and "--bucket=mine" in storage
  (submit,) = words("xpk.sh", "submit", "--", *TRAIN, **settings)
  assert "--tpu-type=v5p-128" in submit and "--max-restarts=100" in submit
  assert submit[-1].endswith(
    "python -m vftok.main --distributed --config=configs/t2v.py:1.1b --workdir=/bucket/a\\ run "
  )
  assert words("xpk.sh", "delete", **settings)[0][:3] == ["xpk", "cluster", "delete"]


def test_slurm():
  (line,) = words("slurm.sbatch", *TRAIN, VENV="/env")
  assert line == [
    "srun",
    "--kill-on-bad-exit=1",
    "--label",
    "/env/bin/python",
    "-m",
    "vftok.main",
    "--distributed",
    *TRAIN,
  ]


@pytest.mark.parametrize(
  "script, arguments, settings, sentence",
  [
    ("tpu_vm.sh", ["creat"], {}, "the word is 'creat', expected create, setup, run, watch, logs, stop or delete"),
    ("tpu_vm.sh", ["create"], {"TYPE": "v4-8"}, "TYPE is 'v4-8', expected v5litepod-N"),
    ("tpu_vm.sh", ["setup"], {"REPO": "x", "BUCKET": "mine"}, "BUCKET is 'mine', expected gs://NAME"),
    ("tpu_vm.sh", ["run"], {}, "run needs the arguments of vftok.main"),
    ("xpk.sh", ["list"], {}, "PROJECT is not set"),
    ("xpk.sh", ["submit"], {"PROJECT": "p", "REPO": "x"}, "submit needs the arguments of vftok.main"),
    ("slurm.sbatch", [], {}, "no arguments, expected those of vftok.main"),
    ("slurm.sbatch", ["--config=c"], {}, "no --workdir"),
  ],
)
def test_bad_words(script, arguments, settings, sentence):
  done = dry(script, *arguments, **settings)
  assert done.returncode == 2 and not done.stdout and sentence in done.stderr


def test_slurm_outside_a_job():
  script = str(LAUNCH / "slurm.sbatch")
  environment = {"PATH": os.environ["PATH"]}
  done = subprocess.run(["bash", script, *TRAIN], capture_output=True, text=True, env=environment, check=False)
  assert done.returncode == 2 and "this is no SLURM job" in done.stderr
