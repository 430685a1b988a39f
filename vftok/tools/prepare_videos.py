"""Brings any number of videos to one size and rate: `python -m vftok.tools.prepare_videos --videos DIR --out SET`.

DIR is a folder tree or a manifest (see `video_folder`). SET is a TFDS set of short mp4 files (ArrayRecord), read back
by kind="tfds", directory=SET, video="mp4", caption="caption". Every chunk of clips becomes one shard, written whole
by whoever computed it, so that a stopped run goes on where it was and nothing passes through one process. --engine
local uses the cores of this machine; --engine ray runs the same function on a Ray cluster (pip install 'ray[data]'),
or on this machine where there is none. DIR and SET must then be folders that every node sees.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vftok.data import bad_clips
from vftok.data.container import VideoBytes
from vftok.data.dataset_writer import is_made, whole_directory, work_directory
from vftok.data.folder import NoSuchSplit, video_folder
from vftok.data.video import check_fps, iter_frames
from vftok.data.video_writer import video_writer, whole_file
from vftok.progress import progress
from vftok.tools.command import exit_code

NAME, VERSION = "vftok_videos", "1.0.0"
BAD = "bad_clips.jsonl"


class Job(NamedTuple):
  """One shard: clips start..stop of a split, out of everything that a process of its own needs to know."""

  source: dict[str, Any]
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
  out, options = Path(args.out), dict(path=str(Path(args.videos).absolute()), holdout=args.holdout)
  if args.labels:
    options["labels"] = str(Path(args.labels).absolute())
  recipe = {"set": NAME, "version": VERSION, "source": options, "size": args.size, "fps": args.fps}
  recipe |= {"seconds": args.seconds, "chunk": args.chunk}
  if is_made(out, recipe):
    print(f"{out} is already there with these options.")
    return
  splits = {split: source for split in args.splits if (source := _source(options, split)) is not None}
  if not splits:
    raise ValueError(f"{args.videos} has no clips in {', '.join(args.splits)}: name its splits with --splits.")
  work = work_directory(out.with_name(f".{out.name}.shards"), recipe).absolute()
  jobs = [job for split, source in splits.items() for job in _jobs(args, options, split, len(source), work)]
  missing = [job for job in jobs if not _count_file(job).exists()]
  run = {"local": _local, "ray": _ray}[args.engine]
  with progress("preparing", sum(job.stop - job.start for job in missing), "clips") as done:
    for job, _ in run(missing, args.workers):
      done(job.stop - job.start)
  counts = {split: [json.loads(_count_file(j).read_text()) for j in jobs if j.split == split] for split in splits}
  written = {split: sum(shards) for split, shards in counts.items()}
  lost = sum(map(len, splits.values())) - sum(written.values())
  if not all(written.values()):
    raise ValueError(f"a split has no clip that could be read ({written}): {work / BAD} says why.")
  with whole_directory(out, recipe) as directory:
    _finish(directory, jobs, counts, {split: source.label_names for split, source in splits.items()})
  shutil.rmtree(work)
  made = ", ".join(f"{split} {n}" for split, n in written.items())
  print(f"{out}: {made} clips" + (f"; {lost} could not be read, {out / BAD} names each and says why" if lost else ""))


def _source(options, split):
  try:
    source = video_folder(split, **options)
  except NoSuchSplit:
    return None
  return source if len(source) else None


def _jobs(args, options, split: str, clips: int, work: Path) -> Iterator[Job]:
  shards = -(-clips // args.chunk)
  for n in range(shards):
    stop = min((n + 1) * args.chunk, clips)
    size = (args.size, args.size)
    yield Job(options, split, n * args.chunk, stop, (n, shards), size, args.fps, args.seconds, str(work))


# ---- engines: each yields (job, clips written) as jobs end


def _local(jobs: list[Job], workers: int) -> Iterator[tuple[Job, int]]:
  if workers <= 1 or len(jobs) <= 1:
    yield from ((job, prepare_shard(job)) for job in jobs)
    return
  with multiprocessing.get_context("spawn").Pool(workers, _leave_ctrl_c) as pool:
    yield from pool.imap_unordered(_with_job, jobs)


def _with_job(job: Job) -> tuple[Job, int]:
  return job, prepare_shard(job)


def _leave_ctrl_c() -> None:
  """In each worker: Ctrl-C is the main process's to handle."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ray(jobs: list[Job], workers: int) -> Iterator[tuple[Job, int]]:
  """Ray Data streams the jobs through the cluster, tries those of a lost node again, and holds nothing but numbers."""
  try:
    import ray
  except ImportError:
    raise ModuleNotFoundError("--engine ray needs Ray: pip install 'ray[data]'.") from None
  if not jobs:
    return
  del workers  # as many as the cluster has cores
  numbers = ray.data.range(len(jobs), override_num_blocks=len(jobs))
  results = numbers.map(lambda row: {"job": row["id"], "clips": prepare_shard(jobs[row["id"]])})
  for row in results.iter_rows():
    yield jobs[int(row["job"])], int(row["clips"])


# ---- one shard


def prepare_shard(job: Job) -> int:
  """Writes the clips of a job that can be read, and then how many they are. Returns that number."""
  from array_record.python.array_record_module import ArrayRecordWriter

  source, features, count = video_folder(job.split, **job.source), _features(()), 0
  with whole_file(job.path) as path:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for index in range(job.start, job.stop):
      record = source[index]
      try:
        mp4, seconds = _mp4(record, job)
      except (ValueError, OSError) as error:
        bad_clips.report(str(Path(job.work) / BAD), job.split, record["name"], str(error))
        continue
      facts = dict(caption=record["caption"], label=record["label"], source=record["name"])
      example = {"mp4": mp4, "seconds": seconds, "fps": job.fps, **facts}
      writer.write(features.serialize_example(features.encode_example(example)))
      count += 1
    writer.close()
  with whole_file(_count_file(job)) as path:
    path.write_text(str(count))
  return count


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


def _count_file(job: Job) -> Path:
  return job.path.with_name(job.path.name + ".count")


# ---- the set


def _features(classes: Sequence[str]):
  """Of an example. A shard knows labels as numbers; they get their names in the set's own file."""
  import numpy as np
  import tensorflow_datasets as tfds

  text, number = tfds.features.Text(), tfds.features.Scalar
  label = tfds.features.ClassLabel(names=list(classes)) if classes else number(np.int64)
  numbers = {"label": label, "fps": number(np.float32), "seconds": number(np.float32)}
  return tfds.features.FeaturesDict({"mp4": text, "caption": text, "source": text, **numbers})


def _finish(directory: Path, jobs: list[Job], counts: dict[str, list[int]], names: dict[str, tuple[str, ...]]) -> None:
  """Moves nothing but links: the shards become the set, beside the files that describe it."""
  import tensorflow_datasets as tfds

  target = directory / NAME / VERSION
  target.mkdir(parents=True)
  for job in jobs:
    (target / job.path.name).hardlink_to(job.path)
  bad = Path(jobs[0].work) / BAD
  if bad.exists():
    shutil.copy(bad, directory / BAD)
  classes = next(iter(names.values())) if len(set(names.values())) == 1 else ()
  template = tfds.core.ShardedFileTemplate(
    data_dir=target,
    dataset_name=NAME,
    filetype_suffix="array_record",
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=shards,
      num_bytes=sum(job.path.stat().st_size for job in jobs if job.split == split),
      filename_template=template.replace(split=split),
    )
    for split, shards in counts.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=target,
    features=_features(classes),
    split_infos=infos,
    version=VERSION,
    filename_template=template,
    check_data=False,
    description="Videos at one size and rate.",
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.prepare_videos", description=__doc__.split("\n\n")[0])
  parser.add_argument("--videos", required=True, help="a folder of videos, or a .csv, .tsv or .jsonl manifest")
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
