"""Are the tokens used? The decoder's error where the noisy latents tell it next to nothing: flow times above 0.8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.models.config import TokenizerConfig
from vftok.models.flow import gaussian
from vftok.tokenizer import programs

TIMES = (0.85, 0.95)
SEED = 20_260_312  # of the noise, the same for every kind of tokens


def high_noise_errors(cfg: TokenizerConfig, params, latents_BxTxhxwxC, mask_B, ids=None) -> dict[str, jax.Array]:
  """{kind: float32 [B]}: squared error of the velocity, mean over TIMES, under one noise for all kinds.

  Kinds: "null" without tokens (where the model has that), "k1" with the first of each step, "all", and "wrong" with
  all tokens of the clip before in the batch, among those of `mask_B`: above "null" where the decoder believes its
  tokens. Not one program: the decoder's is compiled once for all kinds and times. `ids` int [B, T, K] are the clips'
  tokens where their encoder reads more than latents.
  """
  ids = ids if ids is not None else programs.ids_of(cfg, programs.features(cfg, params, latents_BxTxhxwxC))
  b, steps, registers = ids.shape
  noise = gaussian(jax.random.key(SEED), latents_BxTxhxwxC.shape)
  order = jnp.argsort(~mask_B, stable=True)  # those that count first, so that nobody gets the tokens of padding
  place = jnp.argsort(order)
  before = jnp.where(place == 0, jnp.maximum(mask_B.sum(), 1) - 1, place - 1)
  wrong = ids[order[before]]

  def error(ids, k, null=False):
    keep = jnp.full((b, steps), k, jnp.int32)

    def at(t):
      x = t * noise + (1 - t) * latents_BxTxhxwxC
      velocity = programs.velocity(cfg, params, ids, keep, x, t, slots=None, null=null)
      return jnp.square(velocity.astype(jnp.float32) - (noise - latents_BxTxhxwxC)).mean((1, 2, 3, 4))

    return sum(at(t) for t in TIMES) / len(TIMES)

  kinds = {"null": error(ids, registers, null=True)} if "null" in cfg.decoder.replacements else {}
  kinds |= {"k1": error(ids, 1)} if "mask" in cfg.decoder.replacements else {}
  return kinds | {"all": error(ids, registers), "wrong": error(wrong, registers)}


class HighNoise:
  """Means of `high_noise_errors` over the batches that pass through `watch`."""

  def __init__(self, tok, params):
    self._tok, self._params, self._clips = tok, params, 0
    self._sums: dict[str, float] = {}

  def watch(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same batches; those of fewer than two clips, or of more than one chunk, do not count."""
    for batch in batches:
      mask = np.asarray(batch.get("_mask", np.ones(len(batch["video"]), bool)))
      if mask.sum() > 1 and batch["video"].shape[1] == self._tok.chunk_frames:
        self._add(batch, mask)
      yield batch

  def _add(self, batch, mask) -> None:
    latents = self._tok.encode_latents(self._params, batch["video"])
    tok = self._tok
    ids = programs.encode_latents(tok.cfg, self._params, latents, batch["video"], tok.dino)
    for kind, error_B in high_noise_errors(tok.cfg, self._params, latents, mask, ids).items():
      self._sums[kind] = self._sums.get(kind, 0.0) + float(np.asarray(error_B)[mask].sum())
    self._clips += int(mask.sum())

  def scalars(self) -> dict[str, float]:
    """{"high/null": ..., "high/wrong": ...}; empty where nothing counted."""
    return {f"high/{kind}": value / self._clips for kind, value in self._sums.items()}
