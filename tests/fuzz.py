"""Files of strangers by the thousand:
`python tests/fuzz.py vft=100000 video=2000 manifest=1000 model=500 set=500`.

Good files are damaged (bytes changed, cut, spliced, repeated, numbers made extreme) and read as vftok reads them. Each
must give a result or one sentence of under 400 characters, within 20 s and 1 GB, run nothing, look nothing up and open
no file but the one named (what FFmpeg opens by itself is not seen here; `tests/test_reader.py` is about that). What
breaks a rule is kept under --out, with the seed that makes it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import typing
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402

SECONDS, BYTES, LETTERS = 20, 2**30, 400
EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
FORBIDDEN = (
  "os.system",
  "os.exec",
  "os.posix_spawn",
  "subprocess.Popen",
  "socket.connect",
  "pickle.find_class",
  "exec",
)
WORDS = [
  "",
  "-1",
  "1e400",
  "nan",
  "null",
  "true",
  '"',
  "'",
  ",",
  "\n",
  "\0",
  "../../etc/passwd",
  "/etc/passwd",
  "💥" * 9,
  "[" * 900,
]
WORDS += ["9" * 400, "{}", "[]", "http://127.0.0.1:9/x.mp4", "2024-01-01", "0x10", "\ufeff", "a" * 5000]


# ---- damage


def damaged(data: bytes, rng: random.Random, text: bool) -> bytes:
  """`data` with one to six changes."""
  out = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 6))):
    at, size = rng.randrange(len(out) + 1), rng.choice((1, 2, 4, 8, 32, 500))
    match rng.choice("flip cut drop insert repeat number head word".split()):
      case "flip":
        for i in range(at, min(at + size, len(out))):
          out[i] ^= 1 << rng.randrange(8)
      case "cut":
        del out[at:]
      case "drop":
        del out[at : at + size]
      case "insert":
        out[at:at] = rng.randbytes(size)
      case "repeat":
        out[at:at] = out[at : at + size] * rng.randint(1, 50)
      case "number":
        kind = rng.choice(("<I", ">I", "<Q", ">H", ">Q"))
        out[at : at + struct.calcsize(kind)] = struct.pack(
          kind, rng.choice(EXTREMES) & (256 ** struct.calcsize(kind) - 1)
        )
      case "head":
        out[: rng.randrange(64)] = rng.randbytes(rng.randrange(64))
      case "word" if text:
        out[at : at + rng.randrange(12)] = rng.choice(WORDS).encode()
    if not out:
      break
  return bytes(out)


# ---- what is read: name -> (files that are good, how one is read, whether it is text)


def vfts(folder: Path):
  from test_vft import vft

  for n, changes in enumerate(({}, {"fps": 29.97}, {"size": (8, 8)})):
    (folder / f"{n}.vft").write_bytes(vft(**changes).to_bytes())


def read_vft(path: Path, rng):
  import zlib

  from vftok.io.vft import read_vft

  if rng.random() < 0.5 and path.stat().st_size > 4:  # with a checksum that is right
    data = path.read_bytes()
    path.write_bytes(data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])))
  read_vft(path)


def videos(folder: Path):
  from video_files import encode, scene

  frames = scene(20, 48, 64)
  for name, codec, more in (
    ("a.mp4", "libx264", {}),
    ("b.ts", "mpeg2video", {}),
    ("c.mkv", "libx264", {"bf": 2}),
    ("d.gif", "gif", {"pix_fmt": "rgb8"}),
    ("e.webm", "libvpx-vp9", {"deadline": "realtime"}),
  ):
    encode(folder / name, frames, codec, **more)


def read_video(path: Path, rng):
  from vftok.data.clip import ClipSpec, load_clip
  from vftok.io.video import iter_frames, video_info

  video_info(path)
  for _ in iter_frames(path, (16, 16), 8.0):
    pass
  record = dict(path=str(path), caption="", label=-1, name="x", start=None, end=None)
  load_clip(record, ClipSpec(frames=5, size=(16, 16), fps=8.0, timeout=10.0), np.random.default_rng(0))


def manifests(folder: Path):
  from test_manifests import ROWS, written

  for ending in ("csv", "tsv", "jsonl"):
    written(folder / f"list.{ending}", ROWS * 3)


def read_manifest(path: Path, rng):
  from vftok.data.folder import video_folder

  source = video_folder("all", path=path)
  for i in range(min(len(source), 50)):
    source[i]


def models(folder: Path):
  from safetensors import safe_open
  from safetensors.numpy import save_file

  from vftok import Tokenizer

  released = folder / "released"
  released.mkdir()
  with safe_open(Path(__file__).parent / "data" / "small.safetensors", "np") as file:
    weights = {key[2:]: file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
    (released / "config.json").write_text(json.dumps(json.loads(file.metadata()["config"])))
  save_file(weights, released / "model.safetensors")
  tok, params = Tokenizer.load(released)
  tok.save(params, folder / "own")


def read_model(path: Path, rng):
  from vftok import Tokenizer

  Tokenizer.load(path)


def sets(folder: Path):
  from test_stored_sets import META, example

  from vftok.data import shards, tokens
  from vftok.data.dataset_writer import whole_directory

  work = folder.parent / "work"
  work.mkdir()
  paths = {"train": [work / "a"], "val": [work / "b"]}
  for split, numbers in (("train", range(9)), ("val", range(3))):
    shards.write_shard(paths[split][0], tokens.features(META), map(tokens.stored, map(example, numbers)))
  with whole_directory(folder / "set", META) as directory:
    tokens.finish_tokens(directory, paths, META, ("a", "b", "c"))


def read_set(path: Path, rng):
  from vftok.data.sources import make_source

  source = make_source("tokens", "train", dict(directory=str(path)))
  for i in range(len(source)):
    source[i]


KINDS = {
  "vft": (vfts, read_vft),
  "video": (videos, read_video),
  "manifest": (manifests, read_manifest),
  "model": (models, read_model),
  "set": (sets, read_set),
}
TEXT = {".csv", ".tsv", ".jsonl", ".json"}


# ---- one try, in a process that may die


class Watch:
  """What a try does that no file may make it do; on while `path` is set."""

  def __init__(self):
    self.path, self.found = None, []
    sys.addaudithook(self)

  def __call__(self, event, args):
    if self.path is None:
      return
    if event in FORBIDDEN and not (event == "exec" and _is_ours(args[0], sys._getframe(1).f_code.co_filename)):
      caller = sys._getframe(1).f_code.co_filename
      self.found.append(f"{event} from {caller} {str(args)[:80]}")
    elif event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
      name = os.path.realpath(os.fsdecode(args[0]))
      ours = name.startswith(str(self.path)) or name.startswith(
        (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))
      )
      if not ours and not name.startswith(("/proc/", "/sys/", "/dev/", tempfile.gettempdir() + "/vftok")):
        self.found.append(f"opened {name[:120]}")


def _is_ours(code, caller: str) -> bool:
  """A module's code, or what dataclasses, named tuples and annotations of types are made of."""
  writers = (dataclasses.__file__, collections.__file__, typing.__file__)
  return getattr(code, "co_filename", "").endswith(".py") or caller in writers


def damage(good: Path, room: Path, rng: random.Random) -> Path:
  """A copy of one of the good files (or directories) in `room`, with one file of it damaged."""
  chosen = rng.choice(sorted(good.iterdir()))
  target = room / chosen.name
  if chosen.is_file():
    target.write_bytes(damaged(chosen.read_bytes(), rng, chosen.suffix in TEXT))
    return target
  shutil.copytree(chosen, target)
  file = rng.choice([p for p in sorted(target.rglob("*")) if p.is_file()])
  if rng.random() < 0.1:
    file.unlink()
  else:
    file.write_bytes(damaged(file.read_bytes(), rng, file.suffix in TEXT))
  return target


def tries(kind: str, good: Path, out: Path, seeds, say) -> None:
  """The worker: each seed begins with ("begin", seed) and ends with ("end", seed, what is wrong or "", was it read)."""
  warnings.simplefilter("ignore")
  logs = os.open(os.devnull, os.O_WRONLY)
  os.dup2(logs, 2)  # FFmpeg talks
  from vftok.runtime.ending import FAULTS

  read, watch = KINDS[kind][1], Watch()
  with tempfile.TemporaryDirectory(prefix="vftok-fuzz-") as name:  # what is imported on the way is imported now
    for path in good.iterdir():
      read(
        Path(shutil.copytree(path, f"{name}/{path.name}") if path.is_dir() else shutil.copy(path, name)),
        random.Random(0),
      )
  for seed in seeds:
    say.send(("begin", seed))
    rng, wrong = random.Random(f"{kind} {seed}"), []
    with tempfile.TemporaryDirectory(prefix="vftok-fuzz-") as name:
      path = damage(good, Path(name), rng)
      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      watch.found, watch.path = [], Path(name).resolve()
      result = False
      try:
        read(path, rng)
        result = True
      except FAULTS as error:
        if len(str(error)) >= LETTERS or "\n" in str(error) or not str(error):
          wrong.append(f"{type(error).__name__} of {len(str(error))} letters: {str(error)[:200]!r}")
      except Exception as error:
        wrong.append(f"{type(error).__name__}: {str(error)[:200]}")
      watch.path = None
      grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
      if grown > BYTES:
        wrong.append(f"{grown >> 20} MiB")
      wrong += watch.found
      if wrong:
        shutil.copytree(name, out / f"{kind}-{seed}", dirs_exist_ok=True)
    say.send(("end", seed, "; ".join(wrong)[:600], result))
  say.send(("done",))


def run(kind: str, count: int, first: int, out: Path) -> int:
  """How many tries broke a rule."""
  bad, read, begin = 0, 0, time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    good = Path(name) / "good"
    good.mkdir()
    KINDS[kind][0](good)
    seeds = list(range(first, first + count))
    while seeds:
      mine, theirs = multiprocessing.Pipe(duplex=False)
      worker = multiprocessing.get_context("spawn").Process(target=tries, args=(kind, good, out, seeds, theirs))
      worker.start()
      theirs.close()
      at = None
      while True:
        try:
          if not mine.poll(SECONDS + (60 if at is None else 0)):
            wrong = f"no answer within {SECONDS} s"
          else:
            what, *rest = mine.recv()
            if what == "done":
              seeds = []
              break
            if what == "begin":
              at = rest[0]
              continue
            wrong, read = rest[1], read + rest[2]
            seeds = seeds[1:]
            done = count - len(seeds)
            if done % max(1, count // 10) == 0:
              left = (time.monotonic() - begin) / done * (count - done)
              print(f"{kind}: {done:,} of {count:,}, {bad} bad, {left:.0f} s left", flush=True)
            if not wrong:
              continue
            bad += 1
            print(f"{kind} {at}: {wrong}", flush=True)
            continue
        except EOFError:
          if at is None:
            raise SystemExit(f"{kind}: a good file is not read") from None
          wrong = "the process died"
        bad += 1
        print(f"{kind} {at}: {wrong}", flush=True)
        seeds = seeds[1:]
        break
      worker.kill()
      worker.join()
  print(f"{kind}: {count:,} tries, {read:,} read, {bad} bad, {time.monotonic() - begin:.0f} s", flush=True)
  return bad


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("kinds", nargs="+", help=f"KIND=TRIES of {', '.join(KINDS)}")
  parser.add_argument("--first", type=int, default=0, help="seed of the first try")
  parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "vftok-fuzz")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  return int(any([run(kind, int(n), args.first, args.out) for kind, n in (word.split("=") for word in args.kinds)]))


if __name__ == "__main__":
  sys.exit(main())
