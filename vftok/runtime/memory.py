"""What a process keeps: compiled programs on disk, and freed memory for its next step."""

from __future__ import annotations

import ctypes
import importlib.util
import sys

import jax

from vftok.runtime.files import cache_dir


def use_compile_cache() -> None:
  """Keeps compiled programs on disk for the next process, small ones too: a command has dozens of them.

  In the folder `jax` of `vftok.runtime.files.cache_dir()`; JAX's own setting goes before.
  """
  if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    return
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

  The heap is in pieces after a training: the next one in the same process walked long lists of free blocks (a fifth of
  all samples in malloc, which threads wait for; 2.0 to 2.8 s a step, 1.2 to 1.5 when it went on in a new process).
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
  if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
    return platforms.split(",")[0] == "cpu"
  others = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
  return not others or jax.default_backend() == "cpu"
