"""Runs tests/multidevice in a process of its own: the number of simulated devices is fixed when jax starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
  "tasks, meshes",
  [
    ("tokenizer grid vae ar ar_adaptive router", "mixed"),
    ("tokenizer grid vae ar ar_adaptive router", "data fsdp tensor seq cube"),
    ("larp adaptok evatok flextok", "mixed"),
    ("larp adaptok evatok flextok", "data fsdp tensor seq cube"),
  ],
)
def test_eight_simulated_devices(tasks, meshes):
  checks = str(HERE / "multidevice" / "mesh_checks.py")
  command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", checks]
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  environment = {**os.environ, "XLA_FLAGS": flags, "VFTOK_MESHES": meshes, "VFTOK_TASKS": tasks}
  done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
  steps, kernels = len(tasks.split()) * len(meshes.split()), len(meshes.split())
  assert f"{steps + kernels + 4} passed" in done.stdout
