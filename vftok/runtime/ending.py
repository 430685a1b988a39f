"""How every program ends: 0, one sentence on stderr and 2 (1 with flags of absl), or 130 after Ctrl-C.

VFTOK_TRACEBACK=1 shows where an error was raised instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from vftok.runtime.meeting import fail, is_shared
from vftok.runtime.process import ended_by_signals, leave
from vftok.runtime.words import sentence

INTERRUPTED = "stopped: the same command goes on from what was finished."
FAULTS = (ValueError, OSError, RuntimeError, ModuleNotFoundError)  # of the user's input or machine: one sentence each


def exit_code(name: str, run: Callable[[Any], int | None], args: Any, interrupted: str = INTERRUPTED) -> int:
  """Calls run(args). Returns its number (None is 0), 2 after a sentence on what is wrong, or 130 after Ctrl-C."""
  try:
    with ended_by_signals():
      return run(args) or 0
  except BrokenPipeError:  # whoever reads our output has seen enough, as in `vftok info m | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except FAULTS as error:
    print(f"{name}: error: {_told(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"{name}: {interrupted}", file=sys.stderr)
    return 130


def or_exit(run: Callable[[], Any], signals: bool = True) -> Any:
  """Returns run(), for programs with flags of absl: ends the process with 1 after a sentence, 130 after Ctrl-C.

  The other processes of a job, which wait for this one, end too. `signals` False leaves them to whoever has them.
  """
  try:
    with ended_by_signals() if signals else contextlib.nullcontext():
      return run()
  except FAULTS as error:
    if is_shared() and _of_jax(error):
      leave(
        f"error: this process lost the others or its devices ({' '.join(str(error).split())[:200]}): what is finished "
        "is safe, start all processes again with the same command."
      )
    fail(f"error: {_told(error)}")
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


def _told(error: BaseException) -> str:
  """The sentence of a fault. Raises it again where its traceback is asked for, or where JAX says that we are wrong."""
  if os.environ.get("VFTOK_TRACEBACK") or _of_jax(error):
    raise error
  return sentence(error)


def _of_jax(error: BaseException) -> bool:
  jax = sys.modules.get("jax")
  return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)
