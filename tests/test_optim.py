"""What decays and by how much: every leaf of every model is in one of two lists, and muP changes neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import adaptok, c2v, evatok, larp, t2v, tokenizer, vae
from vftok.models.router import HEADS, RouterConfig, net
from vftok.runtime import sharding
from vftok.tasks import make_task
from vftok.tools.aot_tasks import planned_task
from vftok.train import optim
from vftok.train.state import logical_axes

# Last names of parameters (the module before it where that decides): what multiplies activations decays.
DECAY = """
  kernel qkv_kernel q_kernel kv_kernel proj_kernel up_kernel down_kernel adaln_kernel linear_kernel
  self_qkv_kernel self_out_kernel cross_qkv_kernel cross_out_kernel
  qkv proj up down head text_in text_q text_kv text_proj
""".split()
KEEP = """
  bias adaln_bias linear_bias scale table token_table class_table position_table time_table slot_table last_time_table
  last_slot_table start null_text registers mask_token prefix_token null_token null_key mix_factor log_variance
  common places times register register_times
  qkv_bias proj_bias up_bias down_bias cls real fake queries query_type positions latent_positions
  patch_positions patch_queries
  self_qkv_bias self_out_bias cross_qkv_bias cross_out_bias codebook query_places ref_places
""".split()


class RouterInit:
  def __init__(self, head):
    self.cfg = RouterConfig(head=head)

  def init(self, key):
    return net(self.cfg).init(key, jnp.zeros((1, *self.cfg.latents)))["params"]


def with_all_parts(cfg):
  """The smoke model has a draft, a linear encoder and a prefix head; readout and class vector are of published ones."""
  cfg.dino, cfg.model.decoder.readout, cfg.model.encoder.global_token = "planned", (1, 8), 8
  return cfg


MODELS = {
  "evatok": lambda: make_task(evatok.get_config("smoke")),
  "larp": lambda: make_task(larp.get_config("smoke")),
  "adaptok": lambda: make_task(adaptok.get_config("smoke_scorer")),
  "tokenizer": lambda: planned_task(with_all_parts(tokenizer.smoke())),
  "vae": lambda: planned_task(vae.get_config("smoke")),
  "c2v": lambda: planned_task(c2v.get_config("49m")),
  "t2v": lambda: planned_task(t2v.get_config("66m")),
  "t2v, ours": lambda: planned_task(t2v.get_config("66m_ours")),
} | {f"router of {head}": lambda head=head: RouterInit(head) for head in HEADS}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_decays_or_does_not(name):
  axes, shapes = logical_axes(MODELS[name]().init, ())
  flat = lambda tree: traverse_util.flatten_dict(tree, sep="/", is_leaf=lambda _, x: not isinstance(x, dict))
  decays, shapes = flat(optim.decayed(axes)), flat(shapes)
  unknown = {path for path in shapes if path.split("/")[-1] not in (*DECAY, *KEEP)}
  assert not unknown, "a new parameter: say in one of the lists whether it decays"
  wrong = {path for path, decay in decays.items() if decay != (path.split("/")[-1] in DECAY)}
  assert not wrong
  assert all(len(shapes[path].shape) > 1 for path, decay in decays.items() if decay)


def decays_by(cfg, axes, params):
  """What one step takes off each parameter where no gradient is."""
  tx, _ = optim.make_optimizer(cfg, 10, axes, params)
  step = lambda params: tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0]
  return jax.jit(step)(params)


def test_mup_changes_updates_and_not_decay():
  cfg = tokenizer.smoke().optim
  cfg.update(lr=0.1, warmup=0, schedule="constant", weight_decay=0.5, lr_groups={"critic": 2.0})
  names = sharding.Names
  axes = {
    "stack": {"qkv_kernel": names(("embed", None, "heads", "head_dim"))},
    "critic": {"kernel": names((None,) * 2)},
  }
  axes |= {"patch_in": {"kernel": names((None, "embed")), "bias": names(("embed",))}, "table": names((None, "embed"))}
  shapes = {"stack": {"qkv_kernel": (64, 3, 1, 64)}, "critic": {"kernel": (2, 2)}, "table": (3, 64)}
  shapes |= {"patch_in": {"kernel": (4, 64), "bias": (64,)}}
  params = jax.tree.map(np.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
  expected = {"stack": {"qkv_kernel": -0.05}, "critic": {"kernel": -0.1}, "table": 0.0}
  expected |= {"patch_in": {"kernel": -0.05, "bias": 0.0}}
  for base in (0, 16):
    cfg.mup_base_width = base
    found = decays_by(cfg, axes, params)
    jax.tree.map(lambda x, e: np.testing.assert_allclose(x, e, rtol=1e-6), found, expected)
  scales = optim.lr_scales(cfg, axes, params)
  assert scales["stack"]["qkv_kernel"] == 16 / 64 and scales["critic"]["kernel"] == 2.0


def parts_of_their_own(**own):
  """(transformation, parameters) of a tokenizer, a critic that has every third turn, and a mean that follows."""
  cfg = tokenizer.smoke().optim
  cfg.update(lr=0.1, warmup=0, schedule="constant", weight_decay=0.5, clip=0.0, b1=0.5, b2=0.9, mup_base_width=0)
  for name, value in {"every": {"critic": 3}, "follow": {"anchors": 0.25}, **own}.items():
    cfg[name] = value
  axes = {name: {"kernel": sharding.Names((None, None))} for name in ("tok", "critic", "anchors")}
  params = jax.tree.map(lambda _: jnp.ones((2, 2)), axes, is_leaf=sharding.is_names)
  return optim.make_optimizer(cfg, 10, axes, params)[0], params


def test_a_part_in_turns_is_adam_over_its_turns():
  """Gradients of other steps leave no trace, decay neither; steps of bias correction are its own turns."""
  tx, params = parts_of_their_own()
  alone, mine = parts_of_their_own(every={}, follow={})
  state, own_state, own = tx.init(params), alone.init(mine), mine
  update, own_update = jax.jit(tx.update), jax.jit(alone.update)
  gradients = lambda tree, step: jax.tree.map(lambda p: p * (step + 1) / 3 - 0.4, tree)
  for step in range(7):
    grads = gradients(params, step)
    updates, state = update(grads, state, params)
    if step % 3 == 0:
      own_updates, own_state = own_update(gradients(own, step), own_state, own)
      own = jax.tree.map(jnp.add, own, own_updates)
    params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(params["critic"]["kernel"], own["critic"]["kernel"], rtol=1e-6)
    assert (updates["tok"]["kernel"] != 0).all() and bool(updates["critic"]["kernel"].any()) == (step % 3 == 0)


def test_a_part_that_follows_takes_plain_steps():
  tx, params = parts_of_their_own(clip=1e-3)
  grads = jax.tree.map(lambda p: 3 * p, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_array_equal(updates["anchors"]["kernel"], -0.75)


SCALES = {"tok": 100.0, "critic": 0.01, "anchors": 7.0}


def test_parts_in_turns_are_clipped_by_their_own_norm():
  """Adam's second moment is of clipped gradients: 0.1 of their square."""
  tx, params = parts_of_their_own(clip=1.0)
  grads = jax.tree.map(jnp.multiply, params, {part: {"kernel": n} for part, n in SCALES.items()})
  _, state = tx.update(grads, tx.init(params), params)
  (adam,) = (part for part in state if hasattr(part, "nu"))
  np.testing.assert_allclose(adam.nu["tok"]["kernel"], 0.1 * 0.25, rtol=1e-5)
  np.testing.assert_allclose(adam.nu["critic"]["kernel"], 0.1 * 1e-4, rtol=1e-5)


def test_unknown_parts_are_one_sentence():
  with pytest.raises(ValueError, match="optim names 'critik' with 5, expected a part of what is trained"):
    parts_of_their_own(every={"critik": 5})
  with pytest.raises(ValueError, match="optim names 'critic' with 0"):
    parts_of_their_own(every={"critic": 0})


def test_warm_up_from_a_share():
  cfg = tokenizer.smoke().optim
  cfg.update(lr=1.0, warmup=10, first=0.01, schedule="constant")
  rate = optim.schedule(cfg, 100)
  assert [float(rate(n)) for n in (0, 5, 10, 50)] == pytest.approx([0.01, 0.505, 1.0, 1.0])


def test_the_optimizers_state_is_that_of_old_checkpoints():
  """Resuming restores by structure: clip, Adam, masked decay, scale, schedule."""
  cfg = tokenizer.smoke().optim
  axes, params = {"kernel": sharding.Names((None, None))}, {"kernel": jnp.ones((2, 2))}
  names = [type(part).__name__ for part in optim.make_optimizer(cfg, 10, axes, params)[0].init(params)]
  assert names == ["EmptyState", "ScaleByAdamState", "MaskedState", "EmptyState", "ScaleByScheduleState"]
