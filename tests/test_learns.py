"""The paper's graph learns from random weights: its tokens tell more than no tokens, and the first ones tell most."""

import functools

import jax
import numpy as np
import pytest
import toy

from vftok.tasks import make_task

STEPS = 400


def held(found: dict[str, float]) -> dict[str, bool]:
  """What a tokenizer that has learned shows on held-out clips at flow time 1."""
  return {
    "one token is 5 % below the best that none can do": found["k1"] < 0.95 * found["variance"],
    "each doubling helps": found["k1"] > found["k2"] > found["k4"],
    "another clip's tokens are worse than none": min(found["wrong"], found["wrong k1"]) > found["null"],
  }


@functools.cache
def learned(sabotage: str = "") -> dict[str, float]:
  task, params = toy.train(toy.config(STEPS), toy.clips(4096, seed=0), sabotage)
  return toy.errors(task, params, toy.clips(512, seed=1))


@pytest.mark.slow  # two minutes
def test_the_register_encoder_learns():
  found = learned()
  assert held(found) == dict.fromkeys(held(found), True), found


@pytest.mark.slow  # two minutes each: the test above can fail
@pytest.mark.parametrize("sabotage", toy.SABOTAGES)
def test_broken_training_is_seen(sabotage):
  found = learned(sabotage)
  assert not held(found)["one token is 5 % below the best that none can do"], found


@pytest.mark.parametrize(
  "prefix_latents, steps",
  [
    pytest.param(0.5, 2, id="flow and prefix head"),
    # Three zeros in a row: the decoder's head, its gates, which close attention to registers, and the encoder's head.
    pytest.param(0.0, 3, id="flow alone", marks=pytest.mark.slow),
  ],
)
def test_every_weight_is_reached_after_few_steps(prefix_latents, steps):
  """Output layers and gates start at zero and hide what is behind them from the first gradients only."""
  cfg = toy.config(steps, frames=5, prefix_latents=prefix_latents, null=0.5, given_probs=(0.5, 0.5))
  task, data, grads = make_task(cfg), toy.clips(16, seed=2)[:, :2], []
  run = jax.jit(jax.grad(lambda p, keys: task.loss(p, {}, {"latents": data}, keys, 0)[0]))
  params = toy.initial(task)
  for step in range(steps + 1):
    grads.append(run(params, jax.random.split(jax.random.key(step), 16)))
    params = jax.tree.map(lambda p, g: p - 0.01 * np.sign(g), params, grads[-1])
  largest = jax.tree.map(lambda *g: max(float(np.abs(x).max()) for x in g), *grads)
  unmoved = [
    jax.tree_util.keystr(path)
    for path, size in jax.tree_util.tree_leaves_with_path({part: largest[part] for part in ("encoder", "decoder")})
    if size == 0
  ]
  assert not unmoved
