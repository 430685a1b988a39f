"""What is asked of a generator, checked and as arrays: the options of `Generator.generate`, which explains them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vftok.generator import generate, generate_adaptive
from vftok.generator.conditions import condition
from vftok.models import lengths, order
from vftok.models.ar import ARConfig
from vftok.models.ar_inputs import Condition, Places
from vftok.models.config import GeneratorConfig
from vftok.runtime.words import brief, is_number, is_whole
from vftok.tokenizer.checks import check_options
from vftok.tokens import VideoTokens, check_counts, is_concrete, kept_slots


class Fixed(NamedTuple):
  """A request whose counts are known: plan, its sequence and counts [B, T], condition, static arguments by function."""

  plan: generate.Plan
  seq: order.Sequence
  keep: np.ndarray
  cond: Condition
  static: dict[str, dict[str, Any]]

  @property
  def steps(self) -> int:
    return self.keep.shape[1]


class Adaptive(NamedTuple):
  """A request to a model that says lengths."""

  plan: generate_adaptive.Plan
  prefix: generate_adaptive.Prefix
  cond: Condition
  static: dict[str, dict[str, Any]]

  @property
  def steps(self) -> int:
    return self.plan.keep_BxT.shape[1]


def request(
  cfg: GeneratorConfig,
  cond,
  *,
  batch: int | None = None,
  keep=None,
  mean_length: float | None = None,
  end_bias: float = 0.0,
  steps: int | None = None,
  guidance: float | Mapping[int, float] | None = None,
  guide_lengths: bool = True,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  given: VideoTokens | None = None,
  given_first: bool = True,
  forced=None,
  **unknown,
) -> Fixed | Adaptive:
  """See `Generator.generate`.

  Raises:
    ValueError: what the model cannot do, in one sentence.
  """
  ar = cfg.ar
  check_options(unknown, OPTIONS, "generate")
  cond = condition(cfg, cond, batch)
  b = len(cond.null_BxG)
  steps = ar.steps if steps is None else steps
  if not is_whole(steps) or not 1 <= steps <= ar.steps:
    raise ValueError(f"steps is {brief(steps)}, expected 1..{ar.steps} time steps, as many as the model knows.")
  if not (is_number(temperature) and temperature >= 0 and is_number(top_p) and 0 < top_p <= 1):
    given_as = f"temperature is {brief(temperature)} and top_p {brief(top_p)}"
    raise ValueError(f"{given_as}, expected a number of 0 or more, and one above 0 and up to 1.")
  if not is_whole(top_k) or top_k < 0:
    raise ValueError(f"top_k is {brief(top_k)}, expected how many of the likeliest tokens to keep, or 0 for all.")
  for name, value in (("guide_lengths", guide_lengths), ("given_first", given_first)):
    if not isinstance(value, bool | np.bool_):
      raise ValueError(f"{name} is {brief(value)}, expected True or False.")
  check_lengths(ar, keep, mean_length, end_bias)
  counts = None if keep is None and ar.lengths != "none" else _budgets(ar, keep, b, steps)
  if not cfg.nested and ar.lengths == "none" and counts is not None and counts.min() < ar.slots:
    raise ValueError(f"keep is {brief(keep)}, expected all {ar.slots}: the tokens of this model have no order.")
  forced_BxTxK = np.full((b, steps, ar.slots), -1, np.int32)
  if forced is not None:
    forced_BxTxK[:] = _check_forced(ar, forced, forced_BxTxK.shape)
  _check_condition(cfg, given, steps)
  given_steps = 0 if given is None else _check_given(ar, given, b, steps)
  first = given_steps if given_first and ar.positions != "flat" else 0  # "flat" models know no order but one
  wide = np.full(b, ar.slots if mean_length is None else mean_length) if counts is None else counts.max(1)
  if given is not None:
    forced_BxTxK[:, :given_steps] = given.ids
    if counts is not None:
      counts[:, :given_steps] = given.keep
      wide = counts.max(1)
  scale_B = _guidance(cfg, guidance, wide)
  guided = bool((scale_B != 1).any()) and bool(ar.n_classes or ar.ctx_dim)
  start, advance = dict(guided=guided), dict(guided=guided, top_k=int(top_k), nucleus=top_p < 1)
  scales = dict(guidance_B=jnp.asarray(scale_B), temperature=jnp.float32(temperature), top_p=jnp.float32(top_p))
  if counts is None or ar.lengths != "none":
    extra = dict(guide_lengths=jnp.asarray(bool(guide_lengths)), end_bias=jnp.float32(end_bias))
    extra |= dict(mean_length=jnp.float32(0 if mean_length is None else mean_length))
    extra |= dict(odds_TxM=jnp.log(jnp.array(cfg.length_odds)[:steps]) if cfg.length_odds else None)
    plan, prefix = _adaptive(ar, forced_BxTxK, counts, given, given_steps, first, scales | extra)
    return Adaptive(plan, prefix, cond, dict(start=start, advance=advance | dict(aimed=mean_length is not None)))
  seq = order.sequence(counts, first, order=ar.order)
  if not seq.valid_BxL.any():
    raise ValueError("keep leaves no token to make: keep at least one somewhere.")
  forced_BxL = np.take_along_axis(forced_BxTxK.reshape(b, -1), seq.time_BxL * ar.slots + seq.slot_BxL, axis=1)
  forced_BxL = np.where(seq.valid_BxL, forced_BxL, 0)
  known = forced_BxL >= 0
  prefill = int(np.where(known.all(1), known.shape[1], known.argmin(1)).min())
  plan = generate.Plan(Places.of(seq.time_BxL, seq.slot_BxL), jnp.asarray(forced_BxL, jnp.int32), **scales)
  return Fixed(plan, seq, counts, cond, dict(start=start | dict(prefill=prefill), advance=advance))


def _adaptive(cfg: ARConfig, forced_BxTxK, counts_BxT, given, given_steps: int, first: int, options):
  """(plan, prefix): counts and tokens that are known, written into the extended grid."""
  b, t, _ = forced_BxTxK.shape
  offset = lengths.first_slot(cfg)
  known_BxT = np.zeros((b, t), np.int32) if counts_BxT is None else counts_BxT
  if given is not None:
    known_BxT[:, :given_steps] = given.keep
  lengths.check_counts(cfg, known_BxT[known_BxT > 0] if counts_BxT is None else known_BxT)
  known = known_BxT > 0
  extended = np.full((b, t, cfg.total_slots), -1, np.int32)
  extended[:, :, offset:] = forced_BxTxK
  said, keep_BxT = lengths.extend(cfg, np.zeros_like(forced_BxTxK), known_BxT)
  extended = np.where(known[:, :, None] & lengths.says_length(cfg, said), said, extended)
  keep_BxT = np.where(np.arange(t) < given_steps, keep_BxT, 1 if offset else cfg.slots)
  forced_counts = ((forced_BxTxK >= 0) * np.arange(1, cfg.slots + 1)).max(2)
  least_BxT = np.where(known, known_BxT, forced_counts)
  integers = dict(forced_BxTxK=extended, keep_BxT=keep_BxT, least_BxT=least_BxT, given=given_steps, first=first)
  plan = generate_adaptive.Plan(**{k: jnp.asarray(v, jnp.int32) for k, v in integers.items()}, **options)
  if not first:
    return plan, generate_adaptive.Prefix(*[jnp.zeros((b, 0), jnp.int32)] * 3)
  seq = order.sequence(keep_BxT[:, :first], order=cfg.order)
  ids_BxL = order.write(extended[:, :first], seq)
  shared = int(seq.lengths.min())
  cut = lambda x: jnp.asarray(x[:, :shared], jnp.int32)
  return plan, generate_adaptive.Prefix(cut(ids_BxL), cut(seq.time_BxL), cut(seq.slot_BxL))


def check_lengths(cfg: ARConfig, keep=None, mean_length: float | None = None, end_bias: float = 0.0) -> None:
  """Raises ValueError where a model cannot take such wishes for lengths."""
  if mean_length is not None:
    check_mean(cfg, keep, mean_length)
    if cfg.lengths == "end_of_step":
      raise ValueError(
        f"mean_length is {brief(mean_length)}, expected none for a model that stops steps by END: pass "
        "end_bias=gen.calibrate(..., mean_length=...)."
      )
  if not is_number(end_bias):
    raise ValueError(f"end_bias is {brief(end_bias)}, expected a finite number.")
  if end_bias and cfg.lengths != "end_of_step":
    raise ValueError(f"end_bias is {brief(end_bias)}, expected 0 where lengths are {cfg.lengths!r}: there is no END.")


def check_mean(cfg: ARConfig, keep, mean_length: float) -> None:
  """Raises ValueError where a model cannot make so many tokens per time step on average."""
  wish = f"mean_length is {brief(mean_length)}"
  if cfg.lengths == "none":
    raise ValueError(f"{wish}, expected none: this model makes as many tokens as `keep` says, so pass that.")
  if keep is not None:
    raise ValueError(f"{wish} and keep is {brief(keep)}, expected one of the two.")
  low = cfg.levels[0] if cfg.levels else 1
  if not is_number(mean_length) or not low <= mean_length <= cfg.slots:
    raise ValueError(f"{wish}, expected {low}..{cfg.slots} tokens per time step.")


def check_ids(ids, shape_most: int, vocab: int):
  """int32 [B, 1..most] of ids below `vocab`, as a jax array; values are looked at unless JAX is tracing.

  Raises:
    ValueError: another shape or dtype, or ids beyond the vocabulary.
  """
  try:
    ids = jnp.asarray(ids)
  except (TypeError, ValueError, OverflowError):
    raise ValueError(f"ids are {brief(ids)}, expected an integer array [B, 1..{shape_most}].") from None
  if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer) or not 0 < ids.shape[1] <= shape_most:
    raise ValueError(f"ids have shape {ids.shape} and dtype {ids.dtype}, expected integers [B, 1..{shape_most}].")
  if not is_concrete(ids):
    return ids.astype(jnp.int32)
  low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= vocab:
    raise ValueError(f"ids hold {low if low < 0 else high}, expected 0..{vocab - 1}: these are another model's.")
  return ids.astype(jnp.int32)


def _budgets(cfg: ARConfig, keep, b: int, steps: int) -> np.ndarray:
  counts = _array(cfg.slots if keep is None else keep)
  if counts.dtype.kind not in "iu" or counts.shape not in ((), (steps,), (b, 1), (b, steps)):
    raise ValueError(
      f"keep is {brief(keep)}, expected whole numbers: one, [{steps}], [{b}, 1] or [{b}, {steps}] of them."
    )
  if counts.min() < 0 or counts.max() > cfg.slots or (counts.ndim == 0 and counts == 0):
    raise ValueError(f"keep is {counts.min() if counts.min() < 1 else counts.max()}, expected 1..{cfg.slots} per step.")
  return np.array(np.broadcast_to(counts, (b, steps)), np.int32)


def _array(value) -> np.ndarray:
  """Of anything that is asked for; what is ragged or no array has dtype object."""
  try:
    return np.asarray(value)
  except ValueError:
    return np.asarray(None)


def _check_given(cfg: ARConfig, given: VideoTokens, b: int, steps: int) -> int:
  if not isinstance(given, VideoTokens):
    raise ValueError(f"given is {brief(given)}, expected VideoTokens [{b}, 1..{steps - 1}, {cfg.slots}].")
  shape, slots = jnp.shape(given.ids), cfg.slots
  if len(shape) != 3 or shape[0] != b or shape[2] != slots or not 0 < shape[1] < steps:
    raise ValueError(f"given tokens have shape {shape}, expected [{b}, 1..{steps - 1}, {slots}].")
  check_counts(given.keep, slots)
  if cfg.lengths != "none":
    lengths.check_counts(cfg, given.keep)
  kept_BxTxK = kept_slots(given.keep, slots)
  check_ids(jnp.where(kept_BxTxK, given.ids, 0).reshape(b, -1), cfg.length, cfg.vocab)
  return shape[1]


def _check_condition(cfg: GeneratorConfig, given, steps: int) -> None:
  """Raises ValueError where a model that goes on from given frames does not have their tokens, and room for more."""
  wanted = list(cfg.condition)
  if not wanted:
    return
  if not isinstance(given, VideoTokens) or not np.array_equal(np.unique(given.keep, axis=0), [wanted]):
    found = None if given is None else np.shape(given.ids if isinstance(given, VideoTokens) else given)
    raise ValueError(
      f"given is {brief(found)}, expected the tokens of {cfg.condition_frames} first frames, {wanted} in their time "
      "steps: this model goes on from such (vftok.generator.given)."
    )
  if steps != cfg.ar.steps:
    raise ValueError(f"steps is {steps}, expected {cfg.ar.steps}: of given frames and of a clip.")


def _check_forced(cfg: ARConfig, forced, shape) -> np.ndarray:
  forced = _array(forced)
  if forced.shape != shape or forced.dtype.kind not in "iu":
    raise ValueError(f"forced has shape {forced.shape} and dtype {forced.dtype}, expected integers {shape}.")
  if forced.min() < -1 or forced.max() >= cfg.vocab:
    raise ValueError(f"forced holds {forced.min()}..{forced.max()}, expected -1..{cfg.vocab - 1}.")
  return forced


def _guidance(cfg: GeneratorConfig, guidance, budgets_B) -> np.ndarray:
  """float32 [B]: the scale for each row's budget, its largest count."""
  table = dict(cfg.guidance) if guidance is None else guidance
  if not isinstance(table, Mapping):
    table = {2**62: table}
  if not table or not all(is_whole(k) and is_number(w) for k, w in table.items()):
    raise ValueError(f"guidance is {brief(guidance)}, expected a number, or budgets with a number each.")
  budgets = sorted(table)
  pick = lambda k: table[next((n for n in budgets if n >= k), budgets[-1])]
  return np.array([pick(k) for k in budgets_B], np.float32)


OPTIONS = [name for name, p in inspect.signature(request).parameters.items() if p.kind is p.KEYWORD_ONLY]
