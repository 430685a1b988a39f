"""The log of clips that could not be used: JSON lines {"source", "name", "reason"}, one per clip.

Sound clips that are only too short have "kind": "short" beside it, and are counted apart.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

_lock = threading.Lock()
_known: dict[str | None, set[tuple[str, str]]] = {}  # per log, what this process need not write again


def report(path: str | None, source: str, name: str, reason: str, *, short: bool = False) -> None:
  """Adds a line unless the clip is there already; without a `path`, warns instead. Safe across processes."""
  with _lock:
    if path not in _known:
      _known[path] = {(row["source"], row["name"]) for row in read(path)} if path else set()
    if (source, name) in _known[path]:
      return
    _known[path].add((source, name))
    if path is None:
      logging.getLogger(__name__).warning("left out %s of %s: %s", name, source, reason)
      return
    row = {"source": source, "name": name, "reason": reason} | ({"kind": "short"} if short else {})
    line = json.dumps(row, ensure_ascii=False) + "\n"
    # One write in append mode: lines of several processes do not mix.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      os.write(file, line.encode("utf-8", "surrogateescape"))
    finally:
      os.close(file)


def read(path: str | os.PathLike) -> list[dict[str, str]]:
  """All lines so far; none where there is no such file yet. A line that a crash cut short is left out."""
  rows = []
  if Path(path).exists():
    for line in Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        continue
  return rows


class Tally:
  """How many clips a log names by now. It grows for as long as a run lasts, so only what is new is read each time."""

  def __init__(self, path: str | os.PathLike):
    self.path, self._offset, self._counts = Path(path), 0, {"bad": 0, "short": 0}

  def __call__(self) -> dict[str, int]:
    """{"bad": clips that could not be read, "short": sound ones that were shorter than the clips asked for}."""
    try:
      with self.path.open("rb") as file:
        file.seek(self._offset)
        new = file.read()
    except FileNotFoundError:
      return dict(self._counts)
    whole = new[: new.rfind(b"\n") + 1]  # another process may be writing the last line
    self._offset += len(whole)
    for line in whole.splitlines():
      self._counts["short" if line.endswith(b'"kind": "short"}') else "bad"] += 1
    return dict(self._counts)


def told(counts: dict[str, int], path: str | os.PathLike) -> str | None:
  """One sentence about what was left out; None where nothing was."""
  bad, short = counts["bad"], counts["short"]
  parts = ([f"{bad} clips could not be read"] if bad else []) + ([f"{short} are too short"] if short else [])
  return f"{' and '.join(parts)}: {path} names each and says why." if parts else None
