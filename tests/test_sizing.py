"""What launch/README.md says is what launch/aot/ holds, and the choices are what the issue of scale asks for."""

import json

import pytest

from vftok.tools import sizing

FOLDER, PAGE = sizing.ROOT / "launch" / "aot", sizing.ROOT / "launch" / "README.md"


@pytest.mark.parametrize("row", sizing.SIZES, ids=lambda row: row.name)
def test_sizes_fit_and_compute_bounds_them(row):
  facts = json.loads((FOLDER / f"{row.name}.json").read_text())
  assert facts["program"] == "train" and facts["topology"] == row.topology
  assert facts["fits"] and facts["spare"] >= 0.1 and facts["bound_by"] == "compute"
  assert facts["seconds"]["lower"] + facts["seconds"]["compile"] < 600
  held = facts["bytes_per_chip"]
  assert held["aliased"] >= 0.99 * held["outputs"], "the state is not donated"


def test_the_page_is_up_to_date():
  text = PAGE.read_text()
  for name, rows, table in sizing.TABLES:
    assert sizing.between(text, name, sizing.markdown_table(table(rows, FOLDER))) == text, "run vftok.tools.sizing"


def test_memory_per_token_is_level_in_length():
  facts = [json.loads((FOLDER / f"{row.name}.json").read_text()) for row in sizing.LENGTHS]
  temporary = [f["bytes_per_chip"]["temporary"] for f in facts]  # 81, 161, 321 frames: 672, 1312, 2592 tokens
  assert temporary[1] / temporary[0] < 1.2 * 1312 / 672 and temporary[2] / temporary[0] < 1.2 * 2592 / 672


def test_costs_are_flops_over_assumed_speed():
  head, *lines = sizing.cost_table(sizing.SIZES[:1], FOLDER)
  facts = json.loads((FOLDER / f"{sizing.SIZES[0].name}.json").read_text())
  hours = facts["analytic_flops"] * facts["steps"] / (197e12 * 0.40) / 3600
  assert head[3].startswith("v5e") and lines[0][3].startswith(f"{hours:,.0f} h, ${1.2 * hours:,.0f}, ")


def test_markers():
  assert sizing.between("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
  with pytest.raises(ValueError, match="no markers <!-- y --> and <!-- /y -->"):
    sizing.between("a", "y", "new")


def test_what_the_compiler_refuses_is_said(tmp_path):
  with pytest.raises(RuntimeError, match="odd: error: topology is 'v9:2x2', expected one of v5e"):
    sizing.compile_rows([sizing.Row("odd", "t2v:66m", "v9:2x2")], tmp_path, False)


def test_plot(tmp_path):
  sizing.scaling_plot(sizing.SCALING, FOLDER, tmp_path / "scaling.png")
  assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
