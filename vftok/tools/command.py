"""How the tools that prepare data end: exit code 0, or one sentence and 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from vftok.process import INTERRUPTED
from vftok.words import sentence


def exit_code(name: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
  """Calls run(args). Returns 0, or 2 after a sentence on stderr about what is wrong with them or not to be had."""
  try:
    run(args)
  except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
    print(f"{name}: error: {sentence(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"{name}: {INTERRUPTED}", file=sys.stderr)
    return 130
  return 0


def or_exit(run: Callable[[], None]) -> None:
  """Calls run(), for tools with flags of absl: ends the process with 1 after a sentence, or with 130 after Ctrl-C."""
  try:
    run()
  except (ValueError, FileNotFoundError, RuntimeError, ModuleNotFoundError) as error:
    sys.exit(f"error: {sentence(error)}")
  except KeyboardInterrupt:
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)
