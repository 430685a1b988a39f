"""The reference's own numbers on random weights: our licence to say that released weights load."""

import pathlib

import pytest

from vftok.tools import parity

DATA = pathlib.Path(__file__).parent / "data"
INPUTS = parity.INPUTS


@pytest.mark.parametrize("name", ["fsq", "masks", "small"])
def test_every_golden_tensor_is_matched(name):
  errors = parity.CHECKS[name](DATA / f"{name}.safetensors")
  assert not errors.not_compared(*INPUTS.get(name, ()))
  wrong = {key: error for key, error in errors.found.items() if not error <= parity.TOLERANCE}
  assert not wrong, f"relative L2 above {parity.TOLERANCE}: {wrong}"


def test_absent_files_are_skipped_and_wrong_numbers_fail(tmp_path, capsys, monkeypatch):
  assert parity.main([str(tmp_path)]) == 0
  assert capsys.readouterr().out.count("skipped") == len(parity.CHECKS)
  (tmp_path / "fsq.safetensors").write_bytes((DATA / "fsq.safetensors").read_bytes())
  assert parity.main([str(tmp_path)]) == 0
  monkeypatch.setattr(parity.fsq, "bound", lambda z, levels: z * 0.999)
  assert parity.main([str(tmp_path)]) == 1
