"""Values inside sentences: whatever a caller or a stranger's file holds, an error stays one short line.

And what counts as a number: text, booleans, NaN and infinity do not.
"""

from __future__ import annotations

import errno
import math
import numbers
import os
from typing import Any

SENTENCE = 399  # characters of an error at most


def brief(value: Any, most: int = 60) -> str:
  """The `repr` of a value in at most `most` characters, on one line; text keeps its quotes."""
  if isinstance(value, str):  # a long one is cut before it is escaped
    return repr(cut(value, most - 2)) if value.isprintable() else cut(repr(value[: 2 * most]), most)
  if getattr(value, "shape", ()) != ():  # NumPy and JAX would print, and fetch, what is in it
    return cut(f"an array {tuple(value.shape)} of {getattr(value, 'dtype', 'something')}", most)
  try:
    text = repr(value)
  except Exception:  # an object of the caller's that cannot even say what it is
    text = f"a {type(value).__name__}"
  return cut(" ".join(text.split()), most)


def cut(text: Any, most: int = 60) -> str:
  """A text (or a path) in at most `most` characters: of a longer one the beginning and the end.

  What cannot be printed (line ends, escapes of a terminal) stands as Python writes it.
  """
  text = str(text)
  if not text.isprintable():
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
  if len(text) <= most:
    return text
  end = (most - 3) // 2
  return f"{text[: most - 3 - end]}...{text[len(text) - end :]}"


def sentence(error: BaseException) -> str:
  """What to tell of an error in at most 399 characters: its own words, or some about the file the system speaks of."""
  if not isinstance(error, OSError) or error.errno is None:
    return cut(" ".join(str(error).split()), SENTENCE)
  where = "a file" if error.filename is None else cut(os.fsdecode(error.filename), 200)
  what = {errno.ENOSPC: "make room there", errno.EDQUOT: "make room there"}.get(error.errno, "check the path")
  return cut(f"{where} cannot be used ({error.strerror}): {what}.", SENTENCE)


def is_text(value: Any) -> bool:
  """Whether a value is text that UTF-8 can hold: no half of a surrogate pair, which JSON and pickles can spell."""
  try:
    return isinstance(value, str) and value.encode() is not None
  except UnicodeEncodeError:
    return False


def is_number(value: Any) -> bool:
  """Whether a value is one finite number: of Python, NumPy or JAX, no text and no boolean."""
  single = getattr(value, "shape", None) == () and getattr(value.dtype, "kind", "") in ("i", "u", "f", "V")
  if isinstance(value, bool) or not (isinstance(value, numbers.Real) or single):
    return False
  try:
    return math.isfinite(value)
  except (TypeError, OverflowError):  # no number after all, or one beyond all floats
    return False


def is_whole(value: Any) -> bool:
  """Whether a value is one whole number, of a type for such: 2 and np.int32(2), not 2.0."""
  single = getattr(value, "shape", None) == () and getattr(value.dtype, "kind", "") in ("i", "u")
  return not isinstance(value, bool) and (isinstance(value, numbers.Integral) or single)
