"""Does our I3D name the right action? `python -m vftok.tools.check_i3d pytorch-vision_0.14.1.orig.tar.gz`

Debian's source of torchvision 0.14.1 (`apt-get source --download-only pytorch-vision`, with a deb-src line) carries
action clips with known labels and the 400 class names. They stay there: the archive is read in place, checked by
hash. Three parts of 64 frames of each clip are classified, and the surest one speaks for the clip. Prints JSON; exits
with 1 where a label is not among its first five answers; says that it skips, and exits with 0, without an archive.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from vftok.runtime.ending import exit_code

SHA256 = "ced67e1cf1f97e168cdf271851a4d0b6d382ab7936e7bcbb39aaa87239c324b6"
_ROOT = "vision-0.14.1"
# UCF-101 has its label in the file's name; what the Kinetics clips show was looked at (far away in the last one).
CLIPS = {
  "v_SoccerJuggling_g23_c01.avi": "juggling soccer ball",
  "v_SoccerJuggling_g24_c01.avi": "juggling soccer ball",
  "R6llTwEh07w.mp4": "using segway",
  "SOX5yA1l24A.mp4": "using segway",
  "WUzgd7C1pWA.mp4": "using segway",
}
_FRAMES, _PARTS, _FIRST = 64, 3, 5  # I3D was trained on 64 frames at 25 per second


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="vftok.tools.check_i3d", description="I3D on action clips with known labels.")
  parser.add_argument("archive", nargs="?", default="pytorch-vision_0.14.1.orig.tar.gz", type=Path)
  return exit_code("check_i3d", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
  archive = args.archive
  if not archive.is_file():
    print(f"skipped: there is no {archive}; apt-get source --download-only pytorch-vision gets it.")
    return 0
  with archive.open("rb") as file:
    if (found := hashlib.file_digest(file, "sha256").hexdigest()) != SHA256:
      raise ValueError(f"{archive} has sha256 {found}, expected {SHA256}: get it from Debian.")
  rows = check(archive)
  print(json.dumps(rows, indent=2))
  return 0 if all(row["rank"] <= _FIRST for row in rows) else 1


def check(archive: Path) -> list[dict]:
  """One row per clip: its label, the label's rank and probability in the surest part, and that part's answer."""
  import jax

  from vftok.frozen.metrics.i3d import SIZE, i3d_logits
  from vftok.frozen.metrics.weights import load_i3d
  from vftok.io.video import read_video

  logits_of, params = jax.jit(i3d_logits), load_i3d()
  rows = []
  with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as directory:
    names = class_names(tar.extractfile(f"{_ROOT}/torchvision/models/_meta.py").read().decode())
    for clip, label in CLIPS.items():
      path = Path(directory) / clip
      path.write_bytes(tar.extractfile(f"{_ROOT}/test/assets/videos/{clip}").read())
      frames, _ = read_video(path, size=(SIZE, SIZE))
      best = None
      for start in np.linspace(0, len(frames) - _FRAMES, _PARTS).astype(int):
        video = frames[None, start : start + _FRAMES].astype(np.float32) / 127.5 - 1
        p = np.asarray(jax.nn.softmax(logits_of(params, video)[0]), np.float64)
        if best is None or p.max() > best[0].max():
          best = p, int(start)
      p, start = best
      own = p[names.index(label)]
      row = {"clip": clip, "label": label, "rank": 1 + int((p > own).sum()), "probability": round(float(own), 3)}
      rows.append({**row, "answer": names[p.argmax()], "from_frame": start})
  return rows


def class_names(source: str) -> list[str]:
  """The 400 names in the order of the logits, from the text of torchvision's list; none of it is run."""
  for node in ast.parse(source).body:
    if isinstance(node, ast.Assign) and node.targets[0].id == "_KINETICS400_CATEGORIES":
      return ast.literal_eval(node.value)
  raise ValueError("the archive has no list of Kinetics-400 names where it was expected: get version 0.14.1.")


if __name__ == "__main__":
  sys.exit(main())
