"""The log of clips that could not be used: JSON lines {"source", "name", "reason"}, one per clip."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

_lock = threading.Lock()
_known: dict[str | None, set[tuple[str, str]]] = {}  # per log, what this process need not write again


def report(path: str | None, source: str, name: str, reason: str) -> None:
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
    line = json.dumps({"source": source, "name": name, "reason": reason}, ensure_ascii=False) + "\n"
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
