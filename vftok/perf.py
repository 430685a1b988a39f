"""The compile cache, memory kept between steps, and FLOPs written out (XLA's counter sees a scanned layer only once).

One multiply-add is 2 FLOPs. Norms, activations, position tables, adaLN vectors (per sample, not per token) and the
embedding and head projections are left out: under 1 % at the sizes of the released models.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import time

import jax
import jax.numpy as jnp

from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig


def stack_flops(cfg: StackConfig, length: int, pairs: int | None = None) -> float:
  """Forward FLOPs of a transformer stack over one sequence of `length` tokens.

  depth * (2 * length * (4 D^2 + m D H) + 4 * pairs * D), m = 3 for a gated MLP, else 2; `pairs` is the number of
  (query, key) pairs computed, by default all length^2 of them (the dense algorithm).
  """
  pairs = length * length if pairs is None else pairs
  matrices = 4 * cfg.dim**2 + (3 if cfg.gated_mlp else 2) * cfg.dim * cfg.hidden
  return cfg.depth * (2 * length * matrices + 4 * pairs * cfg.dim)


def vit_flops(dim: int, depth: int, hidden: int, length: int) -> float:
  """Forward FLOPs of a plain vision transformer over `length` tokens: depth * (2 L (4 D^2 + 2 D H) + 4 L^2 D)."""
  return depth * (2 * length * (4 * dim**2 + 2 * dim * hidden) + 4 * length**2 * dim)


def ar_flops(dim: int, depth: int, hidden: int, vocab: int, length: int, text: int = 0) -> float:
  """Forward FLOPs of the autoregressive model over one sequence, head included: the causal half of all pairs counts.

  depth * (2 L (4 D^2 + 3 D H) + 2 L^2 D) + 2 L D V, and per block 2 (2 L + 2 S) D^2 + 4 L S D for S text features.
  """
  block = 2 * length * (4 * dim**2 + 3 * dim * hidden) + 2 * length**2 * dim
  cross = 4 * (length + text) * dim**2 + 4 * length * text * dim if text else 0
  return depth * (block + cross) + 2 * length * dim * vocab


def attended_pairs(steps: int, block: int) -> int:
  """(query, key) pairs of a time-causal mask: step t sees the t + 1 blocks up to its own."""
  return block * block * steps * (steps + 1) // 2


def vae_flops(cfg: VAEConfig, frames: int, height: int, width: int) -> tuple[float, float]:
  """(encode, decode) forward FLOPs of the VAE on one video by its plain convolutions and attention.

  Counted as the dense algorithm runs: causal zero padding and nearest upsampling included, nothing skipped.
  """
  blocks, ch, last, pixels = cfg.num_res_blocks, cfg.ch, len(cfg.ch_mult) - 1, cfg.in_channels * cfg.stem**2
  widths = [ch * m for m in cfg.ch_mult]
  padded = -(-frames // 4) * 4  # what the network really sees: 17 -> 20

  def middle(positions: float, spatial: int, c: int) -> float:
    return positions * (4 * 27 * c * c + 4 * c * c + 2 * spatial * c) * 2

  def level(positions: float, c_in: int, c_out: int, count: int) -> float:
    total = 0.0
    for i in range(count):
      c = c_in if i == 0 else c_out
      total += (
        positions * 2 * (9 * c * c_out + 9 * c_out * c_out + (c * c_out if c != c_out else 0) + 6 * c_out * c_out)
      )
    return total

  area, time, c = height * width / cfg.stem**2, padded, ch
  encode = time * area * 2 * 27 * pixels * ch
  for i, wide in enumerate(widths):
    encode += level(time * area, c, wide, blocks)
    c = wide
    if i in cfg.halves_space:
      area /= 4
      encode += time * area * 2 * 9 * c * c
    if i in cfg.time_levels:
      time /= 2
      encode += time * area * 2 * 27 * c * c
  encode += middle(time * area, area, c) + time * area * 2 * 27 * c * 2 * cfg.z_channels

  decode = time * area * 2 * 27 * cfg.z_channels * c + middle(time * area, area, c)
  for i in range(last, -1, -1):
    decode += level(time * area, c, widths[i], blocks + 1)
    c = widths[i]
    if i - 1 in cfg.halves_space:
      area *= 4
      decode += time * area * 2 * 9 * c * c
    if i in cfg.time_levels:
      time *= 2
      decode += time * area * 2 * 27 * c * c
  decode += time * area * 2 * 27 * c * pixels
  code = padded * height * width * 2 * cfg.in_channels * cfg.z_channels if cfg.linear else 0.0
  return (encode if cfg.encoder_net else 0.0) + code, decode + code


def use_compile_cache() -> None:
  """Keeps compiled programs on disk for the next process, small ones too: a command has dozens of them.

  In the folder `jax` of `vftok.packaged.cache_dir()`; JAX's own setting goes before.
  """
  if jax.config.jax_compilation_cache_dir:
    return
  from vftok.packaged import cache_dir  # brings PyAV, which who only imports the networks does without

  directory = cache_dir() / "jax"
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError:  # a read-only home costs time, not the command
    return
  jax.config.update("jax_compilation_cache_dir", str(directory))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def keep_memory() -> None:
  """Lets this process keep freed memory for its next step, where the backend is CPU and the C library glibc.

  Elsewhere nothing is set: with one arena, a GPU host's threads that decode video would wait for each other.

  XLA's CPU buffers are large, and large blocks go back to the system by default: each step then waits for the kernel
  to clear pages again (a fifth of all time in the training of configs/tokenizer.py:mini). Call it before JAX computes.
  """
  if sys.platform != "linux" or not _computes_on_cpu():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:  # musl
    return
  trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # numbers of <malloc.h>
  for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, 1)):
    mallopt(option, value)


def _computes_on_cpu() -> bool:
  """Asks JAX itself only where it may be otherwise: its CPU threads keep the arenas that they begin with."""
  if jax.config.jax_platforms:
    return jax.config.jax_platforms.split(",")[0] == "cpu"
  others = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
  return not others or jax.default_backend() == "cpu"


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
