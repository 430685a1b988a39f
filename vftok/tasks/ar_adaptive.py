"""Training a generator that says its own lengths: what a router predicted for each clip, under a drawn preference.

Or lengths are those that stored tokens have, where ids depend on them (EVATok). Sequences are ragged; `loss.pack` of
them share a row. Logits have the masks of sampling, so bits are those of what is sampled: a length is drawn among
lengths, content among content.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vftok.budget import allocate
from vftok.budget.reward import Reward
from vftok.data.sources import source_of
from vftok.generator.api import Generator
from vftok.models import lengths, order
from vftok.models.ar_inputs import Condition, Drop, Places, of_segment
from vftok.models.pack import Packing, pack
from vftok.tasks import Metrics, mean
from vftok.tasks.ar import ARTask
from vftok.tokens import VideoTokens

SAMPLE = 256  # clips of each source that the odds of lengths are counted in
ASKED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # places in the range of preferences that an evaluation reports


class AdaptiveARTask(ARTask):
  """As ARTask; `loss.preference` (low, high) is the range of w_q, `loss.pack` how many sequences share a row.

  Choose the range by "tokens_per_step": lengths that are never seen in training cannot be asked for later.
  """

  def __init__(self, cfg: ConfigDict, metas: list[dict] | None = None):
    super().__init__(cfg, metas)
    self.counted = bool(self.metas[0].get("counts"))
    if self.counted:
      self.levels = self.gen.cfg.ar.levels
    else:
      self._weigh(self.metas[0]["router"])
    group = cfg.batch_size // cfg.accumulate
    if self.loss_cfg.pack < 1 or group % self.loss_cfg.pack:
      raise ValueError(
        f"loss.pack is {self.loss_cfg.pack}, expected a divisor of the {group} examples computed at once."
      )

    if metas is None and self.gen.cfg.ar.levels:
      self.gen = Generator(dataclasses.replace(self.gen.cfg, length_odds=self._odds()))

  def _weigh(self, router: dict) -> None:
    """What a router's preferences are weighed by."""
    self.levels = tuple(level for level in router["levels"] if level <= self.gen.cfg.ar.slots)
    constants = {name: router[name] for name in ("steps", "loss_mean", "loss_std")}
    self.reward = Reward.of_router(router["levels"], **constants)

  def _odds(self) -> tuple[tuple[float, ...], ...]:
    """How often each step gets each level over clips and preferences, in the mix of the sources."""
    uniform, odds, weights = (np.arange(SAMPLE) + 0.5) / SAMPLE, [], []
    uniform = np.random.default_rng(0).permutation(uniform)
    for source in self.cfg.data.sources.to_dict().values():
      records = source_of(source)
      picked = np.linspace(0, len(records) - 1, SAMPLE).astype(int)
      key = "keep" if self.counted else "curves"
      stored = {key: np.stack([records[int(i)][key] for i in picked])}
      keep_NxT = np.asarray(self.counts(stored, self.preferences(uniform)))
      odds.append((keep_NxT[:, :, None] == np.array(self.levels)).mean(0))
      weights.append(source.get("weight", 1.0))
    mixed = np.average(odds, axis=0, weights=weights) + 1e-3  # nothing is impossible
    return tuple(tuple(float(x) for x in row) for row in mixed / mixed.sum(1, keepdims=True))

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    draws = jax.vmap(self._draw)(keys_B)
    uniform_B = mirrored(draws["uniform"]) if self.loss_cfg.pack > 1 else draws["uniform"]
    keep_BxT = self.counts(batch, self.preferences(uniform_B))
    steps = jnp.arange(keep_BxT.shape[1])
    if not self.counted:
      # Given steps may have come with any level: what they show is the past, not what the router would say of it.
      keep_BxT = jnp.where(steps < draws["given"][:, None], draws["given_level"][:, None], keep_BxT)
    drop = self.drop(keys_B[:: self.loss_cfg.pack])
    nll_RxL, seq, ids, null_RxL, fits = self._rows(
      params, batch, keep_BxT, draws["given"], draws["null"], self.loss_cfg.pack, drop
    )
    predicted = seq.valid_BxL & ~seq.given_BxL
    says = lengths.says_length(self.gen.cfg.ar, ids)
    weight = predicted * jnp.where(says, 1.0, self._slot_weights()[self._content(seq).slot_BxL])
    # Per token and not per clip: a short one must not count as much as a long one. So with `accumulate` the mean of
    # slices is that of the batch but for their lengths.
    loss = (nll_RxL * weight).sum() / jnp.maximum(weight.sum(), 1e-9)
    made = steps >= draws["given"][:, None]
    metrics = self._by_kind(nll_RxL, predicted, says)
    metrics |= {"tokens_per_step": mean(keep_BxT.reshape(-1), made.reshape(-1))}
    metrics |= {"packed/left_out": mean(~fits.reshape(-1) * 1.0)} if self.loss_cfg.pack > 1 else {}
    return loss, metrics | self._by_slot(nll_RxL, predicted & ~says & ~null_RxL, self._content(seq))

  def _draw(self, key) -> dict[str, jax.Array]:
    uniform, level, key = jax.random.split(key, 3)
    own = {"given_level": jax.random.choice(level, jnp.array(self.levels))}
    return super()._draw(key) | own | {"uniform": jax.random.uniform(uniform)}

  def preferences(self, uniform_B) -> jax.Array:
    """w_q [B] of numbers in 0..1, even in the log of what a token costs, (2 - w_q) / w_q: so are lengths, roughly."""
    if self.counted:
      return jnp.zeros_like(jnp.asarray(uniform_B))  # nobody asks
    low, high = (np.log((2 - w) / w) for w in self.loss_cfg.preference)
    return 2 / (1 + jnp.exp(low + (high - low) * uniform_B))

  def counts(self, batch, preference_B) -> jax.Array:
    """int32 [B, T]: the router's tokens of each step under a preference per clip, or those that were stored."""
    if self.counted:
      return jnp.asarray(batch["keep"])
    curves_BxTxm = batch["curves"][:, :, : len(self.levels)]
    return allocate.among_levels(curves_BxTxm, self.levels, self.reward, preference_B[:, None, None], jnp)

  def _rows(self, params, batch, keep_BxT, given_B, null_B, group: int = 1, drop: Drop | None = None):
    """(nats [R, L], places, ids, whether without condition [R, L], which sequences fit [R, G]) of packed rows."""
    cfg = self.gen.cfg.ar
    ids_BxTxK, extended_BxT = lengths.extend(cfg, batch["ids"], keep_BxT, jnp)
    seq = order.arrange(extended_BxT, given_B, cfg.total_slots, order=cfg.order, xp=jnp)
    flat = ids_BxTxK.reshape(len(ids_BxTxK), -1)
    ids = jnp.take_along_axis(flat, seq.time_BxL * cfg.total_slots + seq.slot_BxL, axis=1)
    cond, segment, fits = self.condition(batch, null_B), None, jnp.ones((len(ids), 1), bool)
    if group > 1:
      packing = pack(seq.lengths, group, ids.shape[1])
      seq, ids, cond = _packed(packing, seq, ids, cond, group)
      segment, fits = packing.segment_RxL, packing.fits_RxG
    places = Places.of(seq.time_BxL, seq.slot_BxL, segment)
    null_RxL = of_segment(cond.null_BxG, places, ids.shape)
    return self._nats(params, ids, seq, places, cond, drop), seq, ids, null_RxL, fits

  def _nats(self, params, ids, seq, places: Places, cond: Condition, drop: Drop | None) -> jax.Array:
    cfg, logits = self.gen.cfg.ar, self.logits(params, ids, places, cond, drop)
    logits = jnp.where(lengths.allowed(cfg, places.slot_BxL, jnp), logits, -jnp.inf)
    own = jnp.take_along_axis(logits, ids[:, :, None], axis=2)[:, :, 0]
    # Padding has an id that cannot stand there: no infinity may reach a sum, nor a gradient.
    return jnp.where(seq.valid_BxL, jax.nn.logsumexp(logits, axis=-1) - jnp.where(seq.valid_BxL, own, 0), 0)

  def _content(self, seq):
    """The sequence with slots counted as the tokenizer does; lengths said first get slot 0."""
    return seq._replace(slot_BxL=jnp.maximum(seq.slot_BxL - lengths.first_slot(self.gen.cfg.ar), 0))

  def _by_kind(self, nll, where, says) -> Metrics:
    flat = lambda x: x.reshape(-1)
    return {"nll": mean(flat(nll), flat(where & ~says)), "nll/lengths": mean(flat(nll), flat(where & says))}

  def _tokens(self, batch) -> VideoTokens:
    return (
      VideoTokens(batch["ids"].astype(jnp.int32), batch["keep"], nested=False)
      if self.counted
      else super()._tokens(batch)
    )

  def flops(self) -> float:
    return super().flops() / self.loss_cfg.pack

  def _sums(self, params, batch) -> Metrics:
    """Every clip at the middle of the preferences, and nats and tokens at other places; whole and unpacked."""
    b, cfg = len(batch["ids"]), self.gen.cfg.ar
    keep, given = self.counts(batch, self.preferences(jnp.full(b, 0.5))), len(self.gen.cfg.condition)
    out = {"tokens_per_step": mean(keep[:, given:].mean(1), batch["_mask"])}
    for place in () if self.counted else ASKED:
      asked = self.counts(batch, self.preferences(jnp.full(b, place)))
      nll = self._rows(params, batch, asked, 0, jnp.zeros(b, bool))[0]
      out[f"tokens_per_step/asked {place:g}"] = mean(asked.mean(1), batch["_mask"])
      out[f"nll_per_clip/asked {place:g}"] = mean(nll.sum(1), batch["_mask"])
    for name, null in (("", False), ("null/", True)):
      nll, seq, ids, _, _ = self._rows(params, batch, keep, given, jnp.full(b, null))
      predicted = seq.valid_BxL & ~seq.given_BxL
      where, says = predicted & batch["_mask"][:, None], lengths.says_length(cfg, ids)
      out[f"{name}nll_per_clip"] = mean((nll * predicted).sum(1), batch["_mask"])
      out[f"{name}bits_per_token"] = mean(nll.reshape(-1) / np.log(2), where.reshape(-1))
      for kind, value in self._by_kind(nll / np.log(2), where, says).items():
        out[name + {"nll": "bits_per_content_token", "nll/lengths": "bits_per_length_token"}[kind]] = value
      out |= {f"{name}{k}": v for k, v in self._by_slot(nll, where & ~says, self._content(seq)).items()}
    return out


def mirrored(uniform_B) -> jax.Array:
  """Draws of 0..1 of which every second one mirrors its neighbour: a long clip stands beside a short one.

  So few rows overflow, and what is left out is not always long. Each draw by itself is as uniform as before.
  """
  pairs = len(uniform_B) // 2
  both = jnp.stack([uniform_B[: 2 * pairs : 2], 1 - uniform_B[: 2 * pairs : 2]], axis=1)
  return jnp.concatenate([both.reshape(-1), uniform_B[2 * pairs :]])


def _packed(packing: Packing, seq: order.Sequence, ids, cond: Condition, group: int):
  """The same as rows of `group` sequences; what is padding is no token."""
  real = packing.segment_RxL >= 0
  seq = order.Sequence(*(packing(x) * real for x in seq))
  joined = lambda x: None if x is None else x.reshape(len(x) // group, -1, *x.shape[2:])
  text_segment: Any = None
  if cond.text_BxSxC is not None:
    of_one = jnp.repeat(jnp.arange(group), cond.text_BxSxC.shape[1])
    text_segment = jnp.broadcast_to(of_one, (len(real), len(of_one)))
  cond = Condition(*map(joined, cond))._replace(text_segment_BxS=text_segment)
  return seq, packing(ids) * real, cond
