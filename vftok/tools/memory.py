"""Peak memory of decoding by stream, as JSON: `python -m vftok.tools.memory MODEL --frames 65,257 --steps 2`.

Each length runs in its own process, from random ids, and drops every chunk of frames as it comes. The peaks
include the model, the compiler and Python; what matters is that they do not grow with length.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

# Nothing heavy loads in the parent: Linux counts its memory into the peak of the processes it starts.


def main(argv=None) -> int:
  args = _parser().parse_args(argv)
  if args.here:
    try:
      print(json.dumps(decode(args.model, args.frames[0], args.steps)))
    except (ValueError, FileNotFoundError) as error:
      print(f"memory: error: {error}", file=sys.stderr)
      return 2
    return 0
  rows = []
  for frames in args.frames:
    words = [sys.executable, "-m", "vftok.tools.memory", args.model, "--frames", str(frames), "--here"]
    done = subprocess.run([*words, "--steps", str(args.steps)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
      return done.returncode
    rows.append(json.loads(done.stdout))
  peaks = [row["peak_mb"] for row in rows]
  print(json.dumps({"model": args.model, "rows": rows, "ratio": max(peaks) / min(peaks)}, indent=2))
  return 0


def decode(model: str, frames: int, steps: int) -> dict:
  """Decodes `frames` frames of random ids in this process; its peak resident memory in MB."""
  import jax
  import numpy as np

  from vftok import Tokenizer, VideoTokens

  tok, params = Tokenizer.load(model)
  chunks = max(0, -(-(frames - tok.chunk_frames) // tok.stride)) + 1
  time_steps = tok.steps_for(tok.chunk_frames + (chunks - 1) * tok.stride)
  ids = np.random.default_rng(0).integers(0, tok.codebook_size, (1, time_steps, tok.registers))
  tokens = VideoTokens.full(ids, frames)
  count = 0
  for piece in tok.decode_stream(params, tokens, jax.random.key(0), steps=steps, guidance=None):
    count += jax.block_until_ready(piece).shape[1]
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
  return {"frames": count, "chunks": chunks, "peak_mb": round(peak, 1)}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="vftok.tools.memory", description="Peak memory of streamed decoding.")
  parser.add_argument("model", help="folder, .safetensors file or Hub id")
  counts = lambda text: [int(part) for part in text.split(",")]
  parser.add_argument("--frames", type=counts, default=[65, 257], metavar="F1,F2,...", help="lengths to compare")
  parser.add_argument("--steps", type=int, default=2, metavar="N", help="solver steps (default 2)")
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
  return parser


if __name__ == "__main__":
  sys.exit(main())
