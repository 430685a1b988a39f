"""Models that say their own lengths: never a wrong kind of token, cached == uncached, wishes are met."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import moved, started

from vftok.generator import generate_adaptive
from vftok.generator.api import Generator, _logits
from vftok.generator.conditions import condition
from vftok.generator.request import request
from vftok.models import lengths, order
from vftok.models.ar import ARConfig
from vftok.models.ar_inputs import Places
from vftok.models.config import GeneratorConfig
from vftok.tokens import VideoTokens

T, K, V, LEVELS = 5, 4, 29, (1, 2, 4)
B = 150  # the same in all tests, so that they share programs
KINDS = [(form, kind) for form in lengths.FORMATS[1:] for kind in order.ORDERS]
# Each format and each order once; the other two pairs in the slow half.
CROSSED = [pytest.param(*pair, marks=[pytest.mark.slow] * (i in (1, 2))) for i, pair in enumerate(KINDS)]


@functools.cache
def model(form, kind="time_first", depth=1):
  """Random weights, well away from symmetry: greedy choices must not hang on the last bit."""
  levels = LEVELS if form == "length_first" else ()
  ar = ARConfig(
    vocab=V,
    steps=T,
    slots=K,
    depth=depth,
    width=64,
    head_dim=32,
    n_classes=3,
    lengths=form,
    levels=levels,
    order=kind,
  )
  gen = Generator(GeneratorConfig(ar, guidance=((65536, 1.5),)))
  return gen, moved(started(gen.init))


def labels(b):
  return {"label": np.arange(b) % 3}


def said(gen, tokens, given=0):
  """(ids [B, L], counts, sequence) of the extended sequence that made these tokens."""
  cfg = gen.cfg.ar
  ids, keep = lengths.extend(cfg, np.asarray(tokens.ids), np.asarray(tokens.keep))
  seq = order.sequence(keep, given, order=cfg.order)
  return order.write(ids, seq), seq


def guided(gen, null, full, end_bias=0.0):
  """Guided logits, in NumPy; what is impossible stays so."""
  null, full = np.asarray(null), np.asarray(full)
  with np.errstate(invalid="ignore"):
    out = np.where(np.isfinite(null), null + 1.5 * (full - null), -np.inf)
  out[..., gen.cfg.ar.vocab :] += end_bias
  return out


@pytest.mark.slow
@pytest.mark.parametrize("form, kind", CROSSED)
def test_ten_thousand_tokens_of_the_right_kind(form, kind):
  """Read from the state itself: what stands where it was written, before anything is stripped."""
  gen, params = model(form, kind)
  cfg = gen.cfg.ar
  asked, ids, keep = request(gen.cfg, labels(B), temperature=3.0), [], []
  for seed in range(6):
    _, memo, state, length = gen._start(params, jax.random.key(seed), asked)
    state = generate_adaptive.advance(cfg, params, memo, asked.plan, state, length, **asked.static["advance"])
    assert state.done.all()
    tokens, want = gen._tokens(asked, state), lengths.strip(cfg, np.asarray(state.ids), np.asarray(state.keep))
    np.testing.assert_array_equal(tokens.ids, want[0])
    np.testing.assert_array_equal(tokens.keep, want[1])
    assert int(state.position) == state.keep.sum(1).max()
    ids.append(np.asarray(state.ids))
    keep.append(np.asarray(state.keep))
  ids, keep = np.concatenate(ids), np.concatenate(keep)
  inside = np.arange(cfg.total_slots) < keep[:, :, None]
  assert inside.sum() > 10_000 and ids[inside].max() < cfg.total_vocab and len(np.unique(keep)) == 3
  is_length = lengths.says_length(cfg, ids) & inside
  if form == "length_first":
    assert (is_length == (np.arange(K + 1) == 0)).all() and set(np.unique(ids[:, :, 0])) == {V, V + 1, V + 2}
    np.testing.assert_array_equal(np.array(LEVELS)[ids[:, :, 0] - V] + 1, keep)
  else:
    assert not is_length[:, :, 0].any() and is_length.any() and not is_length.all()
    last = np.arange(K) == keep[:, :, None] - 1
    assert not (is_length & ~last).any()  # nothing after END
    assert (is_length | (np.arange(K) == K - 1))[last].all()  # and END at the end, but of full steps


@pytest.mark.parametrize("form, kind", CROSSED)
def test_cached_equals_uncached(form, kind):
  """Greedy, guided: every token is the likeliest of the whole forward pass over what was made."""
  gen, params = model(form, kind, 2 if (form, kind) == KINDS[0] else 1)
  bias = {"end_bias": 3.0} if form == "end_of_step" else {}  # else the likeliest never ends
  tokens = gen.generate(params, jax.random.key(0), labels(B), temperature=0.0, **bias)
  assert len(set(np.asarray(tokens.total()).tolist())) > 1  # ragged
  ids, seq = said(gen, tokens)
  logits = [gen.logits(params, ids, cond, keep=tokens.keep) for cond in (None, labels(B))]
  np.testing.assert_array_equal(guided(gen, *logits, **bias).argmax(-1)[seq.valid_BxL], ids[seq.valid_BxL])


@pytest.mark.parametrize("form, kind", CROSSED)
def test_a_row_of_a_batch_equals_the_row_alone(form, kind):
  gen, params = model(form, kind)
  wish = dict(mean_length=2.2) if form == "length_first" else dict(end_bias=0.5)
  run = lambda b: gen.generate(params, jax.random.key(7), labels(b), **wish)
  many, one = run(B), run(1)
  np.testing.assert_array_equal(many.ids[0], one.ids[0])
  np.testing.assert_array_equal(many.keep[0], one.keep[0])
  assert len({tuple(row) for row in np.asarray(many.keep).tolist()}) > 1


@pytest.mark.parametrize("form, kind", CROSSED)
def test_forced_lengths_are_met_and_given_steps_stay(form, kind):
  gen, params = model(form, kind)
  keep = np.array([[1, 2, 4, 1, 4], [4, 4, 4, 4, 4], [1, 1, 1, 1, 1]] * (B // 3))
  tokens = gen.generate(params, jax.random.key(0), labels(B), keep=keep)
  np.testing.assert_array_equal(tokens.keep, keep)
  assert (gen.generate(params, jax.random.key(0), labels(B), keep=2).keep == 2).all()
  rng = np.random.default_rng(0)
  given = VideoTokens(
    jnp.asarray(rng.integers(0, V, (B, 2, K)), jnp.int32), jnp.asarray([[4, 1], [2, 2], [1, 4]] * (B // 3))
  )
  kept = np.arange(K) < np.asarray(given.keep)[:, :, None]
  for first in (True, False):
    got = gen.generate(params, jax.random.key(0), labels(B), given=given, given_first=first, temperature=0.0)
    np.testing.assert_array_equal(got.keep[:, :2], given.keep)
    np.testing.assert_array_equal(got.ids[:, :2], given.ids * kept)
    ids, seq = said(gen, got, 2 if first else 0)
    free = seq.valid_BxL & (seq.time_BxL >= 2)
    places = Places.of(seq.time_BxL, seq.slot_BxL)
    logits = [_logits(gen.cfg.ar, params, ids, places, condition(gen.cfg, cond, B)) for cond in (None, labels(B))]
    np.testing.assert_array_equal(guided(gen, *logits).argmax(-1)[free], ids[free])


@pytest.mark.parametrize("form, kind", CROSSED)
def test_what_is_forced_is_made(form, kind):
  gen, params = model(form, kind)
  forced = np.full((B, T, K), -1)
  forced[:, 2, 1], forced[:, 4, 2] = 7, 11
  bias = {"end_bias": 3.0} if form == "end_of_step" else {}
  got = gen.generate(params, jax.random.key(0), labels(B), forced=forced, **bias)
  free = gen.generate(params, jax.random.key(0), labels(B), **bias)
  assert (got.ids[:, 2, 1] == 7).all() and (got.ids[:, 4, 2] == 11).all()
  assert got.keep[:, 2].min() == 2 and got.keep[:, 4].min() >= 3 > free.keep[:, 4].min()


@pytest.mark.parametrize("wish", [1.0, 2.4, 3.6])
@pytest.mark.parametrize("form, kind", [KINDS[0], KINDS[1], KINDS[2]])
def test_mean_lengths_are_met(form, kind, wish):
  gen, params = model(form, kind)
  options = gen.aimed(params, jax.random.key(5), labels(B), mean_length=wish)
  made = np.asarray(gen.generate(params, jax.random.key(6), labels(B), **options).keep)
  assert abs(made.mean() / wish - 1) < 0.1
  if form == "length_first":  # nor does any video stray by more than a level of the last step
    assert np.abs(made.sum(1) - wish * T).max() <= 2
  own = np.asarray(gen.generate(params, jax.random.key(6), labels(B)).keep).mean()
  assert wish < 1.1 or wish > 3.9 or abs(own / wish - 1) > 0.1 or abs(own - wish) > 0.01
  if form == "length_first":  # what is left of a total is spent: totals spread less than independent steps would
    independent = made.std() * np.sqrt(T)
    assert made.sum(1).std() < 0.8 * independent + 1e-6


def test_given_steps_do_not_count_towards_the_mean():
  gen, params = model("length_first")
  given = VideoTokens.full(np.zeros((B, 2, K), int))
  made = gen.generate(params, jax.random.key(6), labels(B), mean_length=1.5, given=given).keep
  assert abs(np.asarray(made)[:, 2:].mean() / 1.5 - 1) < 0.1 and (made[:, :2] == K).all()


def test_tilts_have_the_mean_asked_for():
  logits = np.random.default_rng(0).normal(size=(50, 5)) * 3
  levels = np.array([1, 2, 4, 8, 16])
  goal = np.random.default_rng(1).uniform(1.05, 15.9, 50)
  tilt_of = lambda goal: np.asarray(generate_adaptive.tilt(jnp.asarray(logits)[:, None], 1, levels, jnp.asarray(goal)))
  tilt = tilt_of(goal)
  weights = np.exp(logits + tilt[:, None] * levels - (logits + tilt[:, None] * levels).max(1, keepdims=True))
  np.testing.assert_allclose((weights * levels).sum(1) / weights.sum(1), goal, rtol=1e-3)
  ends = tilt_of([0.0, 20.0] * 25)
  assert ends[::2].max() < -50 and ends[1::2].min() > 50
  # Several lengths share one price.
  shared = generate_adaptive.tilt(
    jnp.asarray(logits).reshape(10, 5, 5), np.array([1, 2, 0, 1, 1]), levels, np.full(10, 30.0)
  )
  odds = np.asarray(jax.nn.softmax(logits.reshape(10, 5, 5) + np.asarray(shared)[:, None, None] * levels, axis=-1))
  np.testing.assert_allclose(((odds * levels).sum(-1) * [1, 2, 0, 1, 1]).sum(1), 30, rtol=1e-3)


@pytest.mark.parametrize("kind", order.ORDERS)
def test_known_odds_spread_a_mean_over_time_as_the_model_does(kind):
  """Steps differ in length: without odds each is brought to the mean, with them they stay as different as they were."""
  gen, params = model("length_first", kind)
  time_table = params["time_table"] + 1.5 * jax.random.normal(jax.random.key(9), params["time_table"].shape)
  params = params | {"time_table": time_table}
  run = lambda g, **wish: np.asarray(g.generate(params, jax.random.key(3), labels(B), **wish).keep)
  own = run(gen)
  odds = ((own[:, :, None] == np.array(LEVELS)).mean(0) + 1e-3).tolist()
  known = Generator(dataclasses.replace(gen.cfg, length_odds=tuple(map(tuple, odds))))
  profile = own.mean(0)
  flat, spread = (run(g, mean_length=float(profile.mean())) for g in (gen, known))
  assert profile.std() > 0.4
  assert abs(flat.mean() / profile.mean() - 1) < 0.1 > abs(spread.mean() / profile.mean() - 1)
  off = lambda keep: np.abs(keep.mean(0) - profile).mean()
  assert off(spread) < 0.5 * off(flat)
  short = run(known, mean_length=1.5)
  assert abs(short.mean() / 1.5 - 1) < 0.1 and np.corrcoef(short.mean(0), profile)[0, 1] > 0.5


@pytest.mark.parametrize("form", lengths.FORMATS[1:])
def test_lengths_without_guidance_have_the_odds_of_the_condition(form):
  gen, params = model(form)
  cfg = gen.cfg.ar
  logits = np.random.default_rng(0).normal(size=(2, 3, cfg.total_vocab))  # with and without condition
  plan = request(gen.cfg, labels(3), guidance=6.0).plan
  odds = lambda x: np.asarray(jax.nn.softmax(x, axis=-1))
  both = [generate_adaptive._guided(cfg, plan._replace(guide_lengths=g), logits.reshape(6, -1)) for g in (True, False)]
  want = logits[1] + 6 * (logits[0] - logits[1])
  np.testing.assert_allclose(both[0], want, rtol=1e-4)
  np.testing.assert_allclose(odds(both[1])[:, V:], odds(logits[0])[:, V:], rtol=1e-4)
  np.testing.assert_allclose(odds(both[1][:, :V]), odds(want[:, :V]), rtol=1e-3)
  if form == "length_first":  # the very first token: the same key, the same odds, the same length
    first = lambda **options: gen.generate(params, jax.random.key(0), labels(B), **options).keep[:, 0]
    plain = first(guidance=1.0)
    np.testing.assert_array_equal(first(guidance=6.0, guide_lengths=False), plain)
    assert (first(guidance=6.0) != plain).any()


@pytest.mark.parametrize("form, kind", CROSSED)
def test_stream_ends_with_what_generate_gives(form, kind):
  gen, params = model(form, kind)
  pieces = list(gen.stream(params, jax.random.key(1), labels(B)))
  whole = gen.generate(params, jax.random.key(1), labels(B))
  np.testing.assert_array_equal(pieces[-1].keep, whole.keep)
  for before, piece in itertools.pairwise(pieces):
    assert (before.keep <= piece.keep).all() and before.keep.sum() <= piece.keep.sum()
  for piece in pieces:
    kept = np.arange(K) < np.asarray(piece.keep)[:, :, None]
    np.testing.assert_array_equal(piece.ids, np.asarray(whole.ids) * kept)
  if kind == "time_first" and form == "length_first":
    assert not pieces[0].keep.any() and (pieces[1].keep >= 1).all()  # lengths, then one of each step


def test_one_program_for_all_wishes():
  gen, params = model("length_first")
  generate_adaptive.advance.clear_cache()
  for options in (dict(), dict(keep=1), dict(keep=np.array([[4, 1, 2, 4, 1]])), dict(guide_lengths=False)):
    gen.generate(params, jax.random.key(0), labels(1), **options)
  assert generate_adaptive.advance._cache_size() == 1
  for mean in (1.5, 3.0):
    gen.generate(params, jax.random.key(0), labels(1), mean_length=mean)
  assert generate_adaptive.advance._cache_size() == 2


BAD = {
  "mean too small": ("length_first", dict(mean_length=0.5), r"mean_length is 0.5, expected 1\.\.4"),
  "mean too large": ("end_of_step", dict(mean_length=4.5), r"mean_length is 4.5, expected 1\.\.4"),
  "mean nan": ("length_first", dict(mean_length=float("nan")), "mean_length is nan"),
  "mean and keep": ("length_first", dict(mean_length=2, keep=2), "mean_length is 2 and keep is 2, expected one"),
  "mean by END": ("end_of_step", dict(mean_length=2), r"pass end_bias=gen\.calibrate"),
  "bias without END": ("length_first", dict(end_bias=1.0), "there is no END"),
  "bias": ("end_of_step", dict(end_bias=float("inf")), "expected a finite number"),
  "no level": ("length_first", dict(keep=3), r"keep is 3, expected one of the levels \(1, 2, 4\)"),
  "no step": ("end_of_step", dict(keep=[[1, 0, 1, 1, 1]]), r"keep is 0, expected 1\.\.4"),
  "given": ("length_first", dict(given=VideoTokens.full(np.zeros((1, 2, K), int)).truncate(3)), "keep is 3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_wishes_are_one_sentence(name):
  form, options, message = BAD[name]
  gen, params = model(form)
  with pytest.raises(ValueError, match=message) as caught:
    gen.generate(params, jax.random.key(0), {"label": [0]}, **options)
  assert "\n" not in str(caught.value)


def test_odds_that_fit_no_model():
  gen, _ = model("length_first")
  with pytest.raises(ValueError, match=r"length_odds are .*, expected 5 rows of 3 numbers above 0"):
    dataclasses.replace(gen.cfg, length_odds=((0.5, 0.5, 0.0),) * T)


def test_fixed_models_refuse_wishes_for_lengths():
  gen, params = model("length_first")
  fixed = Generator(dataclasses.replace(gen.cfg, ar=dataclasses.replace(gen.cfg.ar, lengths="none", levels=())))
  with pytest.raises(ValueError, match="this model makes as many tokens as `keep` says"):
    fixed.generate(params, jax.random.key(0), None, mean_length=2)
  with pytest.raises(ValueError, match=r"end_bias is 1\.0, expected 0"):
    fixed.generate(params, jax.random.key(0), None, end_bias=1.0)
  with pytest.raises(ValueError, match="lengths are 'length_first', expected"):
    gen.calibrate(params, jax.random.key(0), None, mean_length=2)
  with pytest.raises(ValueError, match="keep is 3, expected one of the levels"):
    gen.logits(params, np.zeros((1, 4), int), None, keep=np.full((1, T), 3))
