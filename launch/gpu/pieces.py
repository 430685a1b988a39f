"""Weights through a narrow door: float16, in files of at most 15 MiB.

python launch/gpu/pieces.py out MODEL DIR     all tensors of a model -> DIR/weights-N.safetensors, configs.json
python launch/gpu/pieces.py back DIR MODEL    the same directory again, float32
python launch/gpu/pieces.py vgg FILE          VGG16 with the heads of LPIPS, from the cache, as float16
python launch/gpu/pieces.py vgg-back FILE     into the cache of a machine that can fetch nothing
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vftok.frozen.metrics.weights import SOURCES, net_file

LIMIT = 15 * 2**20


def read(path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  with safe_open(path, "np") as file:
    return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}


def as_type(tensors, dtype):
  return {k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in tensors.items()}


def out(model: Path, directory: Path) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  pieces, size, side = [{}], 0, {"metadata": {}, "json": {}}
  for path in sorted(model.glob("*.safetensors")):
    tensors, side["metadata"][path.name] = read(path)
    for name, tensor in as_type(tensors, np.float16).items():
      if size + tensor.nbytes > LIMIT and pieces[-1]:
        pieces.append({})
        size = 0
      pieces[-1][f"{path.name}:{name}"] = tensor
      size += tensor.nbytes
  side["json"] = {path.name: json.loads(path.read_text()) for path in model.glob("*.json")}
  for i, piece in enumerate(pieces):
    save_file(piece, directory / f"weights-{i}.safetensors")
  (directory / "configs.json").write_text(json.dumps(side) + "\n")
  print(f"{model} -> {len(pieces)} pieces")


def back(directory: Path, model: Path) -> None:
  model.mkdir(parents=True, exist_ok=True)
  files, side = {}, json.loads((directory / "configs.json").read_text())
  for path in sorted(directory.glob("weights-*.safetensors")):
    for key, tensor in as_type(read(path)[0], np.float32).items():
      name, _, tensor_name = key.partition(":")
      files.setdefault(name, {})[tensor_name] = tensor
  for name, tensors in files.items():
    save_file(tensors, model / name, metadata=side["metadata"].get(name) or None)
  for name, value in side["json"].items():
    (model / name).write_text(json.dumps(value, indent=2) + "\n")


def vgg(path: Path) -> None:
  tensors, metadata = read(net_file("vgg"))
  save_file(as_type(tensors, np.float16), path, metadata=metadata)


def vgg_back(path: Path) -> None:
  tensors, metadata = read(path)
  if metadata.get("sha256") != SOURCES["vgg"].sha256:
    sys.exit(f"{path} is not the VGG16 of this version: make it again with `pieces.py vgg`.")
  net_file("vgg").parent.mkdir(parents=True, exist_ok=True)
  save_file(as_type(tensors, np.float32), net_file("vgg"), metadata=metadata)


if __name__ == "__main__":
  command, *paths = sys.argv[1:]
  {"out": out, "back": back, "vgg": vgg, "vgg-back": vgg_back}[command](*map(Path, paths))
