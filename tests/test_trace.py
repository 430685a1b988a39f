"""The table of a profile: names of modules, sums, and how long the device was busy."""

import pytest

from vftok.tools.trace import Kernel, busy, kernels, scope, scopes, table

HLO = """
  %fusion.1 = f32[2] fusion(%a), metadata={op_name="jit(train_step)/jvp(Decoder)/stack/blocks/dot_general" stack=3}
  ROOT %add.7 = f32[2] add(%a, %b), metadata={op_name="jit(train_step)/transpose(jvp(Decoder))/stack/while/body/mul"}
  %plain = f32[2] copy(%a)
"""


def test_instructions_are_named_by_their_modules():
  assert scopes(HLO) == {"fusion.1": "Decoder/stack/blocks", "add.7": "Decoder/stack back"}
  assert scope("jit(f)/VAE.encode/a/b/c/d/mul", 2) == "VAE.encode/a" and scope("jit(f)/mul", 4) == "mul"


def test_time_is_summed_and_gaps_are_seen():
  calls = [Kernel("fusion.1", "m", 0.0, 4e6), Kernel("fusion.1", "m", 2e6, 2e6), Kernel("copy.12", "m", 8e6, 2e6)]
  assert busy(calls) == pytest.approx(0.6)
  rows = table(calls, scopes(HLO), 5).splitlines()[2:]
  assert rows == ["| 6.00 | 75.0% | 2 | Decoder/stack/blocks |", "| 2.00 | 25.0% | 1 | copy |"]
  assert len(table(calls, {}, 1).splitlines()) == 3


def test_no_trace_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no \*\.xplane\.pb: run with"):
    kernels(tmp_path)
