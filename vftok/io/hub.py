"""Where a model's files are, and how they are read and written: safetensors and JSON, whole or not at all.

PyTorch's files are read too, as data alone: see `torch_file`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vftok.io import remote, shipped, torch_file, weight_index
from vftok.io.finite import is_finite
from vftok.io.int8 import SCALES, scales_shape, widened
from vftok.runtime.files import part_of, umask
from vftok.runtime.words import brief, cut, is_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FLOATS = tuple(np.dtype(name) for name in (np.float32, np.float16, np.float64, ml_dtypes.bfloat16))
MAX_NESTING = 64


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Weights and their config; tensors are read on demand.

  Attributes:
    path: the file of weights, or the index of several.
    files: tensor -> its file, where there are several.
  """

  path: pathlib.Path
  config: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]
  files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)

  def tensors(self, keys: Iterable[str]):
    """Yields (key, numpy array) file after file, without holding more than one array at a time.

    Raises:
      ValueError: a tensor is not of floating point, or not finite; or it has scales and is no int8 that they fit.
    """
    by_file: dict[pathlib.Path, list[str]] = {}
    for key in keys:
      by_file.setdefault(self.files.get(key, self.path), []).append(key)
    for path, names in by_file.items():
      with _open(path) as file:
        for key in names:
          value = file.get_tensor(key)
          if key + SCALES in self.shapes:
            value = self._widened(key, value, file if self.files.get(key) == self.files.get(key + SCALES) else None)
          if value.dtype not in FLOATS:
            raise ValueError(f"{cut(path, 150)} holds {cut(key)} as {value.dtype}, expected a floating-point tensor.")
          if not is_finite(value):
            raise ValueError(
              f"{cut(path, 150)} holds NaN or infinite values in {cut(key)}, expected finite weights: fetch it again."
            )
          yield key, value

  def sources(self) -> dict[str, tuple[Checkpoint, str]]:
    """Name -> (this, name) of every tensor, as `layout.converted` takes them."""
    return {key: (self, key) for key in self.shapes}

  def _widened(self, key: str, value: np.ndarray, file) -> np.ndarray:
    """float32 of a tensor in int8, by its scales: in the open `file`, or where that is None in another of several."""
    name = key + SCALES
    if value.dtype != np.int8:
      which = f"{cut(self.path, 150)} holds {cut(key)} as {value.dtype} and scales of it"
      raise ValueError(f"{which}, expected int8 where there are scales: fetch it again, or leave {SCALES} out.")
    report_shape(self.path, name, self.shapes[name], scales_shape(value.shape))
    with contextlib.nullcontext(file) if file else _open(self.files[name]) as holder:
      scales = holder.get_tensor(name)
    if scales.dtype not in FLOATS:
      raise ValueError(f"{cut(self.path, 150)} holds {cut(name)} as {scales.dtype}, expected a floating-point tensor.")
    return widened(value, scales)


def open_checkpoint(name: str | os.PathLike | Checkpoint) -> Checkpoint:
  """Finds and checks a model: a directory, one safetensors file with its config inside, a shipped name or a Hub id
  (org/model or org/model@revision). Weights of a directory are one file or an index of several. What is open stays so.

  Raises:
    FileNotFoundError: nothing of that name here or on the Hub.
    ValueError: no safetensors, damaged, or without a config.
  """
  if isinstance(name, Checkpoint):
    return name
  path = _find(name)
  weights, files, shapes, metadata = _weights(path, f"put {WEIGHTS} there")
  if path.is_dir() and (path / CONFIG).is_file():
    config = read_json(path / CONFIG)
  else:
    config = config_of_metadata(metadata)
    check_plain(weights, config)
    if path.is_dir() and not config:
      raise FileNotFoundError(f"{cut(path, 150)} has no {CONFIG}: put the model's config beside {weights.name}.")
    if not config:
      raise ValueError(
        f"{cut(weights, 150)} carries no config in its metadata: pass the directory that holds {CONFIG} too."
      )
  return Checkpoint(weights, config, shapes, files)


def open_weights(name: str | os.PathLike) -> Checkpoint:
  """Like `open_checkpoint` for weights whose config does not matter (a VAE taken from another model's file)."""
  weights, files, shapes, _ = _weights(_find(name), "pass a directory, file or Hub id that holds one")
  return Checkpoint(weights, {}, shapes, files)


def _weights(path: pathlib.Path, hint: str):
  """(file or index, tensor -> its file where there are several, tensor -> shape, metadata) of a file or a directory."""
  weights, index = (path / WEIGHTS, path / weight_index.INDEX) if path.is_dir() else (path, None)
  if weights.is_file():
    return weights, {}, *_read_header(weights)
  if index is None or not index.is_file():
    others = sorted(p for p in path.glob("*") if p.suffix in torch_file.ENDINGS and p.is_file()) if index else []
    if len(others) == 1:
      return others[0], {}, *_read_header(others[0])
    if others:
      hint = f"{cut(others[0].name)} and {len(others) - 1} more are pickles, pass the one that is meant"
    raise FileNotFoundError(f"{cut(path, 150)} has no {WEIGHTS}: {hint}.")
  files, shapes = weight_index.read_index(index, read_json, _read_header)
  return index, files, shapes, {}


def config_of_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
  """The config inside a safetensors metadata map: JSON under `config`, or one text form per top-level key."""
  if "config" in metadata:
    config = _parse_text(metadata["config"], "config")
    return config if isinstance(config, dict) else {}
  markers = ("video_flex_tok", "videoflextok", "_target_", "format")
  if not any(key in metadata for key in markers) or metadata.get("format") in ("pt", "np", "flax"):
    metadata = {k: v for k, v in metadata.items() if k != "format"}
  if not any(key in metadata for key in markers):
    return {}
  config = {}
  for key, text in metadata.items():
    try:
      config[key] = _parse_text(text, key)
    except ValueError:
      if key in markers:
        raise  # other entries may be anybody's notes
  return config


def save_files(
  directory: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  weights: str = WEIGHTS,
) -> None:
  """Writes config.json and `weights`, a safetensors file; an interrupted call leaves what was there before."""
  target = check_directory(directory)
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = part_of(target)
  try:
    partial.mkdir()
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, partial / weights, metadata={"format": "pt"})
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (partial / weights).chmod(0o666 & ~umask())  # safetensors writes for the owner alone
    if not target.exists():
      partial.rename(target)
    else:
      for name in (weights, CONFIG):
        os.replace(partial / name, target / name)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_directory(directory: str | os.PathLike) -> pathlib.Path:
  """The path of a directory that a model can be saved in, made or not yet. Raises ValueError where none can."""
  target = pathlib.Path(os.path.abspath(directory))
  if not os.fspath(directory) or not target.name:
    raise ValueError(f"{brief(os.fspath(directory))} is no directory to save a model in, expected a name: choose one.")
  if target.exists() and not target.is_dir():
    raise ValueError(f"{target} is a file, expected a directory to save the model in: choose another name.")
  for name in (WEIGHTS, CONFIG):
    if (target / name).is_dir():
      raise ValueError(f"{target / name} is a folder, expected a file or nothing: save in another directory.")
  return target


def report_keys(path, missing: Iterable[str], unused: Iterable[str], net: str = "") -> None:
  """Raises one ValueError naming tensors that the config asks for and the file lacks, or the other way round.

  `net`: the kind of model whose tensors are expected, where that is not the config's to say.
  """
  parts = []
  for keys, what in ((sorted(missing), "lacks"), (sorted(unused), "has the unknown" if net else "has unused")):
    if keys:
      named = ", ".join(cut(key) for key in keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
      parts.append(f"{what} {named}")
  if parts:
    which, found = cut(path, 90), " and ".join(parts)
    if net:
      raise ValueError(f"{which} {found}, expected the tensors of a {net}: take all files from one model.")
    raise ValueError(f"{which} does not fit its config: it {found}; check that both are of one model.")


def report_shape(path, key: str, found, expected) -> None:
  if tuple(found) != tuple(expected):
    shapes = [cut(tuple(shape)) for shape in (found, expected)]
    raise ValueError(
      f"{cut(path, 150)} holds {cut(key)} with shape {shapes[0]}, expected {shapes[1]}: take all files from one model."
    )


def _open(path: pathlib.Path):
  try:
    return safe_open(path, framework="np")
  except SafetensorError as error:
    with open(path, "rb") as file:
      start = file.read(2)
    if start == b"PK":
      return torch_file.TorchFile(path)
    if start[:1] == b"\x80":
      raise ValueError(
        f"{cut(path, 150)} is a pickle and no zip, as torch saved files before 1.6, expected a zip or safetensors: "
        "where you trust its origin, torch.save(torch.load(FILE), OTHER) writes one that can be read."
      ) from None
    reason = cut(re.sub(r"^.*?header: ", "", str(error)), 100)
    raise ValueError(f"{cut(path, 150)} is no whole safetensors file ({reason}): fetch it again.") from None


def _read_header(path: pathlib.Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
  with _open(path) as file:
    return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file. Raises ValueError where it is damaged or another kind of data."""
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{cut(path, 150)} is no JSON ({cut(str(error).splitlines()[0], 100)}): fetch it again.") from None
  if not isinstance(config, dict):
    raise ValueError(f"{path} holds {type(config).__name__}, expected a JSON object with the model's config.")
  check_plain(path, config)
  return config


def check_plain(path, config: Any) -> None:
  """Raises ValueError unless a config is plain data as JSON can hold it, nested no deeper than a config is.

  What Python's reader takes beside that, NaN, infinity and halves of surrogate pairs, would be written on by `export`.
  """
  path = cut(path, 150)
  level = [config]
  for _ in range(MAX_NESTING):
    for value in level:
      if isinstance(value, dict) and (strange := [key for key in value if not is_text(key)]):
        raise ValueError(
          f"{path} has a config with keys that are not text ({brief(strange[0])}): fetch the file again."
        )
      if not isinstance(value, (dict, list, str, int, float, type(None))):
        raise ValueError(f"{path} has a config that holds a {type(value).__name__}, expected JSON: fetch it again.")
      if (isinstance(value, str) and not is_text(value)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(
          f"{path} has a config that holds {brief(value)}, expected finite numbers and text in UTF-8: correct the file."
        )
    inner = [value for value in level if isinstance(value, (dict, list))]
    level = [v for value in inner for v in (value.values() if isinstance(value, dict) else value)]
    if not level:
      return
  raise ValueError(f"{path} has a config nested deeper than {MAX_NESTING} levels: fetch the file again.")


def _parse_text(text: str, key: str) -> Any:
  """JSON, or the text of a Python literal as released files carry it: as it is, or as YAML with null for None."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError(f"metadata entry {brief(key)} is nested too deeply: fetch the file again.") from None
  except ValueError:
    if (value := _literal(text)) is not None:
      return value
    try:
      if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # no config has them; they can loop
        raise ValueError("alias")
      return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError):
      raise ValueError(f"metadata entry {brief(key)} is neither JSON nor YAML: fetch the file again.") from None


def _literal(text: str) -> Any:
  """The dict or list that a Python literal stands for, tuples as lists; None where the text is none."""
  depth = deepest = 0
  for sign in text:
    depth += (sign in "([{") - (sign in ")]}")
    deepest = max(deepest, depth)
  if text[:1] not in ("{", "[") or deepest > MAX_NESTING:
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of odd escapes
      return _lists(ast.literal_eval(text))  # constants alone: nothing is run
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def _lists(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _lists(inner) for key, inner in value.items()}
  return [_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _find(name: str | os.PathLike) -> pathlib.Path:
  """A path that exists here wins over a shipped model's name, and that over the Hub."""
  path = pathlib.Path(name)
  try:
    if os.fspath(name) and path.exists():
      return path
  except (OSError, ValueError):  # no name that a file can have, so none that the Hub knows
    pass
  name = os.fspath(name)
  if found := shipped.find(name):
    return found
  if not remote.is_id(name):
    raise FileNotFoundError(
      f"{brief(name, 100)} does not exist: pass a directory, a .safetensors file, a Hub id like org/model or "
      f"org/model@revision, or a shipped model's name ({', '.join(shipped.names()) or 'none here'})."
    )
  return remote.download(name)
