"""Files and folders that appear whole or not at all, and what is left of those whose writers were killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

OLD = 7 * 24 * 3600.0  # seconds after which another host's part is nobody's
_PART = re.compile(r"\..+\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-[0-9a-f]{8}\.part")
_cleared: set[str] = set()  # folders that this process has looked through


def cache_dir() -> Path:
  """Where vftok keeps what it can make again: $VFTOK_CACHE, else $XDG_CACHE_HOME/vftok, else ~/.cache/vftok."""
  if directory := os.environ.get("VFTOK_CACHE"):
    return Path(directory).expanduser()
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vftok"


def check_target(path) -> None:
  """Raises FileNotFoundError or ValueError where no file can be written at `path`."""
  path = Path(path)
  if not path.parent.is_dir():
    raise FileNotFoundError(f"{path.parent} is not a folder, so {path.name} cannot go there: make it first.")
  if path.is_dir():
    raise ValueError(f"{path} is a folder, expected a file to write: add a name.")


@contextlib.contextmanager
def folder_if_used(folder) -> Iterator[None]:
  """Makes a folder and those above it; of these, what the block leaves empty goes again."""
  folder = Path(folder).absolute()
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  try:
    yield
  finally:
    for path in made:
      with contextlib.suppress(OSError):
        path.rmdir()


@contextlib.contextmanager
def whole_file(path) -> Iterator[Path]:
  """Gives a temporary path beside `path`: renamed onto it when the block succeeds, removed when it fails."""
  check_target(path)
  path = Path(path)
  temporary = part_of(path)
  try:
    yield temporary
    temporary.chmod(0o666 & ~umask())  # some writers make files for their owner alone
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
  """A name beside `path` for what becomes it. The parts of writers that are gone are removed from that folder."""
  clear_parts(path.parent)
  return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def clear_parts(folder: Path) -> None:
  """Removes what killed processes of this host left half-written in a folder, and very old parts; once a process."""
  if str(folder.absolute()) in _cleared:
    return
  _cleared.add(str(folder.absolute()))
  with contextlib.suppress(OSError), os.scandir(folder) as entries:
    for entry in entries:
      match = _PART.fullmatch(entry.name)
      if match and _is_left(match, entry):
        shutil.rmtree(entry.path, ignore_errors=True) if entry.is_dir() else Path(entry.path).unlink(missing_ok=True)


def _is_left(match, entry) -> bool:
  if match["host"] == _host():
    return not alive(int(match["pid"]))
  return time.time() - entry.stat().st_mtime > OLD


def alive(pid: int) -> bool:
  """Whether a process of this host runs."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # another user's
    return True
  return True


def _host() -> str:
  return hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()


def umask() -> int:
  """The permissions that new files of this process do not get."""
  with contextlib.suppress(OSError):
    told = re.search(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if told:
      return int(told[1], 8)
  mask = os.umask(0o077)  # the portable way, which other threads may see for a moment
  os.umask(mask)
  return mask
