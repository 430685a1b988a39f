"""Where the processes of a job wait for each other outside programs: one that failed ends the others too, at once.

What they say to each other goes through JAX's coordination service, so no file system has to show it in time. A process
that was killed says nothing: JAX ends the others when it misses its heartbeats for `process.JOIN_SECONDS`.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import time
import warnings
from typing import Any

from vftok.runtime.process import JOIN_SECONDS, leave

POLL_SECONDS = 0.5
_FAILED, _HERE = "vftok/failed/", "vftok/here"
_times: collections.Counter[str] = collections.Counter()  # how often this process has met the others where


def meet(name: str) -> None:
  """Waits until every process of the job is here; all must meet in the same order.

  Raises:
    RuntimeError: one of them failed (`fail`); the sentence says which, and what it said.
  """
  if not is_shared():
    return
  import jax

  client = _client()
  place = f"{_HERE}/{name}/{_times[name]}/"
  _times[name] += 1
  client.key_value_set(f"{place}{jax.process_index()}", "here")
  while len(client.key_value_dir_get(place)) < jax.process_count():
    listen()
    time.sleep(POLL_SECONDS)


def listen() -> None:
  """Between two pieces of long work. Raises RuntimeError where another process of the job failed, as `meet` does."""
  if is_shared():
    import jax

    for key, said in _client().key_value_dir_get(_FAILED):
      raise RuntimeError(f"process {key.rpartition('/')[2]} of {jax.process_count()} ended, so this one does: {said}")


def is_shared() -> bool:
  """Whether this is one of several processes of a job."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def warn(sentence: str, stacklevel: int = 1) -> None:
  """`warnings.warn`, by the first process of a job: all of them read the same lists and folders."""
  if is_shared():
    import jax

    if jax.process_index():
      return
  warnings.warn(sentence, stacklevel=stacklevel + 1)


def fail(sentence: str) -> None:
  """Ends this process with 1 and a sentence on stderr; in a job of many, the others hear it where they meet."""
  if not is_shared():
    sys.exit(sentence)
  import jax

  with contextlib.suppress(jax.errors.JaxRuntimeError):  # the first process is gone, and with it the service
    client, until = _client(), time.monotonic() + JOIN_SECONDS
    client.key_value_set(f"{_FAILED}{jax.process_index()}", sentence)
    if not jax.process_index():  # JAX ends the others without a word when the service's process goes
      while len(client.key_value_dir_get(_FAILED)) < jax.process_count() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
      time.sleep(2 * POLL_SECONDS)
  leave(sentence)


def _client() -> Any:
  from jax._src import distributed  # what multihost_utils and Orbax wait by; it has no public name

  return distributed.global_state.client
