"""LARP's autoregressive transformer: LLaMA without rotary, learned absolute positions (LARP section 6).

A sequence is a prefix, the class or the ids of given frames with a separator, and then the clip's ids.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models.ar import RMSNorm
from vftok.models.attention import attend_causal, attend_filled
from vftok.models.layers import matmul, parts, repeated, trunc_normal, xavier
from vftok.runtime.sharding import constrain


@dataclasses.dataclass(frozen=True)
class LarpARConfig:
  """Keys of the released config.json; below the blank line, what is not one of them.

  Attributes:
    n_kv_head: heads of keys and values, 0: as many as of queries.
    cls_token_num: positions of the prefix: 1 for a class, ids and separator for given frames.
    max_seq_len: ids of a clip.
    use_fixed_pe: whether the table of positions is fixed. It is stored all the same.
    dtype: compute dtype; norms, softmax and logits stay float32.
    rest: the whole config.json as it was read, JSON text.
  """

  dim: int = 1280
  n_layer: int = 30
  n_head: int = 20
  n_kv_head: int = 0
  multiple_of: int = 256
  ffn_dim_multiplier: float = 0.0
  norm_eps: float = 1e-5
  num_classes: int = 101
  vocab_size: int = 8192
  cls_token_num: int = 1
  max_seq_len: int = 1024
  use_fixed_pe: bool = False
  frame_prediction: bool = False

  dtype: str = "float32"
  rest: str = dataclasses.field(default="{}", compare=False, repr=False)

  @property
  def kv_heads(self) -> int:
    return self.n_kv_head or self.n_head

  @property
  def head_dim(self) -> int:
    return self.dim // self.n_head

  @property
  def hidden(self) -> int:
    """8/3 of the width, by the multiplier if there is one, rounded up."""
    hidden = int(8 * self.dim / 3)
    hidden = int(self.ffn_dim_multiplier * hidden) if self.ffn_dim_multiplier else hidden
    return -(-hidden // self.multiple_of) * self.multiple_of

  @property
  def length(self) -> int:
    """Positions: the last id of a clip is never read."""
    return self.cls_token_num + self.max_seq_len - 1

  @property
  def in_vocab(self) -> int:
    """Ids that can be read: frame prediction has a separator behind the codebook's."""
    return self.vocab_size + self.frame_prediction


class LarpAR(nn.Module):
  """What is read -> float32 logits. Methods: `start`, the prefix; `tokens`, ids; `run`, through all layers."""

  cfg: LarpARConfig

  def setup(self):
    cfg, d = self.cfg, self.cfg.dim
    table = lambda name, rows, axis: self.param(
      name, nn.with_logical_partitioning(trunc_normal, (axis, "embed")), (rows, d)
    )
    self.token_table = table("token_table", cfg.in_vocab, "vocab")
    self.position_table = table("position_table", cfg.length, None)
    if not cfg.frame_prediction:
      self.class_table = table("class_table", cfg.num_classes + 1, None)
    self.blocks = repeated(Block, cfg.n_layer)(cfg)
    self.norm = RMSNorm(cfg.norm_eps)
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("embed", "vocab"))
    self.head = self.param("head", init, (d, cfg.vocab_size))

  def __call__(self, prefix_BxP, ids_BxL) -> jax.Array:
    """float32 [B, P + L, V] after a prefix, labels int [B, 1] or ids int [B, P], and ids."""
    x = jnp.concatenate([self.start(prefix_BxP), self.tokens(ids_BxL)], axis=1).astype(jnp.float32)
    return self.run(x, None, 0)[0]

  def start(self, prefix_BxP) -> jax.Array:
    return self.tokens(prefix_BxP) if self.cfg.frame_prediction else jnp.take(self.class_table, prefix_BxP, axis=0)

  def tokens(self, ids_BxL) -> jax.Array:
    return jnp.take(self.token_table, ids_BxL, axis=0)

  def run(self, x_BxLxD, cache, position):
    """(logits float32 [B, L, V], cache) of embeddings that stand at `position` (data) and after it.

    `cache`: (k, v) [layers, B, n, M, d]; None where nothing stands before.
    """
    table = self.position_table.astype(jnp.float32)
    table = jax.lax.stop_gradient(table) if self.cfg.use_fixed_pe else table
    x = x_BxLxD.astype(jnp.float32) + jax.lax.dynamic_slice_in_dim(table, position, x_BxLxD.shape[1])[None]
    if cache is None:
      (x, _, _), _ = self.blocks((x, None, 0), position)
    else:
      (x, cache, _), _ = self.blocks((x, cache, 0), position)
    x = self.norm(constrain(x, "batch", "length", None)).astype(self.cfg.dtype)
    return matmul(x, self.head.astype(self.cfg.dtype), jnp.float32), cache


class Block(nn.Module):
  """x += attn(norm x); x += swiglu(norm x). The carry is (x, cache of all layers, this layer's number)."""

  cfg: LarpARConfig

  @nn.compact
  def __call__(self, carry, position):
    (x, cache, layer), cast = carry, lambda a: a.astype(self.cfg.dtype)
    cfg = self.cfg
    d, n, g, e, h = cfg.dim, cfg.n_head, cfg.kv_heads, cfg.head_dim, cfg.hidden
    kernel = lambda name, shape, axes, fan: cast(
      self.param(name, nn.with_logical_partitioning(xavier(*fan), axes), shape)
    )
    norm = lambda name: RMSNorm(cfg.norm_eps, name=name)
    qkv = matmul(cast(norm("n1")(x)), kernel("qkv", (d, n + 2 * g, e), ("embed", "heads", "head_dim"), (d, d)))
    q, k, v = (part.swapaxes(1, 2) for part in jnp.split(qkv, (n, n + g), axis=2))
    if cache is not None:
      at = (layer, 0, 0, position, 0)
      cache = tuple(jax.lax.dynamic_update_slice(old, new[None], at) for old, new in zip(cache, (k, v), strict=True))
      k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
    k, v = (jnp.repeat(part, n // g, axis=1) if g < n else part for part in (k, v))
    if cache is None:
      y = attend_causal(q, k, v)
    else:
      rows = position + jnp.arange(x.shape[1])
      y = attend_filled(q, k, v, jnp.arange(k.shape[2])[None, None] <= rows[None, :, None], position + x.shape[1])
    y = jnp.tensordot(y.swapaxes(1, 2), kernel("proj", (n, e, d), ("heads", "head_dim", "embed"), (d, d)), axes=2)
    x = x + y.astype(jnp.float32)
    up = matmul(cast(norm("n2")(x)), kernel("up", (d, 2, h), ("embed", None, "mlp"), (d, h)))
    hidden, gate = parts(up, 2)
    x = x + ((nn.silu(hidden) * gate) @ kernel("down", (h, d), ("mlp", "embed"), (h, d))).astype(jnp.float32)
    return (constrain(x, "batch", "length", None), cache, layer + 1), None
