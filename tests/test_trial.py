"""`Auto(tries=N)`: the spread of a budget that a clip itself says is best."""

import re

import numpy as np
import pytest
from router_files import LEVELS, clip

from vftok import Auto, Router
from vftok.budget import trial
from vftok.tokens import VideoTokens


def stepwise(worth_T):
  """What stands for LPIPS: the sum over steps of worth / count, a little noise by number."""

  def lpips(tok, params, chunk, tokens: VideoTokens, keep_BxMxT, number):
    assert tokens.keep.min() == tok.registers, "all tokens are there to choose from"
    return (worth_T / keep_BxMxT).sum(2) + 1e-6 * np.random.default_rng(number).random(keep_BxMxT.shape[:2])

  return lpips


def test_proposals_keep_the_total_and_begin_with_the_routers():
  curve = np.cumsum(np.random.default_rng(0).gamma(1.0, 1.0, (5, 5)), axis=1)[:, ::-1]
  keep = np.array([7, 4, 4, 3, 2])
  found = trial.proposals(curve, (1, 2, 4, 8, 16), keep, 2, 12)
  assert found.shape == (12, 5) and (found.sum(1) == 20).all() and found.min() >= 1
  assert (found[:, :2] == [7, 4]).all() and found[0].tolist() == keep.tolist() and found[1].tolist() == [7, 4, 3, 3, 3]
  assert len(np.unique(found, axis=0)) == 12
  steep = np.zeros((5, 5))
  steep[4, 0] = 100.0  # more than any bend hides: the second token of the last step
  free = trial.proposals(steep + 1e-3 * curve, (1, 2, 4, 8, 16), np.full(5, 2), 0, 8)
  assert (free[2:, 4] > 1).all()
  only = trial.proposals(curve, (1, 2, 4, 8, 16), np.ones(5, int), 0, 4)
  assert (only == 1).all() and only.shape == (4, 5), "one spread there is, however often it is asked for"


def test_what_the_clip_says_is_kept(random_model, routers, monkeypatch):
  _, tok, params = random_model
  worth = np.array([0.0, 0.0, 0.0, 0.0, 5.0])
  monkeypatch.setattr(trial, "_lpips", stepwise(worth))
  plain = tok.encode(params, clip(), budget=Auto(mean=2, router=routers["curves"]))
  tokens = tok.encode(params, clip(), budget=Auto(mean=2, router=routers["curves"], tries=16))
  np.testing.assert_array_equal(tokens.ids, plain.ids)
  assert tokens.total().tolist() == [10, 10]
  assert (worth / tokens.keep).sum() < (worth / plain.keep).sum() and (np.asarray(tokens.keep)[:, 4] == 4).all()
  fixed = tok.encode(params, clip(), budget=Auto(total=12, router=routers["curves"], tries=8, first=(4, 3)))
  assert (np.asarray(fixed.keep)[:, :2] == [4, 3]).all() and fixed.total().tolist() == [12, 12]
  said = Auto(preference=1.2, router=routers["curves"], tries=8, first=(4, 3, 2, 1, 1))
  assert (tok.encode(params, clip(), budget=said).keep == np.array(said.first)).all(), "nothing is left to spread"


def test_every_chunk_is_tried_with_what_it_got(random_model, routers, monkeypatch):
  """Later chunks are decoded with the counts of the steps they share; a stream by preference is the whole."""
  _, tok, params = random_model
  seen = []

  def lpips(tok, params, chunk, tokens, keep_BxMxT, number):
    seen.append(keep_BxMxT)
    return stepwise(np.arange(5.0))(tok, params, chunk, tokens, keep_BxMxT, number)

  monkeypatch.setattr(trial, "_lpips", lpips)
  video = clip(tok.chunk_frames + tok.stride)
  by_router = tok.encode(params, video, budget=Auto(preference=1.2, router=routers["curves"]))
  budget = Auto(preference=1.2, router=routers["curves"], tries=6)
  whole = tok.encode(params, video, budget=budget)
  shared = tok.overlap_steps
  assert shared and len(seen) == 2 * trial.LOOKS
  for keep_BxMxT in seen[trial.LOOKS :]:
    before = np.asarray(whole.keep)[:, None, tok.chunk_steps - shared : tok.chunk_steps]
    assert (keep_BxMxT[:, :, :shared] == before).all()
  first = slice(0, tok.chunk_steps)
  np.testing.assert_array_equal(np.asarray(whole.keep)[:, first].sum(1), np.asarray(by_router.keep)[:, first].sum(1))
  pieces = list(tok.encode_stream(params, iter([video[:, :5], video[:, 5:]]), budget=budget))
  np.testing.assert_array_equal(np.concatenate([piece.keep for piece in pieces], 1), whole.keep)
  total = tok.encode(params, video, budget=Auto(total=20, router=routers["curves"], tries=4))
  assert total.total().tolist() == [20, 20]


@pytest.mark.slow
def test_trials_are_decoded_for_real(random_model, routers, tmp_path):
  """The kept assignment has the lowest LPIPS under the three noises among those that were seen three times."""
  _, tok, params = random_model
  video = clip()
  budget = Auto(mean=2, router=routers["curves"], tries=4)
  tokens = tok.encode(params, video, budget=budget)
  again = tok.encode(params, video.astype(np.float32) / 127.5 - 1, budget=budget)
  np.testing.assert_array_equal(tokens.keep, again.keep)
  alone = tok.encode(params, video[1:], budget=budget)
  np.testing.assert_array_equal(tokens.keep[1:], alone.keep, "a clip gets what it gets, whatever stands beside it")
  full = tok.encode(params, video)
  router, weights = Router.load(routers["curves"])
  predicted = np.asarray(router.predict(weights, tok.encode_latents(params, video)))
  start = router.keep(predicted, Auto(mean=2))
  keep = np.stack([trial.proposals(p, LEVELS, k, 0, 4) for p, k in zip(predicted, start, strict=True)])
  looks = [trial._lpips(tok, params, video, full, keep, number) for number in range(trial.LOOKS)]
  for b in range(len(video)):
    two = looks[0][b].argsort()[:2]
    wanted = keep[b, two[sum(looks)[b, two].argmin()]]
    np.testing.assert_array_equal(np.asarray(tokens.keep)[b], wanted)


@pytest.mark.parametrize(
  "call, sentence",
  [
    (lambda tok, p, r: Auto(mean=2, tries=1), "budget.tries is 1, expected 0 or at least 2"),
    (lambda tok, p, r: Auto(mean=2, tries=2.5), "budget.tries is 2.5, expected 0 or at least 2"),
    (lambda tok, p, r: Auto(mean=2, tries=-4), "budget.tries is -4, expected 0 or at least 2"),
    (
      lambda tok, p, r: tok.encode(p, clip(), budget=Auto(preference=1.2, router=r["classes"], tries=4)),
      "budget.tries is 4, expected 0 with a router of classes: take one of curves.",
    ),
  ],
)
def test_bad_tries(call, sentence, random_model, routers):
  with pytest.raises(ValueError, match=re.escape(sentence)):
    call(*random_model[1:], routers)
