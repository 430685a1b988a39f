"""Frechet distance against closed forms; statistics that do not depend on how a set is cut; codebook usage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vftok import VideoTokens
from vftok.evals.codebook import CodebookUsage
from vftok.evals.frechet import Statistics, distance, gaussian_distance


def of(features) -> Statistics:
  statistics = Statistics()
  statistics.update(features)
  return statistics


def test_diagonal_gaussians_have_the_closed_form():
  rng = np.random.default_rng(0)
  mean_a, mean_b, a, b = rng.normal(size=(4, 50))
  expected = ((mean_a - mean_b) ** 2).sum() + ((np.abs(a) - np.abs(b)) ** 2).sum()
  assert gaussian_distance(mean_a, np.diag(a**2), mean_b, np.diag(b**2)) == pytest.approx(expected, rel=1e-12)


def test_general_gaussians_equal_scipys_matrix_square_root():
  linalg = pytest.importorskip("scipy.linalg")
  rng = np.random.default_rng(1)
  a, b = (m @ m.T for m in rng.normal(size=(2, 20, 20)))
  expected = np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real
  assert gaussian_distance(np.zeros(20), a, np.zeros(20), b) == pytest.approx(expected, rel=1e-9)


def test_scaled_copy_and_shift_have_the_closed_form_with_fewer_examples_than_dimensions():
  x = np.random.default_rng(2).normal(size=(30, 400)) * 7
  trace = np.trace(of(x).covariance)
  # B = s^2 A in every direction: tr A (1 - s)^2, and the means move apart.
  expected = trace * 0.25 + (x.mean(0) ** 2).sum() * 0.25
  assert distance(of(x), of(1.5 * x)) == pytest.approx(expected, rel=1e-9)
  assert distance(of(x), of(x + 0.5)) == pytest.approx(400 * 0.25, rel=1e-9)


@pytest.mark.parametrize("n", [2, 30, 900])
def test_a_set_and_itself_are_at_distance_zero(n):
  x = np.random.default_rng(3).normal(size=(n, 400)) * np.logspace(-4, 2, 400)
  assert distance(of(x), of(x[::-1])) == 0.0
  assert distance(of(x), of(x + 1e-3)) > 0


def test_distance_is_symmetric():
  rng = np.random.default_rng(4)
  a, b = of(rng.normal(size=(40, 60))), of(rng.normal(size=(50, 60)) * 2 + 1)
  assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2**31))
def test_batches_padding_and_merging_change_nothing(sizes, seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(sum(sizes) + 2, 5)) * 3 + 1e4
  streamed, halves, at = of(x[-2:]), (Statistics(), Statistics()), 0
  for i, size in enumerate(sizes):
    padded = np.concatenate([x[at : at + size], np.full((3, 5), 1e9)])
    mask = np.arange(size + 3) < size
    streamed.update(padded, mask)
    halves[i % 2].update(padded, mask)
    at += size
  halves[0].merge(halves[1])
  halves[0].merge(of(x[-2:]))
  for statistics in (streamed, halves[0]):
    assert statistics.n == len(x)
    np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(x, rowvar=False), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
  ("features", "mask", "words"),
  [
    (np.zeros(3), None, "one vector per example"),
    (np.zeros((3, 2)), np.ones(2, bool), "one value per example"),
    (np.full((3, 2), np.nan), None, "NaN"),
    (np.zeros((3, 4)), None, "4 dimensions, expected 2"),
  ],
)
def test_bad_features_are_refused(features, mask, words):
  statistics = of(np.zeros((2, 2)))
  with pytest.raises(ValueError, match=words):
    statistics.update(features, mask)


def test_padding_may_hold_anything():
  statistics = Statistics()
  statistics.update(np.array([[1.0], [np.nan], [3.0]]), [True, False, True])
  assert statistics.mean == 2 and statistics.covariance == 2


def test_one_example_has_no_covariance():
  with pytest.raises(ValueError, match="at least 2"):
    distance(of(np.zeros((1, 4))), of(np.zeros((1, 4))))


def test_codebook_usage_counts_kept_tokens_of_real_clips():
  usage = CodebookUsage(registers=2, codebook_size=8)
  tokens = VideoTokens.full([[[0, 7], [1, 7]], [[0, 7], [1, 6]], [[5, 5], [5, 5]]])
  usage.update(tokens.truncate(np.array([[2, 1], [2, 2], [2, 2]])), [True, True, False])
  got = usage.summary()
  assert got["clips"] == 2 and got["tokens_per_register"] == [4, 3]
  assert got["used_codes"] == 4 and got["used"] == 0.5 and got["used_per_register"] == [0.25, 0.25]
  thirds = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
  assert got["entropy_bits_per_register"] == pytest.approx([1.0, thirds])
  p = np.array([2, 2, 1, 2]) / 7
  assert got["entropy_bits"] == pytest.approx(-(p * np.log2(p)).sum())
  assert got["bits_per_clip"] == pytest.approx(3.5 * 3)
  assert got["entropy_bits_per_clip"] == pytest.approx((4 * 1.0 + 3 * thirds) / 2)


def test_codebook_usage_refuses_ids_of_another_model():
  usage = CodebookUsage(registers=2, codebook_size=8)
  with pytest.raises(ValueError, match=r"expected 0\.\.7"):
    usage.update(VideoTokens.full([[[0, 8]]]))
  with pytest.raises(ValueError, match="expected 2"):
    usage.update(VideoTokens.full([[[0, 1, 2]]]))
