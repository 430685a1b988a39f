"""The notebooks in launch/colab run from top to bottom on a CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))


def test_there_are_three_without_outputs():
  assert [path.stem for path in NOTEBOOKS] == ["text_to_video", "tokenize_your_video", "train_on_your_folder"]
  for path in NOTEBOOKS:
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
      assert cell["cell_type"] != "code" or not (cell["outputs"] or cell["execution_count"])
      if cell["cell_type"] == "code":
        compile("".join(cell["source"]), str(path), "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_finds_the_clone_and_says_where_it_runs(path, tmp_path, monkeypatch, capsys):
  cell = next(cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
  first = compile("".join(cell["source"]), str(path), "exec")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match="no clone of vftok here: set REPOSITORY"):
    exec(first, {})
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "below" / "that").mkdir(parents=True)
  monkeypatch.chdir(tmp_path / "below" / "that")
  exec(first, {})
  assert Path.cwd() == tmp_path
  assert re.search(r"1 x cpu, backend cpu\n.*CPU", capsys.readouterr().out, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
  pytest.importorskip("nbclient")
  code = (
    "import sys, nbformat, nbclient; nb = nbformat.read(sys.argv[1], 4); "
    "nbclient.NotebookClient(nb, timeout=1200, resources={'metadata': {'path': sys.argv[2]}}).execute()"
  )
  work = tmp_path / "clone"
  work.mkdir()
  for name in ("vftok", "configs", "pyproject.toml"):
    (work / name).symlink_to(ROOT / name)
  done = subprocess.run(
    [sys.executable, "-c", code, str(path), str(work)],
    env={**os.environ, "PYTHONPATH": str(work)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
