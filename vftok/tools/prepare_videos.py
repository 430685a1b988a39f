"""Brings any number of videos to one size and rate: `python -m vftok.tools.prepare_videos --videos DIR --out SET`.

DIR is a folder tree or a manifest (see `video_folder`), or a published list with its --kind and the videos' --root (see
`vftok.data.published`). SET is a TFDS set of short mp4 files (ArrayRecord), read back
by kind="tfds", directory=SET, video="mp4", caption="caption". Every chunk of clips becomes one shard, written whole
by whoever computed it, so that a stopped run goes on where it was and nothing passes through one process. --engine
local uses the cores of this machine; --engine ray runs the same function on a Ray cluster (pip install ray),
or on this machine where there is none. DIR and SET must then be folders that every node sees.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vftok.data import bad_clips, shards
from vftok.data.dataset_writer import is_made, whole_directory, work_directory
from vftok.data.folder import opened_once, video_folder
from vftok.data.published import kinetics, panda70m, ucf101
from vftok.io.container import VideoBytes
from vftok.io.sides import NoSuchSplit
from vftok.io.video import check_fps, iter_frames
from vftok.io.video_writer import video_writer
from vftok.runtime.ending import exit_code, leave_signals
from vftok.runtime.lock import locked
from vftok.runtime.process import local
from vftok.show.progress import progress

NAME, VERSION = "vftok_videos", "1.0.0"
BAD = "bad_clips.jsonl"
KINDS = {"video_folder": video_folder, "panda70m": panda70m, "kinetics": kinetics, "ucf101": ucf101}


class Job(NamedTuple):
  """One shard: clips start..stop of a split. With its part of the source, all that a process of its own needs."""

  split: str
  start: int
  stop: int
  shards: tuple[int, int]  # number of this one, of how many
  size: tuple[int, int]
  fps: float
  seconds: float
  work: str

  @property
  def path(self) -> Path:
    number, count = self.shards
    return Path(self.work) / f"{NAME}-{self.split}.array_record-{number:05d}-of-{count:05d}"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns the exit code: 0, or 2 after a sentence on stderr."""
  return exit_code("prepare_videos", _run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> None:
  check_fps(args.fps)
  for name in ("size", "chunk", "seconds"):
    if getattr(args, name) <= 0:
      raise ValueError(f"--{name} is {getattr(args, name)}, expected more than 0.")
  with locked(local(args.out, "--out")):
    _prepare(args)


def _prepare(args: argparse.Namespace) -> None:
  out, options = Path(args.out), _options(args)
  recipe = {"set": NAME, "version": VERSION, "source": options, "size": args.size, "fps": args.fps}
  recipe |= {"seconds": args.seconds, "chunk": args.chunk}
  if is_made(out, recipe):
    print(f"{out} is already there with these options.")
    return
  with opened_once():
    splits = {split: source for split in args.splits if (source := _source(options, split)) is not None}
  if not splits:
    raise ValueError(f"{args.videos} has no clips in {', '.join(args.splits)}: name its splits with --splits.")
  work = work_directory(out.with_name(f".{out.name}.shards"), recipe).absolute()
  jobs = [job for split, source in splits.items() for job in _jobs(args, split, len(source), work)]
  missing = [job for job in jobs if shards.shard_facts(job.path) is None]
  run = {"local": _local, "ray": _ray}[args.engine]
  with progress("preparing", sum(job.stop - job.start for job in missing), "clips") as done:
    for job, _ in run(missing, splits, args.workers):
      done(job.stop - job.start)
  with whole_directory(out, recipe) as directory:
    written = _finish(directory, jobs, {split: source.label_names for split, source in splits.items()})
  lost = sum(map(len, splits.values())) - sum(written.values())
  shutil.rmtree(work)
  made = ", ".join(f"{split} {n}" for split, n in written.items())
  print(f"{out}: {made} clips" + (f"; {lost} could not be read, {out / BAD} names each and says why" if lost else ""))


def _options(args) -> dict[str, Any]:
  """The kind of source and its options."""
  if args.kind != "video_folder" and not args.root:
    raise ValueError(f"--kind is {args.kind}, expected --root beside it: the folder of the videos that are listed.")
  options = dict(kind=args.kind, path=str(Path(args.videos).absolute()))
  if args.root:
    options["root"] = str(Path(args.root).absolute())
  if args.labels:
    if args.kind != "video_folder":
      raise ValueError(
        f"--labels is {args.labels}, expected none beside --kind {args.kind}: such lists name their own."
      )
    options["labels"] = str(Path(args.labels).absolute())
  return options | (dict(holdout=args.holdout) if args.kind in ("video_folder", "panda70m") else {})


def _source(options, split):
  try:
    source = KINDS[options["kind"]](split, **{name: value for name, value in options.items() if name != "kind"})
  except NoSuchSplit:
    return None
  return source if len(source) else None


def _jobs(args, split: str, clips: int, work: Path) -> Iterator[Job]:
  shards = -(-clips // args.chunk)
  for n in range(shards):
    stop = min((n + 1) * args.chunk, clips)
    size = (args.size, args.size)
    yield Job(split, n * args.chunk, stop, (n, shards), size, args.fps, args.seconds, str(work))


# ---- engines: each yields (job, clips written) as jobs end


def _local(jobs: list[Job], splits, workers: int) -> Iterator[tuple[Job, int]]:
  if workers <= 1 or len(jobs) <= 1:
    yield from ((job, prepare_shard(*part)) for job in jobs for part in _parts([job], splits))
    return
  with multiprocessing.get_context("spawn").Pool(workers, leave_signals) as pool:
    yield from pool.imap_unordered(_with_job, _parts(jobs, splits))


def _parts(jobs: list[Job], splits) -> Iterator[tuple[Job, Any]]:
  """(job, its part of the opened source): nobody opens or walks anything again, and a part is a few kilobytes."""
  return ((job, splits[job.split].only(np.arange(job.start, job.stop))) for job in jobs)


def _with_job(part: tuple[Job, Any]) -> tuple[Job, int]:
  return part[0], prepare_shard(*part)


def _ray(jobs: list[Job], splits, workers: int) -> Iterator[tuple[Job, int]]:
  """A few tasks per core of the cluster at a time; Ray tries those of a lost node again."""
  try:
    import ray
  except ImportError:
    raise ModuleNotFoundError("--engine ray needs Ray: pip install ray.") from None
  if not jobs:
    return
  del workers  # as many as the cluster has cores
  ray.init(ignore_reinit_error=True)
  task, running, parts = ray.remote(prepare_shard), {}, _parts(jobs, splits)
  most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
  while True:
    for job, part in itertools.islice(parts, most - len(running)):
      running[task.remote(job, part)] = job
    if not running:
      return
    done, _ = ray.wait(list(running))
    for result in done:
      yield running.pop(result), int(ray.get(result))


# ---- one shard


def prepare_shard(job: Job, source) -> int:
  """Writes the clips of `source`, a job's part of the videos, that can be read. Returns their number, and writes it."""

  def examples() -> Iterator[dict[str, Any]]:
    for index in range(len(source)):
      record = source[index]
      try:
        mp4, seconds = _mp4(record, job)
      except (ValueError, OSError) as error:
        bad_clips.report(str(Path(job.work) / BAD), job.split, record["name"], str(error))
        continue
      facts = dict(caption=record["caption"], label=record["label"], source=record["name"])
      yield {"mp4": mp4, "seconds": seconds, "fps": job.fps, **facts}

  return shards.write_shard(job.path, _features(()), examples())


def _mp4(record, job: Job) -> tuple[bytes, float]:
  """(a video file of the record's part of its video, its length in seconds)."""
  video = VideoBytes(record["mp4"], record["name"]) if "mp4" in record else record["path"]
  start, end = record.get("start") or 0.0, record.get("end")
  most = min(job.seconds, (end - start) if end else job.seconds)
  frames, count = iter_frames(video, job.size, job.fps, start=start, max_frames=max(1, round(most * job.fps))), 0
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "clip.mp4"
    with video_writer(path, job.fps) as writer:
      for frame in frames:
        writer.write(frame[None])
        count += 1
    return path.read_bytes(), count / job.fps


# ---- the set


def _features(classes: Sequence[str]):
  """Of an example. A shard knows labels as numbers; they get their names in the set's own file."""
  import tensorflow_datasets as tfds

  text, number = tfds.features.Text(), tfds.features.Scalar
  label = tfds.features.ClassLabel(names=list(classes)) if classes else number(np.int64)
  numbers = {"label": label, "fps": number(np.float32), "seconds": number(np.float32)}
  return tfds.features.FeaturesDict({"mp4": text, "caption": text, "source": text, **numbers})


def _finish(directory: Path, jobs: list[Job], names: dict[str, tuple[str, ...]]) -> dict[str, int]:
  """Moves nothing but links: the shards become the set, beside the files that describe it. Returns {split: clips}."""
  bad = Path(jobs[0].work) / BAD
  if bad.exists():
    shutil.copy(bad, directory / BAD)
  classes = next(iter(names.values())) if len(set(names.values())) == 1 else ()
  parts: dict[str, list[Path]] = {}
  for job in jobs:
    parts.setdefault(job.split, []).append(job.path)
  return shards.finish(directory, NAME, VERSION, "Videos at one size and rate.", _features(classes), parts)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.prepare_videos", description=__doc__.split("\n\n")[0])
  parser.add_argument("--videos", required=True, help="a folder of videos, or a .csv, .tsv or .jsonl manifest")
  parser.add_argument("--kind", choices=list(KINDS), default="video_folder", help="what --videos is")
  parser.add_argument("--root", help="where the videos of a list are; of a manifest by default its own folder")
  parser.add_argument("--out", required=True, help="directory to write")
  parser.add_argument("--splits", nargs="+", default=["train", "val", "test"], help="those that are there are made")
  parser.add_argument("--holdout", type=float, default=0.05, help="share of files in val, where nothing says splits")
  parser.add_argument("--labels", help="a text file of label names, one in each line, where several sets share them")
  parser.add_argument("--size", type=int, default=256, help="pixels of a side; the centre of longer sides is cropped")
  parser.add_argument("--fps", type=float, default=8.0, help="frames per second")
  parser.add_argument("--seconds", type=float, default=10.0, help="the most that is kept of a clip")
  parser.add_argument("--chunk", type=int, default=512, help="clips of a shard")
  parser.add_argument("--engine", choices=["local", "ray"], default="local")
  parser.add_argument("--workers", type=int, default=2, help="processes of the local engine")
  return parser


if __name__ == "__main__":
  sys.exit(main())
