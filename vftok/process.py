"""How every program that runs from flags begins."""

from __future__ import annotations

from absl import app, logging

INTERRUPTED = "stopped: the same command goes on from what was finished."


def begin(argv: list[str], *, distributed: bool) -> None:
  """Refuses stray words, joins the other processes if asked to, keeps memory and compiled programs.

  Raises:
    absl.app.UsageError: words that are no options.
  """
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: options start with --, config values with --config.")
  logging.set_verbosity(logging.WARNING)  # every save of Orbax is twenty lines otherwise
  import jax

  from vftok import perf

  if distributed:
    jax.distributed.initialize()
    print(
      f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} devices here", flush=True
    )
  perf.keep_memory()
  perf.use_compile_cache()
