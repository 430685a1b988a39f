"""The line that people watch: time left by steps or by the clock."""

import pytest

from vftok.train import meter
from vftok.train.meter import Meter


@pytest.fixture
def clock(monkeypatch):
  """[seconds], which the meter reads."""
  now = [100.0]
  monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(meter, "machine_flops", lambda dtype: {"bfloat16": 400.0, "float32": 200.0}[dtype])
  return now


def lines(mine: Meter, now, steps: int) -> str:
  for _ in range(steps):
    mine.tick(0.0)
    now[0] += 2.0
  now[0] -= 2.0
  return mine.line(steps, {"loss": 1.0, "lr": 0.1, **mine.numbers()})


@pytest.mark.parametrize(
  "seconds, left", [(0.0, "left 3m12s"), (60.0, "left 52s"), (1e6, "left 3m12s"), (5.0, "left 0s")]
)
def test_time_left(seconds, left, clock):
  """Two seconds a step, five of 101 done, eight seconds after the first."""
  assert lines(Meter(101, 100.0, "bfloat16", seconds), clock, 5).endswith(left)


@pytest.mark.parametrize("dtype, share", [("bfloat16", 0.125), ("float32", 0.25)])
def test_the_machine_is_measured_in_the_same_precision(dtype, share, clock):
  mine = Meter(101, 100.0, dtype)
  lines(mine, clock, 5)
  assert mine.numbers()["time/of_machine"] == pytest.approx(share)


def test_peaks_of_both_precisions(monkeypatch):
  monkeypatch.setattr(meter.jax, "devices", lambda: [type("Device", (), {"device_kind": "NVIDIA H100 80GB HBM3"})()])
  assert meter.machine_flops("bfloat16") > 1.9 * meter.machine_flops("float32")
