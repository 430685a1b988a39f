"""How the tools that prepare data end: exit code 0, or one sentence and 2."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable

from vftok.runtime.meeting import fail, is_shared
from vftok.runtime.process import FAULTS, INTERRUPTED, ended_by_signals
from vftok.runtime.words import sentence


def exit_code(name: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
  """Calls run(args). Returns 0, or 2 after a sentence on stderr about what is wrong with them or not to be had."""
  try:
    with ended_by_signals():
      run(args)
  except FAULTS as error:
    print(f"{name}: error: {sentence(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"{name}: {INTERRUPTED}", file=sys.stderr)
    return 130
  return 0


def or_exit(run: Callable[[], None]) -> None:
  """Calls run(), for tools with flags of absl: ends the process with 1 after a sentence, or with 130 after Ctrl-C.

  The other processes of a job, which wait for this one, end too.
  """
  try:
    with ended_by_signals():
      run()
  except FAULTS as error:
    fail(f"error: {sentence(error)}")
  except Exception as error:  # a mistake of ours, to be shown with where it was made
    if not is_shared():
      raise
    traceback.print_exc()
    fail(f"error: {type(error).__name__}: {sentence(error)}")
  except KeyboardInterrupt:
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)


def leave_signals() -> None:
  """In each worker: what a terminal sends to all is the main process's to handle; when that ends it, it cleans up."""
  for name in ("SIGINT", "SIGHUP"):
    if hasattr(signal, name):
      signal.signal(getattr(signal, name), signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
