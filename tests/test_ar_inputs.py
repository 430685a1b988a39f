"""What EVATok's generators have beside other ones: positions in the sequence, widths of their own, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.generator.api import Generator
from vftok.models import lengths, order
from vftok.models.ar import AR, ARConfig
from vftok.models.ar_inputs import Condition, Drop, Places
from vftok.models.config import GeneratorConfig

AR_CONFIG = ARConfig(
  vocab=29,
  steps=3,
  slots=4,
  depth=2,
  width=64,
  head_dim=32,
  hidden_dim=96,
  n_classes=3,
  positions="sequence",
  order="depth_first",
  lengths="length_first",
  levels=(1, 2, 4),
)


@pytest.fixture(scope="module")
def model():
  gen = Generator(GeneratorConfig(AR_CONFIG, nested=False))
  params = jax.jit(gen.init)(jax.random.key(0))
  return gen, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize("depth, width, hidden, millions", [(12, 768, 2048, 99.2), (24, 1024, 2816, 327.3)])
def test_published_generators_have_their_size(depth, width, hidden, millions):
  """EVATok section 6.2: vocabulary 8197, 2053 positions, 102 rows of classes."""
  cfg = dataclasses.replace(
    AR_CONFIG, vocab=8192, steps=4, slots=512, levels=(32, 64, 128, 256, 512), n_classes=101, depth=depth, width=width
  )
  cfg = dataclasses.replace(cfg, hidden_dim=hidden, head_dim=64)
  assert (cfg.total_vocab, cfg.length + 1) == (8197, 2053)
  shapes = jax.eval_shape(Generator(GeneratorConfig(cfg)).init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(millions * 1e6, rel=1e-3)
  assert shapes["position_table"].shape == (2053, width)


def test_a_cached_step_stands_where_training_had_it(model):
  gen, params = model
  tokens = gen.generate(params, jax.random.key(1), {"label": [0, 1, 2]}, guidance=1.0, temperature=0.0)
  assert set(np.unique(tokens.keep)) <= {1, 2, 4} and not tokens.nested
  cfg = gen.cfg.ar
  for row in range(3):
    ids, keep = lengths.extend(cfg, np.asarray(tokens.ids[row : row + 1]), np.asarray(tokens.keep[row : row + 1]))
    seq = order.sequence(keep, order=cfg.order)
    ids_1xL = order.write(ids, seq)
    logits = gen.logits(params, ids_1xL, {"label": [row]}, keep=np.asarray(tokens.keep[row : row + 1]))
    assert np.array_equal(logits.argmax(-1), ids_1xL)


@pytest.mark.slow
def test_positions_begin_anew_with_every_sequence_of_a_row(model):
  gen, params = model
  segment = jnp.array([[0] * 4 + [1] * 3 + [-1]])
  assert Places.of(segment, segment, segment).index_BxL.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
  null = Condition(null_BxG=jnp.ones((1, 2), bool))
  ids, nothing = jnp.arange(8)[None], jnp.zeros((1, 8), jnp.int32)
  run = lambda ids, places, cond: AR(gen.cfg.ar).apply({"params": params}, ids, places, cond)
  packed = run(ids, Places.of(nothing, nothing, segment), null)
  alone = run(ids[:, 4:7], Places.of(nothing[:, :3], nothing[:, :3]), Condition(null_BxG=jnp.ones((1, 1), bool)))
  np.testing.assert_allclose(packed[:, 4:7], alone, atol=1e-4)
  other = run(ids[:, 3:6], Places.of(nothing[:, :3], nothing[:, :3]), Condition(null_BxG=jnp.ones((1, 1), bool)))
  assert np.abs(packed[:, 3:6] - other).max() > 0.1


@pytest.mark.slow
def test_dropout_is_of_each_row_and_layer(model):
  gen, params = model
  keys = jax.random.split(jax.random.key(0), 3)
  ids, places = jnp.tile(jnp.arange(6), (3, 1)), Places.of(*[jnp.zeros((3, 6), jnp.int32)] * 2)

  @jax.jit
  def run(params, keys, *rates):
    rngs = {"dropout": jax.random.key(1)}
    cond = Condition(null_BxG=jnp.ones((len(keys), 1), bool))
    cut = jax.tree.map(lambda x: x[: len(keys)], (ids, places))
    return AR(gen.cfg.ar).apply({"params": params}, *cut, cond, Drop(keys, *rates), rngs=rngs)

  plain = run(params, keys, 0.0, 0.0, 0.0)
  np.testing.assert_allclose(plain[1], plain[0], atol=1e-5)
  for rates in np.eye(3) * 0.5:
    dropped = run(params, keys, *rates)
    assert np.isfinite(dropped).all() and np.abs(dropped[1] - dropped[0]).max() > 0.1  # each row has its own
    np.testing.assert_allclose(run(params, keys[:1], *rates)[0], dropped[0], atol=1e-5)  # whoever stands beside it
  # A layer whose branches are dropped whole adds nothing: what is left is the embedding.
  x = np.full((1, 1000, 4), 3.0, np.float32)
  kept = np.asarray(Drop(keys[:1], residual=0.25).attended(jax.random.key(0), x))
  assert set(np.unique(kept)) == {0.0, 4.0} and abs((kept == 0).mean() - 0.25) < 0.03
  assert not np.array_equal(kept, Drop(keys[:1], residual=0.25).attended(jax.random.key(1), x))
