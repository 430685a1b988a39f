"""A learning rate that falls with the clock: for machines that are borrowed for minutes. And what a step may fetch."""

import itertools
import json
import types

import pytest

from configs import vae
from vftok.tasks import TASKS
from vftok.train import loop, optim


def _config():
  cfg = vae.get_config("smoke")
  cfg.loss.adversarial = 0.0
  cfg.steps, cfg.minutes, cfg.optim.schedule, cfg.optim.warmup = 100_000, 0.05, "clock", 0
  return cfg


def test_the_rate_falls_and_the_run_is_done_when_time_is_over(tmp_path, monkeypatch):
  """On a clock that moves by a fifth of a second each time it is read, after 100 seconds of a compiler."""
  ticks = itertools.chain([0], itertools.count(500))
  monkeypatch.setitem(TASKS, "vae", "pixel_task:PixelTask")
  monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 5))
  cfg = _config()
  state = loop.run(cfg, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  rates = [row["lr"] for row in rows]
  assert 5 < int(state.step) < 10 and len(rates) == int(state.step)
  assert rates[0] == pytest.approx(cfg.optim.lr)  # the compiler's time is not counted
  assert all(a > b for a, b in itertools.pairwise(rates)) and rates[-1] < 0.2 * cfg.optim.lr
  assert (tmp_path / "model" / "config.json").is_file()


def test_a_clock_without_minutes_is_told(tmp_path):
  cfg = _config()
  cfg.minutes = 0.0
  with pytest.raises(ValueError, match="set config"):
    loop.run(cfg, tmp_path)


def test_the_factor():
  assert [optim.by_clock(gone, 0.1) for gone in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.55, 0.1, 0.1])


def test_nothing_goes_to_the_device_unseen(tmp_path, monkeypatch):
  monkeypatch.setitem(TASKS, "vae", "pixel_task:PixelTask")
  monkeypatch.setattr(loop, "step_arrays", lambda host, mesh: {k: host[k] for k in ("video", "_mask")})
  cfg = _config()
  cfg.steps, cfg.minutes, cfg.optim.schedule = 2, 0.0, "constant"
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    loop.run(cfg, tmp_path)
