"""One step on eight simulated devices equals one step on one device, whatever the mesh.

Models start with zeros where it matters: of the tokenizer's and the router's parameters 99.5 % have no gradient then,
and two zeros are equal whatever a mesh does to them. So all parameters are shifted off zero first, and gradients are
compared, which Adam's first moment holds.
"""

import functools
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import adaptok, evatok, flextok, larp, router, t2v, tokenizer, vae
from vftok.budget.curves import MEASURES
from vftok.data import curves, shards
from vftok.data.dataset_writer import whole_directory
from vftok.models import attention, splash
from vftok.runtime import sharding
from vftok.tasks import make_task
from vftok.train import loop, optim
from vftok.train.state import init_state, logical_axes

MESHES = {
  "data": dict(data=8),
  "fsdp": dict(data=1, fsdp=8),
  "tensor": dict(data=4, tensor=2),
  "mixed": dict(data=2, fsdp=2, tensor=2),
  "seq": dict(data=4, seq=2),
  "cube": dict(data=2, tensor=2, seq=2),
}


META = dict(shape=[5, 4], codebook_size=32, tokenizer="", fingerprint="", label_names=[], text="minilm")
META |= dict(text_path="", text_shape=[6, 384])
META |= dict(router=dict(name="r", levels=[1, 2, 4], steps=5, loss_mean=1.0, loss_std=0.5))
SHIFT = 0.05
ALL_TASKS = "tokenizer grid vae larp adaptok evatok flextok ar ar_adaptive router"


def make(cfg):
  task = make_task(cfg, metas=[META]) if cfg.task == "ar" else make_task(cfg)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
  return task, tx


@functools.cache
def measured():
  """A set of curves out of thin air, for the router: 15 + 3 + 4 assignments of 1, 2 or 4 tokens to 5 steps."""
  facts = dict(levels=[1, 2, 4], steps=5, times=[0.5], random=4, seed=0, tokenizer="", fingerprint="", codebook_size=32)
  facts |= dict(latents_shape=[5, 4, 4, 4], losses_shape=[22, 5, 1], drawn_shape=[4, 5])
  path, rng = Path(tempfile.mkdtemp()) / "curves", np.random.default_rng(0)
  rows = [
    {
      "latents": rng.random(facts["latents_shape"]).astype(np.float16),
      "losses": rng.random(facts["losses_shape"], np.float32),
      "drawn": rng.choice([1, 2, 4], facts["drawn_shape"]).astype(np.int32),
      "sampled": rng.random((*facts["drawn_shape"], len(MEASURES)), np.float32),
      **dict(caption="", label=0, name=""),
    }
    for _ in range(8)
  ]
  with whole_directory(path, facts) as directory:
    finish = lambda parts: curves.finish_curves(directory, parts, facts)
    shards.write_set(directory, {"train": lambda: rows}, curves.features(facts), finish)
  return path, {key: np.stack([row[key] for row in rows]) for key in ("latents", "losses", "drawn", "sampled")}


def config(task):
  size = {"ar_adaptive": "smoke_adaptive", "grid": "grid_smoke"}.get(task, "smoke")
  modules = {"tokenizer": tokenizer, "grid": tokenizer, "vae": vae, "ar": t2v, "ar_adaptive": t2v, "router": router}
  modules |= {"larp": larp, "adaptok": adaptok, "evatok": evatok, "flextok": flextok}
  cfg = modules[task].get_config(size)
  if task in ("larp", "adaptok"):
    cfg.model.encoder_num_heads = cfg.model.decoder_num_heads = 2
  if task == "evatok":
    cfg.loss.adversarial_from = 0
  if task == "router":
    cfg.data.sources.curves.directory, cfg.model.dim = str(measured()[0]), 128
  if task in ("tokenizer", "grid", "flextok"):
    cfg.model.encoder.stack.dim = cfg.model.decoder.stack.dim = 128  # two heads, so that tensor=2 cuts them
  if task.startswith("ar"):
    cfg.model.ar.width, cfg.model.ar.depth, cfg.model.ar.remat = 128, 2, "nothing_saveable"
  cfg.batch_size, cfg.optim.warmup = 8, 0
  cfg.optim.eps = 1e-2  # or Adam's first step is a sign, and rounding near zero gradients decides it
  return cfg


def make_batch(task):
  rng = np.random.default_rng(0)
  batch = {"_mask": np.ones(8, bool), "label": np.zeros(8, np.int32)}
  if task.startswith("ar"):
    batch["curves"] = np.sort(rng.random((8, 5, 3), np.float32), axis=2)[:, :, ::-1]
    batch["ids"] = rng.integers(0, 32, (8, 5, 4), np.uint16)
    batch["text_emb"] = rng.standard_normal((8, 6, 384)).astype(np.float16)
    return batch | {"text_mask": rng.random((8, 6)) < 0.7}
  if task == "router":
    return batch | measured()[1]
  frames = {"vae": 9, "larp": 16, "adaptok": 16, "evatok": 4, "flextok": 1}.get(task, 17)
  return batch | {"video": rng.integers(0, 255, (8, frames, 16, 16, 3), np.uint8)}


def shifted(params):
  """Parameters on the host, all off zero, the same ones every time."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + SHIFT * rng.standard_normal(x.shape, np.float32), jax.device_get(params))


def moments(state):
  """Adam's first moment: a tenth of the gradient, clipped."""
  (adam,) = (part for part in state.opt_state if hasattr(part, "mu"))
  return jax.device_get(adam.mu)


@functools.cache
def alone(name):
  """(loss, new parameters, gradients, parameters before they were shifted) by one device, without a mesh."""
  cfg, batch = config(name), make_batch(name)
  task, tx = make(cfg)
  state, _ = init_state(task.init, tx, sharding.make_mesh({"data": -1}), seed=0, ema=True, freeze=cfg.freeze)
  start = jax.device_get(state.params)
  state = jax.device_put(jax.device_get(state).replace(params=shifted(start)), jax.devices()[0])
  step = jax.jit(lambda s, f, b: loop.train_step(s, f, b, task=task, tx=tx, cfg=cfg))
  new, metrics = step(state, jax.device_put(task.frozen(), jax.devices()[0]), batch)
  return float(metrics["loss"]), jax.device_get(new.params), moments(new), start


@pytest.mark.parametrize("name", os.environ.get("VFTOK_MESHES", " ".join(MESHES)).split())
@pytest.mark.parametrize(
  "of", os.environ.get("VFTOK_TASKS", "tokenizer grid vae larp adaptok evatok flextok ar ar_adaptive router").split()
)
def test_step_equals_one_device(of, name):
  (loss, params, grads, start), batch = alone(of), make_batch(of)
  assert np.mean(np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)]) != 0) > 0.9, "nothing is compared"
  cfg = config(of)
  task, tx = make(cfg)
  mesh = sharding.make_mesh(MESHES[name])
  with jax.set_mesh(mesh):
    state, places = init_state(task.init, tx, mesh, seed=0, ema=True, freeze=cfg.freeze)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), start)
    state = state.replace(params=jax.device_put(shifted(state.params), places.params))
    frozen = task.frozen()
    frozen = jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh, least=64))
    step = jax.jit(
      lambda s, f, b: loop.train_step(s, f, b, task=task, tx=tx, cfg=cfg),
      donate_argnums=0,
      out_shardings=(places, sharding.replicated(mesh)),
    )
    arrays = sharding.to_devices(batch, mesh)
    compiled = step.lower(state, frozen, arrays).compile()
    mine = sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device.id == 0)
    assert compiled.memory_analysis().alias_size_in_bytes >= 0.99 * mine
    new, metrics = compiled(state, frozen, arrays)
  assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
  for a, b in zip(jax.tree.leaves(jax.device_get(new.params)), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  norm = lambda tree: float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(tree))))
  whole, found = norm(grads), moments(new)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(grads), strict=True):
    assert norm(a - b) <= 1e-4 * norm(b) + 1e-6 * whole, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", [n for n in MESHES if n in os.environ.get("VFTOK_MESHES", "mixed seq").split()])
def test_the_tpu_kernel_under_a_mesh(name):
  """Interpreted: batch, heads and rows cut up, packed rows and multiplicities with them."""
  layout = attention.Layout(5, 60, 50, "time_block_causal", (), 7)
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.standard_normal((4, 2, layout.length, 64)), jnp.float32) for _ in range(3))
  segment = jnp.asarray(np.sort(rng.integers(0, 3, (4, layout.length))), jnp.int32)
  options = dict(scale=1 / 8, bias_M=layout.log_multiplicity(), segment_BxN=segment, interpret=True)
  run = lambda q, k, v: splash.attend_up_to(q, k, v, layout.last_visible(), **options)
  both = jax.jit(jax.value_and_grad(lambda *a: jnp.sin(run(*a)).sum(), (0, 1, 2)))
  one = both(q, k, v)
  with jax.set_mesh(sharding.make_mesh(MESHES[name])):
    many = both(q, k, v)
  for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5)


def test_parameters_are_cut_as_the_table_says():
  cfg = config("tokenizer")
  task, _ = make(cfg)
  mesh = sharding.make_mesh(MESHES["mixed"])
  axes, shapes = logical_axes(task.init, ())
  places = sharding.param_shardings(axes, shapes, mesh)
  blocks = places["decoder"]["stack"]["blocks"]
  assert blocks["qkv_kernel"].spec == jax.P(None, "fsdp", None, "tensor", None)
  assert blocks["down_kernel"].spec[2] == "fsdp"
  assert places["encoder"]["registers"].spec == jax.P(None, None, "fsdp")
  assert sharding.spec_for(("heads",), (3,), mesh) == jax.P(None)  # three heads do not go on two devices


def test_muon_steps_alike_where_matrices_are_cut():
  cfg, rng = config("tokenizer"), np.random.default_rng(0)
  cfg.optim.muon = 0.6
  task, tx = make(cfg)
  axes, shapes = logical_axes(task.init, cfg.freeze)
  params, grads = (jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes) for _ in range(2))
  step = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])
  whole, mesh = jax.device_get(step(grads, params)), sharding.make_mesh(MESHES["mixed"])
  with jax.set_mesh(mesh):
    split = step(*jax.device_put((grads, params), (sharding.param_shardings(axes, shapes, mesh),) * 2))
  cut = split["decoder"]["stack"]["blocks"]["qkv_kernel"]
  assert len({str(shard.index) for shard in cut.addressable_shards}) == 4
  for a, b in zip(jax.tree.leaves(jax.device_get(split)), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


def test_feature_nets_are_cut_too():
  mesh = sharding.make_mesh(MESHES["fsdp"])
  tree = {"features": {"up": np.zeros((2, 64, 128)), "odd": np.zeros((2, 36, 7))}, "vae": np.zeros((64, 64))}
  places = sharding.frozen_shardings(tree, mesh, least=64)
  assert places["features"]["up"].spec == jax.P(None, None, "fsdp")
  assert not any(places["features"]["odd"].spec) and not any(places["vae"].spec)
  assert not any(sharding.frozen_shardings(tree, mesh)["features"]["up"].spec)  # too small to be worth it


def test_constrain_pins_activations():
  mesh = sharding.make_mesh(MESHES["mixed"])
  with jax.set_mesh(mesh):
    x = jax.jit(lambda x: sharding.constrain(x, "batch", "length", None))(jnp.zeros((8, 6, 4)))
  assert x.sharding.spec[0] == ("data", "fsdp")
