"""The whole way on one machine, as a pod would go it: `python launch/walk.py --out /tmp/walk --clips 2000`.

Clips are made, prepared, tokenized, labelled, trained on and scored by the project's own commands: two processes
with four simulated devices each where a command has --distributed. Prints per stage seconds, clips (or steps) per
second, the largest process, bytes written per clip, and writes them to OUT/walk.json. No file of the project changes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
WORDS = ("red", "green", "blue"), ("right", "down"), (1, 2, 3)


def make_clip(job: tuple[str, int]) -> None:
  """20 frames of 48x64 at 8 per second: a square of one colour that goes one way at one speed over noise."""
  from vftok.io.video_writer import write_video

  path, number = job
  colour, way, speed = number % 3, number // 3 % 2, WORDS[2][number // 6 % 3]
  rng = np.random.default_rng(number)
  frames = np.repeat(rng.integers(60, 120, (1, 48, 64, 3), dtype=np.uint8), 20, 0)
  y, x = (int(v) for v in rng.integers(0, 16, 2))
  for t, frame in enumerate(frames):
    top, left = (y, x + speed * t) if way == 0 else (y + speed * t, x)
    frame[top % 36 : top % 36 + 12, left % 52 : left % 52 + 12] = np.eye(3, dtype=np.uint8)[colour] * 255
  write_video(path, frames, 8)


def make_clips(root: Path, count: int) -> None:
  root.mkdir(parents=True)
  names = [f"{i:06d}.mp4" for i in range(count)]
  with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(make_clip, [(str(root / name), i) for i, name in enumerate(names)], chunksize=32))
  with (root / "list.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "caption", "label", "split"])
    for i, name in enumerate(names):
      colour, way, speed = WORDS[0][i % 3], WORDS[1][i // 3 % 2], WORDS[2][i // 6 % 3]
      rows.writerow(
        [name, f"a {colour} square goes {way} at speed {speed}", colour, {8: "val", 9: "test"}.get(i % 10, "train")]
      )


def run(name: str, words: list, *, processes: int = 1, devices: int = 4) -> dict:
  """Runs a command as one job; its output goes to NAME.log. The largest process is that of any in its tree."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  began, jobs = time.monotonic(), []
  with open(f"{name}.log", "w") as log:
    for i in range(processes):
      places = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i)}
      environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **(places if processes > 1 else {})}
      environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
      command = [sys.executable, "-m", *map(str, words), *(["--distributed"] if processes > 1 else [])]
      out = [(os.POSIX_SPAWN_DUP2, log.fileno(), n) for n in (1, 2)]
      jobs.append(os.posix_spawn(sys.executable, command, environment, file_actions=out))
    ends = [None] * processes
    waits = [threading.Thread(target=lambda i=i: ends.__setitem__(i, os.wait4(jobs[i], 0))) for i in range(processes)]
    for wait in waits:
      wait.start()
    for wait in waits:
      wait.join()
  took = time.monotonic() - began
  if any(status for _, status, _ in ends):
    raise SystemExit(f"{name} failed; the end of {name}.log:\n{Path(f'{name}.log').read_text()[-1500:]}")
  usage = [used for _, _, used in ends]
  return {
    "seconds": round(took, 1),
    "cpu_seconds": round(sum(used.ru_utime + used.ru_stime for used in usage), 1),
    "peak_mib": round(max(used.ru_maxrss for used in usage) / 1024),
  }


def size(path: Path) -> int:
  return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", required=True, help="an empty or absent folder")
  parser.add_argument("--clips", type=int, default=2000)
  parser.add_argument("--labelled", type=int, default=256, help="clips whose losses are measured")
  parser.add_argument("--steps", type=int, default=40)
  args = parser.parse_args()
  out = Path(args.out).resolve()
  out.mkdir(parents=True, exist_ok=True)
  if any(out.iterdir()):
    raise SystemExit(f"--out is {out}, which holds something: choose another name.")
  os.chdir(out)
  os.environ["VFTOK_CACHE"] = str(out / "cache")
  rows = {}

  def stage(name: str, count: int, made: str | None, words: list, processes: int = 1) -> None:
    row = run(name, words, processes=processes)
    row |= {"processes": processes, "count": count, "per_second": round(count / row["seconds"], 2)}
    if made:
      row["bytes_each"] = round(size(out / made) / count)
    rows[name] = row
    print(f"{name:24s} {json.dumps(row)}", flush=True)

  begin = time.monotonic()
  make_clips(out / "videos", args.clips)
  print(f"made {args.clips} clips of {size(out / 'videos') // args.clips} bytes in {time.monotonic() - begin:.0f} s")
  t2v, router = "--config=configs/t2v.py:mini", "--config=configs/router.py:mini"
  os.chdir(ROOT)  # configs are found from here; logs and outputs are named in full
  words = ["vftok.tools.prepare_videos", "--videos", out / "videos/list.csv", "--out", out / "set"]
  stage(str(out / "prepare"), args.clips, "set", [*words, "--size", 32, "--fps", 8, "--workers", 2])
  words = ["vftok.tools.tokenize_dataset", t2v, f"--out={out / 'tokens'}", "--workers=1"]
  words += [f"--config.tokenize.splits=prepared:directory={out / 'set'}"]
  stage(str(out / "tokenize"), args.clips, "tokens", words, processes=2)
  words = ["vftok.tools.label_budgets", router, f"--out={out / 'curves'}", "--workers=1"]
  words += [f"--config.label.splits=prepared:directory={out / 'set'}"]
  val = args.labelled // 8
  words += [f"--config.label.clips.train={args.labelled - val}", f"--config.label.clips.val={val}"]
  words += [f"--config.label.sampled.train={args.labelled - val}", f"--config.label.sampled.val={val}"]
  stage(str(out / "label"), args.labelled, "curves", words, processes=2)
  where = [t2v, f"--config.data.sources=tokens:directory={out / 'tokens'}", f"--workdir={out / 'run'}"]
  where += [f"--config.eval.sets=tokens:directory={out / 'tokens'}", f"--config.steps={args.steps}"]
  mesh = ["--config.mesh.data=8", f"--config.save_every={args.steps // 2}", f"--config.eval_every={args.steps // 2}"]
  stage(
    str(out / "train"), args.steps, None, ["vftok.main", *where, *mesh, f"--config.media_every={args.steps // 2}"], 2
  )
  scores = [
    "--config.eval.generation.clips=16",
    "--config.eval.generation.fvd=False",
    f"--config.tokenize.splits=prepared:directory={out / 'set'}",
  ]
  stage(str(out / "eval"), args.clips // 10, None, ["vftok.main", *where, *scores, "--mode=eval"])
  rows = {Path(name).name: row for name, row in rows.items()}
  (out / "walk.json").write_text(json.dumps(rows, indent=1))
  shutil.rmtree(out / "cache", ignore_errors=True)


if __name__ == "__main__":
  main()
