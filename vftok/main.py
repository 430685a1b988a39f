"""Trains, evaluates or samples a config: python -m vftok.main --config=configs/tokenizer.py:mini --workdir=DIR."""

from __future__ import annotations

import contextlib
import os
import sys

from absl import flags

from vftok.runtime.process import INTERRUPTED, begin, ended_by_signals, leave, local
from vftok.runtime.words import sentence
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main

_CONFIG = define_config("Experiment file, e.g. configs/tokenizer.py:mini.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics, videos and the model go.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "eval", "sample"],
  "Train; evaluate the newest checkpoint; or videos from its prompts file.",
)
_PROTOCOL = flags.DEFINE_string(
  "protocol", None, "Evaluate as this file says: a protocol.json of an earlier evaluation."
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a pod or SLURM job first.")


def main(argv: list[str]) -> None:
  try:
    workdir = local(_WORKDIR.value, "--workdir")  # before anything heavy is loaded
    if _PROTOCOL.value is not None and _MODE.value != "eval":
      raise ValueError(f"--protocol is {_PROTOCOL.value} with --mode={_MODE.value}, expected --mode=eval: add it.")
  except ValueError as error:
    sys.exit(f"error: {error}")
  begin(argv, distributed=_DISTRIBUTED.value)
  import jax

  from vftok.train import evaluate, loop, sample_run
  from vftok.train.checkpoint import NotSaved

  run = {"train": loop.run, "eval": evaluate.run, "sample": sample_run.run}[_MODE.value]
  more = {} if _PROTOCOL.value is None else {"protocol": _PROTOCOL.value}
  # A job of many processes leaves signals to JAX, which spreads them.
  ending = contextlib.nullcontext() if jax.process_count() > 1 else ended_by_signals()
  try:
    with ending:
      result = run(_CONFIG.value, workdir, **more)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())[:200]
    leave(
      f"error: process {jax.process_index()} of {jax.process_count()} lost the others or its devices ({reason}): what "
      "the newest checkpoint holds is safe, start all processes again with the same command."
    )
  except (ValueError, OSError, ModuleNotFoundError, loop.NotFinite, NotSaved) as error:
    if os.environ.get("VFTOK_TRACEBACK"):
      raise
    sys.exit(f"error: {sentence(error)}")
  except KeyboardInterrupt:
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)
  if _MODE.value == "sample":
    print(f"{result['videos']} videos: {_WORKDIR.value}/samples/samples.html")
  elif _MODE.value == "eval":
    for name, value in result.items():
      print(f"{name} {value:.6g}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  run_main(main)
