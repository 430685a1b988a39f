"""What is wrong with a command line that names an experiment, in one sentence whatever absl or ml_collections said."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from vftok.runtime.words import cut


def sentence(error: Exception, argv: Sequence[str], values) -> str:
  """What is wrong, in one sentence, whatever absl or ml_collections said."""
  if isinstance(error, flags.UnrecognizedFlagError):
    close = difflib.get_close_matches(error.flagname, list(values), 1)
    return f"--{error.flagname} is no option: {f'did you mean --{close[0]}?' if close else 'see --help.'}"
  about_values = isinstance(error, flags.IllegalFlagValueError | TypeError | AttributeError | KeyError)
  said = about_values and _bad_value(argv, values)
  return said or told(" ".join(str(error.args[0] if error.args else error).split()), 380)


def told(value: Any, most: int = 60) -> str:
  """A text as it was typed, another value as Python writes it."""
  return cut(value if isinstance(value, str) else repr(value), most)


def _bad_value(argv: Sequence[str], values) -> str | None:
  """The first --config.x=y whose x the config does not have, or whose y is of another type than the config's."""
  path = _config_of(argv)
  if path is None:
    return "--config is missing: pass an experiment file, e.g. --config=configs/tokenizer.py:mini."
  try:
    cfg = values["config"].parser.parse(path)
  except Exception:  # the file's own error is what is to be told
    return None
  for word in argv:
    match = re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?$", word, re.DOTALL)
    if not match:
      continue
    value, done = cfg, []
    for name in match[1].split("."):
      if not isinstance(value, ConfigDict) or name not in value:
        known = list(value) if isinstance(value, ConfigDict) else []
        close = difflib.get_close_matches(name, known, 1)
        if not known:
          return f"config has no {told(match[1])}: {'.'.join(done)} is one value."
        near = f"did you mean {'.'.join([*done, close[0]])}?" if close else f"it has {told(', '.join(known), 200)}."
        return f"config has no {told(match[1])}: {near}"
      value = value[name]
      done.append(name)
    if isinstance(value, ConfigDict):
      first = f"--config.{match[1]}.{next(iter(value), '...')}"
      return f"--config.{match[1]} is a group, expected one of its values: {first}=..."
    if match[2] is not None and not _fits(value, match[2]):
      return f"--config.{match[1]} is {told(match[2])}, expected a value like {told(value)} ({type(value).__name__})."
  return None


def _fits(value: Any, text: str) -> bool:
  try:
    if isinstance(value, bool):
      return text.lower() in ("true", "false", "t", "f", "1", "0", "y", "n", "yes", "no")
    if isinstance(value, int | float):
      type(value)(text)
    elif isinstance(value, tuple | list):
      ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return False
  return True


def _config_of(argv: Sequence[str]) -> str | None:
  words = iter(argv)
  for word in words:
    match = re.match(r"--?config(?:=(.*))?$", word)
    if match:
      return next(words, None) if match[1] is None else match[1]
  return None


def check_file(argv: Sequence[str], values) -> None:
  """Raises ValueError where the experiment file is not there, or does not know the size asked for."""
  given = _config_of(argv)
  if not given:
    return
  path, _, size = given.partition(":")
  if not Path(path).is_file():
    raise ValueError(f"--config is {told(given, 120)}, and there is no such file: run from the repository's root.")
  try:
    values["config"].parser.parse(given)
  except KeyError as error:
    if error.args != (size,):
      raise
    about = ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""
    sentence = " ".join(about.split("\n\n")[0].split())
    raise ValueError(f"{path} knows no size {size!r}: {told(sentence, 240)}") from None
  except SyntaxError as error:
    raise ValueError(f"{path} line {error.lineno} is no Python ({error.msg}): mend it.") from None
  except ModuleNotFoundError as error:
    package = str(error.name).partition(".")[0]
    what = f"run from the folder that holds {package}/" if (Path(path).parent.name == package) else "install it"
    raise ValueError(f"{told(path, 120)} imports {error.name!r}, which is not found from here: {what}.") from None
