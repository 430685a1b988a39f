"""Reward, exact allocation, and searches against brute force."""

import itertools

import jax
import numpy as np
import pytest

from vftok.budget import allocate, search
from vftok.budget.reward import Reward, lengths, percentile

LEVELS = (1, 2, 4, 8)


def curves(seed, steps=4, levels=LEVELS):
  rng = np.random.default_rng(seed)
  falls = rng.gamma(0.5, 0.2, (steps, len(levels)))
  return falls.sum(1, keepdims=True) - falls.cumsum(1) + falls[:, :1]


def test_reward_has_evatok_signs_and_constants():
  """Levels 128, 256, 512 and the like are not ours; the published mean and deviation of a total length are a check."""
  blocks = ((512, 256, 128, 64, 32),) * 4
  totals = np.array([sum(k) for k in itertools.product(*blocks)])
  reward = Reward.fitted([0.1, 0.3], blocks[0], 4)
  assert (reward.length_mean, reward.length_std) == pytest.approx((totals.mean(), totals.std()))
  assert totals.mean() == pytest.approx(793.6) and totals.std() == pytest.approx(349.137, abs=1e-3)
  keep = np.array([[64, 64, 64, 64]] * 2)
  good, bad = reward([0.1, 0.3], keep, 1.2)
  assert good > bad and good - bad == pytest.approx(1.2 * 0.2 / 0.1)
  short, long = reward([0.2, 0.2], np.array([[64] * 4, [128] * 4]), 1.2)
  assert short - long == pytest.approx(0.8 * 256 / reward.length_std)
  assert lengths([[1, 2, 8]]) == 11


def test_percentile():
  assert percentile([1.0, 2.0], [2.0, 2.0], [0.0, 0.0]) == pytest.approx(75)
  with pytest.raises(ValueError, match="all assignments are alike"):
    percentile([1.0], [1.0], [1.0])


@pytest.mark.parametrize("seed", range(5))
def test_hard_totals_are_met_and_cost_least(seed):
  losses = allocate.at_every_count(curves(seed, steps=3), LEVELS)
  every = np.array(list(itertools.product(range(1, 9), repeat=3)))
  cost = losses[np.arange(3), every - 1].sum(1)
  for total in range(3, 25):
    keep = allocate.for_total(losses, total)
    assert keep.sum() == total
    assert losses[np.arange(3), keep - 1].sum() == pytest.approx(cost[every.sum(1) == total].min())


def test_many_clips_share_a_total():
  losses = np.stack([allocate.at_every_count(curves(seed), LEVELS) for seed in range(30)])
  for mean in (1, 2.5, 3.3, 8):
    keep = allocate.for_mean(losses, mean)
    assert keep.shape == (30, 4) and keep.sum() == round(mean * 120) and keep.min() >= 1 and keep.max() <= 8
  uniform = losses[:, :, 2].sum()  # three each
  shared = np.take_along_axis(losses, allocate.for_mean(losses, 3)[:, :, None] - 1, 2).sum()
  exact = np.take_along_axis(losses.reshape(120, 8), allocate.for_total(losses.reshape(120, 8), 360)[:, None] - 1, 1)
  assert exact.sum() <= shared < uniform and shared - exact.sum() < 0.02 * (uniform - exact.sum())


@pytest.mark.parametrize("weight", [0.6, 1.0, 1.6])
def test_preferences_are_the_best_of_all(weight):
  table, reward = curves(3), Reward.fitted(curves(4), LEVELS, 4)
  losses = allocate.at_every_count(table, LEVELS)
  keep = allocate.for_preference(losses, reward, weight)
  every = np.array(list(itertools.product(range(1, 9), repeat=4)))
  rewards = reward(losses[np.arange(4), every - 1].sum(1), every, weight)
  assert reward([losses[np.arange(4), keep - 1].sum()], keep[None], weight)[0] == pytest.approx(rewards.max())


def test_preferences_inside_a_program_are_the_same():
  tables = np.stack([curves(seed) for seed in range(40)]).astype(np.float32)
  tables, reward = np.minimum.accumulate(tables, 2), Reward.fitted(curves(4), LEVELS, 4)
  weight = np.linspace(0.1, 1.9, 40).astype(np.float32)
  full = [allocate.at_every_count(table, LEVELS) for table in tables]
  every = [allocate.for_preference(losses, reward, w) for losses, w in zip(full, weight, strict=True)]
  found = jax.jit(lambda t, w: allocate.by_preference(t, LEVELS, reward, w))(tables, weight)
  assert (found == np.stack(every)).mean() > 0.99, "ties may fall either way in float32"


def test_curves_between_levels_never_rise():
  losses = allocate.at_every_count([[1.0, 0.5, 0.7, 0.1]], LEVELS)[0]
  assert losses[[0, 1, 3, 7]].tolist() == [1.0, 0.5, 0.5, 0.1] and (np.diff(losses) <= 0).all()
  assert losses[5] == pytest.approx(0.5 - 0.4 * np.log2(6 / 4))


@pytest.mark.parametrize("find", [search.greedy_forward, search.marginal_gain])
def test_few_looks_come_close_to_all(find):
  """Losses in which steps matter to later ones, so that nothing is separable."""
  shares, looks, steps = [], [], 5
  for seed in range(20):
    table, rng = curves(seed, steps, (1, 2, 4, 8, 16)), np.random.default_rng(seed)
    carry = rng.uniform(0, 0.3, steps)

    def evaluate(keep, table=table, carry=carry):
      own = table[np.arange(steps), np.log2(keep).astype(int)]
      before = np.concatenate([np.zeros((len(keep), 1)), own[:, :-1]], 1)
      return (own + carry * before).mean(1)

    reward = Reward.fitted(evaluate(search.all_assignments((1, 2, 4, 8, 16), steps)), (1, 2, 4, 8, 16), steps)
    found = find(evaluate, reward, 1.2, (1, 2, 4, 8, 16), steps)
    every = search.all_assignments((1, 2, 4, 8, 16), steps)
    rewards = reward(evaluate(every), every, 1.2)
    assert found.reward == pytest.approx(reward(evaluate(found.keep[None]), found.keep[None], 1.2)[0])
    shares.append((found.reward, rewards.max(), rewards.min()))
    looks.append(found.evaluations / len(every))
  assert percentile(*np.array(shares).T) >= 97 and max(looks) <= 0.05


@pytest.mark.parametrize(
  "call, sentence",
  [
    (lambda: allocate.for_total(np.ones((5, 8)), 4), "the budget is 4 tokens for 5 time steps, expected 5..40"),
    (lambda: allocate.for_total(np.ones((5, 8)), 41), "expected 5..40: one to 8 per step"),
    (lambda: allocate.by_price(np.ones((5, 8)), 41), "expected 5..40"),
    (lambda: allocate.at_every_count(np.ones((2, 3)), (1, 4, 2)), "expected counts that rise from 1"),
    (lambda: allocate.at_every_count(np.ones((2, 3)), (1, 2)), "expected finite numbers .steps, 2."),
    (lambda: Reward(0, 0, 1, 1), "nothing can be weighed"),
    (lambda: Reward(0, 1, 1, 1)([0.0], [[1]], 2.5), "the weight of quality is 2.5, expected 0..2"),
  ],
)
def test_bad_input(call, sentence):
  with pytest.raises(ValueError, match=sentence):
    call()
