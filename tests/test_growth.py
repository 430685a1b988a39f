"""How time and memory grow, as the tool measures it."""

import json

import pytest

from vftok.tools import growth


@pytest.mark.slow
def test_a_point_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(growth.AXES, "dataset", (64, 256))
  assert growth.main(["--axes", "dataset", "--json", str(tmp_path / "growth.json")]) == 0
  found = json.loads((tmp_path / "growth.json").read_text())["rows"]
  assert [row["value"] for row in found] == [64, 256] and all(row["peak_mib"] > 50 > row["open_s"] for row in found)
  assert capsys.readouterr().out.splitlines()[2].startswith("| dataset | 64 |")


def test_an_axis_that_is_none(capsys):
  with pytest.raises(SystemExit):
    growth.main(["--axes", "frames,colour"])
  assert "'colour' is no axis, expected some of frames" in capsys.readouterr().err


def test_cells_that_a_point_does_not_have_stay_empty():
  rows = [{"axis": "batch", "value": 2, "encode_s": 1.23456, "decode_s": 2.0, "peak_mib": 900.4}]
  assert growth.table(rows).splitlines()[-1] == "| batch | 2 | 1.23 | 2 |  | 900 |"
