"""Rectified flow as pure functions: path, target, noise laws, guidance and solvers.

Convention: x_t = t * noise + (1 - t) * clean, t = 1 is pure noise; the model estimates noise - clean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

TIME_LAWS = ("mode", "logit_normal", "uniform")


def interpolate(clean, noise, t_B) -> jax.Array:
  """x_t = t * noise + (1 - t) * clean for t [B]."""
  chex.assert_equal_shape([clean, noise])
  t = t_B.reshape(t_B.shape + (1,) * (clean.ndim - t_B.ndim))
  return t * noise + (1 - t) * clean


def target(clean, noise) -> jax.Array:
  """The velocity dx/dt of the straight path: noise - clean."""
  return noise - clean


def loss(velocity, clean, noise, valid_BxT=None) -> jax.Array:
  """Mean squared velocity error over all latent elements; `valid_BxT` leaves out steps given as clean prefix."""
  error = jnp.square(velocity.astype(jnp.float32) - target(clean, noise))
  if valid_BxT is None:
    return error.mean()
  weight = jnp.broadcast_to(valid_BxT[:, :, None, None, None], error.shape).astype(jnp.float32)
  return (error * weight).sum() / jnp.maximum(weight.sum(), 1)


def gaussian(key, shape) -> jax.Array:
  """Standard normal noise, the very numbers of `jax.random.normal(key, shape)`.

  Drawn flat: counters of five axes take XLA's CPU compiler twenty times as long (42 s for 2 s).
  """
  return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def drawn_ids(key, logits_xV) -> jax.Array:
  """int32 [...]: ids drawn from a softmax, the very ones of `jax.random.categorical`; flat as above."""
  noise = jax.random.gumbel(key, (logits_xV.size,), logits_xV.dtype).reshape(logits_xV.shape)
  return jnp.argmax(logits_xV + noise, axis=-1).astype(jnp.int32)


def chosen(key, share, shape) -> jax.Array:
  """bool: True for a share of all places, the very ones of `jax.random.bernoulli`; flat as above."""
  return jax.random.bernoulli(key, share, (math.prod(shape),)).reshape(shape)


def sample_time(key, *, law: str = "mode", mode_scale: float = 0.25, high: float = 0.0, low_end: float = 0.75):
  """A flow time of one example, float32 in [0, 1] (spec section 4.5).

  Args:
    law: "mode" 1 - u - s (cos^2(pi u / 2) - 1 + u) with u uniform and s = mode_scale (Esser et al. 2024, arXiv
      2403.03206, eq. 20); "logit_normal" sigmoid of a standard normal; "uniform".
    high: share of examples drawn from [low_end, 1] instead, where the decoder can only follow the tokens.
  """
  draw, other, choice = jax.random.split(key, 3)
  u = jax.random.uniform(draw)
  if law == "mode":
    t = 1 - u - mode_scale * (jnp.square(jnp.cos(jnp.pi / 2 * u)) - 1 + u)
  elif law == "logit_normal":
    t = jax.nn.sigmoid(jax.random.normal(draw))
  elif law == "uniform":
    t = u
  else:
    raise ValueError(f"noise law is {law!r}, expected one of {', '.join(TIME_LAWS)}.")
  top = jax.random.uniform(other, minval=low_end, maxval=1.0)
  return jnp.where(jax.random.uniform(choice) < high, top, t) if high else t


@flax.struct.dataclass
class CFG:
  """Classifier-free guidance: v = v_null + scale * (v_cond - v_null). scale: a number, or one per step [steps]."""

  scale: float | jax.Array

  def combine(self, cond, null, running, step):
    return null + _at(self.scale, step) * (cond - null), running


@flax.struct.dataclass
class APG:
  """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416) on the velocity.

  Attributes:
    scale: guidance weight, a number or one per step [steps]; 20-25 for the released models.
    eta: how much of the component parallel to the conditional velocity stays.
    momentum: weight of the running difference; negative values damp. None: as the model's pipeline has it, 0 for video.
    threshold: largest L2 norm of the difference, 0 switches the limit off. None: as the model's pipeline has it, 0.6
      for video.
    per_channel: whether norms are per sample and channel over (T, h, w), as the video pipeline has them, or of all
      channels together. A model of pictures takes the latter whatever this is.
  """

  scale: float | jax.Array
  eta: float | jax.Array = 0.0
  momentum: float | jax.Array | None = None
  threshold: float | jax.Array | None = None
  per_channel: bool = flax.struct.field(pytree_node=False, default=True)

  def of_model(self, momentum: float = 0.0, threshold: float = 0.6, per_channel: bool = True) -> APG:
    """The same with what was left open; the arguments are `TokenizerConfig.apg`."""
    return dataclasses.replace(
      self,
      momentum=momentum if self.momentum is None else self.momentum,
      threshold=threshold if self.threshold is None else self.threshold,
      per_channel=per_channel and self.per_channel,
    )

  def combine(self, cond, null, running, step):
    own = self.of_model()
    axes = tuple(range(1, cond.ndim - 1 if own.per_channel else cond.ndim))
    running = (cond - null) + own.momentum * running
    norm = jnp.sqrt(jnp.sum(jnp.square(running), axis=axes, keepdims=True))
    threshold = jnp.asarray(own.threshold)
    limit = jnp.where(threshold > 0, threshold / jnp.maximum(norm, 1e-12), 1.0)
    update = running * jnp.minimum(limit, 1.0)
    unit = cond / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(cond), axis=axes, keepdims=True)), 1e-12)
    parallel = jnp.sum(update * unit, axis=axes, keepdims=True) * unit
    update = (update - parallel) + self.eta * parallel
    return cond + (_at(self.scale, step) - 1) * update, running


Guidance = CFG | APG | None
GUIDANCES = {"apg": APG, "cfg": CFG, "none": lambda scale: None}


def of_model(guidance: Guidance, apg: tuple[float, float, bool]) -> Guidance:
  """Guidance with what it leaves open filled in; `apg` is `TokenizerConfig.apg`."""
  return guidance.of_model(*apg) if isinstance(guidance, APG) else guidance


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the decoder's flow is followed: the options that all ways to decode share. Steps and guidance are by default
  what the model's config says; these here are the released pipeline's.

  Attributes:
    steps: of the solver.
    guidance: None, `CFG(scale)` or `APG(scale, eta, momentum, threshold)`.
    solver: "euler", "heun" (two evaluations a step), "ab2" (second order, one evaluation).
    collapse: compute dropped registers as one token (exact and faster); False computes all of them.
  """

  steps: int = 30
  guidance: Guidance = APG(scale=20.0)
  solver: str = "euler"
  collapse: bool = True


def _at(scale, step):
  scale = jnp.asarray(scale, jnp.float32)
  return scale[step] if scale.ndim else scale


def sample(
  velocity: Callable,
  noise: jax.Array,
  steps: int,
  *,
  solver: str = "euler",
  guidance: Guidance = None,
  constrain: Callable = lambda x, t: x,
) -> jax.Array:
  """Integrates from pure noise at t = 1 to data at t = 0 in `steps` uniform steps, all inside one loop.

  Args:
    velocity: (x, t scalar) -> v, or (v_cond, v_null) where `guidance` is given. Never called at t = 0.
    solver: "euler" (the released pipeline's), "heun" (two evaluations a step but the last), or "ab2"
      (Adams-Bashforth: second order at one evaluation a step).
    constrain: (x, t) -> x, applied before every call of `velocity` and, with t = 0, at the end.
  """
  if solver not in SOLVERS:
    raise ValueError(f"solver is {solver!r}, expected one of {', '.join(SOLVERS)}.")
  h, how = 1.0 / steps, SOLVERS[solver]

  def evaluate(x, t, running, i):
    """(v, running) at (x, t) of step i; `running` is what guidance carries along."""
    if guidance is None:
      return velocity(x, t), running
    cond, null = velocity(x, t)
    return guidance.combine(cond, null, running, i)

  def step(one, i, carry):
    x, running, previous = carry
    t = 1.0 - i * h
    return one(evaluate, constrain, constrain(x, t), t, h, i, running, previous)

  carry = (
    noise,
    jnp.zeros_like(noise) if guidance is not None else 0.0,
    jnp.zeros_like(noise) if how.remembers else 0.0,
  )
  carry = jax.lax.fori_loop(0, steps - (how.last is not None), functools.partial(step, how.step), carry)
  if how.last is not None:
    carry = step(how.last, steps - 1, carry)
  return constrain(carry[0], 0.0)


class Solver(NamedTuple):
  """How one step of size h goes from (x, t) to t - h.

  Attributes:
    step: (evaluate, constrain, x, t, h, i, running, previous) -> (x, running, previous); `evaluate(x, t, running, i)`
      gives (v, running), `constrain(x, t)` is called on every other x before that.
    last: the step that ends at t = 0, where that is another one: the velocity is never asked for there.
    remembers: `previous` is an array like x from step to step, zeros at first.
  """

  step: Callable
  last: Callable | None = None
  remembers: bool = False


def _euler(evaluate, constrain, x, t, h, i, running, previous):
  v, running = evaluate(x, t, running, i)
  return x - h * v, running, previous


def _heun(evaluate, constrain, x, t, h, i, running, previous):
  v, running = evaluate(x, t, running, i)
  v_next, running = evaluate(constrain(x - h * v, t - h), t - h, running, i)
  return x - (h / 2) * (v + v_next), running, previous


def _adams_bashforth(evaluate, constrain, x, t, h, i, running, previous):
  v, running = evaluate(x, t, running, i)
  return x - h * jnp.where(i == 0, v, 1.5 * v - 0.5 * previous), running, v


SOLVERS = {"euler": Solver(_euler), "heun": Solver(_heun, last=_euler), "ab2": Solver(_adams_bashforth, remembers=True)}
