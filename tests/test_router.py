"""Routers learn from measured curves and are used: the whole way on a tiny tokenizer, and what each part promises."""

import contextlib
import dataclasses
import io
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from router_files import clip, config
from starts import started

from configs import tokenizer as tokenizer_experiment
from vftok import Auto, Router, Tokenizer
from vftok.budget.allocate import at_every_count, for_preference
from vftok.budget.search import all_assignments
from vftok.data.sources import make_source
from vftok.models.router import RouterConfig, RouterNet
from vftok.tasks.curve_fits import one_for_all
from vftok.tasks.draws import RoutedKeep
from vftok.tasks.losses import TokenizerLoss
from vftok.tasks.router import STORED, RouterTask
from vftok.tools import label_budgets
from vftok.train import evaluate, loop


@pytest.fixture(scope="module")
def trained(random_model, tmp_path_factory):
  """(config, workdir) of a router trained on measured curves."""
  root = tmp_path_factory.mktemp("router")
  cfg = config(random_model, root / "curves")
  assert "train 8, val 4 clips under 22 assignments" in label_budgets.label(cfg, root / "curves")
  with contextlib.redirect_stdout(io.StringIO()):
    loop.run(cfg, root / "run")
  return cfg, root / "run"


@pytest.mark.slow
def test_interrupted_labelling_goes_on(random_model, trained, tmp_path, monkeypatch):
  monkeypatch.setattr(label_budgets, "CHUNK", 4)
  cfg, calls, measure = config(random_model, tmp_path / "set"), [], label_budgets.Measure.__call__

  def breaks(*args):
    if len(calls) == 1:
      raise KeyboardInterrupt
    return calls.append(1) or measure(*args)

  monkeypatch.setattr(label_budgets.Measure, "__call__", breaks)
  with pytest.raises(KeyboardInterrupt):
    label_budgets.label(cfg, tmp_path / "set")
  assert not (tmp_path / "set").exists()
  monkeypatch.setattr(label_budgets.Measure, "__call__", lambda *args: calls.append(1) or measure(*args))
  label_budgets.label(cfg, tmp_path / "set")
  assert len(calls) == 3, "two chunks of train and one of val, each measured once"
  assert "already there" in label_budgets.label(cfg, tmp_path / "set") and len(calls) == 3
  said = label_budgets.agreement(tmp_path / "set")
  assert re.match(r"Spearman of flow loss over the 4 assignments of a clip, 2 clips: lpips -?[01]\.\d", said)
  from vftok.data.curves import curves

  for split in ("train", "val"):
    ours = curves(split, directory=tmp_path / "set")
    theirs = curves(split, directory=trained[0].data.sources.curves.directory)
    for i in range(len(theirs)):
      np.testing.assert_allclose(ours[i]["losses"], theirs[i]["losses"], rtol=1e-5)
      np.testing.assert_array_equal(ours[i]["drawn"], theirs[i]["drawn"])
      np.testing.assert_allclose(ours[i]["sampled"], theirs[i]["sampled"], rtol=1e-4)
  known = np.isfinite([curves("val", directory=tmp_path / "set")[i]["sampled"] for i in range(4)])
  assert known[..., 0].all() and known.all((1, 2, 3)).sum() == 2, "flow loss of all, and label.sampled.val"


def test_preferences_weigh_what_the_total_decides():
  cfg = RouterConfig(latents=(3, 4, 4, 2), levels=(1, 2, 4), loss_std=1.0)
  curves = np.array([[[0.3, 0.1, 0], [0.2, 0.1, 0], [0.1, 0.05, 0]]])
  total = lambda size, w: int(Router(dataclasses.replace(cfg, size=size)).keep(curves, Auto(preference=w)).sum())
  assert total((), 1.2) == total((0.0, 0.0, 0.0), 1.2) < total((2.0, 1.0, 0.0), 1.2) <= 12
  assert total((2.0, 1.0, 0.0), 0.6) < total((2.0, 1.0, 0.0), 1.8)
  with pytest.raises(ValueError, match="the router's size is"):
    RouterConfig(levels=(1, 2), size=(1.0,))
  with pytest.raises(ValueError, match="the router reads 1024 time steps, expected at most 256"):
    RouterConfig(latents=(1024, 4, 4, 2))


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["lpips", "features"])
def test_a_router_of_sampled_losses(measure, trained, tmp_path):
  """Clips that were not decoded do not count, and nothing becomes nan."""
  cfg = trained[0].copy_and_resolve_references()
  cfg.loss.measure, cfg.steps = measure, 3
  with contextlib.redirect_stdout(io.StringIO()):
    loop.run(cfg, tmp_path / "run")
  router = Router.load(tmp_path / "run" / "model")[0]
  assert router.cfg.measure == measure and router.cfg.loss_std > 0
  values = evaluate.run(cfg, tmp_path / "run")
  assert values["val/clips"] == 2 and np.isfinite(list(values.values())).all()
  assert 0 <= values["val/percentile of measured/1.2/router"] <= 100
  cfg.loss.measure = "beauty"
  with pytest.raises(ValueError, match=r"loss\.measure is 'beauty', expected one of flow, lpips, features"):
    loop.run(cfg, tmp_path / "other")


def test_curves_fall_and_are_causal_in_time():
  cfg = RouterConfig(dim=64, depth=2, latents=(5, 4, 4, 3), levels=(1, 2, 4, 8))
  latents = jax.random.normal(jax.random.key(1), (2, 5, 4, 4, 3))
  params = nn.unbox(started(lambda key: RouterNet(cfg).init(key, latents))["params"])
  whole = Router(cfg).predict(params, latents)
  assert whole.shape == (2, 5, 4) and (np.diff(whole, axis=-1) < 0).all() and not whole[..., -1].any()
  np.testing.assert_allclose(Router(cfg).predict(params, latents[:, :3]), whole[:, :3], rtol=1e-5)
  with pytest.raises(ValueError, match=re.escape("latents have shape (2, 5, 4, 4, 4), expected")):
    Router(cfg).predict(params, jnp.zeros((2, 5, 4, 4, 4)))


@pytest.mark.slow
def test_a_router_learns_what_is_in_the_latents(tmp_path):
  """Steps that move need tokens: the gradient of the task's own loss finds it."""
  cfg = RouterConfig(dim=64, depth=1, latents=(3, 4, 4, 2), levels=(1, 2, 4))
  rng, net = np.random.default_rng(0), RouterNet(cfg)
  busy = rng.random((64, 3)) < 0.5
  latents = jnp.asarray(rng.standard_normal((64, 3, 4, 4, 2)) * np.where(busy, 2.0, 0.2)[:, :, None, None, None])
  target = jnp.asarray(np.where(busy[..., None], [2.0, 1.0, 0.0], [0.2, 0.1, 0.0]))
  import optax

  params, tx = nn.unbox(net.init(jax.random.key(0), latents)["params"]), optax.adam(3e-3)

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda p: jnp.square(net.apply({"params": p}, latents) - target).mean())(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(150):
    params, state = step(params, state)
  router = Router(dataclasses.replace(cfg, loss_std=1.0))
  keep = router.keep(router.predict(params, latents), Auto(mean=2))
  assert keep.sum(1).tolist() == [6] * 64 and keep[busy].mean() > keep[~busy].mean() + 0.5


def test_training_and_evaluation_leave_a_router(trained, random_model, tmp_path):
  cfg, workdir = trained
  router, params = Router.load(workdir / "model")
  assert router.cfg.fingerprint == random_model[1].fingerprint(random_model[2]) and router.cfg.levels == (1, 2, 4)
  values = evaluate.run(cfg, workdir)
  for name in ("router", "best uniform per clip", "one for all"):
    assert -1e-6 <= values[f"val/percentile/1.2/{name}"] <= 100 + 1e-6
  assert values["val/loss/mean 2/oracle"] <= values["val/loss/mean 2/router"] + 1e-9
  assert values["val/loss/mean 2/oracle"] <= values["val/loss/mean 2/uniform"] + 1e-9
  router.save(params, tmp_path / "again")
  again, same = Router.load(tmp_path / "again")
  assert again == router and all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(same)))


@pytest.mark.slow
@pytest.mark.parametrize("soft", [0.0, 0.2])
def test_a_router_of_classes(soft, trained, random_model, tmp_path):
  """EVATok's: whole clips, one preference, a restricted argmax."""
  cfg = trained[0].copy_and_resolve_references()
  cfg.model.head, cfg.loss.soft, cfg.loss.preference, cfg.steps = "classes", soft, 1.4, 3
  with contextlib.redirect_stdout(io.StringIO()):
    loop.run(cfg, tmp_path / "run")
  router, params = Router.load(tmp_path / "run" / "model")
  assert (router.cfg.head, router.cfg.preference) == ("classes", 1.4)
  assert 0 <= evaluate.run(cfg, tmp_path / "run")["val/percentile/1.4/router"] <= 100 + 1e-6
  _, tok, tok_params = random_model
  video, name = clip(tok.chunk_frames + tok.stride), tmp_path / "run" / "model"
  logits = router.predict(params, tok.encode_latents(tok_params, clip()))
  assert logits.shape == (2, 3**5)
  keep = router.keep(logits, Auto(preference=1.4))
  assert (keep == all_assignments((1, 2, 4), 5)[np.asarray(logits).argmax(1)]).all()
  restricted = router.keep(logits, Auto(preference=1.4, first=(4, 1)))
  assert (restricted[:, :2] == [4, 1]).all()
  budget = Auto(preference=1.4, router=name, first=(4, 1))
  whole = tok.encode(tok_params, video, budget=budget)
  pieces = list(tok.encode_stream(tok_params, iter([video]), budget=budget))
  np.testing.assert_array_equal(np.concatenate([piece.keep for piece in pieces], 1), whole.keep)
  assert (np.asarray(whole.keep)[:, :2] == [4, 1]).all()
  for other in (Auto(mean=2), Auto(preference=1.0)):
    with pytest.raises(ValueError, match=r"this router of classes knows preference=1.4 only"):
      router.keep(logits, other)
  with pytest.raises(ValueError, match=r"budget.first is \(3,\), expected counts among the router's levels"):
    router.keep(logits, Auto(preference=1.4, first=(3,)))
  cfg.loss.measure = "lpips"
  with pytest.raises(ValueError, match="expected 'flow' for classes"):
    loop.run(cfg, tmp_path / "other")


def test_classes_learn_the_best_assignment(trained):
  """The loss falls to the entropy of its target, and the reward's share rises to all."""
  cfg = trained[0].copy_and_resolve_references()
  cfg.model.head = "classes"
  task = RouterTask(cfg)
  table = jnp.asarray(np.random.default_rng(0).random((3, 5, 1)) * np.array([2.0, 1.0, 0.0]))
  loss, metrics = task._class_loss(jnp.zeros((3, 3**5)), table)
  assert loss == pytest.approx(np.log(3**5), rel=1e-5)
  reward, keep = task.router.reward(), all_assignments((1, 2, 4), 5)
  sums = np.stack([t[np.arange(5), np.log2(keep).astype(int)].sum(1) for t in np.asarray(table)])
  best = np.stack([reward(s, keep, 1.2) for s in sums]).argmax(1)
  _, metrics = task._class_loss(20 * jax.nn.one_hot(best, 3**5), table)
  assert metrics["top1"][0] == 3 and metrics["share of reward"][0] == pytest.approx(3)
  found = task.router.keep(jax.nn.one_hot(best, 3**5), Auto(preference=1.2))
  wanted = [for_preference(at_every_count(t, (1, 2, 4)), reward, 1.2) for t in np.asarray(table)]
  assert (np.abs(found - np.array(wanted)) <= 1).all(), "between levels curves are finer"


@pytest.mark.slow  # a tokenizer is trained
def test_a_decoder_is_tuned_to_a_routers_counts(random_model, trained, tmp_path):
  """Half of the examples get the router's counts under random preferences, the others those of the law."""
  path, tok, params = random_model
  cfg = tokenizer_experiment.get_config("smoke")
  cfg.vae, cfg.init_from, cfg.freeze, cfg.loss.router = str(path), str(path), ("encoder",), str(trained[1] / "model")
  keeper, weights = RoutedKeep.load(TokenizerLoss.of(cfg), tok)
  keys, drawn = jax.random.split(jax.random.key(0), 200), jnp.full((200, 5), 9)
  latents = jnp.repeat(tok.encode_latents(params, clip()), 100, 0)
  keep = np.asarray(jax.jit(keeper)(weights, latents, drawn, keys))
  routed = (keep != 9).all(1)
  assert ((keep == 9).all(1) == ~routed).all() and 70 < routed.sum() < 130
  router = Router.load(cfg.loss.router)[0]
  possible = [
    router.keep(router.predict(weights, latents[:1]), Auto(preference=w))[0] for w in np.linspace(0.6, 1.8, 400)
  ]
  assert {tuple(k) for k in keep[:100][routed[:100]].tolist()} <= {tuple(k) for k in np.array(possible).tolist()}
  with contextlib.redirect_stdout(io.StringIO()):
    loop.run(cfg, tmp_path / "run")
  tuned, new = Tokenizer.load(tmp_path / "run" / "model")
  assert tuned.fingerprint(new) == tok.fingerprint(params), "stored tokens stay valid"
  cfg.loss.router = str(tmp_path / "other")
  other = Router(dataclasses.replace(router.cfg, levels=(1, 2)))
  other.save(nn.unbox(started(other.init)), cfg.loss.router)
  with pytest.raises(ValueError, match=r"loss.router has head 'curves', levels \(1, 2\)"):
    loop.run(cfg, tmp_path / "more")


def test_a_run_starts_from_what_all_clips_have_in_common(trained, tmp_path):
  """Before the first step that is all a router of curves says; one of another measure keeps what is a clip's own."""
  cfg = trained[0].copy_and_resolve_references()
  task = RouterTask(cfg)
  params = task.start(nn.unbox(started(task.init)), ())
  source = make_source("curves", "train", dict(directory=cfg.data.sources.curves.directory))
  batch = {key: np.stack([source[i][key] for i in range(8)]) for key in STORED}
  level, loss, _ = task._measured(batch, np)
  table = one_for_all(level, loss, (1, 2, 4), with_size=False)[0][0]
  found = np.asarray(task.router.predict(params, source[0]["latents"][None]))[0]
  falling = np.diff(table, axis=1) < -0.1 * np.abs(np.diff(table, axis=1)).mean()
  np.testing.assert_allclose(np.diff(found, axis=1)[falling], np.diff(table, axis=1)[falling], rtol=1e-3)
  cfg.init_from, cfg.loss.measure = str(trained[1] / "model"), "lpips"
  other = RouterTask(cfg)
  begun = other.start(nn.unbox(started(other.init)), ())
  loaded = Router.load(cfg.init_from)[1]
  np.testing.assert_array_equal(begun["head"]["kernel"], loaded["head"]["kernel"])
  np.testing.assert_array_equal(begun["common"], other.common)


@pytest.mark.slow
def test_noise_on_latents_is_an_examples_own(trained):
  cfg = trained[0].copy_and_resolve_references()
  losses = {}
  for noise in (0.0, 1.0):
    cfg.loss.noise = noise
    task = RouterTask(cfg)
    params = jax.tree.map(lambda x: x + 0.1, nn.unbox(started(task.init)))
    source = make_source("curves", "train", dict(directory=cfg.data.sources.curves.directory))
    batch = {key: np.stack([source[i][key] for i in range(4)]) for key in (*STORED, "latents")}
    for seed in (0, 1):
      losses[noise, seed] = float(task.loss(params, {}, batch, jax.random.split(jax.random.key(seed), 4), 0)[0])
  assert losses[0.0, 0] == losses[0.0, 1] and losses[1.0, 0] != losses[1.0, 1]


def test_first_counts_are_the_users(random_model, trained):
  _, tok, params = random_model
  name = trained[1] / "model"
  tokens = tok.encode(params, clip(), budget=Auto(total=12, router=name, first=(4, 3)))
  assert (np.asarray(tokens.keep)[:, :2] == [4, 3]).all() and tokens.total().tolist() == [12, 12]
  with pytest.raises(ValueError, match="the budget is 2 tokens for 3 time steps"):
    tok.encode(params, clip(), budget=Auto(total=9, router=name, first=(4, 3)))
  with pytest.raises(ValueError, match=r"budget.first is \(5,\), expected at most 5 counts of 1..4"):
    tok.encode(params, clip(), budget=Auto(preference=1.0, router=name, first=(5,)))
  with pytest.raises(ValueError, match="expected whole numbers of at least 1"):
    Auto(mean=2, first=(0,))


def test_budgets_never_change_ids_and_totals_are_exact(random_model, trained):
  _, tok, params = random_model
  video, name = clip(), trained[1] / "model"
  full = tok.encode(params, video)
  for budget, totals in ((Auto(mean=2.5, router=name), {12, 13}), (Auto(total=7, router=name), {7})):
    tokens = tok.encode(params, video, budget=budget)
    np.testing.assert_array_equal(tokens.ids, full.ids)
    assert set(np.asarray(tokens.total()).tolist()) <= totals and tokens.keep.min() >= 1
  longer = [tok.encode(params, video, budget=Auto(preference=w, router=name)).total() for w in (0.1, 1.0, 1.99)]
  assert (longer[0] <= longer[1]).all() and (longer[1] <= longer[2]).all() and (longer[0] < longer[2]).any()
  assert (tok.encode(params, video, budget=3).keep == 3).all()


def test_a_stream_is_routed_like_the_whole(random_model, trained):
  _, tok, params = random_model
  video, budget = clip(tok.chunk_frames + tok.stride), Auto(preference=1.2, router=trained[1] / "model")
  whole = tok.encode(params, video, budget=budget)
  pieces = list(tok.encode_stream(params, iter([video[:, :5], video[:, 5:]]), budget=budget))
  assert len(pieces) == 2
  np.testing.assert_array_equal(np.concatenate([piece.keep for piece in pieces], 1), whole.keep)
  total = tok.encode(params, video, budget=Auto(total=20, router=trained[1] / "model"))
  assert total.total().tolist() == [20, 20]
  pair = Router.load(trained[1] / "model")
  again = tok.encode(params, video, budget=Auto(total=20, router=pair))
  np.testing.assert_array_equal(again.keep, total.keep)
  other = dataclasses.replace(pair[0], cfg=dataclasses.replace(pair[0].cfg, fingerprint="0" * 16))
  with pytest.raises(ValueError, match="the router is for the tokenizer 0000"):
    tok.encode(params, video, budget=Auto(total=20, router=(other, pair[1])))


@pytest.mark.parametrize(
  "call, sentence",
  [
    (
      lambda tok, p, r: tok.encode(p, clip(), budget=Auto(total=4, router=r)),
      "the budget is 4 tokens for 5 time steps",
    ),
    (lambda tok, p, r: tok.encode(p, clip(), budget=Auto(mean=4.2, router=r)), "the budget is 21 tokens"),
    (lambda tok, p, r: list(tok.encode_stream(p, [clip()], budget=Auto(total=9, router=r))), "is of a whole video"),
    (lambda tok, p, r: tok.encode(p, clip(), budget=Auto(mean=2)), "no router that comes with vftok is for the token"),
    (lambda tok, p, r: Auto(mean=2, total=3), "expected one of mean, total and preference"),
    (lambda tok, p, r: Auto(preference=3.0), "the weight of quality is 3.0, expected 0..2"),
    (lambda tok, p, r: Auto.parse("auto:much"), "expected auto:16, auto:total=80 or auto:preference=1.2"),
    (lambda tok, p, r: Router.load(r.parents[1] / "nowhere"), "nowhere"),
  ],
)
def test_bad_budgets(call, sentence, random_model, trained):
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(sentence)):
    call(*random_model[1:], trained[1] / "model")


def test_a_router_of_another_tokenizer_is_refused(random_model, trained):
  _, tok, params = random_model
  other = jax.tree.map(lambda x: x, params)
  other["encoder"] = jax.tree.map(lambda x: x + 1, params["encoder"])
  with pytest.raises(ValueError, match=r"is for the tokenizer .*, this one is .*: train one for it"):
    tok.encode(other, clip(), budget=Auto(mean=2, router=trained[1] / "model"))


def test_vftok_encode_keeps_counts_per_step(random_model, trained, tmp_path, capsys):
  from vftok.cli import commands
  from vftok.io.vft import read_vft
  from vftok.io.video_writer import write_video

  write_video(tmp_path / "clip.mp4", clip()[0], 8)
  words = [
    str(random_model[0]),
    str(tmp_path / "clip.mp4"),
    str(tmp_path / "a.vft"),
    "--router",
    str(trained[1] / "model"),
  ]
  assert commands.main(["encode", *words, "--budget", "auto:2"]) == 0
  vft = read_vft(tmp_path / "a.vft")
  assert sum(vft.keep) == 10 and len(vft.keep) == 5
  assert commands.main(["encode", *words, "--budget", "auto:2", "--keep", "3"]) != 0
  assert "expected one of the two" in capsys.readouterr().err


def test_a_router_ships(trained, tmp_path, monkeypatch):
  from vftok.tools.ship import ship

  ship(trained[1] / "model", tmp_path / "half")
  router = Router.load(tmp_path / "half")[0]
  assert router == Router.load(trained[1] / "model")[0]
  with pytest.raises(ValueError, match="is no tokenizer, and only these take"):
    ship(trained[1] / "model", tmp_path / "other", scale=2.0)
