"""One step on eight simulated devices equals one step on one device, whatever the mesh."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer as experiment
from vftok import optim, sharding, train
from vftok.state import init_state, logical_axes
from vftok.tasks import make_task

MESHES = {
  "data": dict(data=8),
  "fsdp": dict(data=1, fsdp=8),
  "tensor": dict(data=4, tensor=2),
  "mixed": dict(data=2, fsdp=2, tensor=2),
  "seq": dict(data=4, seq=2),
}


def make(cfg):
  task = make_task(cfg)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
  return task, tx


def config():
  cfg = experiment.get_config("smoke")
  cfg.model.encoder.stack.dim = cfg.model.decoder.stack.dim = 128  # two heads, so that tensor=2 cuts them
  cfg.batch_size, cfg.optim.warmup = 8, 0
  cfg.optim.eps = 1e-2  # or Adam's first step is a sign, and rounding near zero gradients decides it
  return cfg


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {"video": rng.integers(0, 255, (8, 17, 16, 16, 3), np.uint8), "_mask": np.ones(8, bool)}


@pytest.fixture(scope="module")
def alone(batch):
  """(loss, new parameters, starting state) by one device, without a mesh."""
  cfg = config()
  task, tx = make(cfg)
  state, _ = init_state(task.init, tx, sharding.make_mesh({"data": -1}), seed=0, ema=True)
  state = jax.device_put(jax.device_get(state), jax.devices()[0])
  step = jax.jit(lambda s, f, b: train.train_step(s, f, b, task=task, tx=tx, cfg=cfg))
  new, metrics = step(state, jax.device_put(task.frozen(), jax.devices()[0]), batch)
  return float(metrics["loss"]), jax.device_get(new.params), jax.device_get(state)


@pytest.mark.parametrize("name", os.environ.get("VFTOK_MESHES", " ".join(MESHES)).split())
def test_step_equals_one_device(name, batch, alone):
  loss, params, start = alone
  cfg = config()
  task, tx = make(cfg)
  mesh = sharding.make_mesh(MESHES[name])
  with jax.set_mesh(mesh):
    state, places = init_state(task.init, tx, mesh, seed=0, ema=True)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), start.params)
    frozen = jax.device_put(task.frozen(), sharding.replicated(mesh))
    step = jax.jit(
      lambda s, f, b: train.train_step(s, f, b, task=task, tx=tx, cfg=cfg),
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


def test_parameters_are_cut_as_the_table_says():
  cfg = config()
  task, _ = make(cfg)
  mesh = sharding.make_mesh(MESHES["mixed"])
  axes, shapes = logical_axes(task.init, ())
  places = sharding.param_shardings(axes, shapes, mesh)
  blocks = places["decoder"]["stack"]["blocks"]
  assert blocks["qkv_kernel"].spec == jax.P(None, "fsdp", None, "tensor", None)
  assert blocks["down_kernel"].spec[2] == "fsdp"
  assert places["encoder"]["registers"].spec == jax.P(None, None, "fsdp")
  assert sharding.spec_for(("heads",), (3,), mesh) == jax.P(None)  # three heads do not go on two devices


def test_constrain_pins_activations():
  mesh = sharding.make_mesh(MESHES["mixed"])
  with jax.set_mesh(mesh):
    x = jax.jit(lambda x: sharding.constrain(x, "batch", "length", None))(jnp.zeros((8, 6, 4)))
  assert x.sharding.spec[0] == ("data", "fsdp")
