"""The jitted programs behind LARP and AdapTok, all pure: config and shapes static, parameters and counts data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vftok.families.query import vq
from vftok.families.query.config import QueryConfig
from vftok.families.query.nets import CodesIn, Decoder, Encoder, Prior, Scorer
from vftok.families.query.params import abstract_params
from vftok.models.layers import unit
from vftok.tokenizer.programs import exact, reads
from vftok.tokens import kept_slots


@reads("encoder", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def encode(cfg: QueryConfig, params, video_BxFxHxWx3, key=None):
  """(ids int32 [B, T, K], z float32 [B, T, K, c], encoder outputs [B, T K, D]) of a chunk in [-1, 1].

  Ids are the likeliest; given a key, drawn.
  """
  with exact(cfg.dtype):
    x = (video_BxFxHxWx3 + 1) / 2
    features = Encoder(cfg).apply({"params": params["encoder"]}, x, params.get("fixed"))
  quantizer = params["quantizer"]
  with jax.default_matmul_precision("highest"):  # ids are of float32 products whatever the transformers compute in
    z = CodesIn(cfg).apply({"params": {k: quantizer[k] for k in ("in", "norm") if k in quantizer}}, features)
    z = z.reshape(len(z), cfg.groups, cfg.group_tokens, -1)
    return vq.ids_of(cfg.vq, quantizer["table"], z, key, quantizer.get("inverse_temperature")), z, features


@reads("quantizer", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def codes(cfg: QueryConfig, params, ids_BxTxK):
  """float32 [B, T, K, c] of ids."""
  return vq.codes_of(cfg.vq, params["quantizer"]["table"], ids_BxTxK)


@reads("decoder", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def decode(cfg: QueryConfig, params, ids_BxTxk, keep_BxT=None):
  """Frames float32 [B, F, H, W, 3] in about [-1, 1], not clipped, of the first k tokens of each block."""
  with exact(cfg.dtype):
    codes = vq.codes_of(cfg.vq, params["quantizer"]["table"], ids_BxTxk)
    frames = Decoder(cfg).apply({"params": params["decoder"]}, codes, params.get("fixed"), keep_BxT)
  return 2 * frames - 1


@reads("scorer", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def scores(cfg: QueryConfig, params, ids_BxTxK, features_BxNxD, keep_BxT):
  """Predicted losses float32 [B, T, m]."""
  with exact(cfg.dtype):
    codes = vq.codes_of(cfg.vq, params["quantizer"]["table"], ids_BxTxK)
    codes = codes.reshape(*features_BxNxD.shape[:2], -1)
    projected = Decoder(cfg).apply({"params": params["decoder"]}, codes, method=Decoder.project)
    return Scorer(cfg).apply({"params": params["scorer"]}, features_BxNxD, projected, keep_BxT)


@reads("prior", abstract_params)
@functools.partial(jax.jit, static_argnums=0)
def prior(cfg: QueryConfig, params, ids_BxTxK, keep_BxT=None):
  """(predictions [B, L - 1, c] as they are compared, logits float32 [B, L - 1, V]) for tokens 2 to L = T K."""
  with exact(cfg.dtype):
    ids, positions = ids_BxTxK.reshape(len(ids_BxTxK), -1), None
    if keep_BxT is not None:
      kept = kept_slots(keep_BxT, cfg.group_tokens).reshape(ids.shape)
      positions = jnp.argsort(~kept, axis=1, stable=True)
      ids = jnp.take_along_axis(ids, positions, axis=1)
      positions = positions[:, :-1]
    table = params["quantizer"]["table"]
    codes = vq.codes_of(cfg.vq, table, ids)
    predicted = Prior(cfg).apply({"params": params["prior"]}, codes[:, :-1], positions)
    predicted = unit(predicted) if cfg.prior.l2_normalized else predicted
    return predicted, predicted @ vq.compared(cfg.vq, table).T / cfg.prior.temperature
