"""The Generator: class, text or first frames -> ordered video tokens at any budget. Pure functions of parameters."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok import generate, order
from vftok.checks import check_key
from vftok.conditions import condition
from vftok.models.ar import AR, ARConfig
from vftok.models.ar_inputs import Places
from vftok.types import VideoTokens, check_counts

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
  """Attributes:
  ar: the model.
  tokenizer: name or path of the tokenizer whose tokens it makes; fingerprint: of that tokenizer's encoder, "" unknown.
  text: name of the text encoder ("minilm", "t5"), "" for none. text_path: where its weights are, "" for its own.
  text_tokens: the most features of a prompt.
  classes: names of the classes, or () where they are numbers only.
  guidance: (largest budget, scale) pairs: what `generate` uses by itself.
  """

  ar: ARConfig
  tokenizer: str = ""
  fingerprint: str = ""
  text: str = ""
  text_path: str = ""
  text_tokens: int = 32
  classes: tuple[str, ...] = ()
  guidance: tuple[tuple[int, float], ...] = ((4, 3.0), (32, 2.0), (65536, 1.0))  # VideoFlexTok on K600, by SemanTok


@dataclasses.dataclass(frozen=True)
class Generator:
  """A generator's configuration and its functions; it owns no arrays.

  Letters: B videos, T time steps, K slots per step, L positions, V vocabulary, S text features of width C.
  """

  cfg: GeneratorConfig

  @staticmethod
  def load(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[Generator, Params]:
    """(generator, params) of a directory, a safetensors file with its config inside, a shipped name, or a Hub id.

    Reads vftok's own layout and SemanTok's.

    Raises:
      FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
    """
    from vftok.convert.load_generator import load

    cfg, params = load(name)
    if dtype is not None:
      cfg = dataclasses.replace(cfg, ar=dataclasses.replace(cfg.ar, dtype=dtype))
    return Generator(cfg), params

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes vftok's own layout: config.json and model.safetensors, whole or not at all."""
    from vftok.convert.load_generator import save

    save(self.cfg, params, directory)

  def export(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes SemanTok's layout, for models that have it: flat positions, width 64 * depth."""
    from vftok.convert.load_generator import export

    export(self.cfg, params, directory)

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    ids = jnp.zeros((1, 1), jnp.int32)
    cond = condition(self.cfg, None, 1)
    params = AR(self.cfg.ar).init(key, ids, Places.of(ids, ids), cond)["params"]
    return params if boxed else nn.unbox(params)

  # ---- likelihood

  def logits(self, params: Params, ids, cond=None, *, keep=None) -> jax.Array:
    """float32 [B, L, V]: position i given the ids before it.

    Args:
      ids: int [B, L] as `vftok.order` writes them, at most T * K: with `keep` None, a prefix of the whole sequence.
      cond: as in `generate`.
      keep: [B, T] counts, where the sequence is shorter than that prefix would be (see `order.sequence`).
    """
    ids = self._check_ids(ids)
    b, length = ids.shape
    cfg = self.cfg.ar
    seq = order.sequence(np.full((1, cfg.steps), cfg.slots) if keep is None else keep, order=cfg.order)
    places = Places.of(seq.time_BxL[:, :length], seq.slot_BxL[:, :length])
    return _logits(cfg, params, ids, places, condition(self.cfg, cond, b))

  def _check_ids(self, ids) -> jax.Array:
    ids, cfg = jnp.asarray(ids), self.cfg.ar
    if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer) or not 0 < ids.shape[1] <= cfg.length:
      raise ValueError(f"ids have shape {ids.shape} and dtype {ids.dtype}, expected integers [B, 1..{cfg.length}].")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= cfg.vocab:
      raise ValueError(f"ids hold {low if low < 0 else high}, expected 0..{cfg.vocab - 1}: these are another model's.")
    return ids.astype(jnp.int32)

  # ---- sampling

  def generate(self, params: Params, key: jax.Array, cond=None, **options) -> VideoTokens:
    """Tokens of new videos.

    Args:
      key: row b draws from fold_in(key, b), so a row does not depend on the others.
      cond: None, {"label": int [B] or class names}, {"text": [str]}, or {"text_emb": [B, S, C], "text_mask": [B, S]}.
      batch: how many videos where `cond` is None; default 1.
      keep: tokens per time step: an int, [T], [B, 1] (a budget per video) or [B, T]. Default all K.
      steps: time steps T; default the model's.
      guidance: w in u + w (c - u), a number or {largest budget: w}; None uses the model's own. 1 costs no second pass.
      temperature: 0 is greedy. top_k, top_p: 0 and 1 are off.
      given: VideoTokens [B, t, K] that the video starts with, t < T; their own `keep` counts.
      given_first: given tokens come before all others (models trained to continue); False: each at its turn.
      forced: int [B, T, K], tokens to keep where it is 0 or more (editing); -1 elsewhere.

    Returns:
      VideoTokens: ids [B, T, K], keep [B, T].

    Raises:
      ValueError: budgets, classes, prompts or given tokens that this model cannot take.
    """
    plan, seq, keep, cond, static = self._prepare(cond, **options)
    memo, state = generate.start(self.cfg.ar, params, plan, cond, _keys(key, len(keep)), **static["start"])
    stop = plan.forced_BxL.shape[1]
    state = generate.advance(self.cfg.ar, params, memo, plan, state, stop, **static["advance"])
    return self._tokens(state.ids, seq, keep)

  def stream(self, params: Params, key: jax.Array, cond=None, *, every: int = 0, **options) -> Iterator[VideoTokens]:
    """Like `generate`, showing the tokens made so far after each `every` positions (default: one slot of all steps).

    Yielded `keep` counts what is there; in time-first order each is a coarse version of the whole video.
    """
    plan, seq, keep, cond, static = self._prepare(cond, **options)
    memo, state = generate.start(self.cfg.ar, params, plan, cond, _keys(key, len(keep)), **static["start"])
    length, stop = plan.forced_BxL.shape[1], static["start"]["prefill"]
    every = every or keep.shape[1]
    while stop < length:
      stop = min(stop + every, length)
      state = generate.advance(self.cfg.ar, params, memo, plan, state, stop, **static["advance"])
      made = np.arange(length) < stop
      so_far = np.zeros_like(keep)
      rows, columns = np.nonzero(seq.valid_BxL & made)
      np.add.at(so_far, (rows, seq.time_BxL[rows, columns]), 1)
      yield self._tokens(state.ids, seq, so_far)

  def _tokens(self, ids_BxL, seq, keep) -> VideoTokens:
    ids = order.read(np.asarray(ids_BxL), seq, keep.shape[1], self.cfg.ar.slots)
    return VideoTokens(ids=jnp.asarray(ids), keep=jnp.asarray(keep, jnp.int32))

  def _prepare(
    self,
    cond,
    *,
    batch: int | None = None,
    keep=None,
    steps: int | None = None,
    guidance: float | Mapping[int, float] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    given: VideoTokens | None = None,
    given_first: bool = True,
    forced=None,
  ):
    cfg = self.cfg.ar
    cond = condition(self.cfg, cond, batch)
    b = len(cond.null_BxG)
    steps = cfg.steps if steps is None else steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= cfg.steps:
      raise ValueError(f"steps is {steps!r}, expected 1..{cfg.steps} time steps, as many as the model knows.")
    if not (np.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1 and top_k >= 0):
      raise ValueError(
        f"temperature is {temperature}, top_k {top_k} and top_p {top_p}, expected 0 or more, 0 or more, and 0..1."
      )
    keep = self._budgets(keep, b, steps)
    forced_BxTxK = np.full((b, steps, cfg.slots), -1, np.int32)
    if forced is not None:
      forced_BxTxK[:] = self._check_forced(forced, forced_BxTxK.shape)
    given_steps = 0
    if given is not None:
      given_steps = self._check_given(given, b, steps)
      forced_BxTxK[:, :given_steps], keep[:, :given_steps] = given.ids, given.keep
    if given_first and given_steps and cfg.positions == "flat":
      given_first = False  # such a model knows no order but one
    seq = order.sequence(keep, given_steps if given_first else 0, order=cfg.order)
    if not seq.valid_BxL.any():
      raise ValueError("keep leaves no token to make: keep at least one somewhere.")
    forced_BxL = np.take_along_axis(forced_BxTxK.reshape(b, -1), seq.time_BxL * cfg.slots + seq.slot_BxL, axis=1)
    forced_BxL = np.where(seq.valid_BxL, forced_BxL, 0)
    known = forced_BxL >= 0
    prefill = int(np.where(known.all(1), known.shape[1], known.argmin(1)).min())
    scale_B = self._guidance(guidance, keep)
    guided = bool((scale_B != 1).any()) and bool(cfg.n_classes or cfg.ctx_dim)
    plan = generate.Plan(
      Places.of(seq.time_BxL, seq.slot_BxL),
      jnp.asarray(forced_BxL, jnp.int32),
      jnp.asarray(scale_B),
      jnp.float32(temperature),
      jnp.float32(top_p),
    )
    static = {
      "start": dict(guided=guided, prefill=prefill),
      "advance": dict(guided=guided, top_k=int(top_k), nucleus=top_p < 1),
    }
    return plan, seq, keep, cond, static

  def _budgets(self, keep, b: int, steps: int) -> np.ndarray:
    slots = self.cfg.ar.slots
    counts = np.asarray(slots if keep is None else keep)
    if counts.dtype.kind not in "iu" or counts.shape not in ((), (steps,), (b, 1), (b, steps)):
      raise ValueError(
        f"keep is {str(keep)[:40]!r}, expected whole numbers: one, [{steps}], [{b}, 1] or [{b}, {steps}] of them."
      )
    if counts.min() < 0 or counts.max() > slots or (counts.ndim == 0 and counts == 0):
      raise ValueError(f"keep is {counts.min() if counts.min() < 1 else counts.max()}, expected 1..{slots} per step.")
    return np.array(np.broadcast_to(counts, (b, steps)), np.int32)

  def _check_given(self, given: VideoTokens, b: int, steps: int) -> int:
    shape, slots = jnp.shape(given.ids), self.cfg.ar.slots
    if len(shape) != 3 or shape[0] != b or shape[2] != slots or not 0 < shape[1] < steps:
      raise ValueError(f"given tokens have shape {shape}, expected [{b}, 1..{steps - 1}, {slots}].")
    check_counts(given.keep, slots)
    self._check_ids(jnp.where(jnp.arange(slots) < given.keep[:, :, None], given.ids, 0).reshape(b, -1))
    return shape[1]

  def _check_forced(self, forced, shape) -> np.ndarray:
    forced = np.asarray(forced)
    if forced.shape != shape or forced.dtype.kind not in "iu":
      raise ValueError(f"forced has shape {forced.shape} and dtype {forced.dtype}, expected integers {shape}.")
    if forced.min() < -1 or forced.max() >= self.cfg.ar.vocab:
      raise ValueError(f"forced holds {forced.min()}..{forced.max()}, expected -1..{self.cfg.ar.vocab - 1}.")
    return forced

  def _guidance(self, guidance, keep: np.ndarray) -> np.ndarray:
    """float32 [B]: the scale for each row's budget."""
    table = dict(self.cfg.guidance) if guidance is None else guidance
    if not isinstance(table, Mapping):
      table = {np.inf: table}
    budgets = sorted(table)
    pick = lambda k: table[next((n for n in budgets if n >= k), budgets[-1])]
    scale_B = np.array([pick(k) for k in keep.max(1)], np.float32)
    if not np.isfinite(scale_B).all():
      raise ValueError(f"guidance is {guidance!r}, expected a number or budgets with numbers.")
    return scale_B

  # ---- identity

  def check_tokenizer(self, fingerprint: str) -> None:
    """Raises ValueError where a tokenizer of that fingerprint is not the one these tokens belong to."""
    if self.cfg.fingerprint and fingerprint != self.cfg.fingerprint:
      raise ValueError(
        f"the tokenizer's fingerprint is {fingerprint}, this generator makes tokens of {self.cfg.fingerprint}"
        + (f" ({self.cfg.tokenizer}): load that one." if self.cfg.tokenizer else ": load the one it was trained with.")
      )


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg: ARConfig, params, ids, places: Places, cond):
  return AR(cfg).apply({"params": params}, ids, places, cond)


def _keys(key, b: int):
  check_key(key, "generate")
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
