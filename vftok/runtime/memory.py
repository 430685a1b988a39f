"""What a process keeps: compiled programs on disk, and freed memory for its next step."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
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

  XLA's CPU buffers are large, and large blocks go back to the system by default: each step then waits for the kernel
  to clear pages again (a quarter of all time in the training of configs/t2v.py:mini). Call it before JAX computes.

  There are two arenas more than cores, so that threads seldom wait while one of them walks a long list of free blocks.
  Programs run in the thread that calls them: glibc keeps blocks above 64 MB in the main thread's arena alone.
  Seconds a step of t2v:mini and of configs/study.py:nested-pocket on two cores: one arena .50 and 2.5, four .61 and
  1.3, four and in one thread .49 and 1.1; as the system has it .69 and 1.5.

  On a GPU's host nothing is set: there other threads decode video.
  """
  if sys.platform != "linux" or not _computes_on_cpu():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:  # musl
    return
  with contextlib.suppress(AttributeError):  # not every JAX has it
    jax.config.update("jax_cpu_enable_async_dispatch", False)
  trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # numbers of <malloc.h>
  arenas = len(os.sched_getaffinity(0)) + 2
  for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28), (arena_max, arenas)):
    mallopt(option, value)


def _computes_on_cpu() -> bool:
  """Asks JAX itself only where it may be otherwise: its CPU threads keep the arenas that they begin with."""
  if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
    return platforms.split(",")[0] == "cpu"
  others = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
  return not others or jax.default_backend() == "cpu"
