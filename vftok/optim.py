"""The optimizer from its config: schedule, clipping, AdamW, decay mask, muP learning rates. All of it is optax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vftok.sharding import is_names

SCHEDULES = ("cosine", "linear", "constant", "rsqrt", "clock")
SLOWER = "_slower"  # in a batch: the clock's factor on the rate
WIDTHS = ("embed", "heads", "mlp")  # logical axes that grow with the model


def schedule(cfg: ConfigDict, steps: int) -> optax.Schedule:
  """Learning rate over steps: linear warm-up from 0, then `cfg.schedule` down to `cfg.final` of the peak."""
  peak, warmup, final = cfg.lr, min(cfg.warmup, steps), cfg.final
  rest = max(steps - warmup, 1)
  if cfg.schedule not in SCHEDULES:
    raise ValueError(f"optim.schedule is {cfg.schedule!r}, expected one of {', '.join(SCHEDULES)}.")
  after = {
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=final),
    "linear": lambda: optax.linear_schedule(peak, peak * final, rest),
    "clock": lambda: optax.constant_schedule(peak),  # the loop brings it down, see `by_clock`
    "constant": lambda: optax.constant_schedule(peak),
    "rsqrt": lambda: lambda n: peak * jnp.sqrt(max(warmup, 1) / (n + max(warmup, 1))),
  }[cfg.schedule]()
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def by_clock(gone: float, final: float) -> float:
  """Factor on the learning rate when the share `gone` of the time is over: a cosine from 1 to `final`."""
  return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(max(gone, 0.0), 1.0)))


def lr_scales(cfg: ConfigDict, axes, abstract):
  """Factor on the learning rate of every parameter.

  muP (Yang et al. 2022, arXiv 2203.03466, table 8, for Adam): base_width / width where the input side of a matrix
  grows with the model (hidden matrices and readouts), 1 elsewhere. base_width = 0 switches it off. The fan-in stands
  for the width: D of a projection, n * d of the attention's output, H of the MLP's, whose base is 8/3 of D's.
  """

  def scale(path, names, leaf):
    factor = 1.0
    for prefix, value in cfg.lr_groups.items():
      if _under(path, prefix):
        factor *= value
    grown = [i for i, name in enumerate(names) if name != "layers"]
    if cfg.mup_base_width and len(grown) > 1 and names[grown[0]] in WIDTHS:
      first = grown[0]
      fan_in = leaf.shape[first] * (leaf.shape[first + 1] if names[first] == "heads" else 1)
      base = cfg.mup_base_width * (8 / 3 if names[first] == "mlp" else 1)
      factor *= base / fan_in
    return factor

  return jax.tree_util.tree_map_with_path(scale, axes, abstract, is_leaf=is_names)


def decayed(axes):
  """True for matrices and kernels; biases, norms, tables, tokens and positions do not decay."""
  matrix = lambda names: sum(n is not None for n in names if n != "layers") > 1
  return jax.tree.map(matrix, axes, is_leaf=is_names)


def make_optimizer(cfg: ConfigDict, steps: int, axes, abstract) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """(optimizer, learning-rate schedule) for parameters of these logical axes and shapes."""
  rate = schedule(cfg, steps)
  scales = lr_scales(cfg, axes, abstract)
  scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales))
  chain = [
    optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
    optax.scale_by_adam(cfg.b1, cfg.b2, eps=cfg.eps, mu_dtype=cfg.mu_dtype),
    optax.add_decayed_weights(cfg.weight_decay, mask=decayed(axes)) if cfg.weight_decay else optax.identity(),
    scale,
    optax.scale_by_learning_rate(rate),
  ]
  return optax.chain(*chain), rate


def _under(path, prefix: str) -> bool:
  """Whether a tree path lies under a prefix such as "decoder" or "vae/encoder"."""
  name = "/".join(str(getattr(p, "key", p)) for p in path)
  return name == prefix or name.startswith(prefix + "/")
