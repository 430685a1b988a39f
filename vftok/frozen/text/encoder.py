"""What every text encoder does, whatever net and vocabulary are inside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.text.tokenizer import Vocabulary, tokenize


class Net(Protocol):
  """Sizes of a network, hashable. `positions`: the most tokens it can take, None where there is no limit."""

  dim: int
  positions: int | None

  def module(self) -> nn.Module:
    """(ids int32 [B, S], mask bool [B, S]) -> states [B, S, dim]; masked keys are not seen."""
    ...


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Made by `text.load`.

  Attributes:
    name: the key of `text.ENCODERS`.
    max_tokens: S, static.
  """

  name: str
  max_tokens: int
  net: Net
  vocabulary: Vocabulary = dataclasses.field(compare=False, repr=False)

  def __post_init__(self):
    special, positions = len(self.vocabulary.prefix + self.vocabulary.suffix), self.net.positions
    low, high, n = special + 1, positions or float("inf"), self.max_tokens
    if not isinstance(n, int) or isinstance(n, bool) or not low <= n <= high:
      wanted = f"{low} to {positions}" if positions else f"{low} or more"
      raise ValueError(f"max_tokens is {n!r}, expected {wanted} ({special} of them special tokens).")

  @property
  def dim(self) -> int:
    """C of the embeddings."""
    return self.net.dim

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, S], mask bool [B, S], True at tokens, special ones included); see `tokenizer.tokenize`."""
    return tokenize(self.vocabulary, texts, self.max_tokens)

  def encode(self, params, ids_BxS, mask_BxS) -> jax.Array:
    """float32 [B, S, C], the last hidden states, zero where the mask is False; jitted and pure.

    S may be shorter than max_tokens. Raises ValueError where ids and mask do not have one shape [B, S].
    """
    return _encode(self.net, params, ids_BxS, mask_BxS)

  def embed(self, params, texts: Sequence[str]) -> tuple[jax.Array, np.ndarray]:
    """`tokenize`, then `encode`: (text_emb float32 [B, S, C], text_mask bool [B, S]).

    Each B is a program of its own: pad the last batch of a data set.
    """
    ids_BxS, mask_BxS = self.tokenize(texts)
    return self.encode(params, ids_BxS, mask_BxS), mask_BxS


def abstract_params(net: Net) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  init = lambda: net.module().init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
  return traverse.flatten_dict(nn.unbox(jax.eval_shape(init))["params"])


@functools.partial(jax.jit, static_argnums=0)
def _encode(net: Net, params: dict[str, Any], ids_BxS, mask_BxS) -> jax.Array:
  if ids_BxS.ndim != 2 or ids_BxS.shape != mask_BxS.shape:
    raise ValueError(f"ids and mask are {ids_BxS.shape} and {mask_BxS.shape}, expected one shape [B, S].")
  if net.positions and ids_BxS.shape[1] > net.positions:
    raise ValueError(f"ids are {ids_BxS.shape}, expected at most {net.positions} tokens a text: cut them.")
  mask_BxS = mask_BxS.astype(bool)
  states_BxSxC = net.module().apply({"params": params}, ids_BxS, mask_BxS)
  return jnp.where(mask_BxS[..., None], states_BxSxC.astype(jnp.float32), 0.0)
