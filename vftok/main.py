"""Trains, evaluates or samples a config: python -m vftok.main --config=configs/tokenizer.py:mini --workdir=DIR."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from vftok.runtime.ending import or_exit
from vftok.runtime.process import begin, local
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
  workdir = or_exit(_workdir)  # before anything heavy is loaded
  begin(argv, distributed=_DISTRIBUTED.value)
  import jax

  from vftok.train import evaluate, loop, sample_run

  run = {"train": loop.run, "eval": evaluate.run, "sample": sample_run.run}[_MODE.value]
  more = {} if _PROTOCOL.value is None else {"protocol": _PROTOCOL.value}
  # A job of many processes leaves signals to JAX, which spreads them.
  result = or_exit(lambda: run(_CONFIG.value, workdir, **more), signals=jax.process_count() == 1)
  if _MODE.value == "sample":
    print(f"{result['videos']} videos: {_WORKDIR.value}/samples/samples.html")
  elif _MODE.value == "eval":
    for name, value in result.items():
      print(f"{name} {value:.6g}")


def _workdir() -> Path:
  if _PROTOCOL.value is not None and _MODE.value != "eval":
    raise ValueError(f"--protocol is {_PROTOCOL.value} with --mode={_MODE.value}, expected --mode=eval: add it.")
  return local(_WORKDIR.value, "--workdir")


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  run_main(main)
