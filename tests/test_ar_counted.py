"""Generators over tokens whose ids depend on how many there are (EVATok's): one length before each step's tokens."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from evatok_files import random_model, random_video
from model_files import sentence

from configs import c2v
from vftok.budget.router import Router
from vftok.data.tokens import read_meta, tokens
from vftok.evals import generation
from vftok.families.evatok.config import router_config
from vftok.generator import sample
from vftok.generator.api import Generator
from vftok.generator.given import given_tokens
from vftok.tasks import make_task
from vftok.tokens import VideoTokens
from vftok.tools import tokenize_dataset

FRAMES, FIRST = 1, (8,)  # the first time step, filled up


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """(tokenizer, params, directories) of square pictures, with a router of classes that no tokenizer is named in."""
  root = tmp_path_factory.mktemp("counted")
  tok, params = random_model(frame_size=(16, 16))
  tok.save(params, root / "model")
  router = Router(dataclasses.replace(router_config(tok.cfg), dim=32, depth=1, head_dim=16))
  shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(router.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  draw = lambda shape: rng.standard_normal(shape, np.float32)
  router.save(jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple)), root / "router")
  return tok, params, root


@pytest.fixture(scope="module", params=["given frames", pytest.param("clips", marks=pytest.mark.slow)])
def made(request, parts):
  """(config, directory of tokens) by `tokenize_dataset`, with and without the tokens of given frames."""
  tok, _, root = parts
  cfg = c2v.get_config("smoke")
  out = root / request.param.replace(" ", "_")
  cfg.tokenize.update(tokenizer=str(root / "model"), router=str(root / "router"), frames=tok.chunk_frames, size=16)
  if request.param == "given frames":
    cfg.tokenize.condition.update(frames=FRAMES, counts=FIRST)
    cfg.model.ar.n_classes = 0
  cfg.model.ar.update(lengths="length_first", positions="sequence")
  cfg.loss.update(pack=2, given_probs=(1.0,))
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(out)
  assert "train 8, val 4 clips" in tokenize_dataset.tokenize(cfg, out)
  return cfg, out


def batch_of(directory, count=4):
  source = tokens("train", directory=directory)
  rows = [source[i] for i in range(count)]
  return {k: np.stack([row[k] for row in rows]) for k in ("ids", "keep", "label")} | {"_mask": np.ones(count, bool)}


def test_stored_tokens_have_the_routers_counts(made, parts):
  (cfg, out), (tok, params, _) = made, parts
  given = len(cfg.tokenize.condition.counts)
  meta, batch = read_meta(out), batch_of(out)
  assert meta["counts"] == list(tok.counts) and meta["shape"] == [given + 2, 16]
  assert batch["keep"].shape == (4, given + 2) and set(np.unique(batch["keep"])) <= set(tok.counts)
  first = VideoTokens(batch["ids"], batch["keep"], nested=False).split(given)
  if given:  # counts of given frames are of the config, those of the clip begin with them
    assert (first[0].keep == FIRST).all() and (first[1].keep[:, 0] == FIRST[0]).all()
  assert tok.decode(params, first[1]).shape == (4, 4, 16, 16, 3)


def test_given_frames_are_encoded_by_themselves(parts):
  tok, params, _ = parts
  video = random_video(tok)
  found = given_tokens(tok, params, video[:, :2], (8,))
  assert np.array_equal(found.ids, tok.encode(params, video, budget=[8, 2]).ids[:, :1])  # causal: no later frame
  filled = np.concatenate([video[:, :1], video[:, :1]], axis=1)
  assert np.array_equal(given_tokens(tok, params, video[:, :1], (8,)).ids, given_tokens(tok, params, filled, (8,)).ids)
  for frames, counts in ((video[:, :3], (8,)), (video, (8, 8)), (video[:, :1], ()), (video[0], (8,))):
    with pytest.raises(ValueError, match="the given frames have shape"):
      given_tokens(tok, params, frames, counts)
  with pytest.raises(ValueError, match="the budget asks for 5 tokens"):
    given_tokens(tok, params, video[:, :1], (5,))


@pytest.mark.slow
def test_training_predicts_a_clips_lengths_and_tokens(made):
  cfg, out = made
  task, batch, given = make_task(cfg), batch_of(out), len(cfg.tokenize.condition.counts)
  assert task.gen.cfg.ar.levels == (2, 4, 8, 16) and not task.gen.cfg.nested and task.gen.cfg.steps == 2
  assert task.gen.cfg.ar.order == "depth_first" and np.allclose(np.sum(task.gen.cfg.length_odds, 1), 1)
  params = jax.jit(task.init)(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 4)
  run = jax.jit(jax.value_and_grad(lambda p: task.loss(p, {}, batch, keys, 0), has_aux=True))
  (loss, metrics), grads = run(nn.unbox(params))
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads)) and optax.tree.norm(grads) > 0
  fits = 4 - float(metrics.get("packed/left_out", (0,))[0])
  assert metrics["nll/lengths"][1] == fits * 2  # of the clip's steps, not of given ones
  own = batch["keep"][:, given:].sum(1)
  assert metrics["nll"][1] <= own.sum() and (fits < 4 or metrics["nll"][1] == own.sum())
  values = jax.jit(task._sums)(nn.unbox(params), batch)
  assert values["bits_per_content_token"][1] == own.sum() and values["bits_per_length_token"][1] == 8
  total, weight = values["tokens_per_step"]
  assert total / weight == pytest.approx(own.mean() / 2)


def test_samples_have_counts_that_the_tokenizer_knows(made, parts, tmp_path):
  (cfg, _), (tok, params, _) = made, parts
  task = make_task(cfg)
  weights = jax.jit(task.gen.init)(jax.random.key(0))
  weights = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), weights)
  task.gen.save(weights, tmp_path / "gen")
  gen, weights = Generator.load(tmp_path / "gen")
  assert gen.cfg == task.gen.cfg
  first = random_video(tok, batch=4)[:, :FRAMES] if gen.cfg.condition else None
  cond = None if gen.cfg.condition else {"label": [0, 1, 2, 0]}
  how = dict(first_frames=first, temperature=2.0, guidance=1.5 if cond else None)
  (piece,) = sample.sample(gen, weights, tok, params, jax.random.key(0), cond, **how)
  assert piece.video.shape == (4, 4, 16, 16, 3) and set(np.unique(piece.tokens.keep)) <= set(tok.counts)
  assert len(np.unique(piece.tokens.keep)) > 1 and piece.made == piece.tokens.keep.sum()
  if gen.cfg.condition:
    other = sample.sample(gen, weights, tok, params, jax.random.key(0), None, **how | {"first_frames": -first})
    assert not np.array_equal(next(other).tokens.ids, piece.tokens.ids)
    for wrong in (None, np.repeat(first, 2, axis=1)):
      with pytest.raises(ValueError, match="expected 1 frames"):
        next(sample.sample(gen, weights, tok, params, jax.random.key(0), None, first_frames=wrong))
    with pytest.raises(ValueError) as caught:
      gen.generate(weights, jax.random.key(0), batch=4)
    assert "goes on from such" in sentence(caught.value)
  picture = task.media(weights, {}, batch_of(cfg.data.sources.tokens.directory))["samples"]
  assert picture.dtype == np.uint8 and picture.ndim == 4


@pytest.mark.slow
def test_samples_are_scored_beside_real_clips(made, parts):
  """At their own lengths alone, and of models that go on from given frames by the frames after these."""
  (cfg, _), (tok, params, _) = made, parts
  gen = make_task(cfg).gen
  clips = np.random.default_rng(0).integers(0, 255, (4, 4, 16, 16, 3), np.uint8)
  batch = {"video": clips, "caption": np.array(["a"] * 4, object), "label": np.zeros(4, int), "_mask": np.ones(4, bool)}
  near, seen = generation.Neighbours(clips[:, len(gen.cfg.condition) :]), []
  near.nearest = lambda video: (seen.append(video.shape[1]), type(near).nearest(near, video))[1]
  how = dict(split="val", keeps=(), neighbours=near, fvd=False, media=0)
  found = generation.evaluate(gen, jax.jit(gen.init)(jax.random.key(1)), tok, params, [batch], **how)
  rows = {row["name"]: row for row in found.rows}
  assert list(rows) == ["real", "generated own lengths", "reconstructed"] and rows["reconstructed"]["tokens"] == 32
  assert 4 <= rows["generated own lengths"]["tokens"] <= 32 and set(seen) == {4 - gen.cfg.condition_frames}


def test_wrong_tokens_and_lengths_are_refused(made, tmp_path):
  cfg, out = made
  for form in ("none", "end_of_step"):
    wrong = cfg.copy_and_resolve_references()
    wrong.model.ar.lengths = form
    with pytest.raises(ValueError, match=r"counts \[2, 4, 8, 16\] of their own, expected 'length_first'"):
      make_task(wrong)
  meta = json.loads((out / "recipe.json").read_text())
  conditions = ({"frames": 0, "counts": [8]}, {"frames": 1, "counts": [True]})
  for change in (
    {"counts": [0]},
    {"counts": "x"},
    {"text_shape": False},
    *({"condition": condition} for condition in conditions),
  ):
    (tmp_path / "recipe.json").write_text(json.dumps(meta | change))
    with pytest.raises(ValueError, match="is damaged"):
      read_meta(tmp_path)
