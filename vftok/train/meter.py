"""How fast a run is: seconds per step, time left, model FLOP/s against the machine, time spent waiting for data."""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import jax.numpy as jnp


class Meter:
  """Counts steps; pauses (evaluation, videos) and the first step, which compiles, do not enter the speed.

  `dtype` is of the matrix products: what the machine could do depends on it. `seconds` (0: no limit) end a run earlier.
  """

  def __init__(self, steps: int, flops_per_step: float, dtype: str = "bfloat16", seconds: float = 0.0):
    self.steps, self.flops, self.peak, self.seconds = steps, flops_per_step, machine_flops(dtype), seconds
    self._began: float | None = None
    self._last: float | None = None
    self._waited = 0.0
    self._mean = self._wait_share = 0.0

  def tick(self, waited: float) -> None:
    """Call once per finished step; `waited` is the loader's total of waiting so far."""
    now = time.perf_counter()
    self._began = now if self._began is None else self._began
    if self._last is not None:
      took, wait = now - self._last, waited - self._waited
      blend = 0.1 if self._mean else 1.0
      self._mean += blend * (took - self._mean)
      self._wait_share += blend * (min(wait / max(took, 1e-9), 1.0) - self._wait_share)
    self._last, self._waited = now, waited

  def pause(self) -> None:
    self._last = None

  def numbers(self) -> dict[str, float]:
    if not self._mean:
      return {}
    rate = self.flops / self._mean
    return {
      "time/step": self._mean,
      "time/flops": rate,
      "time/of_machine": rate / self.peak,
      "time/wait": self._wait_share,
    }

  def line(self, step: int, row: dict[str, Any]) -> str:
    """One line for people."""
    head = f"step {step}/{self.steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}"
    if "codes/used_mean" in row:
      head += f"  codes {row['codes/used_mean']:.0f}, least {row['codes/used_min']:.0f}"
    if not self._mean:
      return head
    left = self._mean * (self.steps - step)
    if self.seconds and self._began is not None:
      left = min(left, max(0.0, self.seconds - (time.perf_counter() - self._began)))
    machine = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    share = f"{100 * row['time/of_machine']:.0f} % of {machine}"
    speed = f"{self._mean:.3g} s/step, {row['time/flops'] / 1e9:.3g} GFLOP/s ({share})"
    return f"{head}  {speed}  wait {100 * self._wait_share:.0f} %  left {clock(left)}"


def clock(seconds: float) -> str:
  """4h05m, 3m20s, 12s."""
  seconds = round(seconds)
  if seconds >= 3600:
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
  return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"


# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets.
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "NVIDIA A100": 312e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
  "NVIDIA L4": 121e12,
}
# What is left of it for float32, which is TF32 on NVIDIA cards; TPUs make float32 products of bfloat16 ones.
FLOAT32_PEAKS = {
  "NVIDIA A100": 156e12,
  "NVIDIA H100": 494e12,
  "NVIDIA H200": 494e12,
  "NVIDIA B200": 1125e12,
  "NVIDIA L4": 60e12,
}


def machine_flops(dtype: str = "bfloat16") -> float:
  """FLOP/s that all devices together could do in `dtype`: the data sheet's where known, else a matmul, timed now."""
  kind = jax.devices()[0].device_kind
  fits = lambda name: (
    re.match(rf"{name}\b", kind) if name.startswith("NVIDIA") else kind == name
  )  # "NVIDIA L40S" is none
  peaks = PEAKS if dtype in ("bfloat16", "float16") else {**PEAKS, **FLOAT32_PEAKS}
  known = [rate for name, rate in peaks.items() if fits(name)]
  if known:
    return known[0] * jax.device_count()
  size = 1024
  a = jnp.ones((size, size), jnp.float32)
  matmul = jax.jit(lambda x: x @ x)
  jax.block_until_ready(matmul(a))
  took = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(matmul(a))
    took.append(time.perf_counter() - start)
  return 2 * size**3 / min(took)  # simulated CPU devices share one machine
