"""Trains and judges tokenizers of all families, then generators over them:

`python -m vftok.tools.study.families --out runs/study --size pocket [--seeds 0,1,2] [--arms nested,grid] [--minutes 9]`

Run from the repository's root: the experiments are configs/study.py. The same command goes on where it was stopped,
a training at its newest checkpoint; with --minutes it stops by itself. OUT/study.html and OUT/study.json say at any
time what is known so far. Results of another machine are used where OUT/ARM/SEED has their JSON files.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from vftok.runtime.ending import exit_code
from vftok.runtime.process import local
from vftok.runtime.words import brief
from vftok.tools.study.families.jobs import OutOfTime, Study
from vftok.tools.study.families.pages import write

NAME = "study.families"


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog=NAME, description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=Path, required=True, help="where everything goes")
  parser.add_argument("--size", default="pocket", help="smoke, pocket or mini64")
  parser.add_argument("--seeds", default="0,1,2", help="of initial weights and noise, with commas between")
  parser.add_argument("--arms", default="", help="some of the arms; all by default")
  parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long; 0: when all is done")
  parser.add_argument("--no-generators", action="store_true", help="tokenizers alone")
  args = parser.parse_args(argv)
  return exit_code(NAME, run, args)


def run(args: argparse.Namespace) -> None:
  try:
    experiments = importlib.import_module("configs.study")
  except ModuleNotFoundError as error:
    raise ValueError("there is no configs/study.py here, expected the repository's: run from its root.") from error
  if args.size not in experiments.SIZES:
    raise ValueError(f"--size is {brief(args.size)}, expected one of {', '.join(experiments.SIZES)}.")
  arms = [arm for arm in args.arms.split(",") if arm] or list(experiments.ARMS)
  known = (*experiments.ARMS, *experiments.RECIPES)
  if unknown := [arm for arm in arms if arm not in known]:
    raise ValueError(f"--arms has {brief(unknown[0])}, expected some of {', '.join(known)}.")
  try:
    seeds = [int(seed) for seed in args.seeds.split(",")]
  except ValueError:
    raise ValueError(f"--seeds is {brief(args.seeds)}, expected whole numbers with commas between.") from None
  if min(seeds) < 0 or max(seeds) >= 1 << 31:
    raise ValueError(f"--seeds is {brief(args.seeds)}, expected numbers of 0 to 2147483647.")
  if not 0 <= args.minutes < float("inf"):
    raise ValueError(f"--minutes is {args.minutes}, expected a number of minutes, 0 for no end.")
  local(args.out, "--out")
  from vftok.runtime import memory

  memory.keep_memory()
  memory.use_compile_cache()
  study = Study(experiments, args.out, args.size, time.monotonic() + 60 * args.minutes if args.minutes else None)
  depths = () if args.no_generators else experiments.SIZES[args.size].depths
  # One arm and seed to its end before the next: what is stopped leaves whole results.
  jobs = [
    job
    for seed in seeds
    for arm in arms
    for job in ((study.reconstruction, arm, seed), *((study.generator, arm, seed, depth) for depth in depths))
  ]
  args.out.mkdir(parents=True, exist_ok=True)
  write(args.out, study)
  for number, (make, arm, seed, *depth) in enumerate(jobs, 1):
    what = f"{arm}, seed {seed}" + (f", generator of depth {depth[0]}" if depth else "")
    print(f"[{number}/{len(jobs)}] {what}", flush=True)
    try:
      make(arm, seed, *depth)
    except OutOfTime:
      print("out of time: the same command goes on from here.")
      break
    write(args.out, study)
  print(args.out / "study.html")


if __name__ == "__main__":
  sys.exit(main())
