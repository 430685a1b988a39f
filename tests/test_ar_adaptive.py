"""Training models that say their own lengths: counts as the router wants them, packed rows, all the way to samples."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from starts import moved, started
from stored import write_tokens

import vftok
from configs import t2v
from vftok import Router
from vftok.budget import allocate
from vftok.budget.reward import Reward
from vftok.data.dataset_writer import whole_directory
from vftok.data.tokens import read_meta, tokens
from vftok.generator import sample
from vftok.generator.api import Generator
from vftok.models.pack import pack
from vftok.models.router import RouterConfig
from vftok.tasks import make_task
from vftok.tasks.ar_adaptive import ASKED, mirrored
from vftok.tools import tokenize_dataset
from vftok.train import evaluate, loop
from vftok.train.writer import read_metrics

S, C, T, K = 6, 12, 5, 4
LEVELS = [1, 2, 4]
ROUTER = dict(name="r", levels=LEVELS, steps=T, loss_mean=1.0, loss_std=0.5)


def write(out, router=ROUTER, count=16, **meta):
  """Stored tokens with texts and curves: a clip's number says how much its steps lose by few tokens."""
  rng = np.random.default_rng(0)
  emb = rng.normal(size=(4, S, C)).astype(np.float16)

  def examples():
    for i in range(count):
      ids = rng.integers(0, 25, (T, K)).astype(np.uint16)
      loss = (i % 4) * rng.random((T, 1)) * np.array([2.0, 0.7, 0.0])
      row = dict(ids=ids, caption=f"thing {i % 4}", label=-1, name=str(i), text_emb=emb[i % 4], curves=np.float32(loss))
      row |= dict(text_mask=np.arange(S) < 3 + i % 4)
      yield row if router else {k: v for k, v in row.items() if k != "curves"}

  meta = dict(shape=[T, K], fingerprint="", tokenizer="", codebook_size=25, text="minilm", text_shape=[S, C]) | meta
  meta |= {"router": router} if router else {}
  with whole_directory(out, meta) as directory:
    write_tokens(directory, examples, meta)
  return out


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  return write(tmp_path_factory.mktemp("tokens") / "set")


def config(stored, **changes):
  cfg = t2v.get_config("smoke_adaptive")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(stored)
  cfg.update_from_flattened_dict(changes)
  return cfg


def batch_of(stored, count=8):
  source = tokens("train", directory=stored)
  rows = [source[i] for i in range(count)]
  keys = ("ids", "curves", "text_emb", "text_mask", "label")
  return {k: np.stack([row[k] for row in rows]) for k in keys} | {"_mask": np.ones(count, bool)}


def test_preferences_choose_as_allocate_and_the_reward_do():
  rng = np.random.default_rng(0)
  cfg = RouterConfig(dim=64, depth=1, levels=(1, 2, 3, 4), loss_std=0.3, loss_mean=0.1)
  curves = np.sort(rng.random((40, T, 4)), axis=2)[:, :, ::-1] - 0.0
  reward = Router(cfg).reward()
  seen = set()
  for weight in (0.2, 1.0, 1.4, 1.9):
    want = Router(cfg).keep(curves, vftok.Auto(preference=weight))
    got = jax.jit(lambda c, w=weight: allocate.among_levels(c, cfg.levels, reward, w, jnp))(curves)
    np.testing.assert_array_equal(got, want)
    seen |= set(want.ravel().tolist())
  assert seen == {1, 2, 3, 4}
  reward = Reward.of_router((1, 2, 4, 8), T, loss_mean=1.0, loss_std=0.5)  # among levels, by trying all of them
  every = np.stack(np.meshgrid(*[range(4)] * 3, indexing="ij"), -1).reshape(-1, 3)
  for curve in curves[:10, :3]:
    kept, losses = np.array([1, 2, 4, 8])[every], curve[np.arange(3), every].sum(1)
    best = kept[reward(losses, kept, 1.2).argmax()]
    assert allocate.among_levels(curve, (1, 2, 4, 8), reward, 1.2).tolist() == best.tolist()


def test_rows_are_filled_in_order_and_the_rest_is_left_out():
  packing = pack(jnp.array([3, 4, 2, 6, 8, 1]), 3, 8)
  assert packing.fits_RxG.tolist() == [[True, True, False], [True, False, True]]
  assert packing.segment_RxL.tolist() == [[0, 0, 0, 1, 1, 1, 1, -1], [0] * 6 + [2, -1]]
  values = np.arange(48).reshape(6, 8)
  rows = packing(values)
  assert rows[0].tolist() == [0, 1, 2, 8, 9, 10, 11, 0] and rows[1, :7].tolist() == [24, 25, 26, 27, 28, 29, 40]


@pytest.mark.parametrize(
  "form, kind",
  [
    ("length_first", "time_first"),
    pytest.param("end_of_step", "depth_first", marks=pytest.mark.slow),
    pytest.param("length_first", "depth_first", marks=pytest.mark.slow),
    pytest.param("end_of_step", "time_first", marks=pytest.mark.slow),
  ],
)
def test_packed_tokens_lose_what_unpacked_ones_do(stored, form, kind):
  task = make_task(config(stored, **{"model.ar.lengths": form, "model.ar.order": kind, "loss.pack": 4}))
  batch, b = batch_of(stored), 8
  params = moved(started(task.gen.init))
  ones, all_, some = [1] * T, [4] * T, [2, 2, 1, 1, 1]
  keep = np.array([ones, all_, ones, some, some, ones, all_, ones], np.int32)
  given, null = np.array([0, 1, 2, 0] * 2), np.array([False, True] * 4)
  run = jax.jit(lambda group: task._rows(params, batch, keep, given, null, group), static_argnums=0)
  alone, seq, ids, null_alone, _ = run(1)
  packed, seq_4, ids_4, null_4, fits = run(4)
  assert 3 <= fits.sum() < b and packed.shape == (b // 4, task.gen.cfg.ar.length)  # some rows are full
  packing = pack(seq.lengths, 4, packed.shape[1])
  real = np.asarray(packing.segment_RxL) >= 0
  assert real.sum() == seq.lengths[np.asarray(fits).reshape(-1)].sum() and (real == seq_4.valid_BxL).all()
  np.testing.assert_allclose(packed[real], packing(alone)[real], atol=1e-5)
  assert np.asarray(packed)[real].min() > 0 and not np.asarray(packed)[~real].any()
  np.testing.assert_array_equal(np.asarray(ids_4)[real], packing(ids)[real])
  wide = jnp.broadcast_to(null_alone, alone.shape)
  np.testing.assert_array_equal(np.asarray(null_4)[real], packing(wide)[real])


def test_the_loss_counts_each_kind_and_has_a_gradient(stored):
  values = {}
  for group in (1, 2):
    task = make_task(config(stored, **{"loss.pack": group, "loss.null": 0.0, "loss.given_probs": (1.0,)}))
    params = started(task.gen.init)
    keys, batch = jax.random.split(jax.random.key(1), 8), batch_of(stored)
    run = jax.jit(jax.value_and_grad(lambda p, t=task, b=batch, k=keys: t.loss(p, {}, b, k, 0), has_aux=True))
    (loss, metrics), grads = run(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads)) and optax.tree.norm(grads) > 0
    counts = {name: float(weight) for name, (_, weight) in metrics.items()}
    assert counts["nll/lengths"] == (8 * T if group == 1 else T * (8 - float(metrics["packed/left_out"][0])))
    total = sum(float(metrics[name][0]) for name in ("nll", "nll/lengths"))
    np.testing.assert_allclose(loss, total / (counts["nll"] + counts["nll/lengths"]), rtol=1e-5)
    by_slot = sum(float(v) for k, (v, _) in metrics.items() if k.startswith("bits/")) * np.log(2)
    np.testing.assert_allclose(by_slot, float(metrics["nll"][0]), rtol=1e-4)
    values[group] = {k: v[0] / v[1] for k, v in metrics.items()}
    assert task.flops() * group == pytest.approx(make_task(config(stored, **{"loss.pack": 1})).flops())
  assert "packed/left_out" not in values[1]
  assert abs(values[1]["nll/lengths"] - np.log(3)) < 0.1 and abs(values[1]["nll"] - np.log(25)) < 0.1  # masked at last


def test_neighbours_mirror_their_draws():
  assert mirrored(jnp.array([0.25, 0.1, 0.5, 0.9, 0.75])).tolist() == [0.25, 0.75, 0.5, 0.5, 0.75]


@pytest.mark.slow
def test_more_preference_means_more_tokens(stored):
  task, batch = make_task(config(stored)), batch_of(stored)
  made = [float(task.counts(batch, np.full(8, w, np.float32)).mean()) for w in (0.2, 1.0, 1.8)]
  assert made[0] < made[1] < made[2]
  keys = jax.random.split(jax.random.key(0), 200)
  drawn = jax.vmap(task._draw)(keys)
  odds = np.array(task.gen.cfg.length_odds)
  assert odds.shape == (T, 3) and np.allclose(odds.sum(1), 1)
  kept = np.mean([task.counts(batch_of(stored, 16), np.full(16, w)) for w in task.preferences(np.arange(50) / 50)])
  assert abs((odds * LEVELS).sum(1).mean() / kept - 1) < 0.1
  weights = np.asarray(task.preferences(drawn["uniform"]))
  assert 1.0 <= weights.min() < 1.02 and 1.38 < weights.max() <= 1.4 and weights.std() > 0.08
  np.testing.assert_allclose(task.preferences(np.array([0.0, 0.5, 1.0])), [1.0, 1.2087, 1.4], rtol=1e-4)
  assert set(np.asarray(drawn["given_level"]).tolist()) == set(LEVELS)


@pytest.fixture(scope="module")
def router(tokenizer, tmp_path_factory):
  tok, params, _ = tokenizer
  cfg = RouterConfig(dim=64, depth=1, latents=tuple(tok.latent_shape(1, T)[1:]), levels=tuple(LEVELS), loss_std=1.5)
  own = Router(dataclasses.replace(cfg, fingerprint=tok.fingerprint(params)))
  weights = nn.unbox(started(own.init, 2))
  path = tmp_path_factory.mktemp("router") / "model"
  own.save(weights, path)
  return own, weights, str(path)


@pytest.mark.slow  # tokenizes, trains, evaluates and samples
def test_from_clips_to_samples(tokenizer, router, tmp_path):
  """Tokenized with a router, trained, stopped, resumed, evaluated, sampled, scored."""
  tok, params, path = tokenizer
  cfg = t2v.get_config("smoke_adaptive")
  cfg.tokenize.update(dict(tokenizer=path, router=router[2], text=""))
  cfg.model.ar.update(dict(ctx_dim=0, n_ctx_null=0))
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(tmp_path / "set")
  assert "train 8, val 4 clips" in tokenize_dataset.tokenize(cfg, tmp_path / "set")
  assert "already there" in tokenize_dataset.tokenize(cfg, tmp_path / "set")
  meta = read_meta(tmp_path / "set")
  assert meta["router"]["levels"] == LEVELS and meta["router"]["loss_std"] == 1.5
  from vftok.data import ClipSpec, make_loader

  where = dict(train=False, process_count=1, process_index=0)
  clips = make_loader(dict(c=dict(kind="shapes", count=8)), ClipSpec(frames=17, size=(16, 16)), 8, **where)
  with clips, make_loader(dict(t=dict(kind="tokens", directory=str(tmp_path / "set"))), ClipSpec(), 8, **where) as have:
    video, row = next(iter(clips))["video"], next(iter(have))
  np.testing.assert_array_equal(row["ids"], tok.encode(params, video).ids)
  np.testing.assert_allclose(
    row["curves"], router[0].predict(router[1], tok.encode_latents(params, video)), rtol=1e-4, atol=1e-5
  )

  cfg.steps = 2
  loop.run(cfg, tmp_path / "whole")
  cfg.minutes = 1e-9
  loop.run(cfg, tmp_path / "run")
  cfg.minutes = 0.0
  loop.run(cfg, tmp_path / "run")
  rows = [
    [
      {k: v for k, v in row.items() if not k.startswith("time/")}
      for row in read_metrics(tmp_path / w / "metrics.jsonl")
    ]
    for w in ("whole", "run")
  ]
  assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2]
  assert any(key.endswith("nll/lengths") for key in rows[0][0])
  values = evaluate.run(cfg, tmp_path / "run")
  per_step, clip = values["val/tokens_per_step"], values["val/nll_per_clip"] / np.log(2)
  assert 1 <= per_step <= K
  np.testing.assert_allclose(clip, values["val/bits_per_token"] * T * (per_step + 1), rtol=1e-4)
  parts = values["val/bits_per_content_token"] * T * per_step + values["val/bits_per_length_token"] * T
  np.testing.assert_allclose(clip, parts, rtol=1e-4)
  asked = [values[f"val/tokens_per_step/asked {place:g}"] for place in ASKED]
  assert asked == sorted(asked) and asked[0] <= per_step <= asked[-1] and asked[0] < asked[-1]
  nats = [values[f"val/nll_per_clip/asked {place:g}"] for place in ASKED]
  assert np.argsort(nats, kind="stable").tolist() == list(range(len(ASKED))), "more tokens, more nats"
  assert "val/null/bits/slot0" in values

  gen, gen_params = Generator.load(tmp_path / "run" / "model")
  assert (gen.cfg.ar.lengths, gen.cfg.ar.levels, gen.cfg.ar.vocab, gen.cfg.ar.slots) == (
    "length_first",
    (1, 2, 4),
    25,
    K,
  )
  run = lambda **options: next(
    sample.sample(gen, gen_params, tok, params, jax.random.key(0), decode=dict(steps=1, guidance=None), **options)
  )
  piece = run(batch=3)
  assert piece.video.shape == (3, 17, 16, 16, 3) and piece.made == piece.tokens.total().sum() < 3 * T * K
  assert run(batch=3, keep=2).made == 3 * T * 2
  assert run(batch=3, mean_length=1.0).made == 3 * T
  first = np.zeros((1, 5, 16, 16, 3), np.uint8)
  given = run(first_frames=first, batch=2, mean_length=2.0)
  assert (given.tokens.keep[:, :2] == K).all() and given.made == given.tokens.keep[:, 2:].sum()

  # The command line and the evaluation of generated clips.
  from vftok.cli import commands

  clip = tmp_path / "first.gif"
  from vftok.io.video_writer import write_video

  write_video(clip, first[0], 8)
  words = ["sample", str(tmp_path / "run" / "model"), "--first-frames", str(clip), "--steps", "1"]
  assert commands.main([*words, str(tmp_path / "a.mp4"), "--mean-length", "1.5", "-n", "2"]) == 0
  assert (tmp_path / "a.mp4").stat().st_size


@pytest.mark.slow
def test_the_command_line_prints_what_was_made(tokenizer, router, stored, tmp_path, capsys):
  from vftok.cli import commands
  from vftok.models.ar import ARConfig
  from vftok.models.config import GeneratorConfig

  tok, params, path = tokenizer
  for form in ("length_first", "end_of_step", "none"):
    levels = (1, 2, 4) if form == "length_first" else ()
    ar = ARConfig(vocab=25, steps=T, slots=K, depth=1, n_classes=3, lengths=form, levels=levels)
    gen = Generator(GeneratorConfig(ar, tokenizer=path, fingerprint=tok.fingerprint(params)))
    gen.save(started(gen.init), tmp_path / form)
  words = lambda form, *more: [
    "sample",
    str(tmp_path / form),
    "--class",
    "1",
    "--steps",
    "1",
    str(tmp_path / "o.mp4"),
    *more,
  ]
  for form in ("length_first", "end_of_step"):
    assert commands.main(words(form, "--mean-length", "1.5", "-n", "2")) == 0
    assert "tokens made per clip" in capsys.readouterr().out
    assert commands.main(words(form)) == 0 and commands.main(words(form, "--keep", "1,4")) == 0
    capsys.readouterr()
  for form, more, message in (
    ("none", ["--mean-length", "2"], "this model makes as many tokens as `keep` says"),
    ("length_first", ["--mean-length", "9"], "mean_length is 9.0, expected 1..4"),
    ("length_first", ["--mean-length", "2", "--keep", "2"], "expected one of the two"),
    ("length_first", ["--keep", "3"], "keep is 3, expected one of the levels"),
    ("end_of_step", ["--mean-length", "0.5"], "mean_length is 0.5"),
  ):
    assert commands.main(words(form, *more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss.pack": 3}, "loss.pack is 3, expected a divisor of the 4 examples"),
    ({"loss.preference": (1.4, 1.0)}, r"loss.preference is \(1.4, 1.0\), expected 0 < low <= high < 2"),
    ({"model.ar.slots": 3}, r"slots are 3, expected one of the router's levels \[1, 2, 4\]"),
    ({"model.ar.lengths": "some"}, "lengths are 'some', expected one of"),
  ],
)
def test_bad_configs_are_one_sentence(stored, changes, message):
  with pytest.raises(ValueError, match=message):
    make_task(config(stored, **changes))


@pytest.mark.slow
def test_fewer_slots_take_fewer_levels(stored):
  task = make_task(config(stored, **{"model.ar.slots": 2}))
  assert task.gen.cfg.ar.levels == (1, 2) and task.counts(batch_of(stored), np.full(8, 1.8)).max() == 2
  _, metrics = jax.jit(lambda p, b, k: task.loss(p, {}, b, k, 0))(
    started(task.gen.init), batch_of(stored), jax.random.split(jax.random.key(0), 8)
  )
  assert np.isfinite(metrics["nll"][0])


def test_tokens_without_a_router_and_routers_of_others_are_refused(tokenizer, router, tmp_path):
  with pytest.raises(ValueError, match=r"have no router's curves, or those of several: set tokenize\.router"):
    make_task(config(write(tmp_path / "plain", router=None)))
  cfg = t2v.get_config("smoke_adaptive")
  cfg.tokenize.update(dict(tokenizer=tokenizer[2], router=str(tmp_path / "other"), text=""))
  dataclasses.replace(router[0], cfg=dataclasses.replace(router[0].cfg, fingerprint="f" * 16)).save(
    router[1], tmp_path / "other"
  )
  with pytest.raises(ValueError, match="is for the tokenizer ffffffffffffffff, this one is"):
    tokenize_dataset.tokenize(cfg, tmp_path / "set")
  cfg.tokenize.router = "auto"
  with pytest.raises(ValueError, match="no router that comes with vftok is for the tokenizer"):
    tokenize_dataset.tokenize(cfg, tmp_path / "set")
