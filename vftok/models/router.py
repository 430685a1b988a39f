"""The router: a clip's latents -> what each time step loses at each number of tokens (spec: EVATok on nested tokens).

It is causal in time, so that a stream can be routed as it comes, and predicts curves and no classes: one router serves
every preference and every hard total (`vftok/budget/allocate.py`). The curves fall by construction.

EVATok's own is here beside it (head "classes"): the whole clip at once, one class per assignment, one preference.
"""

from __future__ import annotations

import dataclasses
import itertools

import chex
import einops
import flax.linen as nn
import jax.numpy as jnp

from vftok.models.attention import Layout
from vftok.models.config_checks import MAX_SIZE, MAX_STEPS
from vftok.models.layers import Linear, partitioned, patchify, trunc_normal
from vftok.models.transformer import Stack, StackConfig

HEADS = ("curves", "classes")
SHAPE = 0.3  # a clip's curves differ in size first, in shape more slowly


@dataclasses.dataclass(frozen=True)
class RouterConfig:
  """Attributes:
  dim, depth, head_dim, dtype: of the network.
  patch: (steps, rows, columns) of latents that become one token; its first entry is the tokenizer's.
  latents: (T, h, w, C) that it reads; of a model without latents, a clip's frames. levels: numbers of tokens that it
    knows the loss at, 1 to the tokenizer's all; or classes are made of, from any on.
  drop_scale: of what a step gains from more tokens; the network predicts in this unit.
  head: "curves", or "classes" for EVATok's router (arXiv 2603.12267, section 3.3).
  preference: w_q that a router of classes was trained for.
  measure: what is lost, one of `vftok.budget.curves.MEASURES`.
  loss_mean, loss_std: of that over clips and random assignments: what preferences are weighed by.
  size: what is lost beside the curves at a mean of each of `levels` tokens per step, in units of the loss; () for
    nothing. It is the same however the tokens are spread, so that only preferences ask for it.
  tokenizer, fingerprint, codebook_size: whose tokens it counts.
  """

  dim: int = 192
  depth: int = 4
  head_dim: int = 64
  dtype: str = "float32"
  patch: tuple[int, int, int] = (1, 2, 2)
  latents: tuple[int, int, int, int] = (5, 8, 8, 16)
  levels: tuple[int, ...] = (1, 2)
  head: str = "curves"
  preference: float = 0.0
  measure: str = "flow"
  drop_scale: float = 1.0
  loss_mean: float = 0.0
  loss_std: float = 1.0
  size: tuple[float, ...] = ()
  tokenizer: str = ""
  fingerprint: str = ""
  codebook_size: int = 1

  def __post_init__(self):
    sizes = dict(dim=self.dim, depth=self.depth, head_dim=self.head_dim)
    if not all(0 < n <= MAX_SIZE for n in sizes.values()) or self.dim % self.head_dim:
      raise ValueError(f"the router has {sizes}, expected 1..{MAX_SIZE} each and a dim of whole heads.")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"the router's dtype is {self.dtype!r}, expected float32 or bfloat16.")
    shapes = (*self.latents, *self.patch)
    if (len(self.latents), len(self.patch)) != (4, 3) or not all(0 < n <= MAX_SIZE for n in shapes):
      raise ValueError(f"the router reads latents {self.latents} in patches {self.patch}, expected (T, h, w, C).")
    if any(n % p for n, p in zip(self.latents, self.patch, strict=False)):
      raise ValueError(f"the router reads latents {self.latents}, expected whole patches of {self.patch}.")
    if self.steps > MAX_STEPS:
      raise ValueError(f"the router reads {self.steps} time steps, expected at most {MAX_STEPS}: those of one chunk.")
    if self.head not in HEADS:
      raise ValueError(f"the router's head is {self.head!r}, expected one of {', '.join(HEADS)}.")
    least = self.levels[0] if self.head == "classes" and self.levels else 1
    rising = least >= 1 and all(a < b for a, b in itertools.pairwise(self.levels))
    if len(self.levels) < 2 or self.levels[0] != least or not rising:
      raise ValueError(f"the router's levels are {self.levels}, expected counts that rise from 1.")
    if self.head == "classes" and len(self.levels) ** self.steps > MAX_SIZE:
      raise ValueError(
        f"the router has {len(self.levels)} levels for {self.steps} steps, expected at most {MAX_SIZE} classes: use "
        "head 'curves'."
      )
    if len(self.size) not in (0, len(self.levels)):
      raise ValueError(f"the router's size is {self.size}, expected a number for each of the levels {self.levels}.")
    if self.levels[-1] > MAX_SIZE or not (self.loss_std > 0 and self.drop_scale > 0):
      raise ValueError(
        f"the router has {self.levels[-1]} tokens and scales {self.loss_std}, {self.drop_scale}: too odd."
      )

  @property
  def steps(self) -> int:
    return self.latents[0] // self.patch[0]

  @property
  def patches(self) -> int:
    _, h, w, _ = self.latents
    return h // self.patch[1] * (w // self.patch[2])


class RouterNet(nn.Module):
  """latents [B, T, h, w, C] -> curves float32 [B, T', m] that fall from level to level and end at 0, in drop_scale."""

  cfg: RouterConfig

  @nn.compact
  def __call__(self, latents_BxTxhxwxC):
    cfg = self.cfg
    x = _patches(self, latents_BxTxhxwxC)
    b, t, *_ = x.shape
    register = _table(self, "register", 1)[None] + _table(self, "register_times", cfg.steps)[:t, None]
    x = jnp.concatenate([x, jnp.broadcast_to(register, (b, t, 1, cfg.dim))], axis=2)
    x = _stack(cfg)(einops.rearrange(x, "b t s d -> b (t s) d"), Layout(t, cfg.patches, 1, "time_block_causal"))
    x = einops.rearrange(x, "b (t s) d -> b t s d", t=t)
    # What all clips have in common, and what is this clip's own: mostly how much there is to lose at all.
    init = partitioned(nn.initializers.zeros, None, None)
    common = self.param("common", init, (cfg.steps, len(cfg.levels) - 1))[:t]
    own = Linear(len(cfg.levels), ("embed", None), zero_init=True, dtype="float32", name="head")(x[:, :, -1])
    drops = jnp.exp(jnp.clip(common[None] + own[..., :1] + SHAPE * own[..., 1:], -12.0, 6.0))
    falling = jnp.cumsum(drops[..., ::-1], axis=-1)[..., ::-1]
    return jnp.concatenate([falling, jnp.zeros_like(falling[..., :1])], axis=-1)


class ClassRouterNet(nn.Module):
  """latents [B, T, h, w, C] of a whole chunk -> logits float32 [B, m^T'], classes in the order of all_assignments."""

  cfg: RouterConfig

  @nn.compact
  def __call__(self, latents_BxTxhxwxC):
    cfg = self.cfg
    x = _patches(self, latents_BxTxhxwxC)
    b, t, p, _ = x.shape
    cls = jnp.broadcast_to(_table(self, "register", 1), (b, 1, cfg.dim))
    x = jnp.concatenate([einops.rearrange(x, "b t p d -> b (t p) d"), cls], axis=1)
    x = _stack(cfg)(x, Layout(1, t * p, 1, "full"))
    out = Linear(len(cfg.levels) ** cfg.steps, ("embed", None), dtype="float32", name="head")(x[:, -1])
    return out.astype(jnp.float32)


def net(cfg: RouterConfig) -> nn.Module:
  """The module of a config."""
  return (ClassRouterNet if cfg.head == "classes" else RouterNet)(cfg)


def _patches(module, latents_BxTxhxwxC):
  """float32 [B, T', P, D]: what moved is what costs tokens, so a patch and its change since the step before."""
  cfg = module.cfg
  chex.assert_rank(latents_BxTxhxwxC, 5)
  x = patchify(latents_BxTxhxwxC.astype(jnp.float32), cfg.patch)
  x = einops.rearrange(x, "b t h w d -> b t (h w) d")
  moved = x - jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
  x = Linear(cfg.dim, (None, "embed"), dtype=cfg.dtype, name="patch_in")(jnp.concatenate([x, moved], axis=-1))
  times = _table(module, "times", cfg.steps)[None, : x.shape[1], None]
  return x.astype(jnp.float32) + _table(module, "places", cfg.patches)[None, None] + times


def _stack(cfg):
  return Stack(StackConfig(cfg.dim, cfg.depth, cfg.head_dim, dtype=cfg.dtype), name="stack")


def _table(module, name, rows):
  init = partitioned(trunc_normal, None, "embed")
  return module.param(name, init, (rows, module.cfg.dim))
