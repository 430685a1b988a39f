"""LARP's generators: a class, or the tokens of given frames -> the tokens of a clip (LARP section 6)."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.families.query import larp_ar_weights as weights
from vftok.families.query.larp_ar_net import LarpAR, LarpARConfig
from vftok.runtime.words import brief, is_number
from vftok.tokenizer.checks import check_dtype, check_key
from vftok.tokenizer.programs import exact, reads
from vftok.tokens import VideoTokens, is_concrete

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LarpGenerator:
  """A generator's configuration and its functions; it owns no arrays.

  Letters: B videos, L ids of a clip, V codes. `cfg.frame_prediction` says which of the two kinds it is.
  """

  cfg: LarpARConfig

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the released layout, whole or not at all: config.json and model.safetensors."""
    weights.save(self.cfg, params, directory)

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    params = weights.init(self.cfg, key)
    return params if boxed else nn.unbox(params)

  def logits(self, params: Params, ids, *, labels=None, given=None, guidance: float = 1.0) -> jax.Array:
    """float32 [B, l, V] of clips' first ids int [B, l], l up to L: position i has read the condition and ids before i.

    Args:
      labels: int [B], of a class-to-video model; negative: no class.
      given: ids of given frames, VideoTokens of one chunk or int [B, L], of a frame prediction model.
      guidance: s in u + s (c - u), applied above 1, of class-to-video models.
    """
    ids = self._ids(ids, "ids")
    prefix = self._prefix(labels, given, guidance)
    if ids.shape[0] != prefix.shape[0] or not 0 < ids.shape[1] <= self.cfg.max_seq_len:
      expected = f"[{prefix.shape[0]}, 1..{self.cfg.max_seq_len}]"
      raise ValueError(f"ids have shape {ids.shape}, expected {expected}: a row for each condition.")
    return logits(self.cfg, params, prefix, ids, jnp.float32(guidance), guided=guidance > 1)

  def generate(
    self, params: Params, key=None, *, labels=None, given=None, guidance: float = 1.0, temperature: float = 1.0
  ) -> VideoTokens:
    """Tokens of whole clips, ids int32 [B, 1, L], without an order (T is 1): what `LARP.decode` takes.

    Of frame prediction, these are the whole clip again, the given frames included.

    Args:
      key: a random key; not needed at temperature 0, which takes the likeliest ids. labels, given, guidance: as in
        `logits`; released models were measured at guidance 1.25.

    Raises:
      ValueError: a condition of the other kind of model, or a setting out of range.
    """
    if not is_number(temperature) or temperature < 0:
      raise ValueError(f"temperature is {brief(temperature)}, expected a number from 0 on.")
    if temperature > 0:
      check_key(key, "generate")
    prefix = self._prefix(labels, given, guidance)
    key = jax.random.key(0) if temperature == 0 else key
    scalars = jnp.float32(guidance), jnp.float32(temperature)
    ids = generate(self.cfg, params, prefix, key, *scalars, guided=guidance > 1, greedy=temperature == 0)
    if is_concrete(ids) and np.min(ids) < 0:
      raise ValueError("the generator's logits are not finite, so they make no tokens: use other weights, or float32.")
    return VideoTokens.full(ids[:, None], nested=False)

  def _prefix(self, labels, given, guidance) -> jax.Array:
    """int32 [B, P]: labels, or the ids of given frames and the separator."""
    cfg = self.cfg
    if not is_number(guidance):
      raise ValueError(f"guidance is {brief(guidance)}, expected a number; 1 for none.")
    if cfg.frame_prediction:
      if labels is not None or guidance != 1:
        raise ValueError("this model predicts frames, so it has neither labels nor guidance: pass given=tokens.")
      ids = self._ids(given.ids if isinstance(given, VideoTokens) else given, "given")
      ids = ids.reshape(ids.shape[0], -1) if ids.ndim == 3 else ids
      if ids.shape[1:] != (cfg.cls_token_num - 1,) or not len(ids):
        raise ValueError(f"given has shape {ids.shape}, expected [B, {cfg.cls_token_num - 1}]: tokens of one clip.")
      return jnp.pad(ids, ((0, 0), (0, 1)), constant_values=cfg.vocab_size)
    if given is not None:
      raise ValueError("this model makes clips of a class, expected labels= and nothing given.")
    try:
      labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    except ValueError:
      labels = np.zeros(0)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer) or not labels.size:
      raise ValueError(f"labels are {brief(labels)}, expected whole numbers [B]: pass labels=[3, 7].")
    if is_concrete(labels) and np.max(labels) > cfg.num_classes:
      raise ValueError(f"a label is {int(np.max(labels))}, expected 0..{cfg.num_classes - 1}, or negative for none.")
    labels = jnp.asarray(labels, jnp.int32)
    return jnp.where(labels < 0, cfg.num_classes, labels)[:, None]

  def _ids(self, ids, name: str) -> jax.Array:
    try:
      ids = ids if hasattr(ids, "dtype") else np.asarray(ids)
    except ValueError:
      ids = np.zeros(0)
    if ids.ndim not in (2, 3) or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise ValueError(f"{name} is {brief(ids)}, expected whole numbers [B, L]: tokens.ids of one chunk.")
    ids = ids.reshape(ids.shape[0], -1)
    if is_concrete(ids) and ids.size and (np.min(ids) < 0 or np.max(ids) >= self.cfg.vocab_size):
      bad = int(np.min(ids)) if np.min(ids) < 0 else int(np.max(ids))
      raise ValueError(f"{name} holds {bad}, expected 0..{self.cfg.vocab_size - 1}: these ids are another model's.")
    return jnp.asarray(ids, jnp.int32)


def load_larp_ar(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[LarpGenerator, Params]:
  """(generator, params) of a released class-to-video or frame prediction model: a directory, a file, or a Hub id.

  Args:
    dtype: compute dtype, "float32" (default) or "bfloat16".

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  check_dtype(dtype)
  cfg, params = weights.load(name)
  return LarpGenerator(cfg if dtype is None else dataclasses.replace(cfg, dtype=dtype)), params


def _both(cfg: LarpARConfig, prefix_BxP, guided: bool):
  """The prefixes; with guidance also as many of no class."""
  return jnp.concatenate([prefix_BxP, jnp.full_like(prefix_BxP, cfg.num_classes)]) if guided else prefix_BxP


def _guide(found, guidance, guided: bool):
  if not guided:
    return found
  with_class, without = jnp.split(found, 2)
  return without + guidance * (with_class - without)


@reads("", weights.abstract_params)
@functools.partial(jax.jit, static_argnums=0, static_argnames="guided")
def logits(cfg: LarpARConfig, params, prefix_BxP, ids_BxL, guidance, *, guided: bool):
  """As `LarpGenerator.logits`."""
  with exact(cfg.dtype):
    prefix = _both(cfg, prefix_BxP, guided)
    ids = jnp.concatenate([ids_BxL, ids_BxL]) if guided else ids_BxL
    found = LarpAR(cfg).apply({"params": params}, prefix, ids[:, :-1])
    return _guide(found[:, prefix.shape[1] - 1 :], guidance, guided)


@reads("", weights.abstract_params)
@functools.partial(jax.jit, static_argnums=0, static_argnames=("guided", "greedy"))
def generate(cfg: LarpARConfig, params, prefix_BxP, key, guidance, temperature, *, guided: bool, greedy: bool):
  """ids int32 [B, L], one position after the other over a cache; -1 where logits were not finite."""
  with exact(cfg.dtype):
    net, prefix = LarpAR(cfg), _both(cfg, prefix_BxP, guided)
    apply = functools.partial(net.apply, {"params": params})
    shape = (cfg.n_layer, len(prefix), cfg.kv_heads, cfg.length, cfg.head_dim)
    cache = (jnp.zeros(shape, cfg.dtype), jnp.zeros(shape, cfg.dtype))
    found, cache = apply(apply(prefix, method=LarpAR.start), cache, 0, method=LarpAR.run)

    def choose(found_RxV, i):
      found_BxV = _guide(found_RxV, guidance, guided)
      key_i = jax.random.fold_in(key, i)
      ids = jnp.argmax(found_BxV, -1) if greedy else jax.random.categorical(key_i, found_BxV / temperature)
      return jnp.where(jnp.isfinite(found_BxV).all(-1), ids, -1).astype(jnp.int32)

    def step(carry, i):
      cache, last_B = carry
      rows = jnp.concatenate([last_B, last_B]) if guided else last_B
      x = apply(jnp.maximum(rows, 0)[:, None], method=LarpAR.tokens)
      found, cache = apply(x, cache, cfg.cls_token_num + i - 1, method=LarpAR.run)
      made_B = jnp.where(last_B < 0, -1, choose(found[:, 0], i))
      return (cache, made_B), made_B

    first_B = choose(found[:, -1], 0)
    _, rest = jax.lax.scan(step, (cache, first_B), jnp.arange(1, cfg.max_seq_len))
    return jnp.concatenate([first_B[:, None], rest.T], axis=1)
