"""Runs tests/multidevice in a process of its own: the number of simulated devices is fixed when jax starts."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_eight_simulated_devices():
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "multidevice" / "mesh_checks.py")]
  done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=900, check=False)
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
  assert "passed" in done.stdout
