"""PyTorch's `.pt` files as data, with what `safetensors.safe_open` offers: names, shapes and arrays, and a config.

Such a file is a zip of a pickle (`torch_pickle` reads it and runs nothing) and the bytes of its storages. Training
checkpoints have their weights further inside: LARP's under "model" (its "sd", whose "args" are the config), EVATok's
under "ema", else "model".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vftok.io import torch_pickle
from vftok.io.torch_pickle import NotData, Tensor
from vftok.runtime.words import cut, is_text

MAX_PICKLE = 1 << 23  # bytes
MAX_CONFIG = 1 << 16  # values
MAX_SHARED = 3  # how often, on average, a byte may stand in tensors: tied weights are read twice
MAX_NESTING = 64
ENDINGS = (".pt", ".pth", ".ckpt", ".bin")
WEIGHTS = ("ema", "model", "state_dict")  # where a checkpoint may have them, best first


class Slice(NamedTuple):
  """A tensor's shape, as `safe_open` has it."""

  shape: tuple[int, ...]

  def get_shape(self) -> tuple[int, ...]:
    return self.shape


class TorchFile(contextlib.AbstractContextManager):
  """An open `.pt` file; arrays are read on demand.

  Raises:
    ValueError: damage, anything but plain data and tensors, or tensors beyond what the file holds.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = path
    try:
      self._zip = zipfile.ZipFile(path)
    except Exception as error:  # of a damaged zip anything may come
      raise self._bad(error) from None
    try:
      with self._sentences():
        members = {info.filename: info for info in self._zip.infolist()}
        self._root, content = self._content(members)
        self._tensors, self._config = contents(content)
        self._check_sizes(members)
    except ValueError:
      self._zip.close()
      raise

  def __exit__(self, *_) -> None:
    self._zip.close()

  # ---- as safetensors has it

  def keys(self) -> list[str]:
    return list(self._tensors)

  def get_slice(self, key: str) -> Slice:
    return Slice(self._tensors[key].shape)

  def metadata(self) -> dict[str, str]:
    return {} if self._config is None else {"config": json.dumps(self._config)}

  def get_tensor(self, key: str) -> np.ndarray:
    tensor = self._tensors[key]
    with self._sentences():
      data = self._zip.read(f"{self._root}data/{tensor.storage.key}")
      flat = np.frombuffer(data, dtype_of(tensor.dtype))[tensor.offset :]
      strides = [stride * flat.itemsize for stride in tensor.strides]
      if 0 in tensor.shape:
        return np.zeros(tensor.shape, flat.dtype)
      return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False).copy()

  # ---- checks

  @contextlib.contextmanager
  def _sentences(self):
    try:
      yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError) as error:
      raise self._bad(error) from None
    except (ValueError, KeyError, RuntimeError, NotImplementedError, OverflowError) as error:
      raise self._bad(error) from None

  def _bad(self, error: Exception) -> ValueError:
    """The sentence: with a reason of ours, for those of libraries speak of their own insides."""
    reason = cut(error, 170) if isinstance(error, NotData) else "its zip is damaged"
    return ValueError(
      f"{cut(self._path, 110)} is a pickle, and no weights that can be read as data ({reason}): convert it to "
      "safetensors where you trust its origin."
    )

  def _content(self, members: Mapping[str, zipfile.ZipInfo]) -> tuple[str, Any]:
    """(folder inside the zip, what its pickle holds)."""
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise NotData(f"it holds {len(pickles)} files data.pkl, expected one")
    root, total = pickles[0].removesuffix("data.pkl"), os.path.getsize(self._path)
    for name, info in members.items():
      if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise NotData(f"its member {cut(name)} is compressed, which torch never does")
      if info.file_size > total:
        raise NotData(f"its member {cut(name)} is said to be larger than the file")
    if sum(info.file_size for info in members.values()) > total:
      raise NotData("its members are said to be larger than the file")
    if f"{root}byteorder" in members and self._zip.read(f"{root}byteorder") != b"little":
      raise NotData("its numbers are not little-endian")
    if members[pickles[0]].file_size > MAX_PICKLE:
      raise NotData(f"its data.pkl has more than {MAX_PICKLE} bytes")
    return root, torch_pickle.parse(self._zip.read(pickles[0]))

  def _check_sizes(self, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Every tensor inside its storage, and all of them no larger than what the file holds."""
    asked: dict[Tensor, int] = {}
    for tensor in set(self._tensors.values()):
      info = members.get(f"{self._root}data/{tensor.storage.key}")
      if info is None:
        raise NotData(f"it lacks its storage {cut(tensor.storage.key)}")
      width = dtype_of(tensor.dtype).itemsize
      held, size = info.file_size // width, math.prod(tensor.shape)
      last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
      widest = math.prod(max(n, 1) for n in tensor.shape)  # where there are no numbers, NumPy still counts the rest
      if info.file_size % width or max(size, tensor.offset) > held or (size and last >= held) or widest >= 1 << 48:
        raise NotData(f"a tensor of shape {cut(tensor.shape)} lies outside its storage of {held} numbers")
      asked[tensor] = size * width
    if sum(asked.values()) > sum(info.file_size for info in members.values()):
      raise NotData("its tensors are larger than its storages")
    stored = sum(info.file_size for name, info in members.items() if name.startswith(f"{self._root}data/"))
    if sum(asked[tensor] for tensor in self._tensors.values()) > MAX_SHARED * stored:
      raise NotData("its tensors share their numbers more often than tied weights do")


def dtype_of(name: str) -> np.dtype:
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def contents(content: Any) -> tuple[dict[str, Tensor], Any]:
  """(tensors by name, config or None) of what a checkpoint's pickle holds."""
  if type(content) is not dict:
    raise NotData("it holds no dict")
  config, model = None, content.get("model")
  if type(model) is dict and type(model.get("sd")) is dict:
    found = model["sd"]  # "ema_sd" holds a running mean by its rate, which no released run had
    if type(model.get("args")) is dict:
      config = plain(model["args"])
  else:
    inside = (content[name] for name in WEIGHTS if type(content.get(name)) is dict and content[name])
    found = next(inside, content)
  for key, value in found.items():
    if not is_text(key) or not isinstance(value, Tensor):
      raise NotData(f"it has {cut(key)} where tensors by name were expected")
  if not found:
    raise NotData("it holds no tensors")
  return found, config


def plain(value: Any) -> Any:
  """As JSON has it, tuples as lists. Raises ValueError beyond that, or where a config is larger than one can be."""
  left = [MAX_CONFIG]

  def walk(value: Any, depth: int) -> Any:
    left[0] -= 1
    if depth > MAX_NESTING or left[0] < 0:
      raise NotData("its config is larger or deeper than one can be")
    if type(value) is dict:
      if not all(isinstance(key, str) for key in value):
        raise NotData("its config has keys that are not text")
      return {key: walk(inner, depth + 1) for key, inner in value.items()}
    if type(value) in (list, tuple):
      return [walk(inner, depth + 1) for inner in value]
    if type(value) is int and abs(value) >= 1 << 63:
      raise NotData("its config holds a number beyond 64 bits")
    if value is not None and type(value) not in (str, int, float, bool):
      raise NotData(f"its config holds a {type(value).__name__}")
    return value

  return walk(value, 0)
