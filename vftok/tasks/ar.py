"""Training the generator on stored tokens: next-token prediction under a class, a text, given steps, or nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vftok.data.tokens import read_meta
from vftok.generator.api import Generator
from vftok.io.video_writer import to_uint8
from vftok.models import order
from vftok.models.ar import AR
from vftok.models.ar_inputs import Condition, Drop, Places
from vftok.models.config import GeneratorConfig
from vftok.models.config_json import from_dict
from vftok.models.flops import ar_flops
from vftok.models.layers import as_trained
from vftok.models.nested import powers_of_two, sample_keep
from vftok.runtime.words import brief
from vftok.tasks import Metrics, mean
from vftok.tasks.losses import ARLoss
from vftok.tokens import VideoTokens

DROPOUT = 7  # of the random numbers of dropout, apart from those that examples are drawn by


class ARTask:
  """Parameters are the generator's own tree; nothing is frozen, texts are embedded when clips are tokenized."""

  def __init__(self, cfg: ConfigDict, metas: list[dict] | None = None):
    """`metas`: what the stored tokens are, where none are at hand yet (`vftok.tools.aot`)."""
    self.cfg, self.loss_cfg = cfg, ARLoss.of(cfg)
    # Facts about the tokens travel with them: shape, codebook, whose they are.
    self.metas = metas or [read_meta(source["directory"]) for source in cfg.data.sources.to_dict().values()]
    model = from_dict(GeneratorConfig, _of_tokens(cfg.model.to_dict(), self.metas))
    self.gen = Generator(model)

  # ---- the protocol

  def init(self, key: jax.Array) -> Any:
    return self.gen.init(key, boxed=True)

  def frozen(self) -> Any:
    return {}

  def start(self, params, batches) -> Any:
    if not self.cfg.init_from:
      return params
    source, loaded = Generator.load(self.cfg.init_from)
    if source.cfg.ar != self.gen.cfg.ar:
      raise ValueError(f"init_from holds another model ({brief(source.cfg.ar, 250)}): use the model it was made with.")
    return loaded

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    cfg = self.gen.cfg.ar
    draws = jax.vmap(self._draw)(keys_B)
    seq = order.arrange(draws["keep"], draws["given"], cfg.slots, order=cfg.order, xp=jnp)
    ids_BxL = self._write(batch["ids"], seq)
    nll_BxL = self._nll(params, ids_BxL, seq, self.condition(batch, draws["null"]), self.drop(keys_B))
    predicted = seq.valid_BxL & ~seq.given_BxL
    weight_BxL = predicted * self._slot_weights()[seq.slot_BxL]
    total_B = (nll_BxL * weight_BxL).sum(1) / jnp.maximum(weight_BxL.sum(1), 1e-9)
    metrics = {"nll": mean(nll_BxL.reshape(-1), predicted.reshape(-1))}
    metrics |= self._by_slot(nll_BxL, predicted & ~draws["null"][:, None], seq)
    return total_B.mean(), metrics

  def _draw(self, key) -> dict[str, jax.Array]:
    """All random numbers of one example: whether it has a condition, which steps are given and how much of them."""
    cfg, loss = self.gen.cfg.ar, self.loss_cfg
    null, given, keep = jax.random.split(key, 3)
    given = jax.random.choice(given, len(loss.given_probs), p=jnp.array(loss.given_probs))
    kept_T = sample_keep(keep, cfg.steps, cfg.slots, law="pow2", share="shared") if self.gen.cfg.nested else cfg.slots
    kept_T = jnp.where(jnp.arange(cfg.steps) < given, kept_T, cfg.slots)
    given = given if self.gen.cfg.steps == cfg.steps else cfg.steps - self.gen.cfg.steps
    return {"null": jax.random.bernoulli(null, loss.null), "given": given, "keep": kept_T}

  def _write(self, ids_BxTxK, seq):
    flat = ids_BxTxK[:, :, : self.gen.cfg.ar.slots].astype(jnp.int32).reshape(len(ids_BxTxK), -1)
    return jnp.take_along_axis(flat, seq.time_BxL * self.gen.cfg.ar.slots + seq.slot_BxL, axis=1)

  def drop(self, keys_B) -> Drop | None:
    """Dropout of a step, whose rates `loss.dropout` has; None where there is none."""
    rates = dataclasses.asdict(self.loss_cfg.dropout)
    own = jax.vmap(jax.random.fold_in, (0, None))(keys_B, DROPOUT)
    return Drop(own, **rates) if any(rates.values()) else None

  def logits(self, params, ids_BxL, places: Places, cond: Condition, drop: Drop | None = None):
    """float32 [B, L, V']."""
    rngs = {} if drop is None else {"dropout": jax.random.key(DROPOUT)}
    return AR(as_trained(self.gen.cfg.ar)).apply({"params": params}, ids_BxL, places, cond, drop, rngs=rngs)

  def _nll(self, params, ids_BxL, seq, cond: Condition, drop: Drop | None = None):
    """Nats [B, L] of each token."""
    logits = self.logits(params, ids_BxL, Places.of(seq.time_BxL, seq.slot_BxL), cond, drop)
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids_BxL)

  def _slot_weights(self) -> jax.Array:
    weights = np.array(self.loss_cfg.slot_weights or [1.0], np.float32)  # the last one stands for all slots after it
    k = self.gen.cfg.ar.slots
    return jnp.asarray(np.concatenate([weights, np.full(max(0, k - len(weights)), weights[-1])])[:k])

  def _by_slot(self, nll_BxL, where_BxL, seq) -> Metrics:
    """Bits per token of slots 0, 1, 2-3, 4-7, ...: coarse tokens are the dear ones."""
    out, low = {}, 0
    while low < self.gen.cfg.ar.slots:
      high = max(1, 2 * low)
      inside = where_BxL & (seq.slot_BxL >= low) & (seq.slot_BxL < high)
      name = f"bits/slot{low}" + (f"-{high - 1}" if high - low > 1 else "")
      out[name] = mean(nll_BxL.reshape(-1) / np.log(2), inside.reshape(-1))
      low = high
    return out

  def condition(self, batch, null_B) -> Condition:
    """The batch's own classes and texts, as far as the model knows such."""
    cfg, out = self.gen.cfg.ar, Condition(null_BxG=null_B[:, None])
    if cfg.n_classes:
      unknown = batch["label"] < 0
      out = out._replace(label_BxG=jnp.where(unknown, cfg.n_classes, batch["label"])[:, None])
    if cfg.ctx_dim:
      out = out._replace(text_BxSxC=batch["text_emb"].astype(jnp.float32), text_mask_BxS=batch["text_mask"])
    return out

  @property
  def dtype(self) -> str:
    return self.gen.cfg.ar.dtype

  def flops(self) -> float:
    cfg = self.gen.cfg.ar
    text = self.gen.cfg.text_tokens if cfg.ctx_dim else 0
    return 3 * ar_flops(cfg.dim, cfg.depth, cfg.hidden, cfg.total_vocab, cfg.length, text)

  # ---- looking

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    """The batch's clips as their tokens decode, beside what the model makes of their captions."""
    from vftok.show.picture import video_rows

    if not self.gen.cfg.tokenizer:
      return {}
    tok, tok_params = self.tokenizer()
    first = {key: jnp.asarray(batch[key][:4]) for key in batch if batch[key].dtype != object}
    cond = self.condition(first, jnp.zeros(len(first["ids"]), bool))
    how, slots = tok.sampling(self.loss_cfg.show_steps, *_guidance(self.loss_cfg)), self.gen.cfg.ar.slots
    decode = lambda tokens: to_uint8(tok.decode(tok_params, tokens, jax.random.key(0), **how))
    whole = self._tokens(first)
    given, own = whole.split(len(self.gen.cfg.condition))
    columns = {"tokens of the clip": decode(own)}
    options = dict(guidance=self.loss_cfg.show_scale) | (dict(given=given) if self.gen.cfg.condition else {})
    made = self.gen.generate(params, jax.random.key(1), cond, **options).widen(tok.registers)
    for keep in sorted({1, max(1, slots // 4), slots}) if tok.nested else (slots,):
      columns[f"generated, k = {keep}"] = decode(made.truncate(keep))
    return {"samples": video_rows(columns)}

  def _tokens(self, batch) -> VideoTokens:
    """A batch's own tokens, those of given frames first where there are such."""
    return VideoTokens.full(batch["ids"], nested=self.gen.cfg.nested)

  def evaluate(self, params, frozen, batches, total, split, out) -> dict[str, float]:
    """Bits per token with and without the condition, by slot, over a whole set."""
    run = jax.jit(self._sums)
    sums: dict[str, Any] = {}
    for batch in batches:
      host = {k: v for k, v in batch.items() if v.dtype != object}
      parts = jax.device_get(run(params, host))
      sums = {k: np.add(sums.get(k, 0), np.array(v, np.float64)) for k, v in parts.items()}
    return {k: float(s / n) for k, (s, n) in sums.items() if n}

  def _sums(self, params, batch) -> Metrics:
    cfg = self.gen.cfg.ar
    keep = jnp.full((len(batch["ids"]), cfg.steps), cfg.slots)
    seq = order.arrange(keep, 0, cfg.slots, order=cfg.order, xp=jnp)
    ids, out = self._write(batch["ids"], seq), {}
    where = seq.valid_BxL & batch["_mask"][:, None]
    for name, null in (("", False), ("null/", True)):
      nll = self._nll(params, ids, seq, self.condition(batch, jnp.full(len(ids), null)))
      out[f"{name}bits_per_token"] = mean(nll.reshape(-1) / np.log(2), where.reshape(-1))
      out |= {f"{name}{k}": v for k, v in self._by_slot(nll, where, seq).items()}
      if cfg.order == "time_first" and not null:  # fewer slots are then the beginning of the same sequence
        for kept in powers_of_two(cfg.slots):
          counted = nll * (where & (seq.slot_BxL < kept))
          out[f"nll_per_clip/keep {kept}"] = mean(counted.sum(1), batch["_mask"])
    return out

  def evaluate_generation(self, params, out, asked=None) -> dict[str, float]:
    """Generated clips against held-out ones; see vftok/evals/generation.py. Writes OUT/generation.

    `asked`: a `vftok.evals.protocol.Protocol` by which it is done again.
    """
    from vftok.evals.generation_run import evaluate

    tok, tok_params = self.tokenizer()
    settings = self.cfg.eval.generation
    guidance = (settings.decoder, settings.decoder_scale) if settings.decoder else _guidance(self.loss_cfg)
    return evaluate(self.cfg, self.gen, params, tok, tok_params, tok.sampling(settings.steps, *guidance), out, asked)

  def tokenizer(self) -> tuple[Any, Any]:
    """(tokenizer, params) that the stored tokens are of."""
    return tokenizer(self.gen.cfg.tokenizer, self.cfg.get("tokenize", {}).get("dino") or None)

  def save(self, params, frozen, directory) -> None:
    self.gen.save(params, directory)


@functools.cache
def tokenizer(name: str, dino: str | None = None):
  """(tokenizer, params), read once per process and never inside a train step."""
  from vftok.tokenizer.api import Tokenizer

  return Tokenizer.load(name, dino=dino)


def _guidance(loss: ARLoss) -> tuple[str, float]:
  return "cfg" if loss.show_guidance else "", loss.show_guidance


def _of_tokens(model: dict, metas) -> dict:
  """The model's config with what the stored tokens say, class names too; slots = 0 stands for all of theirs."""
  meta = metas[0]
  for other in metas[1:]:
    same = all(other.get(key) == meta.get(key) for key in ("fingerprint", "shape", "counts", "condition"))
    if not same:
      raise ValueError("the sources hold tokens of different tokenizers or shapes: tokenize all clips with one.")
  (steps, slots), ar = meta["shape"], dict(model["ar"])
  nested = meta.get("nested", True)
  if not nested and ar["slots"] not in (0, slots):
    raise ValueError(f"model.ar.slots is {ar['slots']}, expected 0 for all {slots}: the stored tokens have no order.")
  ar |= {"vocab": meta["codebook_size"], "steps": steps, "slots": min(ar["slots"] or slots, slots)}
  ar |= {} if nested else {"order": "depth_first"}  # a step's tokens stand together
  if ar.get("lengths", "none") != "none":
    ar["levels"] = _levels(metas, ar)
  model = model | {"ar": ar, "tokenizer": meta["tokenizer"], "fingerprint": meta["fingerprint"]}
  model["nested"] = nested
  if meta.get("counts") and ar.get("lengths") != "length_first":
    raise ValueError(
      f"lengths are {ar.get('lengths')!r} and the stored tokens have counts {meta['counts']} of their own, expected "
      "'length_first': set model.ar.lengths."
    )
  if condition := meta.get("condition"):
    model |= {"condition": tuple(condition["counts"]), "condition_frames": condition["frames"]}
  if ar["n_classes"] and meta["label_names"]:
    ar["n_classes"], model["classes"] = len(meta["label_names"]), tuple(meta["label_names"])
  if not ar["ctx_dim"]:
    return model
  if not meta.get("text_shape"):
    raise ValueError("the stored tokens have no text features, expected some: set tokenize.text and write them again.")
  tokens, ar["ctx_dim"] = meta["text_shape"]
  return model | {"text": meta["text"], "text_path": meta.get("text_path", ""), "text_tokens": tokens}


def _levels(metas, ar: dict) -> tuple[int, ...]:
  """Counts that lengths can say: the tokenizer's, or the router's as far as the model has slots for them."""
  if metas[0].get("counts"):
    return tuple(metas[0]["counts"])
  routers = [meta.get("router") for meta in metas]
  if None in routers or any(router != routers[0] for router in routers):
    raise ValueError(
      f"lengths are {ar['lengths']!r} and the stored tokens have no router's curves, or those of several: set "
      "tokenize.router and write them again."
    )
  known = tuple(level for level in routers[0]["levels"] if level <= ar["slots"])
  if known[-1] != ar["slots"]:
    raise ValueError(f"slots are {ar['slots']}, expected one of the router's levels {routers[0]['levels']}: change it.")
  return known if ar["lengths"] == "length_first" else ()
