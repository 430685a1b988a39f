"""Sampling of token sequences: prefill, then one step per token inside one compiled loop, over a static KV cache.

`start` fills the cache with what is given, `advance` runs to any position: a whole sequence at once, or piece by piece
for streaming, with the same program. All sequences of a batch move together; each has its own places and budget.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from vftok.models.ar import AR, ARConfig, Block
from vftok.models.ar_inputs import Condition, Context, Places
from vftok.models.layers import applied
from vftok.runtime import target
from vftok.runtime.sharding import constrain

TURN = 8  # tokens between two looks at the position on a GPU


class Plan(NamedTuple):
  """What a batch of sequences is made of, as data: any budgets run through one program.

  Attributes:
    places: of all positions [B, L].
    forced_BxL: int32, tokens that are given (first frames, edits); -1 where one is to be made.
    guidance_B: float32, w in u + w (c - u), c and u the logits with and without condition.
    temperature, top_p: float32 scalars. Temperature 0 takes the likeliest token.
  """

  places: Places
  forced_BxL: Any
  guidance_B: Any
  temperature: Any
  top_p: Any


class Memo(NamedTuple):
  """What does not change from token to token: layers one by one, the condition of all rows, its keys per layer.

  Matrices are in the compute dtype already, so that a step reads half the bytes in bfloat16.
  """

  layers: Any
  head: Any
  cond: Condition
  text_kv: Any
  text_seen_Rx1xM: Any


@flax.struct.dataclass
class DecodeState:
  """ids int32 [B, L] so far; cache: (k, v) [R, n, L, d] of each layer; position: scalar; keys [B], one per row.

  R is B, or 2B with guidance: rows with the condition, then the same rows without.
  """

  ids: jax.Array
  cache: Any
  position: jax.Array
  keys: jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames=("guided", "prefill"))
def start(cfg: ARConfig, params, plan: Plan, cond: Condition, keys_B, *, guided: bool, prefill: int = 0):
  """(memo, state) after the first `prefill` tokens, which must be forced in every row.

  With guided=True the batch is doubled by rows that have no condition.
  """
  memo, cache = prepare(cfg, params, cond, plan.forced_BxL.shape[1], guided=guided)
  ids = jnp.maximum(plan.forced_BxL, 0)
  if prefill:
    last = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=-1)[:, :prefill]
    _, cache = forward(cfg, params, memo, _cut(plan.places, 0, prefill), last, cache, 0)
  return memo, DecodeState(ids, cache, jnp.int32(prefill), keys_B)


def _advance(
  cfg: ARConfig, params, memo: Memo, plan: Plan, state: DecodeState, stop, *, guided, top_k=0, nucleus=False
):
  """The state after tokens up to position `stop` (data) are made; `nucleus` turns plan.top_p on."""

  def step(state: DecodeState) -> DecodeState:
    at = state.position
    last_B = jnp.where(at > 0, jax.lax.dynamic_index_in_dim(state.ids, jnp.maximum(at - 1, 0), 1, False), -1)
    logits, cache = forward(cfg, params, memo, _cut(plan.places, at, 1), last_B[:, None], state.cache, at)
    logits_BxV = guide(logits[:, 0], plan.guidance_B) if guided else logits[:, 0]
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys, at)
    made_B = sample(logits_BxV, keys_B, plan.temperature, top_k=top_k, top_p=plan.top_p if nucleus else None)
    forced_B = jax.lax.dynamic_index_in_dim(plan.forced_BxL, at, 1, False)
    ids = jax.lax.dynamic_update_index_in_dim(state.ids, jnp.where(forced_B >= 0, forced_B, made_B), at, 1)
    return DecodeState(ids, cache, at + 1, state.keys)

  if target.platform() == "gpu":  # where each test of the position is a wait of the host for the card
    several = lambda state: jax.lax.fori_loop(0, TURN, lambda _, state: step(state), state)
    state = jax.lax.while_loop(lambda state: state.position + TURN <= stop, several, state)
  return jax.lax.while_loop(lambda state: state.position < stop, step, state)


def by_rows(advance, static: tuple[str, ...]):
  """(advance jitted, state -> it as it is compiled for the rows of that state); `static` names arguments."""
  compiled = functools.partial(jax.jit, advance, static_argnums=0, static_argnames=static, donate_argnums=4)
  usual, with_options = compiled(), functools.cache(lambda options: compiled(compiler_options=dict(options)))

  def advancing(state):
    options = target.row_options(state.cache[0][0].shape[0])
    return with_options(tuple(options.items())) if options else usual

  return usual, advancing


advance, advancing = by_rows(_advance, ("guided", "top_k", "nucleus"))


def sample(logits_BxV, keys_B, temperature, *, top_k: int = 0, top_p=None) -> jax.Array:
  """int32 [B]: one token per row, the likeliest at temperature 0; -1, which is no token, where a logit is NaN.

  top_k > 0 keeps the k likeliest, top_p the likeliest that together reach that probability (at least one).
  """
  sound_B = ~jnp.isnan(logits_BxV).any(axis=-1)
  likeliest = jnp.argmax(logits_BxV, axis=-1)
  logits_BxV = logits_BxV / jnp.maximum(temperature, 1e-6)
  if top_k:
    least = jax.lax.top_k(logits_BxV, min(top_k, logits_BxV.shape[-1]))[0][:, -1:]
    logits_BxV = jnp.where(logits_BxV >= least, logits_BxV, -jnp.inf)
  if top_p is not None:
    ordered = jnp.sort(logits_BxV, axis=-1, descending=True)
    weights = jax.nn.softmax(ordered, axis=-1)
    kept = jnp.cumsum(weights, axis=-1) - weights < top_p
    kept = kept.at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    logits_BxV = jnp.where(logits_BxV >= least, logits_BxV, -jnp.inf)
  drawn = jax.vmap(jax.random.categorical)(keys_B, logits_BxV)
  return jnp.where(sound_B, jnp.where(temperature > 0, drawn, likeliest), -1).astype(jnp.int32)


def prepare(cfg: ARConfig, params, cond: Condition, length: int, *, guided: bool) -> tuple[Memo, Any]:
  """(memo, empty cache of so many positions); with guided=True for twice the rows."""
  cond = _doubled(cond) if guided else cond
  rows = len(cond.null_BxG)
  blocks = _in_compute_dtype(cfg, params["blocks"], stacked=1)
  layers = [jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(cfg.depth)]
  nowhere = Places(*[jnp.zeros((1, 1), jnp.int32)] * 4)  # a text says the same at every place
  context = applied(AR(cfg), params, cond, nowhere, (rows, 1), method=AR.context)
  text_kv = seen = None
  if context is not None:
    text_kv = [applied(Block(cfg), layer, context, method=Block.text_keys) for layer in layers]
    seen = context.seen_BxLxM
  empty = constrain(jnp.zeros((rows, cfg.heads, length, cfg.head_dim), cfg.dtype), "batch", "heads", None, None)
  return Memo(layers, _in_compute_dtype(cfg, params["head"]), cond, text_kv, seen), [(empty, empty)] * cfg.depth


def forward(cfg: ARConfig, params, memo: Memo, places: Places, last_BxN, cache, position):
  """(logits [R, N, V'], cache) of N positions from `position` on, which stand at `places`."""
  n, length = last_BxN.shape[1], cache[0][0].shape[2]
  rows = memo.cond.null_BxG.shape[0]
  places = jax.tree.map(lambda x: _rows(x, rows), places)
  model = functools.partial(applied, AR(cfg), {**params, "head": memo.head})
  x = model(_rows(last_BxN, rows), places, memo.cond, method=AR.embed)
  seen = jnp.arange(length)[None, None] <= position + jnp.arange(n)[None, :, None]
  filled = []
  for i, layer in enumerate(memo.layers):
    text = {} if memo.text_kv is None else {"text_kv": memo.text_kv[i]}
    context = None if memo.text_kv is None else Context(None, memo.text_seen_Rx1xM)
    where = dict(seen_BxLxM=seen, position=position, **text)
    (x, kept), _ = applied(Block(cfg), layer, (x, cache[i]), context, **where)
    filled.append(kept)
  return model(x, method=AR.logits), filled


def _in_compute_dtype(cfg: ARConfig, tree, stacked: int = 0):
  """Matrices as the layers would cast them at every step; vectors, the norms' scales, stay as they are."""
  return jax.tree.map(lambda x: x.astype(cfg.dtype) if x.ndim > 1 + stacked else x, tree)


def guide(logits_RxV, guidance_B):
  """[B, V]: u + w (c - u) of rows with the condition, c, and the same rows without, u."""
  full_BxV, null_BxV = jnp.split(logits_RxV, 2)
  return null_BxV + guidance_B[:, None] * (full_BxV - null_BxV)


def _cut(places: Places, position, n: int) -> Places:
  return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, position, n, axis=1), places)


def _rows(x, rows: int):
  """Repeats a batch for the rows without condition."""
  return x if len(x) == rows else jnp.concatenate([x] * (rows // len(x)))


def _doubled(cond: Condition) -> Condition:
  """Rows with the condition, then the same rows without."""
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), cond._replace(null_BxG=None))
  return twice._replace(null_BxG=jnp.concatenate([cond.null_BxG, jnp.ones_like(cond.null_BxG)]))
