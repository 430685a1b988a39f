"""The --config flag: an experiment file, its values over the command line, sources and sets given whole.

Every value of a config is a flag (`--config.optim.lr=3e-4`). What a config holds under names of its own is given as a
whole, or piece by piece below it:

  --config.data.sources='{"clips": {"kind": "clips", "weight": 0.1}, "sim": {"kind": "sim"}}'
  --config.data.sources=video_folder:path=DIR,holdout=0.1
  --config.tokenize.splits=prepared:directory=SET
  --config.eval.sets.val.videos.path=DIR

JSON, or KIND:OPTION=VALUE,... for one source. Whatever is wrong with any of them is one sentence.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vftok.runtime.ending import or_exit
from vftok.train.wrong_flags import check_file, sentence, told

# Parts of a config whose keys are the user's: how many levels of names lie above a source. None: any JSON object.
WHOLE: dict[str, int | None] = {
  "data.sources": 1,
  "eval.sets": 2,
  "tokenize.splits": 2,
  "label.splits": 2,
  "optim.lr_groups": None,
  "optim.every": None,
  "optim.follow": None,
}
_ALWAYS = ("kind", "weight", "split")  # of every source
_argv: list[str] = []  # what ml_collections may see of the command line


def define_config(text: str, values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
  """Defines --config, required. Once per program, and for `run`."""
  holder = config_flags.DEFINE_config_file("config", None, text, values, sys_argv=_argv)
  flags.mark_flag_as_required("config", values)
  return holder


def run(main: Callable[[list[str]], Any]) -> None:
  """As `absl.app.run`; flags that cannot be used end the program with 1 after one sentence."""
  app.run(main, flags_parser=lambda argv: or_exit(lambda: parse(argv)))


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """Sets all flags of absl. Returns the words that are none. Raises ValueError with a sentence."""
  whole, rest = _split(list(argv))
  _argv[:] = rest
  try:
    check_file(rest, values)
    words = values(rest)
    for path, text in whole:
      assign(values.config, path, text)
    check_sources(values.config, {path for path, _ in whole})
  except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
    raise ValueError(sentence(error, rest, values)) from error
  return words


def _split(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """([(path, value)] of what is given whole, the other words)."""
  whole, rest, words = [], argv[:1], iter(argv[1:])
  for word in words:
    if word == "--":
      return whole, [*rest, word, *words]
    match = re.match(r"--?config\.([^=]+)(=.*)?$", word, re.DOTALL)
    if match and _root(match[1]):
      value = next(words, "") if match[2] is None else match[2][1:]
      whole.append((match[1], value))
    else:
      rest.append(word)
  return whole, rest


def _root(path: str) -> str:
  """Which of `WHOLE` a path lies at or below; "" for none."""
  return next((root for root in WHOLE if path == root or path.startswith(f"{root}.")), "")


def assign(cfg: ConfigDict, path: str, text: str) -> None:
  """Sets what lies at `path` (at or below one of `WHOLE`) to a flag's text. Raises ValueError with one sentence."""
  root = _root(path)
  above, _, last = root.rpartition(".")
  parent = cfg.get(above)
  if parent is None or last not in parent:
    raise ValueError(f"this config has no {root}, so --config.{path} says nothing: pass one that has such a part.")
  names = path[len(root) + 1 :].split(".") if path != root else []
  value = parent[last].to_dict()
  levels = WHOLE[root]
  if levels is None:
    given = _json(path, text) if not names else _scalar(text)
  else:
    given = _given(path, text, levels - len(names), root, list(value))
  if levels is not None and len(names) == levels + 1 and names[-1] == "kind":
    _set_kind(value, names[:-1], given)
  else:
    value = _placed(value, names, given, path)
  with cfg.unlocked(), parent.unlocked():
    parent[last] = ConfigDict(value)


def _set_kind(value: dict, names: list[str], kind: Any) -> None:
  """Another kind starts without the options of the one before."""
  for name in names[:-1]:
    value = value.setdefault(name, {})
  old = value.get(names[-1], {})
  kept = old if old.get("kind") == kind else {k: v for k, v in old.items() if k in ("weight", "split")}
  value[names[-1]] = {**kept, "kind": kind}


def _placed(value: dict, names: list[str], given: Any, path: str) -> dict:
  if not names:
    return given
  inner = value
  for name in names[:-1]:
    inner = inner.setdefault(name, {})
    if not isinstance(inner, dict):
      raise ValueError(f"--config.{path}: {name} is {inner!r}, which has nothing below it: correct the path.")
  inner[names[-1]] = given
  return value


def _given(path: str, text: str, levels: int, root: str, known: list[str]) -> Any:
  """The value of a flag: names over sources (`levels` of them), a source (0), or one option of it (below 0)."""
  if levels < 0:
    return _scalar(text)
  if text.lstrip().startswith("{"):
    value = _json(path, text)
    for _, entry in _entries(value, levels, path):
      _complete(entry, root)
    return value
  entry = _complete(_source(path, text), root)
  if levels == 0:
    return entry
  if levels == 1:
    return {entry["kind"]: entry}
  names = [str(entry.get("split", "val"))] if root == "eval.sets" else known
  return {name: {entry["kind"]: dict(entry)} for name in names}


def _complete(entry: dict, root: str) -> dict:
  if root == "eval.sets":
    entry.setdefault("split", "val")  # never the clips that were trained on, unless asked for
  return entry


def _source(path: str, text: str) -> dict[str, Any]:
  """{"kind": ..., option: value} of KIND:OPTION=VALUE,..."""
  kind, _, options = text.partition(":")
  entry: dict[str, Any] = {"kind": kind.strip()}
  for part in re.split(r",(?=\s*[A-Za-z_]\w*=)", options) if options.strip() else ():
    name, equals, value = part.partition("=")
    if not equals:
      raise ValueError(
        f"--config.{path} has {told(part)}, expected OPTION=VALUE after {kind}: (with commas between), or JSON."
      )
    entry[name.strip()] = _scalar(value)
  return entry


def _scalar(text: str) -> Any:
  """A number, true, false, null, list or object where it is one in JSON, else the text itself."""
  try:
    return json.loads(text)
  except ValueError:
    return text


def _json(path: str, text: str) -> dict:
  try:
    value = json.loads(text)
  except ValueError as error:
    raise ValueError(
      f"--config.{path} is no JSON ({error}): quote it as a whole, and its keys by double quotes."
    ) from None
  if not isinstance(value, dict):
    raise ValueError(f"--config.{path} is {told(text)}, expected a JSON object.")
  return value


def _entries(value: Any, levels: int, path: str) -> Iterator[tuple[str, dict]]:
  """(path, source) of all sources below."""
  if not isinstance(value, dict):
    raise ValueError(
      f"--config.{path} is {told(value)}, expected {'names and their sources' if levels else 'a source'}."
    )
  if levels == 0:
    yield path, value
    return
  for name, inner in value.items():
    yield from _entries(inner, levels - 1, f"{path}.{name}")


def check_sources(cfg: ConfigDict, touched: set[str]) -> None:
  """Raises ValueError, one sentence, for a source of a touched part whose kind or options there are not."""
  from vftok.data.sources import DATASETS

  for root in sorted({_root(path) for path in touched}):
    levels = WHOLE[root]
    if levels is None:
      continue
    above, _, last = root.rpartition(".")
    for path, entry in _entries(cfg[above][last].to_dict(), levels, root):
      kind = entry.get("kind")
      if kind not in DATASETS:
        raise ValueError(f"config.{path} has kind {told(kind)}, expected one of {', '.join(DATASETS)}.")
      parameters = inspect.signature(DATASETS[kind]).parameters
      if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        continue
      known = [name for name in parameters if name != "split"]
      if unknown := [name for name in entry if name not in (*known, *_ALWAYS)]:
        raise ValueError(
          f"config.{path} has {told(unknown[0])}, expected an option of {kind}: {', '.join((*known, *_ALWAYS[1:]))}."
        )
