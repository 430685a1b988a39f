"""How every program that runs from flags begins, and what the processes of one job owe each other."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, logging

JOIN_SECONDS = 60
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def begin(argv: list[str], *, distributed: bool) -> None:
  """Refuses stray words, joins the other processes if asked to, keeps memory and compiled programs.

  Raises:
    absl.app.UsageError: words that are no options.
    SystemExit: the other processes are not to be found; a sentence says which.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: options start with --, config values with --config.")
  logging.set_verbosity(logging.WARNING)  # every save of Orbax is twenty lines otherwise
  from vftok.runtime import memory

  if distributed:
    _join()
  memory.keep_memory()
  memory.use_compile_cache()


def local(path: str | os.PathLike, name: str) -> Path:
  """A folder to write, which may not be there yet. Raises ValueError for an address, or a file in its place."""
  if "://" in os.fspath(path):
    raise ValueError(
      f"{name} is {os.fspath(path)[:200]}, expected a folder: mount the bucket (gcsfuse), pass its path."
    )
  if Path(path).exists() and not Path(path).is_dir():
    raise ValueError(f"{name} is {os.fspath(path)[:200]}, a file, expected a folder: choose another name.")
  return Path(path)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
  """Inside, SIGTERM and SIGHUP end the process as an exception does: half-written files are removed on the way out.

  Left alone are a signal that is ignored (nohup), threads, and jobs of many processes, where JAX spreads the notice.
  """

  def end(number, _):
    print(
      f"stopped by {signal.Signals(number).name}: the same command goes on from what was finished.", file=sys.stderr
    )
    sys.exit(128 + number)

  before = {}
  if threading.current_thread() is threading.main_thread():
    for name in ("SIGTERM", "SIGHUP"):
      number = getattr(signal, name, None)
      if number is not None and signal.getsignal(number) == signal.SIG_DFL:
        before[number] = signal.signal(number, end)
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _join() -> None:
  """Meets the other processes: by the cluster's own facts (Cloud TPU, GKE, SLURM), or by three variables."""
  import jax

  address, count, index = (os.environ.get(name) for name in VARIABLES)
  given: dict[str, Any] = (
    {} if count is None or index is None else dict(num_processes=int(count), process_id=int(index))
  )
  if given and address:
    who = f"process {index} of {count}"
    print(f"{who}: waiting for all of them at {address}, {JOIN_SECONDS} s at most", flush=True)
  try:
    jax.distributed.initialize(
      address, **given, initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=JOIN_SECONDS
    )
  except (ValueError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0][:200]
    leave(
      f"error: --distributed found no other processes within {JOIN_SECONDS} s ({reason}): start one process per host "
      f"with the same command, and outside Cloud TPU, GKE and SLURM set {', '.join(VARIABLES)}."
    )
  here = jax.local_device_count()
  print(f"process {jax.process_index()} of {jax.process_count()}, {here} of {jax.device_count()} devices", flush=True)


def leave(sentence: str) -> None:
  """Ends this process now, with exit code 1: waiting for others at exit would hang where one of them is gone."""
  print(sentence, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(1)


def together(name: str) -> None:
  """Waits until every process of the job is here."""
  import jax

  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"vftok {name}")


def everywhere(value: bool) -> bool:
  """Whether it is true in every process of the job; all of them must call it."""
  import jax

  if jax.process_count() == 1:
    return value
  import numpy as np
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.bool_(value)).all())


def agreed(value: bool) -> bool:
  """What the first process says, in all of them: a clock must not send two processes different ways."""
  import jax

  if jax.process_count() == 1:
    return value
  import numpy as np
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(np.bool_(value)))


def whole(tree: Any) -> Any:
  """NumPy arrays of a tree whose parts may live in other processes; all of them must call it."""
  import jax

  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)
