"""One writer at a time: a file in or beside a folder that says which process of which host uses it.

The system's own lock on that file ends with its process however that ends, so kill -9 leaves nothing to clean up. Where
the file system does not share such locks between hosts, the file's age decides: its owner touches it twice a minute.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vftok.runtime.files import folder_if_used

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None

TOUCHED_EVERY, STALE = 30.0, 300.0  # seconds
_held: dict[str, int] = {}  # lock files of this process: how many times
_mutex = threading.Lock()


class InUse(ValueError):
  """Another process writes there; the message says which."""


@contextlib.contextmanager
def locked(folder) -> Iterator[None]:
  """Holds the folder that is to be written, by .NAME.lock beside it; within one process as often as it likes.

  Raises:
    InUse: another process holds it.
  """
  folder = Path(folder).absolute()
  file = folder.with_name(f".{folder.name}.lock")
  with _mutex:
    _held[str(file)] = again = _held.get(str(file), 0) + 1
  try:
    if again > 1:
      yield
    else:
      with folder_if_used(file.parent), _taken(file, folder):
        yield
  finally:
    with _mutex:
      _held[str(file)] -= 1


@contextlib.contextmanager
def _taken(file: Path, folder: Path) -> Iterator[None]:
  descriptor = _opened(file, folder)
  try:
    owner = _owner(descriptor)
    other = owner and owner.get("host") != socket.gethostname()
    if other and time.time() - os.fstat(descriptor).st_mtime < STALE:
      raise InUse(_sentence(folder, file, owner))
    now = datetime.datetime.now().isoformat(" ", "seconds")
    text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    done = threading.Event()
    threading.Thread(target=_touch, args=(file, done), name="lock", daemon=True).start()
    try:
      yield
    finally:
      done.set()
      file.unlink(missing_ok=True)
  finally:
    os.close(descriptor)


def _opened(file: Path, folder: Path) -> int:
  """The lock file, open and locked."""
  while True:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      owner = _owner(descriptor)
      os.close(descriptor)
      raise InUse(_sentence(folder, file, owner)) from None
    except OSError:  # a file system without locks: the file's age decides
      pass
    with contextlib.suppress(FileNotFoundError):
      if os.fstat(descriptor).st_ino == os.stat(file).st_ino:
        return descriptor
    os.close(descriptor)  # its owner removed it just now: a new one


def _owner(descriptor: int) -> dict[str, Any] | None:
  try:
    owner = json.loads(os.pread(descriptor, 4096, 0))
  except (OSError, ValueError):
    return None
  return owner if isinstance(owner, dict) else None


def _sentence(folder: Path, file: Path, owner) -> str:
  owner = owner or {}
  who = f"process {owner.get('pid', 'unknown')} of host {owner.get('host', 'unknown')}"
  return (
    f"{folder} is in use by {who} since {owner.get('since', 'a while')}: wait for it or choose another folder; if that "
    f"process is gone, remove {file.name} beside it."
  )


def _touch(file: Path, done: threading.Event) -> None:
  while not done.wait(TOUCHED_EVERY):
    with contextlib.suppress(OSError):
      os.utime(file)
