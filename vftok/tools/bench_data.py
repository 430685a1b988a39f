"""Speed of the loader against PyAV's own, as JSON: `python -m vftok.tools.bench_data --source clips --workers 1 2`.

The yardstick decodes whole files of the same source by PyAV, one thread per process, and does nothing with the
frames: one process ("pyav_one_core") and as many at once as the row has workers ("pyav_at_once"), right before and
after each row. What a row counts, per clip, are frames of the file:
  read: from the last key frame before the clip to its last frame. Nobody can give the clip without going there.
  covered: from the first frame of the clip to its last, with what fps resampling leaves out.
`ratio` = frames read per second / (pyav_one_core x workers), which needs a machine that has so many idle cores;
`ratio_at_once` = frames read per second / pyav_at_once, which a busy machine or a shared core slows down likewise;
`ratio_covered` = frames covered per second / pyav_at_once.
The row "in process" runs `load_clip` in a loop and counts CPU seconds on both sides, which other programs on the
machine disturb less; the others count seconds of the clock, everything from the files to the batches included.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time

import av
import numpy as np

from vftok.data.clip import ClipSpec, load_clip, moments
from vftok.data.loader import make_loader
from vftok.data.sources import source_of
from vftok.io.container import VideoBytes, opened, rate
from vftok.runtime.ending import exit_code


def video_of(record):
  """What PyAV opens of a record that holds an encoded video."""
  if "frames" in record:
    raise ValueError("this source gives frames and no encoded video, so there is nothing to decode: choose another.")
  return VideoBytes(record["mp4"], record["name"]) if "mp4" in record else record["path"]


def decode_rate(source, seconds: float, clock=time.perf_counter) -> float:
  """Frames per second at which PyAV alone decodes whole videos of the source, in one thread."""
  frames, spent = 0, 0.0
  for index in np.random.default_rng(0).permutation(len(source)).tolist() * 1000:
    video = video_of(source[index])
    begin = clock()
    with opened(video) as stream:
      stream.thread_type = "NONE"
      for _ in stream.container.decode(stream):
        frames += 1
    spent += clock() - begin
    if spent > seconds:
      break
  return frames / spent


def frames_of_a_clip(record, spec: ClipSpec) -> np.ndarray:
  """(frames read, frames covered) on average over where in the video the clip lies."""
  begins, keys = [], []
  with opened(video_of(record)) as stream:
    own = float(rate(stream))
    for packet in stream.container.demux(stream):
      if packet.pts is not None:
        begins.append(float((packet.pts - (stream.start_time or 0)) * packet.time_base))
        keys += [begins[-1]] if packet.is_keyframe else []
  begins.sort()
  end = record.get("end") or begins[-1] + 1 / own
  counts = []
  for draw in (np.arange(16) + 0.5) / 16:
    at = moments(spec, record.get("start") or 0.0, end, own, draw)
    first, last = (bisect.bisect_right(begins, moment + 1e-6) for moment in (at[0], at[-1]))
    key = bisect.bisect_right(begins, max(k for k in keys if k <= at[0] + 1e-6))
    counts.append((last - key + 1, last - first + 1))
  return np.mean(counts, axis=0)


class Bench:
  """Rows of one source and one kind of clip."""

  def __init__(self, entry, spec: ClipSpec, seconds: float):
    self.entry, self.spec, self.seconds = entry, spec, seconds
    self.source = source_of(entry)
    self.frames = functools.cache(lambda index: frames_of_a_clip(self.source[index], spec))

  def in_process(self):
    clock, rng, indexes = time.process_time, np.random.default_rng(0), []
    pyav = [decode_rate(self.source, self.seconds / 4, clock)]
    begin = clock()
    while clock() - begin < self.seconds:
      indexes.append(int(rng.integers(len(self.source))))
      load_clip(self.source[indexes[-1]], self.spec, rng)
    took = clock() - begin
    pyav.append(decode_rate(self.source, self.seconds / 4, clock))
    return self._row("in process", indexes, took, statistics.mean(pyav), statistics.mean(pyav))

  def loader(self, batch: int, workers: int):
    pyav, indexes = [self._pyav(workers)], []
    with make_loader({"it": self.entry}, self.spec, batch, workers=workers, process_index=0, process_count=1) as loader:
      batches = iter(loader)
      for _ in range(4):  # workers start, buffers fill
        next(batches)
      begin = time.perf_counter()
      while time.perf_counter() - begin < self.seconds:
        indexes += next(batches)["index"].tolist()
      took = time.perf_counter() - begin
    pyav.append(self._pyav(workers))
    return self._row(workers, indexes, took, *np.mean(pyav, axis=0).tolist())

  def _pyav(self, workers):
    """Frames per second of (one process, `workers` at once)."""
    one = decode_rate(self.source, self.seconds / 4)
    if workers < 2:
      return one, one
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
      pool.map(abs, range(workers * 8), chunksize=1)  # all of them are up
      return one, sum(pool.starmap(decode_rate, [(self.source, self.seconds / 2)] * workers, chunksize=1))

  def _row(self, workers, indexes, took, one_core, at_once):
    read, covered = (float(n) / took for n in sum(self.frames(index) for index in indexes))
    row = {
      "workers": workers,
      "clips_per_s": round(len(indexes) / took, 1),
      "frames_out_per_s": round(len(indexes) * self.spec.frames / took),
      "frames_read_per_s": round(read),
      "pyav_one_core": round(one_core),
      "pyav_at_once": round(at_once),
      "ratio": round(read / one_core / max(1, workers if isinstance(workers, int) else 1), 3),
      "ratio_at_once": round(read / at_once, 3),
      "ratio_covered": round(covered / at_once, 3),
    }
    print(row, file=sys.stderr, flush=True)
    return row


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
  return exit_code("bench_data", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
  entry = {"kind": "clips", "split": args.split}
  if args.source != "clips":
    entry = {"kind": "video_folder", "split": args.split, "path": args.source}
  spec = ClipSpec(frames=args.frames, size=(args.size, args.size), fps=args.fps or None)
  bench = Bench(entry, spec, args.seconds)
  rows = [bench.in_process(), *(bench.loader(args.batch, workers) for workers in args.workers)]
  out = {
    "machine": {"cpu_count": os.cpu_count(), "arch": platform.machine()},
    "pyav": av.__version__,
    "clip": {"frames": spec.frames, "size": spec.size, "fps": spec.fps},
    "rows": rows,
  }
  print(json.dumps(out, indent=2))


if __name__ == "__main__":
  sys.exit(main())
