"""What ends a run early: signals, of which the first saves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax


class Stop(threading.Event):
  """Set by SIGTERM, SIGHUP or a first Ctrl-C (`interrupted`): the loop saves and leaves. A second Ctrl-C ends it."""

  interrupted = False

  def by_signal(self, number, _) -> None:
    if number == signal.SIGINT:
      self.interrupted = True
      signal.signal(signal.SIGINT, signal.default_int_handler)
      print("stopping after this step; once more ends at once, without saving", flush=True)
    self.set()


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
  stop = Stop()
  # With other processes a signal is JAX's to spread (`Checkpoints.stop_requested`): one that leaves alone hangs them.
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield stop
    return
  numbers = [signal.SIGTERM, signal.SIGINT]
  if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
    numbers.append(signal.SIGHUP)
  before = {number: signal.signal(number, stop.by_signal) for number in numbers}
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
