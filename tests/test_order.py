"""The order of tokens: budgets are prefixes, given steps come first, write and read are inverse."""

import numpy as np
import pytest

from vftok.models import order


def places(seq, row=0):
  n = int(seq.lengths[row])
  return list(zip(seq.time_BxL[row, :n].tolist(), seq.slot_BxL[row, :n].tolist(), strict=True))


def test_time_first_is_the_flattening_of_video_tokens():
  seq = order.sequence([[2, 2, 2]])
  assert places(seq) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
  assert places(order.sequence([[2, 2, 2]], order="depth_first")) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_budget_is_a_prefix():
  whole = places(order.sequence([[8] * 5]))
  for k in (1, 2, 4):
    assert places(order.sequence([[k] * 5])) == whole[: 5 * k]


def test_ragged_counts_and_given_steps():
  seq = order.sequence([[3, 1, 2], [0, 2, 0]], [1, 0])
  assert places(seq) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
  assert seq.given_BxL[0].tolist() == [True] * 3 + [False] * 3
  assert places(seq, 1) == [(1, 0), (1, 1)] and not seq.given_BxL[1].any()
  assert seq.valid_BxL.sum(1).tolist() == [6, 2] and not seq.time_BxL[1, 2:].any()


@pytest.mark.parametrize("kind", order.ORDERS)
def test_write_and_read_are_inverse(kind):
  rng = np.random.default_rng(0)
  for _ in range(20):
    b, t, k = rng.integers(1, 5, 3)
    keep, given = rng.integers(0, k + 1, (b, t)), rng.integers(0, t + 1, b)
    ids = rng.integers(1, 99, (b, t, k))
    seq = order.sequence(keep, given, order=kind, length=t * k + 2)
    kept = np.arange(k) < keep[:, :, None]
    np.testing.assert_array_equal(order.read(order.write(ids, seq), seq, t, k), ids * kept)


def test_errors():
  with pytest.raises(ValueError, match="order is 'x'"):
    order.sequence([[1]], order="x")
  with pytest.raises(ValueError, match="at most 3"):
    order.sequence([[2, 2]], length=3)
  with pytest.raises(ValueError, match="counts of 0 or more"):
    order.sequence([[-1]])
