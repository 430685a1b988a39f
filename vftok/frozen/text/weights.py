"""Files of a text encoder -> parameters, strict: every tensor is used or listed as not needed."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vftok.frozen.text.encoder import Net, abstract_params
from vftok.io import hub
from vftok.io.layout import Rule, converted
from vftok.runtime.words import brief, cut, is_number, is_whole

MAX_DEPTH, MAX_SIZE = 1_024, 10_000_000


def open_directory(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, hub.Checkpoint]]:
  """(config, tensor name -> the file that holds it) of a directory with one safetensors file or an index of shards.

  Raises:
    FileNotFoundError: no directory, or it lacks a file. ValueError: a damaged file, or an index that does not fit.
  """
  directory = pathlib.Path(path)
  if not directory.is_dir():
    raise FileNotFoundError(f"{directory} is no directory, expected one with {hub.CONFIG} and {hub.WEIGHTS}.")
  file = hub.open_checkpoint(directory)
  return file.config, dict.fromkeys(file.shapes, file)


def read(
  where, what: str, files: Mapping[str, hub.Checkpoint], net: Net, table: Mapping[str, Rule], unused: str, dtype: str
) -> dict[str, Any]:
  """The parameters of `net`: tables and kernels in `dtype`, biases and norms in float32.

  Args:
    where, what: the directory and kind of net that errors name.
    files: see `open_directory`.
    table: tensor name -> where it goes, for every tensor the net needs.
    unused: a pattern of tensor names that the net does not need.

  Raises:
    ValueError: tensors missing, neither needed nor `unused`, or misshapen.
  """
  known = {key for key in files if not re.fullmatch(unused, key)} | (files.keys() & table.keys())
  leaves = abstract_params(net)
  dtypes = {path: jnp.dtype(dtype if path[-1] in ("kernel", "embedding") else "float32") for path in leaves}
  return converted(where, table, {key: (files[key], key) for key in known}, leaves, dtypes, what)


def whole_number(where, config: Mapping[str, Any], key: str, default: int | None = None, high: int = MAX_SIZE) -> int:
  """config[key]. Raises ValueError where it is no whole number from 1 to `high`."""
  value = config.get(key, default)
  if not is_whole(value) or not 1 <= value <= high:
    expected = f"expected a whole number from 1 to {high}"
    raise ValueError(f"{cut(where, 150)} has {key} {brief(value)}, {expected}: fetch its config again.")
  return value


def epsilon(where, config: Mapping[str, Any], key: str, default: float) -> float:
  value = config.get(key, default)
  if not is_number(value) or not 0 < value < 1:
    which = cut(where, 150)
    raise ValueError(f"{which} has {key} {brief(value)}, expected a small positive number: fetch its config again.")
  return float(value)


def check_vocabulary(where, size: int, rows: int) -> None:
  if size > rows:
    raise ValueError(f"{where} has a tokenizer of {size} tokens and embeddings of {rows}: take both from one model.")
