"""The compiled loop of `vftok/generate.py`, as a GPU gets it: several tokens a turn, matrices cast once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok import generate, target
from vftok.generator import Generator, GeneratorConfig
from vftok.models.ar import ARConfig
from vftok.request import request


@pytest.fixture(scope="module")
def model():
  gen = Generator(GeneratorConfig(ARConfig(vocab=30, steps=3, slots=7, depth=2, n_classes=4)))
  return gen, jax.jit(gen.init)(jax.random.key(0))


def made(model, stops) -> list[np.ndarray]:
  gen, params = model
  jax.clear_caches()  # the platform is read while a program is traced
  plan, _, keep, cond, static = request(gen.cfg, {"label": [1, 2]}, guidance=2.0)
  keys = jax.random.split(jax.random.key(0), len(keep))
  memo, state = generate.start(gen.cfg.ar, params, plan, cond, keys, **static["start"])
  out = []
  for stop in stops:
    state = generate.advance(gen.cfg.ar, params, memo, plan, state, stop, **static["advance"])
    out.append(np.asarray(state.ids))
    assert int(state.position) == stop
  return out


def test_several_tokens_a_turn_are_the_same_tokens(model, monkeypatch):
  """Pieces shorter and longer than a turn, and none at all."""
  stops = (3, 3, 20, 21)
  one_by_one = made(model, stops)
  assert len(set(one_by_one[-1].ravel())) > 5
  monkeypatch.setattr(target, "COMPILE_FOR", "gpu")
  for mine, theirs in zip(made(model, stops), one_by_one, strict=True):
    np.testing.assert_array_equal(mine, theirs)


def test_matrices_are_cast_once(model):
  """No step of a bfloat16 model reads a float32 matrix of its blocks or its head."""
  gen, params = model
  cfg = ARConfig(vocab=30, steps=3, slots=7, depth=2, n_classes=4, dtype="bfloat16")
  _, _, keep, cond, _ = request(GeneratorConfig(cfg), {"label": [1]}, guidance=1.0)
  memo, _ = generate.prepare(cfg, params, cond, cfg.length, guided=False)
  assert {x.dtype for x in jax.tree.leaves((memo.layers, memo.head)) if x.ndim > 1} == {jnp.dtype("bfloat16")}
  assert {x.dtype for x in jax.tree.leaves(memo.layers) if x.ndim == 1} == {jnp.dtype("float32")}  # the norms' scales
  assert gen.cfg.ar.dtype == "float32" and len(keep) == 1
