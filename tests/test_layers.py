"""Rooms in a strict order: a file imports only from lower ones, or from its own, and nothing in a circle.

Every import counts, inside functions and for types too.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vftok"
RANKS = (
  {"runtime"},
  {"tokens"},
  {"io"},
  {"models", "show"},
  {"data", "frozen", "convert"},
  {"tokenizer"},
  {"families"},
  {"generator", "budget"},
  {"evals"},
  {"tasks"},
  {"train"},
  {"__init__"},
  {"cli", "tools", "main"},
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
  """Dotted name below the package -> file; of a room's own file, the room."""
  found = {}
  for path in root.rglob("*.py"):
    parts = path.relative_to(root).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
  return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
  """Modules of the package that a file imports, anywhere in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "vftok":
        below = ".".join(parts[1:])
        found.add(below if below in known else ".".join(parts[1:-1]) or "__init__")
  return found


def arrows(root: Path) -> dict[str, set[str]]:
  known = modules(root)
  return {name: imports(path, known) - {name} for name, path in known.items()}


def room(module: str) -> str:
  return module.split(".", maxsplit=1)[0]


def upward(graph) -> list[str]:
  return sorted(
    f"{name} imports {other}"
    for name, others in graph.items()
    for other in others
    if room(name) != room(other) and RANK[room(other)] >= RANK[room(name)]
  )


def circle(graph) -> list[str] | None:
  """One circle of files, None where there is none."""
  done, way = set(), []

  def visit(name):
    if name in way:
      return [*way[way.index(name) :], name]
    if name in done:
      return None
    way.append(name)
    for other in sorted(graph.get(name, ())):
      if found := visit(other):
        return found
    done.add(way.pop())
    return None

  return next((found for name in sorted(graph) if (found := visit(name))), None)


def test_every_arrow_points_down():
  graph = arrows(PACKAGE)
  assert {room(name) for name in graph} == set(RANK)
  assert len(graph) > 150 and sum(map(len, graph.values())) > 500
  assert not upward(graph)


def test_no_files_in_a_circle():
  assert circle(arrows(PACKAGE)) is None


def test_few_files_and_rooms_at_the_top():
  entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
  assert sum(path.is_file() for path in entries) <= 4 and sum(path.is_dir() for path in entries) <= 17


@pytest.mark.parametrize(
  ("file", "line", "wrong"),
  [
    ("models/net.py", "from vftok.tokenizer import api", "models.net imports tokenizer.api"),
    ("io/file.py", "def f():\n  from vftok.models.net import Net", "io.file imports models.net"),
    ("data/clip.py", "if TYPE_CHECKING:\n  from vftok.convert.load import x", "data.clip imports convert.load"),
    ("models/net.py", "import vftok.runtime.files", None),
    ("models/net.py", "from vftok.models import other", None),
  ],
)
def test_what_is_upward(tmp_path, file, line, wrong):
  for name in (
    "models/net.py",
    "models/other.py",
    "io/file.py",
    "tokenizer/api.py",
    "convert/load.py",
    "runtime/files.py",
  ):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  (tmp_path / file).parent.mkdir(exist_ok=True)
  (tmp_path / file).write_text(line)
  assert upward(arrows(tmp_path)) == ([wrong] if wrong else [])


def test_what_is_a_circle():
  assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
  assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
