"""Sampling of sequences that say their own length: where the next token stands depends on the tokens before it.

One compiled loop over the cache of `generate.py`; all rows make one token a turn, each at its own place, until
all are done. Masks on the logits make a token of the wrong kind impossible. The router is not asked: the model has
learned from it how much each step needs.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from vftok.generator.generate import Memo, by_rows, forward, guide, prepare, sample
from vftok.models import lengths, order
from vftok.models.ar import ARConfig
from vftok.models.ar_inputs import Condition, Places
from vftok.tokens import kept_slots

MOST_TILT = 1e4  # per token of length: with it the shortest or the longest level has all probability


class Plan(NamedTuple):
  """What is asked for, as data: any wish runs through one program. K' is `cfg.total_slots`.

  Attributes:
    forced_BxTxK: int32 [B, T, K'], tokens that are given or forced, lengths among them; -1 where one is to be made.
    keep_BxT: int32, tokens of each step with those that say its length, as far as that is known; else what is open:
      1 (LEN) or K' (up to END).
    least_BxT: int32, content tokens that a step has at least, so that what is forced is made.
    given, first: int32 scalars; the first so many steps are given, and so many of them come before all others.
    guidance_B, temperature, top_p: as in `generate.Plan`. guide_lengths: bool scalar, whether lengths are guided too.
    mean_length: float32 scalar, content tokens per step that is not given; end_bias: added to the logit of END.
    odds_TxM: float32, log-probability of each level at each step over all videos, or None where it is not known.
  """

  forced_BxTxK: Any
  keep_BxT: Any
  least_BxT: Any
  given: Any
  first: Any
  guidance_B: Any
  guide_lengths: Any
  temperature: Any
  top_p: Any
  mean_length: Any
  end_bias: Any
  odds_TxM: Any = None


class Prefix(NamedTuple):
  """The first tokens of all rows where they are given: int32 [B, N] each."""

  ids_BxN: Any
  time_BxN: Any
  slot_BxN: Any


@flax.struct.dataclass
class State:
  """ids [B, T, K'] and keep [B, T] as known so far, made [B, T] content tokens; int32.

  time, slot: the place [B] to fill next, where `done` is False; last, last_time, last_slot: the token before it, -1
  at the start. cache, position, keys: as in `generate.DecodeState`.
  """

  ids: jax.Array
  keep: jax.Array
  made: jax.Array
  time: jax.Array
  slot: jax.Array
  done: jax.Array
  last: jax.Array
  last_time: jax.Array
  last_slot: jax.Array
  cache: Any
  position: jax.Array
  keys: jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames="guided")
def start(cfg: ARConfig, params, plan: Plan, prefix: Prefix, cond: Condition, keys_B, *, guided: bool):
  """(memo, state) after the prefix; with guided=True the batch is doubled by rows that have no condition."""
  (b, t, k), n = plan.forced_BxTxK.shape, prefix.ids_BxN.shape[1]
  memo, cache = prepare(cfg, params, cond, t * k, guided=guided)
  made, nothing = jnp.zeros((b, t), jnp.int32), jnp.zeros((b,), jnp.int32)
  last, last_time, last_slot, rank_B = nothing - 1, nothing, nothing, nothing - 1
  if n:
    places = Places.of(prefix.time_BxN, prefix.slot_BxN)
    before = jnp.pad(prefix.ids_BxN, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    _, cache = forward(cfg, params, memo, places, before, cache, 0)
    rows = jnp.arange(b)
    made = made.at[rows[:, None], prefix.time_BxN].add(jnp.where(lengths.says_length(cfg, prefix.ids_BxN), 0, 1))
    last, last_time, last_slot = (x[:, -1] for x in prefix)
    rank_B = jnp.broadcast_to(_ranks(cfg, plan), (b, t, k))[rows, last_time, last_slot]
  time, slot, done = _next(cfg, plan, plan.keep_BxT, rank_B)
  ids = jnp.maximum(plan.forced_BxTxK, 0)
  state = State(ids, plan.keep_BxT, made, time, slot, done, last, last_time, last_slot, cache, jnp.int32(n), keys_B)
  return memo, state


def _advance(
  cfg: ARConfig, params, memo: Memo, plan: Plan, state: State, stop, *, guided, aimed=False, top_k=0, nucleus=False
):
  """The state when all rows are done or `stop` tokens (data) are made; `aimed` turns plan.mean_length on."""
  rows, t = jnp.arange(len(state.keys)), state.keep.shape[1]

  def step(s: State) -> State:
    column = lambda x: x[:, None]
    places = Places(*map(column, (s.time, s.slot, s.last_time, s.last_slot)), index_BxL=s.position[None, None])
    logits, cache = forward(cfg, params, memo, places, column(s.last), s.cache, s.position)
    logits_BxV = _guided(cfg, plan, logits[:, 0]) if guided else logits[:, 0]
    logits_BxV = _masked(cfg, plan, s, logits_BxV, aimed)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(s.keys, s.position)
    made_B = sample(logits_BxV, keys_B, plan.temperature, top_k=top_k, top_p=plan.top_p if nucleus else None)
    forced_B = plan.forced_BxTxK[rows, s.time, s.slot]
    token_B = jnp.where(forced_B >= 0, forced_B, made_B)

    says_B = lengths.says_length(cfg, token_B)
    level_B = s.slot
    if cfg.lengths == "length_first":
      level_B = jnp.asarray(cfg.levels)[jnp.maximum(token_B - cfg.vocab, 0)]
    at = (rows, jnp.where(s.done, t, s.time))  # rows that are done write nowhere
    keep = s.keep.at[at].set(jnp.where(says_B, level_B + 1, s.keep[rows, s.time]), mode="drop")
    ids = s.ids.at[(*at, s.slot)].set(token_B, mode="drop")
    made = s.made.at[at].add(jnp.where(says_B, 0, 1), mode="drop")
    rank_B = jnp.broadcast_to(_ranks(cfg, plan), ids.shape)[rows, s.time, s.slot]
    time, slot, done = _next(cfg, plan, keep, rank_B)
    after = dict(time=time, slot=slot, done=s.done | done, last=token_B, last_time=s.time, last_slot=s.slot)
    return State(ids=ids, keep=keep, made=made, cache=cache, position=s.position + 1, keys=s.keys, **after)

  return jax.lax.while_loop(lambda s: (s.position < stop) & ~s.done.all(), step, state)


advance, advancing = by_rows(_advance, ("guided", "aimed", "top_k", "nucleus"))


def _ranks(cfg: ARConfig, plan: Plan):
  _, t, k = plan.forced_BxTxK.shape
  return order.ranks(t, k, plan.first, order=cfg.order, xp=jnp)


def _next(cfg: ARConfig, plan: Plan, keep_BxT, rank_B):
  """(time, slot, done) [B]: the first place after the one of that rank, as far as counts are known."""
  rank = _ranks(cfg, plan)
  k = rank.shape[2]
  open_BxTxK = (rank > rank_B[:, None, None]) & kept_slots(keep_BxT, k)
  place = jnp.where(open_BxTxK, rank, jnp.iinfo(jnp.int32).max).reshape(len(keep_BxT), -1).argmin(1).astype(jnp.int32)
  return place // k, place % k, ~open_BxTxK.any((1, 2))


def _guided(cfg: ARConfig, plan: Plan, logits_RxV):
  """[B, V']: content by u + w (c - u); lengths too, or with the probability that the condition alone gives them."""
  v, guided = cfg.vocab, guide(logits_RxV, plan.guidance_B)
  own = logits_RxV[: len(guided)]
  of_content = lambda x: jax.nn.logsumexp(x[:, :v], axis=-1, keepdims=True)
  unguided = own[:, v:] - of_content(own) + of_content(guided)
  return jnp.concatenate([guided[:, :v], jnp.where(plan.guide_lengths, guided[:, v:], unguided)], axis=1)


def _masked(cfg: ARConfig, plan: Plan, s: State, logits_BxV, aimed: bool):
  """Logits with what cannot stand here at -inf, and lengths as they are wished for."""
  logits_BxV = jnp.where(lengths.allowed(cfg, s.slot, jnp), logits_BxV, -jnp.inf)
  content, said = logits_BxV[:, : cfg.vocab], logits_BxV[:, cfg.vocab :]
  says_BxM = jnp.asarray(cfg.levels)[None] if cfg.levels else s.slot[:, None]  # the count that each id would say
  least_B = plan.least_BxT[jnp.arange(len(s.keys)), s.time]
  said = jnp.where(says_BxM >= least_B[:, None], said, -jnp.inf)
  if aimed:
    said = jnp.where(s.slot[:, None] == 0, _aimed(cfg, plan, s, said), said)
  return jnp.concatenate([content, said + plan.end_bias], axis=1)


def _aimed(cfg: ARConfig, plan: Plan, s: State, logits_BxM):
  """Logits of levels at the price of a token under which this length and those to come spend what is left of the total.

  One price for all of them: a step that needs much, in the model's eyes, still gets much. Lengths to come are taken to
  have the odds that they have over all videos; where these are not known, the odds of this one.
  """
  t, levels = s.keep.shape[1], jnp.asarray(cfg.levels)
  ours = jnp.arange(t) >= plan.given
  known_BxT = s.keep > 1  # of LEN alone to LEN and content
  left_B = plan.mean_length * ours.sum() - jnp.where(ours & known_BxT, s.keep - 1, 0).sum(1)
  to_come_BxT = ours & ~known_BxT & (jnp.arange(t) != s.time[:, None])
  n_Bx1 = to_come_BxT.sum(1, keepdims=True)

  # Out: levels next to which a nearer one already spends, or saves, all that those to come can make up for.
  most, need = (left_B[:, None] - n_Bx1 * levels[i] for i in (0, -1))
  longer, shorter = jnp.append(levels[1:], jnp.inf), jnp.append(-jnp.inf, levels[:-1])
  fit = (shorter < most - 1e-3) & (longer > need + 1e-3) & jnp.isfinite(logits_BxM)
  logits_BxM = jnp.where(fit | ~fit.any(1, keepdims=True), logits_BxM, -jnp.inf)

  on = jnp.where(plan.temperature > 0, plan.temperature, 1.0)
  lengths_BxNxM, times_BxN = logits_BxM[:, None] / on, 1 + n_Bx1
  if plan.odds_TxM is not None:
    odds_BxTxM = jnp.broadcast_to(plan.odds_TxM, (len(left_B), *plan.odds_TxM.shape))
    lengths_BxNxM = jnp.concatenate([lengths_BxNxM, odds_BxTxM], axis=1)
    times_BxN = jnp.concatenate([jnp.ones_like(n_Bx1), to_come_BxT], axis=1)
  return logits_BxM + on * tilt(lengths_BxNxM, times_BxN, levels, left_B)[:, None] * levels


def tilt(logits_BxNxM, times_BxN, levels, total_B):
  """float32 [B]: x for which N lengths of probability p(level) exp(x level) / Z add up to a total on average.

  By bisection: sums rise with x; a total that none reaches gets the end. Length n comes `times` times. Levels at -inf
  have no part in it.
  """
  levels, b = jnp.asarray(levels, jnp.float32), len(logits_BxNxM)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    weights = jax.nn.softmax(logits_BxNxM + middle[:, None, None] * levels, axis=-1)
    short = ((weights * levels).sum(-1) * times_BxN).sum(-1) < total_B
    return jnp.where(short, middle, low), jnp.where(short, high, middle)

  low, high = jax.lax.fori_loop(0, 40, halve, (jnp.full(b, -MOST_TILT), jnp.full(b, MOST_TILT)))
  return (low + high) / 2
