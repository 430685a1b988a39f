"""Training of LARP and AdapTok: what learns from what, turns of the critic, counts, rounds of the prior, the scorer."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import adaptok, larp
from vftok.families.query import learn
from vftok.models.vit import attend_dropped
from vftok.tasks import make_task, one_pass
from vftok.tasks.one_pass_loss import OnePassLoss
from vftok.tokenizer.families import load
from vftok.train import loop, optim
from vftok.train.state import TrainState, logical_axes, split

CONFIGS = {"larp": larp, "adaptok": adaptok}


def loss_of(**own):
  return OnePassLoss(**(dict(lpips=0.0, lpips_net="") | own))


def clips(n=4, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 16, 3), np.uint8)


def adaptok_learner(**own):
  return learn.adaptok(adaptok.smoke().model.to_dict(), loss_of(counts="normal", counts_least=1, **own))


@pytest.fixture(scope="module")
def steps():
  """(task, states before and after each of three steps) of the smallest LARP; the critic has its turn at 0 and 2."""
  cfg = larp.smoke()
  cfg.optim.warmup = 0
  task = make_task(cfg)
  axes, shapes = logical_axes(task.init, cfg.freeze)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, axes, shapes)
  trained, fixed = split(nn.unbox(jax.jit(task.init)(jax.random.key(0))), cfg.freeze)
  rng = jax.random.key_data(jax.random.key(1))
  states = [TrainState(jnp.int32(0), trained, fixed, tx.init(trained), None, rng)]
  step = jax.jit(lambda state, batch: loop.train_step(state, {}, batch, task=task, tx=tx, cfg=cfg))
  for seed in range(3):
    states.append(step(states[-1], {"video": clips(seed=seed), "_mask": np.ones(4, bool)})[0])
  return task, states


def adam(state):
  (found,) = (part for part in state.opt_state if hasattr(part, "mu"))
  return found


@pytest.mark.slow
def test_every_leaf_learns(steps):
  _, states = steps
  still = [jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(adam(states[-1]).mu) if not x.any()]
  assert still == ["['critic']['anchors']['fake']", "['critic']['anchors']['real']"]  # these follow by themselves
  assert all(x != 0 for x in states[-1].params["critic"]["anchors"].values())
  assert set(states[0].fixed["tokenizer"]) == {"fixed"}


@pytest.mark.slow
def test_the_critic_keeps_still_between_its_turns(steps):
  _, states = steps
  moved = lambda a, b: [bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
  for before, after, turn in zip(states, states[1:], (True, False, True), strict=False):
    assert any(moved(before.params["tokenizer"], after.params["tokenizer"]))
    for a, b in ((before.params, after.params), (adam(before).nu, adam(after).nu)):
      changed = moved(a["critic"], b["critic"])
      assert any(changed) if turn else not any(changed)


@pytest.mark.slow
def test_running_means_of_lecam(steps):
  """One step of 1 / 1000 towards the mean of what the critic said."""
  task, states = steps
  logits = task.critic.apply({"params": states[0].params["critic"]["net"]}, clips() / np.float32(255))
  found = float(states[1].params["critic"]["anchors"]["real"])
  assert found == pytest.approx(1e-3 * float(logits.mean()), rel=1e-4)


@pytest.mark.slow
def test_the_prior_never_moves_the_codes():
  task = make_task(larp.smoke())
  task.weights = {"prior": 1.0}
  params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
  keys = jax.random.split(jax.random.key(1), 2)
  grads = jax.jit(jax.grad(lambda p: task.loss(p, {}, {"video": clips(2)}, keys, 1)[0]))(params)
  assert not grads["tokenizer"]["quantizer"]["table"].any()
  assert grads["tokenizer"]["quantizer"]["in"]["kernel"].any() and grads["tokenizer"]["encoder"]["queries"].any()
  assert not any(x.any() for x in jax.tree.leaves(grads["tokenizer"]["decoder"]))


@pytest.fixture(scope="module")
def prior_inputs():
  learner = adaptok_learner(prior=0.1)
  cfg = dataclasses.replace(learner.tok.cfg, prior=dataclasses.replace(learner.tok.cfg.prior, dropout=0.0))
  params = jax.jit(learner.tok.init)(jax.random.key(0))
  ids = np.random.default_rng(0).integers(0, 32, (2, 4, 4))
  kept = np.arange(4) < np.array([[1, 4, 2, 3], [4, 4, 4, 4]])[..., None]
  codes = np.asarray(learner.tok.codes_of(params, ids))
  run = jax.jit(lambda share, key: learn.predict(cfg, params, codes, ids, kept, jax.random.split(key, 2), share))
  return learner, params, ids, kept, run


def test_the_prior_reads_kept_tokens_first(prior_inputs):
  """Round 1 is what `prior_logits` says of the same tokens."""
  learner, params, ids, kept, run = prior_inputs
  from vftok.tokens import VideoTokens

  said = learner.tok.prior_logits(params, VideoTokens.full(ids, 16, nested=True).truncate(kept.sum(2)))
  made = run(0.0, jax.random.key(0))
  first = np.asarray(made.logits[0])
  assert made.counts.sum(1).tolist() == [9, 15]
  np.testing.assert_allclose(first[made.counts], np.asarray(said)[made.counts], atol=2e-5)
  assert made.ids[0, :9].tolist() == ids[0][kept[0]].tolist()[1:]
  np.testing.assert_allclose(made.logits[1], first, atol=2e-5)  # with nothing guessed and no dropout


def test_the_second_round_reads_guesses(prior_inputs):
  *_, run = prior_inputs
  half, all_of_it = run(0.5, jax.random.key(0)), run(1.0, jax.random.key(0))
  differs = lambda made: np.abs(np.asarray(made.logits[1] - made.logits[0])).max((0, 2)) > 1e-6
  assert not differs(all_of_it)[0] and differs(all_of_it)[1:].all()  # the first code is never guessed
  assert differs(half).any()


def test_share_of_guesses_rises_and_stays():
  learner = learn.larp(larp.smoke().model.to_dict(), loss_of(prior=0.1))
  assert [float(learner.guesses(done)) for done in (0.0, 0.15, 0.3, 0.9)] == pytest.approx([0.0, 0.25, 0.5, 0.5])


def test_counts_are_normal_and_cut():
  learner = learn.adaptok(adaptok.get_config("k600").model.to_dict(), loss_of(counts="normal"))
  keep = np.asarray(learner.counts({}, None, jax.random.split(jax.random.key(0), 2000)))
  assert keep.shape == (2000, 4) and keep.min() >= 32 and keep.max() <= 512
  assert keep.mean() == pytest.approx(260, abs=4) and keep.std() == pytest.approx(110, abs=5)  # of the cut normal
  assert abs(np.corrcoef(keep.T)[0, 1]) < 0.06


@pytest.mark.slow
def test_ids_are_drawn_with_a_key_of_each_clip():
  learner = learn.larp(larp.smoke().model.to_dict(), loss_of())
  quantizer = jax.jit(learner.tok.init)(jax.random.key(0))["quantizer"]
  z = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 64, 4)) * 0.02, (3, 1, 64, 4))
  keys = jax.random.split(jax.random.key(2), 3)[jnp.array([0, 1, 0])]
  ids = np.asarray(learner._ids(quantizer, z, keys))
  assert (ids[0] == ids[2]).all() and (ids[0] != ids[1]).any()
  sure = dataclasses.replace(learner, loss_cfg=loss_of(sampled=False))
  assert (np.asarray(sure._ids(quantizer, z, keys)) == np.asarray(sure._ids(quantizer, z[:1], keys[:1]))).all()


def test_dropout_of_attention():
  q, k, v = np.random.default_rng(0).standard_normal((3, 1, 1, 6, 4)).astype(np.float32)
  logits = np.where(np.tri(6), np.einsum("bnle,bnme->bnlm", q, k) / 2, -np.inf)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  kept = np.asarray(jax.random.bernoulli(jax.random.key(0), 0.75, (36,))).reshape(weights.shape)
  assert 0 < kept.sum() < 36
  found = attend_dropped(q, k, v, jax.random.key(0), 0.25)
  np.testing.assert_allclose(found, (weights * kept / 0.75) @ v, atol=1e-6)


@pytest.mark.parametrize(
  "family, size, parts",
  [
    ("larp", "k600", dict(tokenizer=172.18, prior=21.70, fixed=2.36, critic=38.2)),
    ("adaptok", "k600", dict(tokenizer=172.97, prior=22.09, fixed=3.15, critic=38.2)),
    ("larp", "mini64", dict(tokenizer=23.76)),
    ("adaptok", "mini64", dict(tokenizer=23.76)),
    ("adaptok", "k600_scorer", dict(scorer=88.96)),
    ("adaptok", "mini64_scorer", dict(tokenizer=23.76)),
  ],
)
def test_sizes_of_experiments(family, size, parts):
  cfg = CONFIGS[family].get_config(size)
  task = make_task(cfg)
  shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
  found = {name: count(tree) for name, tree in (shapes["tokenizer"] | shapes).items()}
  found["tokenizer"] = sum(found[name] for name in ("encoder", "quantizer", "decoder"))
  for name, expected in parts.items():
    assert found[name] == pytest.approx(expected, abs=0.006 * max(1, expected / 10)), name
  assert task.flops() > 1e9
  optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))


@pytest.mark.parametrize(
  "family, change, words",
  [
    ("larp", {"family": "lark"}, "config.family is 'lark', expected one of larp, adaptok"),
    ("larp", {"data.frames": 17}, r"data has frames and size \(17, 16, 16\), expected the model's \(16, 16, 16\)"),
    ("larp", {"loss.counts": "normal"}, "family is 'larp' and the config has .* 'normal', expected False and 'all'"),
    ("larp", {"family": "adaptok"}, "family is 'adaptok' and model.nested is False"),
    ("larp", {"model.encoder_num_heads": 5}, "encoder_hidden_size = 32 and encoder_num_heads = 5, expected a multiple"),
    ("larp", {"model.dtype": "float8"}, "dtype = 'float8', expected float32 or bfloat16"),
    ("larp", {"model.prior": None}, "loss.prior is 0.06 and the model has no prior"),
    ("larp", {"model.prior.length": 9}, "prior.length = 9, expected 8, all tokens"),
    ("larp", {"loss.critic.patch": (4, 8, 5)}, "critic.patch is .*, expected divisors"),
    ("adaptok", {"loss.counts_least": 5}, "loss.counts_least is 5, expected 1..4"),
    ("adaptok", {"loss.counts": "grid"}, "loss.counts is 'grid' and the model has no scorer"),
    ("adaptok", {"loss.scorer": 1.0, "loss.lpips_net": "vgg"}, "loss.scorer asks for model.scorer"),
  ],
)
def test_bad_experiments_are_one_sentence(family, change, words):
  cfg = CONFIGS[family].smoke()
  with cfg.unlocked(), cfg.ignore_type():
    cfg.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=words) as error:
    make_task(cfg)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize("family", ["larp", pytest.param("adaptok", marks=pytest.mark.slow)])
def test_fresh_models_are_saved_as_released_and_load(family, tmp_path):
  cfg = CONFIGS[family].smoke()
  task = make_task(cfg)
  params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
  task.save(params, {}, tmp_path / "model")
  tok, loaded = load(tmp_path / "model")
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(params["tokenizer"], loaded)
  assert tok == task.tok and tok.cfg.prior.heads == 2
  cfg.init_from = str(tmp_path / "model")
  other = nn.unbox(jax.jit(task.init)(jax.random.key(7)))
  started = make_task(cfg).start(other, ())
  same(started["tokenizer"], loaded)
  same(started["critic"], other["critic"])
  cfg.model.decoder_hidden_size = 16
  smaller = nn.unbox(jax.eval_shape(make_task(cfg).init, jax.random.key(0)))
  with pytest.raises(ValueError, match="init_from holds another tokenizer"):
    make_task(cfg).start(smaller, ())


@pytest.mark.slow
def test_scores_are_what_a_choice_reads():
  """Each block's entry for its own count, seen with the chosen counts of earlier blocks and all of the rest."""
  cfg = adaptok.get_config("smoke_scorer")
  learner = learn.adaptok(cfg.model.to_dict(), OnePassLoss.of(cfg))
  params, video = jax.jit(learner.tok.init)(jax.random.key(0)), clips(2)
  keep = np.array([[2, 4, 2, 4], [4, 2, 2, 2]])
  assert set(np.unique(learner.counts({}, None, jax.random.split(jax.random.key(0), 50)))) == {2, 4}
  ids, features = learner.tok.ids_and_features(params, video / np.float32(127.5) - 1)
  codes = learner.tok.codes_of(params, ids)
  made = learn.Made(None, None, codes, ids, None, None, {"features": features})
  found = np.asarray(jax.jit(learner.scores)(params, made, keep))
  for t in range(4):
    shown = np.where(np.arange(4) < t, keep, 4)
    said = np.asarray(learner.tok.scores_of(params, ids, features, shown))[:, t]
    np.testing.assert_allclose(found[:, t], said[np.arange(2), keep[:, t] // 2 - 1], atol=1e-5)


@pytest.mark.slow
def test_a_scorer_learns_and_nothing_else(monkeypatch):
  """Its loss falls on one batch, with a distance that is quicker than LPIPS; all of the tokenizer is fixed."""
  distance = lambda params, a, b: jnp.abs(a - b).mean((2, 3, 4))
  monkeypatch.setattr(one_pass, "frame_lpips", distance)
  cfg = adaptok.get_config("smoke_scorer")
  cfg.optim.update(dict(lr=3e-3, warmup=0, schedule="constant"))
  task = make_task(cfg)
  axes, shapes = logical_axes(task.init, cfg.freeze)
  assert list(axes) == ["tokenizer"] and list(axes["tokenizer"]) == ["scorer"]
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, axes, shapes)
  trained, fixed = split(nn.unbox(jax.jit(task.init)(jax.random.key(0))), cfg.freeze)
  rng = jax.random.key_data(jax.random.key(1))
  state = TrainState(jnp.int32(0), trained, fixed, tx.init(trained), None, rng)
  frozen = {"lpips": {}}
  step = jax.jit(lambda state, batch: loop.train_step(state, frozen, batch, task=task, tx=tx, cfg=cfg))
  losses = []
  for _ in range(12):
    state, metrics = step(state, {"video": clips(), "_mask": np.ones(4, bool)})
    losses.append(float(metrics["loss"]))
  assert min(losses[-3:]) < 0.5 * losses[0]
