"""Training of LARP and AdapTok: the step that losses are made of (LARP sections 4 and 5, AdapTok section 1).

Letters: T blocks of K tokens, N of them in all, c channels of a code, V codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vftok.families.query import vq
from vftok.families.query.config import QueryConfig
from vftok.families.query.nets import CodesIn, Decoder, Encoder, Prior, Scorer, decoder_groups, encoder_groups
from vftok.families.query.tokenizer import LARP, AdapTok, QueryTokenizer
from vftok.models.config_json import from_dict
from vftok.models.flops import vit_flops
from vftok.models.flow import drawn_ids
from vftok.models.layers import unit
from vftok.tokenizer.learner import Made, Predicted
from vftok.tokens import kept_slots


def larp(model: dict[str, Any], loss_cfg) -> QueryLearner:
  """Raises ValueError for a config of AdapTok, or for counts that change, which LARP's tokens cannot have."""
  cfg = from_dict(QueryConfig, model)
  if cfg.nested or loss_cfg.counts != "all":
    found = f"model.nested {cfg.nested} and loss.counts {loss_cfg.counts!r}"
    raise ValueError(
      f"family is 'larp' and the config has {found}, expected False and 'all': no token can be left out."
    )
  _check(cfg, loss_cfg)
  return QueryLearner(LARP(cfg), loss_cfg)


def adaptok(model: dict[str, Any], loss_cfg) -> QueryLearner:
  """Raises ValueError for a config of LARP, or kinds of counts that do not fit the model."""
  cfg = from_dict(QueryConfig, model)
  if not cfg.nested:
    raise ValueError("family is 'adaptok' and model.nested is False, expected True: its tokens have an order.")
  if loss_cfg.counts == "normal" and not 1 <= loss_cfg.counts_least <= cfg.group_tokens:
    raise ValueError(
      f"loss.counts_least is {loss_cfg.counts_least}, expected 1..{cfg.group_tokens}, the tokens of a block."
    )
  if loss_cfg.counts == "grid" and not cfg.scorer:
    raise ValueError("loss.counts is 'grid' and the model has no scorer, expected 'all' or 'normal': or add a scorer.")
  _check(cfg, loss_cfg)
  return AdapTokLearner(AdapTok(cfg), loss_cfg)


def _check(cfg: QueryConfig, loss_cfg) -> None:
  if loss_cfg.prior and cfg.prior is None:
    raise ValueError(
      f"loss.prior is {loss_cfg.prior} and the model has no prior, expected 0: or give model.prior its sizes."
    )
  if loss_cfg.scorer and (not cfg.scorer or loss_cfg.counts != "grid" or loss_cfg.lpips_frames):
    raise ValueError(
      "loss.scorer asks for model.scorer, loss.counts = 'grid' and lpips_frames = 0: set them, or it to 0."
    )


@dataclasses.dataclass(frozen=True)
class QueryLearner:
  """See `vftok.tokenizer.learner.Learner`."""

  tok: QueryTokenizer
  loss_cfg: Any

  @property
  def dtype(self) -> str:
    return self.tok.cfg.dtype

  def frozen(self) -> dict[str, Any]:
    return {}

  def heads(self, key: jax.Array) -> None:
    return None

  def counts(self, frozen, video_BxFxHxWx3, keys_B) -> jax.Array:
    loss_cfg, shape = self.loss_cfg, (self.tok.chunk_steps,)
    if loss_cfg.counts == "all":
      return jnp.full((len(keys_B), *shape), self.tok.registers)
    if loss_cfg.counts == "grid":
      known = jnp.array(self.tok.score_counts)
      return known[jax.vmap(lambda key: jax.random.randint(key, shape, 0, len(known)))(keys_B)]
    least, most = loss_cfg.counts_least, self.tok.registers
    low, high = ((bound - loss_cfg.counts_mean) / loss_cfg.counts_std for bound in (least, most))
    draw = lambda key: loss_cfg.counts_mean + loss_cfg.counts_std * jax.random.truncated_normal(key, low, high, shape)
    return jnp.clip(jnp.round(jax.vmap(draw)(keys_B)), least, most).astype(jnp.int32)

  def step(self, params, frozen, video_BxFxHxWx3, keep_BxT, keys_B, done) -> Made:
    cfg, quantizer, fixed = self.tok.cfg, params["quantizer"], params.get("fixed")
    draw_B, prior_B = jax.vmap(jax.random.split)(keys_B).T
    features = Encoder(cfg).apply({"params": params["encoder"]}, (video_BxFxHxWx3 + 1) / 2, fixed)
    with jax.default_matmul_precision("highest"):  # VQ is float32 whatever the transformers compute in
      z = CodesIn(cfg).apply({"params": {k: quantizer[k] for k in ("in", "norm") if k in quantizer}}, features)
      z = z.reshape(len(z), cfg.groups, cfg.group_tokens, -1)
      ids = self._ids(quantizer, z, draw_B)
    u, codes = vq.compared(cfg.vq, z), vq.codes_of(cfg.vq, quantizer["table"], ids)
    passed = u + jax.lax.stop_gradient(codes - u)
    kept = kept_slots(keep_BxT, cfg.group_tokens)
    keep_BxT = keep_BxT if cfg.nested else None
    frames = Decoder(cfg).apply({"params": params["decoder"]}, passed, fixed, keep_BxT)
    predicted = None
    if self.loss_cfg.prior:
      predicted = predict(cfg, params, passed, ids, kept, prior_B, self.guesses(done))
    return Made(2 * frames - 1, u, codes, ids, kept, predicted, {"features": features})

  def guesses(self, done) -> jax.Array:
    """The share of its own guesses that the prior reads when the share `done` of the run is over."""
    return self.loss_cfg.mixed * jnp.minimum(done / self.loss_cfg.mixed_until, 1.0)

  def _ids(self, quantizer, z_BxTxKxC, keys_B) -> jax.Array:
    cfg, table = self.tok.cfg.vq, quantizer["table"]
    z = jax.lax.stop_gradient(z_BxTxKxC)
    inverse = quantizer.get("inverse_temperature")
    if not (self.loss_cfg.sampled and cfg.stochastic):
      return vq.ids_of(cfg, table, z, inverse_temperature=inverse)
    return jax.vmap(lambda z, key: vq.ids_of(cfg, table, z, key, inverse))(z, keys_B)

  def coding_flops(self) -> tuple[float, float]:
    cfg = self.tok.cfg
    length = cfg.bottleneck_token_num + cfg.groups * cfg.group_patches

    def half(part: str, groups) -> float:
      d, depth = getattr(cfg, f"{part}_hidden_size"), getattr(cfg, f"{part}_depth")
      pairs = sum((g.last - g.first) * sum(b - a for a, b in g.spans) for g in groups)
      return vit_flops(d, depth, 4 * d, length, pairs)

    compared = cfg.bottleneck_token_num * self._table_flops
    return half("encoder", encoder_groups(cfg)) + compared, half("decoder", decoder_groups(cfg, cfg.group_tokens))

  @property
  def _table_flops(self) -> float:
    """Of comparing one vector with all codes."""
    return 2.0 * self.tok.cfg.vq.bottleneck_dim * self.tok.cfg.vq.codebook_size

  def flops(self) -> float:
    cfg, total = self.tok.cfg, sum(self.coding_flops())
    tokens = cfg.bottleneck_token_num
    if self.loss_cfg.scorer:
      d = cfg.scorer_hidden_size
      total += cfg.groups * vit_flops(d, cfg.scorer_depth, 4 * d, tokens)
    if self.loss_cfg.prior:
      p = cfg.prior
      total += 2 * (vit_flops(p.dim, p.depth, p.hidden, tokens, tokens * tokens // 2) + tokens * self._table_flops)
    return total


class AdapTokLearner(QueryLearner):
  """With the scorer's part (AdapTok section 2)."""

  def scores(self, params, made: Made, keep_BxT) -> jax.Array:
    """float32 [B, T]: what the scorer says each block loses by its count, with no gradient for the tokenizer.

    It sees each block as a choice does: all of its tokens and of later ones, the chosen ones of earlier blocks.
    """
    cfg, (b, t) = self.tok.cfg, keep_BxT.shape
    flat = lambda x: x.reshape(b, cfg.bottleneck_token_num, -1)
    projected = Decoder(cfg).apply({"params": params["decoder"]}, flat(made.codes), method=Decoder.project)
    earlier = jnp.arange(t) < jnp.arange(t)[:, None]
    keep = jnp.where(earlier, keep_BxT[:, None], cfg.group_tokens).reshape(b * t, t)
    seen = (jnp.repeat(jax.lax.stop_gradient(x), t, axis=0) for x in (made.own["features"], projected))
    said = Scorer(cfg).apply({"params": params["scorer"]}, *seen, keep).reshape(b, t, t, -1)
    own_BxTxm = jnp.diagonal(said, axis1=1, axis2=2).swapaxes(1, 2)
    return jnp.take_along_axis(own_BxTxm, keep_BxT[..., None] // cfg.scorer_step - 1, axis=2)[..., 0]


def predict(cfg: QueryConfig, params, codes_BxTxKxC, ids_BxTxK, kept_BxTxK, keys_B, share) -> Predicted:
  """Two rounds of the prior by mixed scheduled sampling (LARP section 4).

  The first reads the clip's own codes. For the second a share of them, drawn for each clip, are those of ids drawn from
  what the first round says of these places. Codes that are kept come first, in order and with the places that they had
  (AdapTok section 1). The table of codes learns nothing here, and the encoder through `codes` alone.
  """
  b, n = len(ids_BxTxK), cfg.bottleneck_token_num
  codes, ids, kept = (x.reshape(b, n, *x.shape[3:]) for x in (codes_BxTxKxC, ids_BxTxK, kept_BxTxK))
  places = jnp.broadcast_to(jnp.arange(n), (b, n))
  if cfg.nested:
    places = jnp.argsort(~kept, axis=1, stable=True)
    codes = jnp.take_along_axis(codes, places[..., None], axis=1)
    ids, kept = (jnp.take_along_axis(x, places, axis=1) for x in (ids, kept))
  table_VxC = jax.lax.stop_gradient(vq.compared(cfg.vq, params["quantizer"]["table"]))
  keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys_B)

  def one(codes_LxC, places_L, key):  # a clip at a time, for its dropout is of its own key
    out = Prior(cfg).apply({"params": params["prior"]}, codes_LxC[None], places_L[None], rngs={"dropout": key})[0]
    out = unit(out) if cfg.prior.l2_normalized else out.astype(jnp.float32)
    return out @ table_VxC.T / cfg.prior.temperature

  run = jax.vmap(one)
  first = run(codes[:, :-1], places[:, :-1], keys[:, 0])
  guessed = jax.vmap(drawn_ids)(keys[:, 1], jax.lax.stop_gradient(first))
  mixed = jax.vmap(lambda key: jax.random.bernoulli(key, share, (n - 2,)))(keys[:, 2])
  inner = jnp.where(mixed[..., None], jnp.take(table_VxC, guessed[:, :-1], axis=0), codes[:, 1:-1])
  second = run(jnp.concatenate([codes[:, :1], inner], axis=1), places[:, :-1], keys[:, 3])
  return Predicted((first, second), ids[:, 1:], kept[:, 1:])
