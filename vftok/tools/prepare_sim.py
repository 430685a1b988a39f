"""Renders `sim` scenes once and writes them as a TFDS set (ArrayRecord), so that training never renders.

Read it back with kind="tfds", directory=OUT, video="frames", caption="caption". Example i of a split is clip i of
the `sim` source with the same options. Frames are stored as uint8 under zlib: lossless, a twentieth of the bytes, and
faster to read than video.

A run that was stopped goes on where it was; OUT appears when it is whole. Progress and time left on stderr.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vftok.data.dataset_writer import is_made, whole_directory, work_directory, write_tfds
from vftok.data.sim import CAMERAS, COLOURS, FLOORS, FPS, MOTIONS, OBJECTS, SIMPLE_OBJECTS, SKIES, SimSource
from vftok.runtime.ending import exit_code, leave_signals
from vftok.runtime.files import cache_dir, whole_file
from vftok.runtime.lock import locked
from vftok.runtime.process import local
from vftok.show.progress import progress

CHUNK = 64  # clips per file of the unfinished work
SHOWN = 24  # clips of the contact sheet
# The examples' features beside frames, caption, label and fps: the scene's attributes as text.
ATTRIBUTES = ("object", "colour", "motion", "camera", "floor", "sky")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns the exit code: 0, or 2 after a sentence on stderr."""
  return exit_code("prepare_sim", _run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> None:
  with locked(local(args.out, "--out")):
    _prepare(args)


def _prepare(args: argparse.Namespace) -> None:
  counts = {split: count for split in ("train", "val", "test") if (count := getattr(args, split))}
  options = {name: getattr(args, name) for name in ("size", "frames", "seed", "second_object")}
  options |= {
    name: list(getattr(args, name)) for name in ("objects", "colours", "motions", "cameras", "floors", "skies")
  }
  sources = {split: SimSource(split, count, **options) for split, count in counts.items()}
  out, recipe = Path(args.out), {"set": "vftok_sim", "version": "1.0.0", "counts": counts, "options": options}
  if is_made(out, recipe):
    print(f"{out} is already there with these options.")
    return
  work = out.with_name(f".{out.name}.chunks")
  _render_all(sources, work, {key: recipe[key] for key in ("set", "version", "options")}, args.workers)
  with whole_directory(out, recipe) as directory:
    _write(directory, sources, work)
    _sheet(sources["train"], directory / "contact_sheet.png")
  shutil.rmtree(work)
  size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
  print(f"{out}: " + ", ".join(f"{split} {n}" for split, n in counts.items()) + f" clips, {size / 1e6:.1f} MB")


def _render_all(sources: dict[str, SimSource], work: Path, recipe: dict, workers: int) -> None:
  """Renders into `work`, one file per CHUNK clips; the files of an earlier run with the same options stay."""
  work_directory(work, recipe)
  jobs = []
  for split, source in sources.items():
    for start in range(0, len(source), CHUNK):
      stop = min(start + CHUNK, len(source))
      if not _chunk(work, split, start, stop).exists():
        jobs.append((source, start, stop, _chunk(work, split, start, stop)))
  with progress("rendering", sum(stop - start for _, start, stop, _ in jobs), "clips") as done:
    if workers <= 1:
      for job in jobs:
        done(_render_chunk(job))
      return
    with multiprocessing.get_context("spawn").Pool(workers, leave_signals) as pool:
      for count in pool.imap_unordered(_render_chunk, jobs):
        done(count)


def _chunk(work: Path, split: str, start: int, stop: int) -> Path:
  return work / f"{split}-{start:08d}-{stop:08d}.npz"


def _render_chunk(job) -> int:
  source, start, stop, path = job
  frames = np.stack([source[i]["frames"] for i in range(start, stop)])
  with whole_file(path) as temporary, temporary.open("wb") as file:
    np.savez_compressed(file, frames=frames)
  return stop - start


def _write(directory: Path, sources: dict[str, SimSource], work: Path) -> None:
  import tensorflow_datasets as tfds

  some = next(iter(sources.values()))
  frames = tfds.features.Tensor(
    shape=(some.frames, some.size, some.size, 3), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
  )
  features = {"frames": frames, "caption": tfds.features.Text(), "label": tfds.features.ClassLabel(names=OBJECTS)}
  features |= {"fps": tfds.features.Scalar(np.float32)} | {name: tfds.features.Text() for name in ATTRIBUTES}
  with progress("writing", sum(map(len, sources.values())), "clips") as done:

    def examples(split):
      source = sources[split]
      for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        with np.load(_chunk(work, split, start, stop)) as file:
          chunk = file["frames"]
        for i in range(start, stop):
          scene = source.attributes(i)
          yield {
            "frames": chunk[i - start],
            "caption": source.caption(i),
            "label": OBJECTS.index(scene["object"]),
            "fps": FPS,
            **{name: scene[name] for name in ATTRIBUTES},
          }
        done(stop - start)

    write_tfds(
      directory,
      "vftok_sim",
      "1.0.0",
      "Rendered scenes of vftok.data.sim with known captions.",
      features,
      {split: lambda split=split: examples(split) for split in sources},
    )


def _sheet(source: SimSource, path: Path) -> None:
  """First, middle and last frames of some clips under their captions."""
  columns, side, line = 2, 96, 16
  rows = -(-min(SHOWN, len(source)) // columns)
  sheet = Image.new("RGB", (columns * 5 * side, rows * (side + line)))
  draw = ImageDraw.Draw(sheet)
  for i in range(min(SHOWN, len(source))):
    x, y = i % columns * 5 * side, i // columns * (side + line)
    frames = source[i]["frames"]
    draw.text((x + 2, y + 2), source.caption(i), fill="white")
    for k, frame in enumerate(np.linspace(0, len(frames) - 1, 5).round().astype(int)):
      sheet.paste(
        Image.fromarray(frames[frame]).resize((side, side), Image.Resampling.NEAREST), (x + k * side, y + line)
      )
  sheet.save(path)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.prepare_sim", description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", default=str(cache_dir() / "sim"), help="directory to write; default: where configs look")
  parser.add_argument("--count", dest="train", type=int, default=10_000, help="clips of the split train")
  parser.add_argument("--val", type=int, default=256, help="clips of the split val")
  parser.add_argument("--test", type=int, default=256, help="clips of the split test: combinations never in train")
  parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
  parser.add_argument("--frames", type=int, default=17)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=int, default=1, help="processes that render")
  for name, known, usual in (
    ("objects", OBJECTS, SIMPLE_OBJECTS),
    ("colours", COLOURS, COLOURS),
    ("motions", MOTIONS, MOTIONS),
    ("cameras", CAMERAS, ["still"]),
    ("floors", FLOORS, FLOORS),
    ("skies", SKIES, SKIES),
  ):
    parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(usual), metavar="NAME")
  parser.add_argument("--second-object", type=float, default=0.0, help="probability of a second object")
  return parser


if __name__ == "__main__":
  sys.exit(main())
