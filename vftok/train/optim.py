"""The optimizer from its config: schedule, clipping, AdamW or Muon, decay, muP learning rates. All of it is optax.

Weight decay, as we decided it (VideoFlexTok publishes neither its value nor its list, SemanTok 0.05 and no list):

  which: every matrix that multiplies activations decays: hidden layers, input projections (patches, codes, text, time),
    readouts and heads, adaLN, convolutions. Biases, norms, learned vectors (mask, null, start) and tables that are
    looked up (tokens, classes, places, registers) do not: usual in vision transformers for places and extra tokens, and
    OLMo 2 (arXiv 2501.00656) leaves embeddings out, for decay shrinks them until training is unstable.
  how much: learning rate * weight_decay of the schedule's rate, the same for all of them. muP's factors (arXiv
    2203.03466) are of Adam's update and not of the decay, as independent decay has it (arXiv 2309.14322): or hidden
    matrices of d18 would decay 0.22 times as much as its input projections at base width 256, wider ones ever less.
    `lr_groups` are rates of their own, and their decay goes with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vftok.runtime.sharding import is_names
from vftok.train import muon
from vftok.train.muon import WIDTHS

SCHEDULES = ("cosine", "linear", "constant", "rsqrt", "wsd", "clock")
SLOWER = "_slower"  # in a batch: the clock's factor on the rate
# Names of parameters that multiply activations; all others are tables, vectors, biases or norms.
MATRIX = re.compile(r"(\w+_)?kernel|qkv|proj|up|down|head|text_(in|q|kv|proj)")


def schedule(cfg: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate over steps: linear warm-up from `cfg.first` of the peak, then `cfg.schedule` down to `cfg.final`.

  "wsd" (warm-up, stable, decay) stays at the peak until the share `cfg.decay` of all steps is left, then falls.
  """
  peak, warmup, final = cfg.lr, min(cfg.warmup, steps), cfg.final
  rest = max(steps - warmup, 1)
  if cfg.schedule not in SCHEDULES:
    raise ValueError(f"optim.schedule is {cfg.schedule!r}, expected one of {', '.join(SCHEDULES)}.")
  after = {
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=final),
    "linear": lambda: optax.linear_schedule(peak, peak * final, rest),
    "clock": lambda: optax.constant_schedule(peak),  # the loop brings it down, see `by_clock`
    "constant": lambda: optax.constant_schedule(peak),
    "wsd": lambda: _stable_then_down(peak, peak * final, rest, steps, cfg.decay),
    "rsqrt": lambda: lambda n: peak * jnp.sqrt(max(warmup, 1) / (n + max(warmup, 1))),
  }[cfg.schedule]()
  return (
    optax.join_schedules([optax.linear_schedule(cfg.first * peak, peak, warmup), after], [warmup]) if warmup else after
  )


def _stable_then_down(peak: float, end: float, rest: int, steps: int, share: float) -> optax.Schedule:
  """Of the `rest` after warm-up. Raises ValueError where the share to fall in is none."""
  if not 0 < share <= 1:
    raise ValueError(
      f"optim.decay is {share}, expected the share of all steps in which the rate falls, above 0 up to 1."
    )
  fall = min(max(round(share * steps), 1), rest)
  return optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, end, fall)], [rest - fall])


def by_clock(gone: float, final: float) -> float:
  """Factor on the learning rate when the share `gone` of the time is over: a cosine from 1 to `final`."""
  return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(max(gone, 0.0), 1.0)))


def lr_scales(cfg: ConfigDict, axes, abstract):
  """Factor on the learning rate of every parameter, of `lr_groups` and of muP together."""
  return jax.tree.map(lambda a, b: a * b, group_scales(cfg, axes), mup_scales(cfg, axes, abstract))


def group_scales(cfg: ConfigDict, axes):
  """The product of the `lr_groups` that every parameter is under."""

  def scale(path, _):
    return math.prod(value for prefix, value in cfg.lr_groups.items() if _under(path, prefix))

  return jax.tree_util.tree_map_with_path(scale, axes, is_leaf=is_names)


def mup_scales(cfg: ConfigDict, axes, abstract):
  """muP's factor on the update of every parameter.

  Yang et al. 2022 (arXiv 2203.03466, table 8, for Adam): base_width / width where the input side of a matrix grows
  with the model (hidden matrices and readouts), 1 elsewhere. base_width = 0 switches it off. The fan-in stands for the
  width: D of a projection, n * d of the attention's output, H of the MLP's, whose base is 8/3 of D's.
  """

  def scale(names, leaf):
    grown = [i for i, name in enumerate(names) if name != "layers"]
    if not cfg.mup_base_width or len(grown) < 2 or names[grown[0]] not in WIDTHS:
      return 1.0
    first = grown[0]
    fan_in = leaf.shape[first] * (leaf.shape[first + 1] if names[first] == "heads" else 1)
    return cfg.mup_base_width * (8 / 3 if names[first] == "mlp" else 1) / fan_in

  return jax.tree.map(scale, axes, abstract, is_leaf=is_names)


def decayed(axes):
  """True for every parameter that decays, see the head of this module."""
  matrix = lambda path, _: MATRIX.fullmatch(str(getattr(path[-1], "key", path[-1]))) is not None
  return jax.tree_util.tree_map_with_path(matrix, axes, is_leaf=is_names)


def make_optimizer(cfg: ConfigDict, steps: int, axes, abstract) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """(optimizer, learning-rate schedule) for parameters of these logical axes and shapes."""
  rate = schedule(cfg, steps)
  scales = lr_scales(cfg, axes, abstract)
  scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales))
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, eps=cfg.eps, mu_dtype=cfg.mu_dtype)
  turns = of_parts(axes, cfg.every, 1)
  moments = in_turn(adam, cfg, turns) if cfg.every else adam
  if cfg.muon:
    if not 0 < cfg.muon < math.inf or cfg.mup_base_width:
      given = f"{cfg.muon} with mup_base_width {cfg.mup_base_width}"
      raise ValueError(f"optim.muon is {given}, expected a number above 0, and 0 there: muP is of Adam's step.")
    moments = muon.of_hidden_matrices(moments, cfg.muon, cfg.b1, axes, turns)
  chain = [
    _clip(cfg.clip, turns) if cfg.clip else optax.identity(),
    moments,
    _decay(cfg, axes, abstract) if cfg.weight_decay else optax.identity(),
    scale,
    optax.scale_by_learning_rate(rate),
    *([_still(turns)] if cfg.every else []),
  ]
  tx = optax.chain(*chain)
  return following(tx, of_parts(axes, cfg.follow, 0.0)) if cfg.follow else tx, rate


# ---- parts that are updated in another way: `optim.every` and `optim.follow`


def of_parts(axes, values: Mapping[str, float], rest: float):
  """The value of the part that every parameter is under, `rest` for those under none.

  Raises:
    ValueError: a part of no parameter, or a value that is not above 0.
  """
  paths = jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_names)
  for prefix, value in values.items():
    if value <= 0 or not any(_under(path, prefix) for path, _ in paths):
      raise ValueError(f"optim names {prefix!r} with {value}, expected a part of what is trained and a number above 0.")
  of = lambda path, _: next((value for prefix, value in values.items() if _under(path, prefix)), rest)
  return jax.tree_util.tree_map_with_path(of, axes, is_leaf=is_names)


def in_turn(adam: optax.GradientTransformation, cfg: ConfigDict, turns) -> optax.GradientTransformation:
  """Adam of parameters that have a gradient at every n-th step alone, by the tree `turns` of n; the same state.

  In between their moments stay, and a parameter's steps are counted by its own turns.
  """

  def update(grads, state, params=None):
    def one(g, mu, nu, n):
      turn, steps = state.count % n == 0, state.count // n + 1
      new_mu, new_nu = cfg.b1 * mu + (1 - cfg.b1) * g, cfg.b2 * nu + (1 - cfg.b2) * jnp.square(g)
      step = new_mu / (1 - cfg.b1**steps) / (jnp.sqrt(new_nu / (1 - cfg.b2**steps)) + cfg.eps)
      return step, jnp.where(turn, new_mu, mu).astype(mu.dtype), jnp.where(turn, new_nu, nu)

    made = jax.tree.map(one, grads, state.mu, state.nu, turns)
    step, mu, nu = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), made)
    return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

  return optax.GradientTransformation(adam.init, update)


class Counted(NamedTuple):
  """`count`: int32, updates done."""

  count: jax.Array


def _still(turns) -> optax.GradientTransformation:
  """No update where it is not a parameter's turn, whatever came before, decay too."""

  def update(updates, state, params=None):
    held = jax.tree.map(lambda u, n: u if n == 1 else jnp.where(state.count % n == 0, u, 0.0), updates, turns)
    return held, Counted(state.count + 1)

  return optax.GradientTransformation(lambda _: Counted(jnp.zeros((), jnp.int32)), update)


def _clip(norm: float, turns) -> optax.GradientTransformation:
  """By the norm of all gradients together, but of parts that have turns by their own."""

  def update(grads, _):
    leaves, every = jax.tree.leaves(grads), jax.tree.leaves(turns)
    norms = {n: optax.tree.norm([g for g, m in zip(leaves, every, strict=True) if m == n]) for n in set(every)}
    return jax.tree.map(lambda g, n: jnp.where(norms[n] < norm, g, g / norms[n] * norm), grads, turns)

  return optax.stateless(update) if set(jax.tree.leaves(turns)) != {1} else optax.clip_by_global_norm(norm)


def following(tx: optax.GradientTransformation, rates) -> optax.GradientTransformation:
  """Plain steps down the gradient where `rates` is not 0, so running means; `tx` for the rest, which sees 0 there."""

  def update(grads, state, params=None):
    others = jax.tree.map(lambda g, r: jnp.zeros_like(g) if r else g, grads, rates)
    updates, state = tx.update(others, state, params)
    return jax.tree.map(lambda u, g, r: -r * g if r else u, updates, grads, rates), state

  return optax.GradientTransformation(tx.init, update)


def _decay(cfg: ConfigDict, axes, abstract) -> optax.GradientTransformation:
  """Adds what decays, over muP's factor, which comes after it; its place in the chain is that of old checkpoints."""
  mask = decayed(axes)
  of = lambda decays, mup: cfg.weight_decay / mup if decays else optax.MaskedNode()
  weights = jax.tree.map(of, mask, mup_scales(cfg, axes, abstract))
  add = lambda updates, params: jax.tree.map(lambda u, w, p: u + w * p, updates, weights, params)
  return optax.masked(optax.stateless(add), mask)


def _under(path, prefix: str) -> bool:
  """Whether a tree path lies under a prefix such as "decoder" or "vae/encoder"."""
  name = "/".join(str(getattr(p, "key", p)) for p in path)
  return name == prefix or name.startswith(prefix + "/")
