"""Speed of the loader against PyAV's own, as JSON: `python -m vftok.tools.bench_data --source clips --workers 1 2`.

The yardstick decodes whole files of the same source on one core, and does nothing with the frames; it is timed right
before and after each row. A row counts the frames of the files that lie between the first and the last frame of each
clip: what must be decoded to get there is not counted, what need not be decoded is.
`ratio` = frames per second of the loader / (frames per second of the yardstick x workers).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time

import av
import numpy as np

from vftok.data.clip import ClipSpec
from vftok.data.loader import make_loader
from vftok.data.sources import make_source
from vftok.data.video import VideoBytes, opened, rate


def video_of(record):
  """What PyAV opens of a record that holds an encoded video."""
  if "frames" in record:
    raise ValueError("this source gives frames and no encoded video, so there is nothing to decode: choose another.")
  return VideoBytes(record["mp4"], record["name"]) if "mp4" in record else record["path"]


def decode_rate(source, seconds: float, rgb: bool = False) -> float:
  """Frames per second at which PyAV alone decodes whole videos of the source, in one thread."""
  frames, spent = 0, 0.0
  for index in np.random.default_rng(0).permutation(len(source)).tolist() * 1000:
    video = video_of(source[index])
    begin = time.perf_counter()
    with opened(video) as container:
      container.streams.video[0].thread_type = "NONE"
      for frame in container.decode(video=0):
        if rgb:
          frame.to_ndarray(format="rgb24")
        frames += 1
    spent += time.perf_counter() - begin
    if spent > seconds:
      break
  return frames / spent


def bench(entry, spec: ClipSpec, batch: int, workers: int, seconds: float) -> dict[str, float]:
  """One row of the table."""
  options = {key: value for key, value in entry.items() if key not in ("kind", "split")}
  source = make_source(entry["kind"], entry["split"], options)

  @functools.cache
  def covered(index):
    with opened(video_of(source[index])) as container:
      own = float(rate(container.streams.video[0]))
    return (spec.frames - 1) * own / (spec.fps or own) + 1

  decode = [decode_rate(source, seconds / 4)]
  with make_loader({"it": entry}, spec, batch, workers=workers, process_index=0, process_count=1) as loader:
    batches = iter(loader)
    for _ in range(4):  # workers start, buffers fill
      next(batches)
    clips, begin = [], time.perf_counter()
    while time.perf_counter() - begin < seconds:
      clips.extend(next(batches)["index"].tolist())
    took = time.perf_counter() - begin
  decode.append(decode_rate(source, seconds / 4))
  frames = sum(covered(index) for index in clips) / took
  return {
    "workers": workers,
    "clips_per_s": round(len(clips) / took, 1),
    "frames_out_per_s": round(len(clips) * spec.frames / took, 1),
    "frames_covered_per_s": round(frames, 1),
    "pyav_decode_frames_per_s": round(statistics.mean(decode), 1),
    "pyav_decode_to_rgb_frames_per_s": round(decode_rate(source, seconds / 4, rgb=True), 1),
    "ratio": round(frames / statistics.mean(decode) / max(1, workers), 3),
  }


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.bench_data", description=__doc__.split("\n\n")[0])
  parser.add_argument("--source", default="clips", help="clips, or a folder or manifest of videos")
  parser.add_argument("--split", default="train")
  parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--frames", type=int, default=17)
  parser.add_argument("--size", type=int, default=64, help="height and width of a clip")
  parser.add_argument("--fps", type=float, default=8.0, help="frames per second of a clip; 0 keeps the video's own")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--seconds", type=float, default=15.0, help="how long each row is timed")
  args = parser.parse_args(argv)
  entry = {"kind": "clips", "split": args.split}
  if args.source != "clips":
    entry = {"kind": "video_folder", "split": args.split, "path": args.source}
  spec = ClipSpec(frames=args.frames, size=(args.size, args.size), fps=args.fps or None)
  rows = []
  for workers in args.workers:
    rows.append(bench(entry, spec, args.batch, workers, args.seconds))
    print(rows[-1], file=sys.stderr, flush=True)
  out = {
    "machine": {"cpu_count": os.cpu_count(), "arch": platform.machine()},
    "pyav": av.__version__,
    "clip": {"frames": spec.frames, "size": spec.size, "fps": spec.fps},
    "rows": rows,
  }
  print(json.dumps(out, indent=2))
  return 0


if __name__ == "__main__":
  sys.exit(main())
