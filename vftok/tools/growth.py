"""How time and memory grow: `python -m vftok.tools.growth` (`--axes frames,keep` for some of the five).

frames, keep, size (of a side, in pixels) and batch: config M of `vftok.tools.bench` with random weights encodes and
decodes random videos by stream, all else as in BASE. dataset: a manifest of so many rows is opened, and a batch of the
loader's order drawn from it. Every point runs in a process of its own; seconds are of a second pass, after the one
that compiles, peak memory is all of the process. Prints Markdown to look at and, with --json FILE, writes the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vftok.runtime.ending import exit_code

# Nothing heavy loads in the parent: Linux counts its memory into the peak of the processes it starts.

BASE = {"frames": 17, "keep": 256, "size": 128, "batch": 1}
AXES = {
  "frames": (17, 33, 65, 129),
  "keep": (1, 4, 16, 64, 256),
  "size": (32, 64, 128),
  "batch": (1, 2, 4),
  "dataset": (1_000, 10_000, 100_000, 1_000_000),
}
STEPS = 2  # of the solver


def main(argv=None) -> int:
  return exit_code("growth", run, _parser().parse_args(argv))


def run(args: argparse.Namespace) -> int:
  if args.here:
    axis, value = args.here.split("=")
    measured = dataset(int(value)) if axis == "dataset" else video(**{**BASE, axis: int(value)})
    print(json.dumps({"axis": axis, "value": int(value), **measured, "peak_mib": _peak()}))
    return 0
  rows = []
  for axis in args.axes:
    for value in AXES[axis]:
      words = [sys.executable, "-m", "vftok.tools.growth", "--here", f"{axis}={value}"]
      done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
      if done.returncode:
        return done.returncode
      rows.append(json.loads(done.stdout))
      print(f"{axis} {value}: {rows[-1]}", file=sys.stderr, flush=True)
  print(table(rows))
  if args.json:
    Path(args.json).write_text(json.dumps({"base": BASE, "solver_steps": STEPS, "rows": rows}, indent=2) + "\n")
  return 0


def table(rows: list[dict]) -> str:
  """Markdown: a row per point."""
  lines = ["| | | encode, s | decode, s | open, s | peak, MiB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
  cell = lambda row, key: f"{row[key]:.3g}" if key in row else ""
  for row in rows:
    cells = [cell(row, key) for key in ("encode_s", "decode_s", "open_s")]
    lines.append(f"| {row['axis']} | {row['value']:,} | {' | '.join(cells)} | {row['peak_mib']:,.0f} |")
  return "\n".join(lines)


def video(frames: int, keep: int, size: int, batch: int) -> dict[str, float]:
  """Seconds of encoding and decoding by stream, a chunk of frames alive at a time."""
  import jax
  import numpy as np

  from vftok.runtime import target
  from vftok.tokenizer.api import Tokenizer
  from vftok.tools.bench import config_m

  cfg = dataclasses.replace(config_m(), latent_size=(size // 8, size // 8))
  tok = Tokenizer(cfg)
  params = target.once(tok.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  pieces = lambda: (rng.integers(0, 256, (batch, 1, size, size, 3), np.uint8) for _ in range(frames))
  encode = lambda: jax.block_until_ready(list(tok.encode_stream(params, pieces(), budget=keep)))
  chunks, took = encode(), {}

  def decode() -> None:
    for piece in tok.decode_stream(params, iter(chunks), jax.random.key(0), steps=STEPS, guidance=None):
      piece.block_until_ready()

  decode()
  for name, run in (("encode_s", encode), ("decode_s", decode)):
    begin = time.perf_counter()
    run()
    took[name] = round(time.perf_counter() - begin, 3)
  return took


def dataset(rows: int) -> dict[str, float]:
  """Seconds until a manifest of so many rows, which name files that nobody opens, has given a batch of records."""
  from vftok.data.sources import source_of

  with tempfile.TemporaryDirectory() as folder:
    manifest = Path(folder) / "set.jsonl"
    with manifest.open("w") as file:
      for i in range(rows):
        file.write(json.dumps({"path": f"{i % 100:02d}/{i:08d}.mp4", "caption": f"a red ball rolls left {i}"}) + "\n")
    begin = time.perf_counter()
    source = source_of({"kind": "video_folder", "path": str(manifest)})
    for i in range(32):
      source[i * len(source) // 32]
    return {"open_s": round(time.perf_counter() - begin, 3)}


def _peak() -> float:
  """MiB of this process so far."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _axes(text: str) -> list[str]:
  names = text.split(",")
  if unknown := [name for name in names if name not in AXES]:
    raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no axis, expected some of {', '.join(AXES)}.")
  return names


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.growth", description=__doc__.split("\n\n")[0])
  parser.add_argument("--axes", type=_axes, default=list(AXES), metavar="A,B", help=f"of {', '.join(AXES)}")
  parser.add_argument("--json", help="file to write the numbers to")
  parser.add_argument("--here", help=argparse.SUPPRESS)
  return parser


if __name__ == "__main__":
  sys.exit(main())
