"""Formats of adaptive sequences: nothing is lost, nothing else can be said, configs and files stay what they were."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

from vftok.generator.api import Generator
from vftok.models import lengths, order
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.models.config_json import from_json, to_json

T, K, V, LEVELS = 5, 4, 29, (1, 2, 4)


def config(form, kind="time_first", **own):
  levels = LEVELS if form == "length_first" else ()
  return ARConfig(vocab=V, steps=T, slots=K, depth=1, head_dim=32, lengths=form, levels=levels, order=kind, **own)


def tokens(form, b=64, seed=0):
  rng = np.random.default_rng(seed)
  counts = LEVELS if form == "length_first" else np.arange(1, K + 1)
  return rng.integers(0, V, (b, T, K + 3)), rng.choice(counts, (b, T)).astype(np.int32)


@pytest.mark.parametrize("form", lengths.FORMATS)
@pytest.mark.parametrize("kind", order.ORDERS)
def test_strip_undoes_extend_also_through_a_sequence_and_inside_a_program(form, kind):
  cfg = config(form, kind)
  ids, keep = tokens(form)
  kept = np.arange(K) < keep[:, :, None]
  extended, counts = lengths.extend(cfg, ids, keep)
  assert extended.shape == (64, T, cfg.total_slots) and extended.max() < cfg.total_vocab
  seq = order.sequence(counts, order=kind)
  extended = order.read(order.write(extended, seq), seq, T, cfg.total_slots)
  for have, want in zip(lengths.strip(cfg, extended, counts), (ids[:, :, :K] * kept, keep), strict=True):
    np.testing.assert_array_equal(have, want)
  there = jax.jit(lambda i, k: lengths.extend(cfg, i, k, jnp))(ids, keep)
  back = jax.jit(lambda i, k: lengths.strip(cfg, i, k, jnp))(*there)
  jax.tree.map(np.testing.assert_array_equal, (*there, *back), (extended, counts, ids[:, :, :K] * kept, keep))
  inside = np.arange(cfg.total_slots) < counts[:, :, None]
  ok = np.take_along_axis(lengths.allowed(cfg, np.arange(cfg.total_slots))[None, None], extended[..., None], 3)[..., 0]
  assert ok[inside].all()


def test_what_the_formats_look_like():
  ids, keep = np.arange(8).reshape(1, 2, 4), np.array([[4, 2]])
  first, counts = lengths.extend(config("length_first"), ids, keep)
  assert first.tolist() == [[[V + 2, 0, 1, 2, 3], [V + 1, 4, 5, 0, 0]]] and counts.tolist() == [[5, 3]]
  seq = order.sequence(counts)
  assert order.write(first, seq)[0].tolist() == [V + 2, V + 1, 0, 4, 1, 5, 2, 3]  # all lengths first
  seq = order.sequence(counts, order="depth_first")
  assert order.write(first, seq)[0].tolist() == [V + 2, 0, 1, 2, 3, V + 1, 4, 5]
  last, counts = lengths.extend(config("end_of_step"), ids, keep)
  assert last.tolist() == [[[0, 1, 2, 3], [4, 5, V, 0]]] and counts.tolist() == [[4, 3]]


def test_masks_separate_the_kinds():
  first = lengths.allowed(config("length_first"), np.arange(K + 1))
  assert first[0].tolist() == [False] * V + [True] * 3 and (first[1:] == [True] * V + [False] * 3).all()
  end = lengths.allowed(config("end_of_step"), np.arange(K))
  assert end[0].tolist() == [True] * V + [False] and end[1:].all()


@pytest.mark.parametrize("form", lengths.FORMATS)
def test_configs_round_trip_and_old_files_load(form, tmp_path):
  odds = ((0.1, 0.2, 0.7),) * T if form == "length_first" else ()
  gen = Generator(GeneratorConfig(config(form, width=64), length_odds=odds))
  data = json.loads(json.dumps(to_json(gen.cfg)))
  assert from_json(GeneratorConfig, data) == gen.cfg
  params = started(gen.init)
  gen.save(params, tmp_path / "model")
  again, loaded = Generator.load(tmp_path / "model")
  assert again == gen
  jax.tree.map(np.testing.assert_array_equal, params, loaded)
  if form == "none":  # as before there were formats
    assert params["token_table"].shape[0] == V and gen.cfg.ar.length == T * K
    for key in ("lengths", "levels"):
      del data["ar"][key]
    del data["length_odds"]
    assert from_json(GeneratorConfig, data) == gen.cfg
    return
  assert params["token_table"].shape[0] == params["head"].shape[1] == gen.cfg.ar.total_vocab > V
  with pytest.raises(ValueError, match=f"lengths are '{form}', expected 'none' for SemanTok"):
    gen.export(params, tmp_path / "theirs")


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(lengths="some"), "lengths are 'some', expected one of none, length_first, end_of_step"),
    (dict(positions="flat"), "positions are 'flat', expected 'time_slot'"),
    (dict(levels=()), r"levels are \(\), expected counts that rise"),
    (dict(levels=(1, 2)), r"levels are \(1, 2\), expected counts that rise from 1 or more to all 4 slots"),
    (dict(levels=(2, 1, 4)), "expected counts that rise"),
    (dict(levels=(0, 4)), "expected counts that rise"),
    (dict(lengths="end_of_step"), r"expected \(\) where lengths are 'end_of_step'"),
  ],
)
def test_impossible_configs_are_one_sentence(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config("length_first"), **change)


def test_counts_that_cannot_be_said():
  lengths.check_counts(config("length_first"), [[1, 4]])
  with pytest.raises(ValueError, match=r"keep is 3, expected one of the levels \(1, 2, 4\)"):
    lengths.check_counts(config("length_first"), [[1, 3]])
  with pytest.raises(ValueError, match=r"keep is 0, expected 1\.\.4"):
    lengths.check_counts(config("end_of_step"), [[1, 0]])
