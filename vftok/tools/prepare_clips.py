"""Makes the data set `clips`: real video out of packages, cut into captioned windows, as a TFDS set (ArrayRecord).

pip fetches the packages (about 340 MB, of which only the video files are kept); --debian adds what `apt-get download`
gets, installing nothing. Every file is checked against its hash. Splits: train; val_time (the end of each training
source, one second apart from what is trained on); val_source (sources that are never trained on).

Beside the set lie ATTRIBUTION.md (whose clips these are, under which licences), contact_sheet.png and totals.txt. They
stay the property of their owners: do not publish the set. Fetched files are cached, so a run that was stopped goes on
where it was; the set appears when it is whole. Progress and time left on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from vftok.data.clip_windows import Window, hard_cuts, windows
from vftok.data.dataset_writer import is_made, whole_directory, write_tfds
from vftok.data.packaged_clip import LABELS, Clip
from vftok.data.packaged_clips import CLIPS, DEBIAN_CLIPS
from vftok.io import packaged
from vftok.io.display import Display
from vftok.io.video import decoded, video_info
from vftok.runtime.ending import exit_code
from vftok.runtime.files import cache_dir
from vftok.runtime.lock import locked
from vftok.runtime.process import local
from vftok.show.progress import progress

SPLITS = ("train", "val_time", "val_source")
MAX_FPS = 30
_VERSION = "1.1.0"  # 1.0.0 was encoded with x264's own choice of which frames others refer to
_UNREFERENCED = "bframes=3:b-adapt=0:b-pyramid=none"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns the exit code: 0, or 2 after a sentence on stderr."""
  return exit_code("prepare_clips", _run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> None:
  out = local(args.out, "--out") if args.out else cache_dir() / "clips"
  clips = CLIPS + (DEBIAN_CLIPS if args.debian else ())
  with locked(out):
    prepare(out, clips, short_side=args.short_side, seconds=args.seconds, least=args.min_seconds, crf=args.crf)
  print((out / "totals.txt").read_text(), end="")
  print(f"\nThe set is in {out}: look at contact_sheet.png and ATTRIBUTION.md there.")


def prepare(
  out: Path, clips: Sequence[Clip], *, short_side: int = 128, seconds: float = 3.0, least: float = 2.1, crf: float = 10
) -> None:
  """Writes the set to `out`, unless it is there already, made of the same files and captions by the same numbers."""
  recipe = {"set": "vftok_clips", "version": _VERSION, "clips": [clip._asdict() for clip in clips]}
  recipe |= {"short_side": short_side, "seconds": seconds, "least": least, "crf": crf}
  if is_made(out, recipe):
    return
  paths = _fetch(clips)
  examples, pictures = [], []
  with progress("cutting", len(clips), "files") as done:
    for clip in clips:
      for example, frames in _cut(clip, paths[clip.name], short_side, seconds, least, crf):
        examples.append(example)
        pictures.append(_strip(frames))
      done(1)
  with whole_directory(out, recipe) as directory:
    _write(directory, examples)
    _sheet(examples, pictures).save(directory / "contact_sheet.png")
    (directory / "ATTRIBUTION.md").write_text(_attribution(clips))
    (directory / "totals.txt").write_text(_totals(clips, examples))


def _fetch(clips: Sequence[Clip]) -> dict[str, Path]:
  """{name of a clip: its file in the cache}; one download per package."""
  by_package, paths = defaultdict(list), {}
  for clip in clips:
    by_package[clip.package, clip.sdist, clip.debian].append(clip)
  with progress("fetching", len(by_package), "packages") as done:
    for (package, sdist, debian), members in by_package.items():
      hashes = {clip.member: clip.sha256 for clip in members}
      found = _from_debian(package, hashes) if debian else packaged.fetch_all(package, hashes, sdist=sdist)
      paths |= {clip.name: found[clip.member] for clip in members}
      done(1)
  return paths


def _from_debian(package: str, members: dict[str, str]) -> dict[str, Path]:
  """As packaged.fetch_all, by `apt-get download`: nothing is installed.

  Raises:
    RuntimeError: no apt-get here, or it could not get the package.
    FileNotFoundError, ValueError: the package has no such file, or its hash is another.
  """
  directory = cache_dir() / "packages" / f"debian-{package}"
  paths = {member: directory / member for member in members}
  missing = {member for member, path in paths.items() if packaged.sha256_of(path) != members[member]}
  if not missing:
    return paths
  with tempfile.TemporaryDirectory(prefix="vftok-") as work:
    try:
      subprocess.run(["apt-get", "download", package], cwd=work, check=True, capture_output=True, text=True)
      (archive,) = Path(work).glob("*.deb")
      unpacked = Path(work) / "data.tar"
      with unpacked.open("wb") as file:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, stdout=file, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
      raise RuntimeError(
        f"{error.filename} is not here, and {package} is a Debian package: leave out --debian."
      ) from None
    except subprocess.CalledProcessError as error:
      raise RuntimeError(
        f"apt-get could not download {package}: run `apt-get update`, or leave out --debian. "
        f"It says: {str(error.stderr).strip().splitlines()[-1:]}"
      ) from None
    with tarfile.open(unpacked) as tar:
      files = {info.name.removeprefix("./"): info for info in tar if info.isfile()}
      for member in missing:
        if member not in files:
          raise FileNotFoundError(f"{archive.name} has no file {member}: another version of it; leave out --debian.")
        paths[member].parent.mkdir(parents=True, exist_ok=True)
        packaged.keep_file(tar.extractfile(files[member]), paths[member], members[member], f"{member} of {package}")
  return paths


def _cut(clip: Clip, path: Path, short_side, seconds, least, crf) -> Iterator[tuple[dict, np.ndarray]]:
  """(example, frames uint8 [F, H, W, 3]) of each window."""
  frames, fps = _read(path, short_side)
  for window in windows(
    clip.shots, hard_cuts(frames), len(frames), fps, held_out=clip.held_out, seconds=seconds, least=least
  ):
    pixels = frames[window.first : window.last]
    yield _example(clip, window, fps, encode(pixels, fps, crf)), pixels


def _read(path: Path, short_side: int) -> tuple[np.ndarray, float]:
  """Every frame, or every other one and so on above MAX_FPS: (uint8 [F, H, W, 3], frames per second)."""
  rate = video_info(path)[0]
  step, frames, display = max(1, round(rate / MAX_FPS)), [], None
  with contextlib.closing(decoded(path)) as stream:
    for _, _, frame, aspect in itertools.islice(stream, 0, None, step):
      display = display or Display(aspect)
      shape = display.shape(frame)
      frames.append(display(frame, [2 * round(side * short_side / min(shape) / 2) for side in shape]))  # even: plays
  return np.stack(frames), rate / step


def encode(frames: np.ndarray, fps: float, crf: float) -> bytes:
  """An mp4 of H.264 from frames uint8 [F, H, W, 3], with a key frame every half second.

  4:4:4, for with half the colour columns a picture this small loses 2 to 6 dB, at 5 % less bytes. Three of four
  frames are referred to by no other: a loader that shows every third frame leaves most of them undecoded.
  """
  file = io.BytesIO()
  with av.open(file, "w", "mp4") as container:
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
    codec = stream.codec_context
    codec.options = {"crf": f"{crf:g}", "g": str(max(1, round(fps / 2))), "x264-params": _UNREFERENCED}
    codec.thread_count = 1  # the same bytes on any machine
    codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709, said in the file
    codec.color_range = 1
    for pixels in frames:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
      container.mux(stream.encode(frame.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range=1)))
    container.mux(stream.encode(None))
  return file.getvalue()


def _example(clip: Clip, window: Window, fps: float, mp4: bytes) -> dict:
  return {
    "split": window.split,
    "frames": window.last - window.first,
    "mp4": mp4,
    "caption": window.shot.caption,
    "label": window.shot.label,
    "source": clip.name,
    "kind": clip.kind,
    "start": np.float32(window.first / fps),
    "fps": np.float32(fps),
  }


def _write(directory: Path, examples: list[dict]) -> None:
  import tensorflow_datasets as tfds

  features = {name: tfds.features.Text() for name in ("mp4", "caption", "source", "kind")}
  features |= {"label": tfds.features.ClassLabel(names=LABELS)}
  features |= {name: tfds.features.Tensor(shape=(), dtype=np.float32) for name in ("start", "fps")}

  def of(split):
    return ({name: e[name] for name in features} for e in examples if e["split"] == split)

  splits = [split for split in SPLITS if any(e["split"] == split for e in examples)]
  words = "Windows of real video out of packages, with captions; see ATTRIBUTION.md."
  write_tfds(directory, "vftok_clips", _VERSION, words, features, {s: lambda s=s: of(s) for s in splits})


def _strip(frames: np.ndarray) -> Image.Image:
  """Four frames side by side, 96 high."""
  chosen = [Image.fromarray(frames[i]) for i in np.linspace(0, len(frames) - 1, 4).round().astype(int)]
  width = round(96 * chosen[0].width / chosen[0].height)
  strip = Image.new("RGB", (4 * width, 96))
  for i, picture in enumerate(chosen):
    strip.paste(picture.resize((width, 96)), (i * width, 0))
  return strip


def _sheet(examples: list[dict], strips: list[Image.Image]) -> Image.Image:
  """Every window: split, source, time and caption over four of its frames."""
  columns = 2
  width, height = max(700, *(strip.width for strip in strips)), 96 + 16
  rows = -(-len(strips) // columns)
  sheet = Image.new("RGB", (columns * width, rows * height))
  draw = ImageDraw.Draw(sheet)
  order = sorted(range(len(examples)), key=lambda i: SPLITS.index(examples[i]["split"]))
  for place, i in enumerate(order):
    e, x, y = examples[i], place // rows * width, place % rows * height
    draw.text((x + 2, y + 2), f"[{e['split']}] {e['source']} {e['start']:.1f} s: {e['caption']}", fill="white")
    sheet.paste(strips[i], (x, y + 16))
  return sheet


def _attribution(clips: Sequence[Clip]) -> str:
  lines = ["# Whose clips these are", ""]
  lines += [
    "Each file comes out of a package, under the package's licence; the footage may carry terms of its own.",
    "",
  ]
  lines += [
    "| source | kind | package | file | licence of the package | footage |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for clip in clips:
    package = f"{clip.package} (Debian)" if clip.debian else f"{clip.package} (PyPI)"
    row = (clip.name, clip.kind, package, f"`{clip.member}`", clip.licence, clip.credit)
    lines.append("| " + " | ".join(row) + " |")
  hashes = [f"- {clip.name}: {clip.sha256}" for clip in clips]
  return "\n".join([*lines, "", "sha256 of the files:", "", *hashes]) + "\n"


def _totals(clips: Sequence[Clip], examples: list[dict]) -> str:
  """Seconds and windows per source and split, as a table."""

  def cell(rows):
    return f"{sum(e['frames'] / e['fps'] for e in rows):8.1f} s {len(rows):3d}"

  lines = [f"{'source':14}{'kind':8}" + "".join(f"{name:>15}" for name in (*SPLITS, "all")) + "   (seconds, windows)"]
  for clip in (*clips, None):
    rows = [e for e in examples if clip is None or e["source"] == clip.name]
    head = f"{'total':22}" if clip is None else f"{clip.name:14}{clip.kind:8}"
    parts = [[e for e in rows if e["split"] == split] for split in SPLITS] + [rows]
    lines.append(head + "".join(f"{cell(part):>15}" for part in parts))
  size = sum(len(e["mp4"]) for e in examples)
  used = len({e["source"] for e in examples})
  return "\n".join([*lines, f"{used} sources, {size / 1e6:.1f} MB of mp4"]) + "\n"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.prepare_clips", description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", help="directory to write; by default `clips` in vftok's cache, where training looks")
  parser.add_argument("--debian", action="store_true", help="add clips of Debian packages (142 MB more)")
  parser.add_argument("--short-side", type=int, default=128, help="pixels")
  parser.add_argument("--seconds", type=float, default=3.0, help="length of a window, about")
  parser.add_argument("--min-seconds", type=float, default=2.1, help="17 frames at 8 per second need over 2")
  parser.add_argument("--crf", type=float, default=10, help="H.264 quality, 0 (lossless) to 51")
  return parser


if __name__ == "__main__":
  sys.exit(main())
