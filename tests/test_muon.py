"""Muon: which parameters are hidden matrices, and that each of them steps by itself, along orthogonal directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vftok.runtime.sharding import Names
from vftok.train import optim
from vftok.train.muon import matrix_of

AXES = {
  "net": {
    "qkv_kernel": Names(("layers", "embed", None, "heads", "head_dim")),
    "proj_kernel": Names(("layers", "heads", "head_dim", "embed")),
    "bias": Names(("layers", "embed")),
    "head": Names(("embed", None)),
  },
  "critic": {"up_kernel": Names(("layers", "embed", "mlp"))},
}
SHAPES = {
  "net": {"qkv_kernel": (2, 12, 3, 2, 4), "proj_kernel": (2, 2, 4, 12), "bias": (2, 12), "head": (12, 5)},
  "critic": {"up_kernel": (2, 12, 20)},
}
is_shape = lambda x: isinstance(x, tuple)
ABSTRACT = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=is_shape)


def normal(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: rng.standard_normal(shape, np.float32), SHAPES, is_leaf=is_shape)


def after(grads, params=None, **own):
  """The updates by several gradients, one after the other, at a rate of 1."""
  cfg = common.base(optim=dict(lr=1.0, warmup=0, schedule="constant", weight_decay=0.0, clip=0.0, **own)).optim
  tx, _ = optim.make_optimizer(cfg, 10, AXES, ABSTRACT)
  params = params or normal(99)
  state, run = tx.init(params), jax.jit(tx.update)
  for grad in grads:
    updates, state = run(grad, state, params)
  return updates, state


def matrices(update):
  """Every hidden matrix of "net" as [input, output]."""
  qkv, proj = update["net"]["qkv_kernel"], update["net"]["proj_kernel"]
  return [qkv[i, :, j].reshape(12, 8) for i in range(2) for j in range(3)] + [proj[i].reshape(8, 12) for i in range(2)]


@pytest.mark.parametrize(
  "names, sides",
  [
    (("layers", "embed", None, "heads", "head_dim"), ((1,), (3, 4))),
    (("layers", "heads", "head_dim", "embed"), ((1, 2), (3,))),
    (("layers", "embed", None, "mlp"), ((1,), (3,))),
    (("layers", "embed", None, None, "embed_out"), ((1,), (4,))),
    (("embed", "embed_out"), ((0,), (1,))),
    (("layers", None, "heads", "head_dim"), None),  # a bias
    ((None, None, "embed"), None),  # registers
    (("vocab", "embed"), None),
    (("embed", "vocab"), None),
    ((None, "embed"), None),
    ((None, None, None, "conv_in", "conv_out"), None),
    ((), None),
  ],
)
def test_hidden_matrices_are_told_by_their_axes(names, sides):
  found = matrix_of(names)
  assert found is None if sides is None else (found.reduction_axis, found.output_axis) == sides


def test_steps_are_orthogonal_and_of_the_size_asked_for():
  updates, _ = after([normal(0), normal(1)], muon=0.5)
  for step in matrices(updates):
    values = np.linalg.svd(step, compute_uv=False)
    assert values.min() / (0.5 * 12**0.5) > 0.6 and values.max() / (0.5 * 12**0.5) < 1.3
  plain, _ = after([normal(0), normal(1)])
  for name in ("bias", "head"):
    np.testing.assert_array_equal(updates["net"][name], plain["net"][name])


def test_they_go_along_nesterovs_momentum():
  """The orthogonal factor of 0.9 times the mean that is, and 0.1 of the newest gradient."""
  a, b = normal(0), normal(1)
  updates, _ = after([a, b], muon=1.0)
  mean = jax.tree.map(lambda a, b: 0.09 * a + 0.1 * b, a, b)
  ahead = jax.tree.map(lambda m, b: 0.9 * m + 0.1 * b, mean, b)
  for step, way in zip(matrices(updates), matrices(ahead), strict=True):
    u, _, v = np.linalg.svd(way, full_matrices=False)
    aligned = np.sum(-step * (u @ v)) / np.linalg.norm(step) / np.linalg.norm(u @ v)
    assert aligned > 0.97


def test_every_matrix_steps_by_itself():
  one, other = normal(0), normal(0)
  other["net"]["qkv_kernel"][1, :, 2] *= -3
  same = [
    np.array_equal(a, b) for a, b in zip(*(matrices(after([grad], muon=1.0)[0]) for grad in (one, other)), strict=True)
  ]
  assert same == [True] * 5 + [False] + [True] * 2


def test_the_state_is_adams():
  found, plain = (after([normal(0), normal(1)], **own)[1] for own in (dict(muon=0.6), {}))
  jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_parts_in_turns_have_adams_step():
  grads = [normal(i) for i in range(3)]
  found, plain = (after(grads, every={"critic": 2}, **own)[0] for own in (dict(muon=0.6), {}))
  np.testing.assert_allclose(found["critic"]["up_kernel"], plain["critic"]["up_kernel"], rtol=1e-5, atol=1e-6)
  assert not np.allclose(found["net"]["proj_kernel"], plain["net"]["proj_kernel"])


@pytest.mark.parametrize("own", [dict(muon=-1.0), dict(muon=float("nan")), dict(muon=0.6, mup_base_width=256)])
def test_what_cannot_be_is_one_sentence(own):
  with pytest.raises(ValueError, match=r"^optim\.muon is .* expected a number above 0, and 0 there: .*\.$"):
    after([normal(0)], **own)
