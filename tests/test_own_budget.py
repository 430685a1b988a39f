"""A budget of one's own, two methods: `vftok.tokens.Budget` through encode, encode_stream and the command line."""

import numpy as np
import pytest
from grey_family import Grey

from vftok.budget.auto import Auto
from vftok.cli import commands
from vftok.io.vft import read_vft
from vftok.io.video_writer import write_video
from vftok.tokens import Budget, Chooser, VideoTokens


class Greedy:
  """As many tokens as the first one says, 1 to K: the contents decide, step by step, and so in streams too."""

  def encode_video(self, tok, params, video, fit):
    return self._cut(tok.encode(params, video, fit=fit))

  def encode_stream(self, tok, params, pieces, fit):
    return map(self._cut, tok.encode_stream(params, pieces, fit=fit))

  def _cut(self, tokens):
    return tokens.truncate(1 + tokens.ids[:, :, 0] % tokens.ids.shape[2])


class Half:
  """Not a budget: streams would not know it."""

  def encode_video(self, tok, params, video, fit):
    raise AssertionError("never asked")


@pytest.fixture(scope="module")
def clip():
  return np.random.default_rng(0).integers(0, 256, (1, 33, 16, 16, 3), np.uint8)


def test_a_video_and_its_stream_get_what_the_budget_says(random_model, clip):
  _, tok, params = random_model
  budget = Greedy()
  assert isinstance(budget, Budget) and not isinstance(budget, Chooser) and not isinstance(Half(), Budget)
  full, own = tok.encode(params, clip), tok.encode(params, clip, budget=budget)
  np.testing.assert_array_equal(own.ids, full.ids)  # ids never depend on it
  np.testing.assert_array_equal(own.keep, 1 + np.asarray(full.ids)[:, :, 0] % tok.registers)
  assert len(np.unique(own.keep)) > 1 and (full.keep == tok.registers).all()
  pieces = list(tok.encode_stream(params, iter(np.split(clip, 11, axis=1)), budget=budget))
  streamed = VideoTokens.concat(pieces)
  assert len(pieces) == 2
  np.testing.assert_array_equal(streamed.ids, own.ids)
  np.testing.assert_array_equal(streamed.keep, own.keep)


def test_the_command_line_writes_its_counts(random_model, clip, tmp_path, monkeypatch, capsys):
  path, tok, _ = random_model
  asked = []
  monkeypatch.setattr(Auto, "parse", classmethod(lambda cls, *words: asked.append(words) or Greedy()))
  write_video(tmp_path / "a.mp4", clip[0], 8)
  words = ["encode", str(path), str(tmp_path / "a.mp4"), str(tmp_path / "a.vft"), "--budget", "greedy"]
  assert commands.main(words) == 0, capsys.readouterr().err
  vft = read_vft(tmp_path / "a.vft")
  keep = vft.keep
  assert asked == [("greedy", None, 0)] and len(np.unique(keep)) > 1 and len(vft.ids) == keep.sum()
  first = np.asarray(vft.tokens().ids)[0, :, 0]
  np.testing.assert_array_equal(keep, 1 + first % tok.registers)


def test_what_is_no_budget_or_cannot_be_cut_is_refused(random_model, clip):
  _, tok, params = random_model
  with pytest.raises(ValueError, match=r"keep is .*Half.* of dtype object, expected whole numbers of tokens"):
    tok.encode(params, clip, budget=Half())
  grey, shades = Grey(), {"table": {"shades": np.linspace(-1, 1, 16, dtype=np.float32)}}
  for run in (grey.encode, grey.encode_stream):
    with pytest.raises(ValueError, match="this model's tokens have no order to cut them by"):
      run(shades, clip[:, :16], budget=Greedy())
