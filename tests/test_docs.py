"""The API as HTML."""

import pytest

from vftok.tools import docs


@pytest.mark.slow
def test_every_file_has_a_page(tmp_path, capsys):
  pytest.importorskip("pdoc")
  assert docs.main(["--out", str(tmp_path)]) == 0
  assert capsys.readouterr().out.endswith("index.html\n")
  files = [path for path in docs.PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__", "main")]
  lacking = [f for f in files if not (tmp_path / "vftok" / f.relative_to(docs.PACKAGE).with_suffix(".html")).is_file()]
  assert len(files) > 150 and not lacking
  assert "ordered discrete tokens" in (tmp_path / "vftok" / "tokenizer" / "api.html").read_text()


def test_without_pdoc_it_is_one_sentence(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(__import__("sys").modules, "pdoc", None)
  assert docs.main(["--out", str(tmp_path)]) == 2
  assert "the API reference needs pdoc" in capsys.readouterr().err and not list(tmp_path.iterdir())
