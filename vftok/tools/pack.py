"""Packs clips of any source into one file that NumPy and Pillow can read (`dict(kind="packed", path=...)` in a config).

  python -m vftok.tools.pack --out clips.npz --source '{"kind": "clips"}' --splits train val_time val_source --size 80

A clip is the whole of what the source gives at --fps, its middle cut to --size. Progress and time left on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vftok.data.clip import ClipSpec, load_clip
from vftok.data.packed import CODECS, write_packed
from vftok.data.sources import Source, source_of
from vftok.io.container import VideoBytes
from vftok.io.video import check_fps, iter_frames
from vftok.runtime.ending import exit_code
from vftok.runtime.files import check_target
from vftok.show.progress import progress


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns the exit code: 0, or 2 after a sentence on stderr."""
  return exit_code("pack", _run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> None:
  check_target(args.out)
  check_fps(args.fps)
  try:
    entry = json.loads(args.source)
  except json.JSONDecodeError as error:
    raise ValueError(f'--source is no JSON ({error}), expected {{"kind": ..., ...}}: quote it.') from None
  if not isinstance(entry, dict) or "kind" not in entry:
    raise ValueError(f"--source is {args.source[:60]}, expected an object with a kind: see vftok.data.sources.")
  size = tuple(args.size * 2 if len(args.size) == 1 else args.size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(f"--size is {args.size}, expected one number or height and width: change it.")
  splits = {split: source_of({k: v for k, v in entry.items() if k != "split"}, split) for split in args.splits}
  counts = {split: [0, 0] for split in splits}

  def clips() -> Iterator[dict]:
    with progress("packing", sum(map(len, splits.values())), "clips") as done:
      for split, source in splits.items():
        for clip in _clips(source, size, args.fps, args.min_frames, args.max_frames):
          counts[split][0] += 1
          counts[split][1] += len(clip["video"])
          yield {**clip, "split": split}
          done(1)

  names = next(iter(splits.values()))
  write_packed(
    args.out,
    clips(),
    fps=args.fps,
    codec=args.codec,
    quality=args.quality,
    label_names=getattr(names, "label_names", ()),
  )
  for split, (clip_count, frames) in counts.items():
    print(f"{split:12} {clip_count:6} clips {frames:8} frames")
  print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.2f} MB")


def _clips(source: Source, size, fps: float, least: int, most: int) -> Iterator[dict]:
  for index in range(len(source)):
    record = source[index]
    video = _video(record, size, fps)[: most or None]
    if len(video) >= least:
      yield {"video": video, **{key: record[key] for key in ("caption", "label", "name")}}


def _video(record, size, fps: float) -> np.ndarray:
  """All frames of a record at `fps`, uint8 [F, H, W, 3]."""
  if "frames" in record:
    rate = record.get("fps") or fps
    count = max(1, math.ceil((len(record["frames"]) / rate - 1e-5) * fps))  # `moments` wants some room
    return load_clip(record, ClipSpec(frames=count, size=size, fps=fps))
  path = VideoBytes(record["mp4"], record["name"]) if "mp4" in record else record["path"]
  start, end = record.get("start") or 0.0, record.get("end")
  most = None if end is None else max(1, math.floor((end - start) * fps + 1e-6))
  return np.stack(list(iter_frames(path, size, fps, start=start, max_frames=most)))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.pack", description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", required=True, help=".npz file to write")
  parser.add_argument("--source", required=True, help='JSON as in config.data.sources, e.g. {"kind": "clips"}')
  parser.add_argument("--splits", nargs="+", default=["train"], help="of the source; each becomes one of the file")
  parser.add_argument("--size", type=int, nargs="+", default=[80], help="pixels: one number, or height and width")
  parser.add_argument("--fps", type=float, default=8.0, help="frames per second")
  parser.add_argument("--min-frames", type=int, default=17, help="shorter clips are left out")
  parser.add_argument("--max-frames", type=int, default=0, help="of a clip, the rest is cut off; 0: all")
  parser.add_argument("--codec", choices=CODECS, default="AVIF", help="WEBP is lossless")
  parser.add_argument("--quality", type=int, default=90, help="of AVIF, 1..100")
  return parser


if __name__ == "__main__":
  sys.exit(main())
