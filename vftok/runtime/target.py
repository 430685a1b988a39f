"""The platform that programs are compiled for: this process's own, unless a tool compiles for another."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax

COMPILE_FOR: str | None = None  # "tpu" where the chips are not here; "gpu" and "cpu" likewise
ATTENTION = ("xla", "splash", "cudnn")


def platform() -> str:
  """ "cpu", "gpu" or "tpu"."""
  return COMPILE_FOR or jax.default_backend()


def attention(dtype) -> str:
  """One of ATTENTION for arrays of this dtype: splash on TPU, cuDNN for half precision on GPU, XLA everywhere else.

  The environment variable VFTOK_ATTENTION overrides it, for cards or versions where a kernel fails.

  Raises:
    ValueError: the variable names something else.
  """
  chosen = os.environ.get("VFTOK_ATTENTION")
  if chosen is not None and chosen not in ATTENTION:
    raise ValueError(f"VFTOK_ATTENTION is {chosen!r}, expected one of {', '.join(ATTENTION)}.")
  half = str(jax.numpy.dtype(dtype)) in ("bfloat16", "float16")
  return chosen or {"tpu": "splash", "gpu": "cudnn" if half else "xla"}.get(platform(), "xla")


def step_options(*, convolutions: bool = False) -> dict[str, Any] | None:
  """Compiler options of a training step, `convolutions`: of a network that is made of them.

  GPU: without CUDA graphs. A step of thousands of kernels is renewed in its graphs before each launch, since its arrays
  lie elsewhere every time: on an H100 270 of 400 ms a step, in which the card waited.
  CPU: transformers without YNNPACK, 1.04 and 1.03 times as fast for configs/t2v.py:mini and a register encoder with
  its decoder; configs/vae.py:mini is 1.6 times as fast with it.
  """
  if platform() == "cpu" and not convolutions:
    return _without_ynnpack()
  return {"xla_gpu_enable_command_buffer": "", "xla_gpu_graph_min_graph_size": 1 << 30} if platform() == "gpu" else None


def once(fn: Callable, **options: Any):
  """`jax.jit` of a program that runs once, such as one that draws fresh parameters: on a CPU made quickly.

  LLVM takes 17 s for the draws of configs/tokenizer.py:smoke, most of them the VAE's, and 5 s for code that is not
  optimised; they run for a tenth of a second or two.
  """
  quick = {"xla_backend_optimization_level": 0} if platform() == "cpu" else None
  return jax.jit(fn, compiler_options=quick, **options)


FEW_ROWS = 3  # of what weights are multiplied with: up to here YNNPACK is faster than Eigen


def row_options(rows: int) -> dict[str, str] | None:
  """Compiler options of a loop whose products have so many rows: on a CPU from 4 rows on without YNNPACK.

  A generator of 49 M parameters on two cores makes 36 tokens a second with it and 28 without at 2 rows, 46 and 49 at
  4, 101 and 124 at 16.
  """
  return _without_ynnpack() if platform() == "cpu" and rows > FEW_ROWS else None


@functools.cache
def _without_ynnpack() -> dict[str, str] | None:
  """None where this version of XLA does not know the option."""
  options = {"xla_cpu_experimental_ynn_fusion_type": ""}
  try:
    jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
  except Exception:  # of a type that differs from version to version
    return None
  return options
