"""What training asks of EVATok: drawn and routed counts, the alignment head, a step through which all parts learn."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_videomae
from feature_files import DIM, HEADS, vjepa2_tensors, write

from configs import evatok
from vftok.budget.auto import Auto
from vftok.budget.reward import Reward
from vftok.budget.router import Router
from vftok.families.evatok import learn
from vftok.families.evatok.config import EvatokConfig, router_config
from vftok.frozen import features
from vftok.frozen.features import convert, videomae
from vftok.models.layers import unit
from vftok.tasks import make_task
from vftok.tasks.one_pass_objectives import Shown, align

VIDEO = np.random.default_rng(0).integers(0, 255, (4, 4, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  """(V-JEPA 2 file of a tiny net, directory of a random router)."""
  root = tmp_path_factory.mktemp("evatok_learn")
  cfg = evatok.get_config("smoke")
  tok = learn.evatok(cfg.model.to_dict(), make_task(cfg).loss_cfg).tok
  router = Router(dataclasses.replace(router_config(tok.cfg), dim=32, depth=1, head_dim=16))
  shapes = nn.unbox(jax.eval_shape(router.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  router.save(jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes), root / "router")
  return write(vjepa2_tensors(), root / "vjepa2.safetensors"), str(root / "router")


def silu(x):
  return x / (1 + np.exp(-x))


@pytest.mark.slow
def test_videomae_judges_in_place_of_patches(tmp_path, monkeypatch):
  stored = write(test_videomae.tensors(), tmp_path / "videomae.safetensors")
  load = functools.partial(videomae.load, heads=2, size=8)
  monkeypatch.setattr(videomae, "load", load)
  cfg = evatok.get_config("smoke")
  cfg.loss.update(critic_path=str(stored))
  task = make_task(cfg)
  params, frozen = nn.unbox(jax.jit(task.init)(jax.random.key(0))), task.frozen()
  assert set(params["critic"]["net"]) == {f"head_{i}" for i in range(5)} and set(frozen) == {"videomae"}
  keys = jax.random.split(jax.random.key(1), 4)
  run = jax.jit(jax.value_and_grad(lambda p, step: task.loss(p, frozen, {"video": VIDEO}, keys, step), has_aux=True))
  (_, metrics), grads = run(params, 2)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads)) and task.flops() > 0
  size = lambda grads, part: sum(float(np.abs(g).sum()) for g in jax.tree.leaves(grads[part]))
  assert size(grads, "critic") > 0 and metrics["generator"][0] != 0
  before = run(params, 0)[1]  # before loss.adversarial_from
  assert size(before, "critic") == 0 and size(before, "tokenizer") != size(grads, "tokenizer")


@pytest.mark.slow
def test_all_terms_reach_all_parts(paths, monkeypatch):
  monkeypatch.setitem(convert.HEADS, DIM, HEADS)
  cfg = evatok.get_config("smoke")
  cfg.model.patch = (4, 4, 4)  # two of V-JEPA 2's steps in each of the model's
  cfg.loss.update(align=0.7, align_path=str(paths[0]), align_layer=1)
  task = make_task(cfg)
  params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
  assert set(params) == {"tokenizer", "heads", "critic"}
  keys, frozen = jax.random.split(jax.random.key(1), 4), task.frozen()
  run = jax.jit(jax.value_and_grad(lambda p: task.loss(p, frozen, {"video": VIDEO}, keys, 2), has_aux=True))
  (loss, metrics), grads = run(params)
  sizes = {name: sum(np.abs(g).sum() for g in jax.tree.leaves(grads[name])) for name in params}
  assert np.isfinite(loss) and all(np.isfinite(size) and size > 0 for size in sizes.values())
  assert {"l1", "codebook", "commit", "entropy", "align", "generator", "critic"} <= set(metrics)
  # The head by NumPy, on what the decoder's layer gave: 2 steps of time for each of the model's.
  keep = task.learner.counts(frozen, jnp.asarray(VIDEO), keys)
  made = task.learner.step(
    {**params["tokenizer"], "heads": params["heads"]}, frozen, VIDEO / 127.5 - 1, keep, keys, 0.0
  )
  net, weights = features.load("vjepa2", str(paths[0]))
  assert made.own["aligned"].shape == made.own["features"].shape == (4, 2, 4, 4, net.dim)
  seen = net.apply(weights, net._normalise(jnp.asarray(VIDEO / 127.5 - 1, jnp.float32)))
  np.testing.assert_allclose(made.own["features"], seen, atol=1e-4)
  head = task.learner._head()
  x = np.random.default_rng(1).standard_normal((1, 2, 4, 4, 32)).astype(np.float32)
  layers = [jax.tree.map(np.asarray, params["heads"]["align"][name]) for name in ("up", "middle", "out")]
  y = x
  for i, layer in enumerate(layers):
    y = y @ layer["kernel"] + layer["bias"]
    y = silu(y) if i < 2 else y
  y = y.reshape(1, 2, 4, 4, 2, net.dim).transpose(0, 1, 4, 2, 3, 5).reshape(1, 4, 4, 4, net.dim)
  np.testing.assert_allclose(head.apply({"params": params["heads"]["align"]}, x), y, atol=1e-5)
  a, b = np.asarray(made.own["aligned"]), np.asarray(made.own["features"])
  cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  large = made._replace(own={"aligned": 1e4 * a, "features": b})  # an eps in it is of a fresh head's small numbers
  error = align(Shown(task.loss_cfg, VIDEO, large, keep, keys))
  np.testing.assert_allclose(error, 1 - cosine.mean((1, 2, 3)), atol=2e-3)
  np.testing.assert_allclose(unit(made.z), made.z, atol=1e-5)


def test_counts_are_drawn_or_routed(paths):
  cfg = evatok.get_config("smoke")
  task = make_task(cfg)
  keys = jax.random.split(jax.random.key(0), 4000)
  drawn = np.asarray(task.learner.counts({}, np.zeros((4000, 1)), keys))
  classes, found = np.unique(drawn, axis=0, return_counts=True)
  assert len(classes) == 16 and np.abs(found / 4000 - 1 / 16).max() < 0.015  # uniform over assignments
  cfg = evatok.get_config("smoke_final")
  cfg.loss.router = paths[1]
  task, video = make_task(cfg), VIDEO / np.float32(127.5) - 1
  routed = task.learner.counts(task.frozen(), jnp.asarray(video), keys[:4])
  router, weights = Router.load(paths[1])
  assert np.array_equal(routed, router.keep(router.predict(weights, video), Auto(preference=1.2)))


def test_values_that_cannot_be_are_refused(paths):
  for size, change, names in [
    ("smoke", {"counts": "normal"}, "loss.counts is 'normal'"),
    ("smoke", {"counts": "router"}, "loss.router is ''"),
    ("smoke", {"align": 0.7}, "loss.align_path is ''"),
    ("smoke", {"align": 0.7, "align_path": str(paths[0]), "align_layer": 2}, "loss.align_layer is 2, expected 1..1"),
  ]:
    cfg = evatok.get_config(size)
    cfg.loss.update(change)
    with pytest.raises(ValueError) as caught:
      make_task(cfg)
    assert names in str(caught.value)


def test_published_numbers():
  """Sections 2, 3.7, 5 and 6 of our notes."""
  proxy, final, router = (evatok.get_config(name) for name in ("proxy", "final", "router"))
  assert (proxy.steps, final.steps, router.steps) == (400_000, 1_000_000, 50_000)
  assert (proxy.model.codebook_size, final.model.codebook_size) == (16_384, 8_192)
  assert proxy.optim.lr * proxy.optim.final == pytest.approx(1e-6) and proxy.optim.schedule == "cosine"
  assert (proxy.loss.align, proxy.loss.entropy, final.loss.counts, proxy.loss.counts) == (
    0.7,
    0.02,
    "router",
    "assignments",
  )
  reward = Reward.fitted([0.0, 1.0], EvatokConfig().counts, 4)
  assert (reward.length_mean, round(reward.length_std, 3)) == (793.6, 349.137)
  assert reward(0.0, [[32] * 4], 1.2) > reward(1.0, [[32] * 4], 1.2)  # less LPIPS is better
  for size in ("c2v_b", "c2v_l", "k600_l_plus"):
    cfg = evatok.get_config(size)
    assert (cfg.optim.schedule, cfg.optim.decay, cfg.optim.final, cfg.model.ar.lengths) == (
      "wsd",
      0.2,
      0,
      "length_first",
    )
  assert tuple(cfg.tokenize.condition.counts) == (512, 128) and cfg.tokenize.condition.frames == 5
  assert evatok.get_config("c2v_b").loss.dropout.to_dict() == dict(token=0.1, residual=0.1, ffn=0.1)
  for size in ("mini64", "smoke_k600"):
    assert evatok.get_config(size).steps
