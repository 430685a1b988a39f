"""Trains, evaluates or samples a config: python -m vftok.main --config=configs/tokenizer.py:mini --workdir=DIR."""

from __future__ import annotations

import os
import sys

from absl import app, flags
from ml_collections import config_flags

from vftok.process import INTERRUPTED, begin, leave
from vftok.words import sentence

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file, e.g. configs/tokenizer.py:mini.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics, videos and the model go.")
_MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "eval", "sample"],
  "Train; evaluate the newest checkpoint; or videos from its prompts file.",
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of a pod or SLURM job first.")


def main(argv: list[str]) -> None:
  begin(argv, distributed=_DISTRIBUTED.value)
  import jax

  from vftok import evaluate, sample_run, train

  run = {"train": train.run, "eval": evaluate.run, "sample": sample_run.run}[_MODE.value]
  try:
    result = run(_CONFIG.value, _WORKDIR.value)
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())[:200]
    leave(
      f"error: process {jax.process_index()} of {jax.process_count()} lost the others or its devices ({reason}): what "
      "the newest checkpoint holds is safe, start all processes again with the same command."
    )
  except (ValueError, FileNotFoundError, ModuleNotFoundError, train.NotFinite) as error:
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
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
