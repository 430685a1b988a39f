"""How the tools that prepare data end: exit code 0, or one sentence and 2."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable

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
  """Calls run(), for tools with flags of absl: ends the process with 1 after a sentence, or with 130 after Ctrl-C."""
  try:
    with ended_by_signals():
      run()
  except FAULTS as error:
    sys.exit(f"error: {sentence(error)}")
  except KeyboardInterrupt:
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)


def leave_signals() -> None:
  """In each worker: what a terminal sends to all is the main process's to handle; when that ends it, it cleans up."""
  for name in ("SIGINT", "SIGHUP"):
    if hasattr(signal, name):
      signal.signal(getattr(signal, name), signal.SIG_IGN)
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
