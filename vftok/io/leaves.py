"""Path, shape and dtype of every parameter that a config asks for, without making one.

Tracing a model for its shapes takes a second or more, so they are remembered beside the compiled programs, where the
process keeps those on disk. What decides them is in the file's name: the config, the code of the models, the versions.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import flax.traverse_util as traverse
import jax
import numpy as np

from vftok.runtime.words import brief, cut

Leaves = dict[tuple[str, ...], jax.ShapeDtypeStruct]


def check_params(leaves: Callable[[], Leaves], params: Any, part: str = "") -> None:
  """Raises ValueError where parameters are not those that a model asks for; `part`: of them, all where it is ""."""
  hint = "pass the parameters that were loaded or made with it"
  if not isinstance(params, Mapping) or (part and part not in params):
    what = f"have the parts {brief(list(params))}" if isinstance(params, Mapping) else f"are {brief(params)}"
    raise ValueError(f"params {what}, expected a dict{f' with {part!r}' if part else ''}: {hint}.")
  below = lambda path: not part or path[0] == part
  expected = {path: tuple(leaf.shape) for path, leaf in leaves().items() if below(path)}
  flat = traverse.flatten_dict(nn.unbox({part: params[part]} if part else dict(params)))
  found = {path: tuple(getattr(leaf, "shape", ())) for path, leaf in flat.items()}
  for path in sorted(expected.keys() | found.keys(), key=str):
    if expected.get(path) != found.get(path):
      mine, theirs = (brief(shapes.get(path)) for shapes in (found, expected))
      name = cut("/".join(map(str, path)), 80)
      raise ValueError(f"params are of another model: {name} is {mine}, expected {theirs}; {hint}.")


def leaves_of(cfg: Any, init: Callable, *inputs) -> Leaves:
  """Leaves of `init(key, *inputs)`, where `cfg`, a dataclass of plain values, decides them."""
  path = _file(cfg)
  known: Any = None if path is None else _read(path)
  if known is None:
    tree = nn.unbox(jax.eval_shape(init, jax.ShapeDtypeStruct((), jax.random.key(0).dtype), *inputs))
    known = dict(traverse.flatten_dict(tree))
    if path is not None:
      _write(path, known)
  return known


def _file(cfg: Any) -> Path | None:
  if not (directory := jax.config.jax_compilation_cache_dir):  # pyright: ignore[reportAttributeAccessIssue]
    return None
  decides = [repr(cfg), jax.__version__, flax.__version__, _code()]
  return Path(directory) / f"shapes-{hashlib.sha256(repr(decides).encode()).hexdigest()}.json"


@functools.cache
def _code() -> list[tuple[str, int, int]]:
  """What tells one state of the models' code from another."""
  package = Path(__file__).parents[1]
  sources = sorted([*package.glob("models/*.py"), *package.glob("families/*/*.py")])
  return [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in sources]


def _read(path: Path) -> Leaves | None:
  """None where there is no such file, or a damaged one."""
  try:
    stored = json.loads(path.read_text())
    leaf = lambda shape, dtype: jax.ShapeDtypeStruct(tuple(map(int, shape)), np.dtype(dtype))
    return {tuple(name.split("/")): leaf(*value) for name, value in stored.items()}
  except (OSError, ValueError, TypeError, AttributeError):
    return None


def _write(path: Path, leaves: Leaves) -> None:
  temporary = path.with_suffix(f".{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps({"/".join(k): [v.shape, v.dtype.name] for k, v in leaves.items()}))
    os.replace(temporary, path)
  except OSError:  # a full or read-only disk costs time, not the command
    with contextlib.suppress(OSError):
      temporary.unlink()
