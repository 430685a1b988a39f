"""How the tools that prepare data end: exit code 0, or one sentence and 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from vftok.process import INTERRUPTED


def exit_code(name: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
  """Calls run(args). Returns 0, or 2 after a sentence on stderr about what is wrong with them or not to be had."""
  try:
    run(args)
  except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:
    print(f"{name}: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"{name}: {INTERRUPTED}", file=sys.stderr)
    return 130
  return 0
