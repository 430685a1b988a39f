"""A world of latents small enough to learn in two minutes on two CPU cores, and the paper's tokenizer for it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vftok.models import fsq
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.layers import PositionConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig
from vftok.runtime import sharding
from vftok.tasks import draws, make_task
from vftok.tasks.losses import TokenizerLoss
from vftok.tokenizer import programs
from vftok.train import optim
from vftok.train.state import init_state, logical_axes
from vftok.train.step import train_step

STEPS, SIDE, CHANNELS = 5, 4, 8  # of the latents: time, height and width, channels
REGISTERS = 4
BATCH = 64
# Other tests compile for a single run at level 0; here the same program runs hundreds of times.
FAST = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def clips(count: int, seed: int) -> np.ndarray:
  """float32 [count, 5, 4, 4, 8]: an object of one of 8 kinds moves in one of 4 ways over one of 8 grounds.

  What each step shows anew (a shade of light) takes tokens of its own, so one token per step is not enough.
  """
  world = np.random.default_rng(1)
  kinds, grounds = world.normal(size=(8, CHANNELS)), world.normal(size=(8, 2, CHANNELS))
  shades = world.normal(size=(4, SIDE, SIDE, CHANNELS))
  rng = np.random.default_rng([seed, 7])
  kind, ground, way = rng.integers(8, size=count), rng.integers(8, size=count), rng.integers(4, size=count)
  start = rng.uniform(0.5, 2.5, (count, 1, 2)) - np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[way][:, None] * 0.8
  centre = start + np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[way][:, None] * np.linspace(0, 1.6, STEPS)[:, None]
  y, x = np.mgrid[:SIDE, :SIDE]
  near = np.exp(-((y - centre[..., 0, None, None]) ** 2 + (x - centre[..., 1, None, None]) ** 2) / 1.2)
  ramp = grounds[ground][:, None, None, None, 0] + grounds[ground][:, None, None, None, 1] * (y / 3 - 0.5)[..., None]
  light = np.einsum("BTj,jhwC->BThwC", rng.normal(size=(count, STEPS, 4)) * np.array([0.8, 0.7, 0.6, 0.5]), shades)
  out = 0.8 * ramp + 1.6 * near[..., None] * kinds[kind][:, None, None, None] + light
  return (out / 1.2).astype(np.float32)


def config(steps: int, frames: int = 17, **loss):
  """The paper's graph: no linear code, no draft. `frames` of video are (frames + 3) / 4 latents."""
  grid = PositionConfig("learnable_sum", (STEPS, SIDE, SIDE))
  shared = dict(patch=(1, 2, 2), channels=CHANNELS, positions=grid, registers=REGISTERS)
  model = TokenizerConfig(
    vae=VAEConfig(ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=CHANNELS, time_levels=(0, 1), stem=2),
    encoder=EncoderConfig(stack=StackConfig(64, 2, 32), out_dim=4, **shared),
    decoder=DecoderConfig(
      stack=StackConfig(64, 2, 32, adaln=2),
      code_dim=4,
      register_positions=PositionConfig("learnable_sum", (STEPS, REGISTERS)),
      **shared,
    ),
    levels=(8, 5, 5, 5),
    latent_size=(SIDE, SIDE),
    chunk_frames=frames,
  )
  return common.base(
    task="tokenizer",
    steps=steps,
    batch_size=BATCH,
    model=dataclasses.asdict(model),
    loss=TokenizerLoss(**dict(prefix_latents=0.5, prefix_width=64, prefix_depth=1, high=0.5) | loss),
    optim=dict(lr=2e-3, warmup=50),
    ema=0.99,
  )


SABOTAGES = {
  "no gradient to the encoder": (fsq, "quantize", lambda real: lambda *a: jax.lax.stop_gradient(real(*a))),
  "registers of another clip": (fsq, "quantize", lambda real: lambda *a: jnp.roll(real(*a), 1, axis=0)),
  "all registers kept": (draws, "sample_keep", lambda real: lambda _, steps, k, **law: jnp.full(steps, k, jnp.int32)),
}


def train(cfg, data, sabotage: str = ""):
  """(task, parameters: the running mean) after `cfg.steps` of the repository's own step on random batches of `data`.

  sabotage: "" or a key of SABOTAGES, what is broken in training on purpose.
  """
  task = make_task(cfg)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
  mesh = sharding.make_mesh({"data": -1})
  with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
    if sabotage:
      module, name, broken = SABOTAGES[sabotage]
      patch.setattr(module, name, broken(getattr(module, name)))
    state, _ = init_state(task.init, tx, mesh, seed=0, ema=True)
    step = jax.jit(functools.partial(train_step, task=task, tx=tx, cfg=cfg), donate_argnums=0, compiler_options=FAST)
    rng, mask = np.random.default_rng(0), np.ones(cfg.batch_size, bool)
    for _ in range(cfg.steps):
      batch = {"latents": data[rng.integers(len(data), size=cfg.batch_size)], "_mask": mask}
      state, _ = step(state, {}, batch)
  return task, {part: state.model[part] for part in ("encoder", "decoder")}


def initial(task):
  """Parameters before the first step."""
  return nn.unbox(jax.jit(task.init)(jax.random.key(0, impl="rbg")))  # far less to compile


def errors(task, params, latents) -> dict[str, float]:
  """Mean squared error of the velocity at flow time 1, where the decoder's input is noise and tokens are all it knows:
  without tokens ("null"), with the first 1, 2 and all, and with another clip's ("wrong"). "variance" is the least that
  a prediction without tokens can have: the noise is known, so what is left is the latents around their mean.
  """
  cfg = task.tok.cfg
  ids = programs.ids_of(cfg, programs.features(cfg, params, latents))
  noise = np.random.default_rng(3).standard_normal(latents.shape).astype(np.float32)

  def error(ids, k, null=False):
    keep = jnp.full(ids.shape[:2], k, jnp.int32)
    velocity = programs.velocity(cfg, params, ids, keep, noise, 1.0, slots=None, null=null)
    return float(np.square(np.asarray(velocity) - (noise - latents)).mean())

  found = {"variance": float(latents.var(0).mean()), "null": error(ids, REGISTERS, null=True)}
  found |= {f"k{k}": error(ids, k) for k in (1, 2, REGISTERS)}
  other = jnp.roll(ids, 1, axis=0)
  return found | {"wrong": error(other, REGISTERS), "wrong k1": error(other, 1)}
