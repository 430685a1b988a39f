"""The compiled loop of `vftok/generator/generate.py`, as a GPU gets it: several tokens a turn, matrices cast once."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

from vftok.generator import generate
from vftok.generator.api import Generator
from vftok.generator.request import request
from vftok.models.ar import ARConfig
from vftok.models.attention import attend_filled, attend_seen
from vftok.models.config import GeneratorConfig
from vftok.runtime import target


@pytest.fixture(scope="module")
def model():
  gen = Generator(GeneratorConfig(ARConfig(vocab=30, steps=3, slots=7, depth=2, n_classes=4)))
  return gen, started(gen.init)


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


@pytest.mark.slow
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


@pytest.mark.parametrize("kind", ["class", "text"])
def test_no_weight_is_made_over_from_token_to_token(kind):
  """An axis put in front of a product makes XLA's CPU compiler transpose its weight at every turn of the loop."""
  asked = dict(n_classes=4) if kind == "class" else dict(ctx_dim=24, n_ctx_null=2)
  cfg = GeneratorConfig(ARConfig(vocab=30, steps=3, slots=7, depth=1, width=128, **asked))
  text = {"text_emb": jnp.zeros((1, 5, 24)), "text_mask": jnp.ones((1, 5), bool)}
  plan, _, _, cond, static = request(cfg, {"label": [1]} if kind == "class" else text, guidance=2.0)
  params, keys = jax.eval_shape(Generator(cfg).init, jax.random.key(0)), jax.random.split(jax.random.key(0), 1)
  begin = lambda *arrays: generate.start(cfg.ar, *arrays, **static["start"])
  memo, state = jax.eval_shape(begin, params, plan, cond, keys)
  least = cfg.ar.dim**2  # numbers of the smallest matrix of a block
  assert max(math.prod(x.shape) for x in jax.tree.leaves((state.cache, memo.head, memo.text_kv))) < least
  program = generate.advance.lower(cfg.ar, params, memo, plan, state, 5, **static["advance"])
  # The tests' own level of optimization leaves the transposes of `einsum` alone, whatever they are of.
  found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:transpose|copy)\(", program.compile(OPTIMIZED).as_text())
  assert [shape for shape in found if math.prod(map(int, shape.split(","))) >= least] == []


@pytest.mark.parametrize("sequences, alone", [(1, True), (8, False)])
def test_many_rows_are_multiplied_by_another_library(sequences, alone, model):
  """Of 2 rows, one sequence with guidance, YNNPACK's products are the faster ones; of 16 they cost a quarter more."""
  gen, params = model
  plan, _, keep, cond, static = request(gen.cfg, {"label": [1] * sequences}, guidance=2.0)
  keys = jax.random.split(jax.random.key(0), len(keep))
  memo, state = generate.start(gen.cfg.ar, params, plan, cond, keys, **static["start"])
  advance = generate.advancing(state)
  assert (advance is generate.advance) == alone
  program = advance.lower(gen.cfg.ar, params, memo, plan, state, 21, **static["advance"]).compile(OPTIMIZED)
  assert ("ynn" in program.as_text()) == alone
  usual = generate.advance(gen.cfg.ar, params, memo, plan, jax.tree.map(jnp.copy, state), 21, **static["advance"])
  np.testing.assert_array_equal(advance(gen.cfg.ar, params, memo, plan, state, 21, **static["advance"]).ids, usual.ids)


def test_a_version_that_does_not_know_the_option(monkeypatch):
  target._without_ynnpack.cache_clear()
  monkeypatch.setattr(jax, "jit", lambda *a, **k: 1 / 0)
  assert target.row_options(16) is None
  monkeypatch.undo()
  target._without_ynnpack.cache_clear()
  assert target.row_options(16) and target.row_options(2) is None


OPTIMIZED = {"xla_backend_optimization_level": 2, "xla_llvm_disable_expensive_passes": False}


def test_only_the_filled_part_of_a_long_cache_is_read():
  rng, length = np.random.default_rng(0), 512
  q, k, v = (rng.standard_normal((2, 3, n, 8), np.float32) for n in (1, length, length))
  attend = jax.jit(attend_filled)
  for filled in (1, 64, 65, 200, 256, 500, 512):
    seen = (np.arange(length) < filled)[None, None]
    expected = attend_seen(q, k, v, seen)
    np.testing.assert_allclose(attend(q, k, v, seen, filled), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attend_filled(q, k, v, seen, filled), expected, rtol=1e-5, atol=1e-6)
  beyond = np.where(np.arange(length)[:, None] < 256, v, np.nan)  # 0 x nan is nan, where it is read
  seen = (np.arange(length) < 130)[None, None]
  for run in (attend, attend_filled):
    assert np.isfinite(run(q, k, beyond, seen, 130)).all()
