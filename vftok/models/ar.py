"""The autoregressive model over video tokens: LLaMA-style, conditioned on a class, a text, given tokens, or nothing.

Width 64 * depth, RMSNorm, SwiGLU, no biases, untied head (VideoFlexTok section 6; exact layout as SemanTok's,
arXiv 2610.00686). The input at position i is the token before it plus where the token to predict stands.
"""

from __future__ import annotations

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vftok.models import lengths
from vftok.models.ar_inputs import Condition, Context, Drop, Places, of_segment, shifted
from vftok.models.attention import attend_causal, attend_filled, attend_seen
from vftok.models.layers import matmul, partitioned, parts, ranked, repeated, trunc_normal, xavier
from vftok.models.order import ORDERS
from vftok.runtime.sharding import constrain

EPS = 1e-6
POSITIONS = ("flat", "time_slot", "sequence")


@dataclasses.dataclass(frozen=True)
class ARConfig:
  """Attributes:
  vocab: V, the tokenizer's codebook size.
  steps, slots: T and K, the most time steps and tokens of each; T * K positions.
  width: D; 0 means 64 * depth, as in all published sizes. hidden_dim: of the MLP; 0 means 8/3 of the width.
  n_classes: 0 for none; class `n_classes` is the null class.
  ctx_dim: width of text features; 0 for no cross-attention. n_ctx_null: learned vectors that stand for no text.
  positions: "flat", one table over the canonical order (SemanTok); "time_slot", sums over the place of the token to
    predict and the one before it, which any order and any budget per step can use; "sequence", one table over how many
    tokens came before, whatever they were (EVATok).
  order: how sequences are written, see order.py.
  lengths: whether and how it says the length of every step, see lengths.py; levels: with "length_first", the
    counts that it knows. Both make more ids and slots than the tokenizer's: `total_vocab`, `total_slots`.
  dtype: compute dtype; norms, softmax and logits stay float32.
  """

  vocab: int
  steps: int
  slots: int
  depth: int
  width: int = 0
  hidden_dim: int = 0
  head_dim: int = 64
  n_classes: int = 0
  ctx_dim: int = 0
  n_ctx_null: int = 0
  head_bias: bool = False
  positions: str = "time_slot"
  order: str = "time_first"
  lengths: str = "none"
  levels: tuple[int, ...] = ()
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True

  def __post_init__(self):
    if self.head_dim < 1 or self.dim % self.head_dim:
      raise ValueError(f"width is {self.dim}, expected a multiple of head_dim {self.head_dim}, 1 or more.")
    if self.positions not in POSITIONS or self.order not in ORDERS:
      raise ValueError(
        f"positions are {self.positions!r} and order is {self.order!r}, expected {POSITIONS} and {ORDERS}."
      )
    if bool(self.ctx_dim) != bool(self.n_ctx_null):
      raise ValueError(f"ctx_dim is {self.ctx_dim} and n_ctx_null {self.n_ctx_null}, expected both or neither.")
    lengths.check_format(self)

  @property
  def dim(self) -> int:
    return self.width or 64 * self.depth

  @property
  def heads(self) -> int:
    return self.dim // self.head_dim

  @property
  def hidden(self) -> int:
    """Width of the MLP: 8/3 of D, rounded up to 64, unless it is given."""
    return self.hidden_dim or -(-int(8 * self.dim / 3) // 64) * 64

  @property
  def total_vocab(self) -> int:
    """V': the tokenizer's ids and those that say lengths."""
    return self.vocab + lengths.extra_ids(self)

  @property
  def total_slots(self) -> int:
    """K': slots of a step with what says its length."""
    return self.slots + lengths.first_slot(self)

  @property
  def length(self) -> int:
    return self.steps * self.total_slots


class AR(nn.Module):
  """Tokens and places -> float32 logits [B, L, V'], where position i has seen the tokens before i."""

  cfg: ARConfig

  def setup(self):
    cfg, d = self.cfg, self.cfg.dim
    table = lambda name, rows, axis=None: self.param(name, partitioned(trunc_normal, axis, "embed"), (rows, d))
    self.token_table = table("token_table", cfg.total_vocab, "vocab")
    self.start = self.param("start", partitioned(trunc_normal, "embed"), (d,))
    if cfg.positions != "time_slot":
      self.position_table = table("position_table", cfg.length + 1)  # the last row is in released files, unused
    else:
      self.time_table, self.slot_table = table("time_table", cfg.steps), table("slot_table", cfg.total_slots)
      self.last_time_table, self.last_slot_table = (
        table("last_time_table", cfg.steps),
        table("last_slot_table", cfg.total_slots),
      )
    if cfg.n_classes:
      self.class_table = table("class_table", cfg.n_classes + 1)
    if cfg.ctx_dim:
      init = partitioned(xavier(cfg.ctx_dim, d), None, "embed")
      self.text_in, self.null_text = self.param("text_in", init, (cfg.ctx_dim, d)), table("null_text", cfg.n_ctx_null)
    self.blocks = repeated(Block, cfg.depth, scan=cfg.scan, remat=cfg.remat)(cfg)
    self.norm = RMSNorm()
    init = partitioned(nn.initializers.normal(0.02), "embed", "vocab")
    self.head = self.param("head", init, (d, cfg.total_vocab))
    if cfg.head_bias:
      init = partitioned(nn.initializers.zeros, "vocab")
      self.head_bias = self.param("head_bias", init, (cfg.total_vocab,))

  def __call__(self, ids_BxL, places: Places, cond: Condition, drop: Drop | None = None) -> jax.Array:
    """`drop`: dropout, in training; it needs an rng named "dropout", any."""
    chex.assert_rank(ids_BxL, 2)
    chex.assert_type(ids_BxL, int)
    x = self.embed(shifted(ids_BxL, places), places, cond, drop)
    context = self.context(cond, places, ids_BxL.shape)
    (x, _), _ = self.blocks((x, None), context, places.segment_BxL, drop)
    return self.logits(x)

  def embed(self, last_BxL, places: Places, cond: Condition, drop: Drop | None = None) -> jax.Array:
    """float32 [B, L, D] of the token before each position (-1 at the start of a sequence) and of its place."""
    x = jnp.take(self.token_table, jnp.maximum(last_BxL, 0), axis=0)
    start = ranked(self.start, 3)
    if self.cfg.n_classes:
      start = start + jnp.take(self.class_table, self._labels(cond, places, last_BxL.shape), axis=0)
    x = jnp.where(last_BxL[:, :, None] < 0, start, x).astype(jnp.float32)
    x = x if drop is None else drop.tokens(self.make_rng("dropout"), x)
    time, slot = places.time_BxL, places.slot_BxL
    if self.cfg.positions == "sequence":
      return x + jnp.take(self.position_table, places.index_BxL, axis=0)
    if self.cfg.positions == "flat":
      first = self.cfg.order == "time_first"
      place = slot * self.cfg.steps + time if first else time * self.cfg.slots + slot
      return x + jnp.take(self.position_table, place, axis=0)
    x = x + jnp.take(self.time_table, time, axis=0) + jnp.take(self.slot_table, slot, axis=0)
    of_last = jnp.take(self.last_time_table, places.last_time_BxL, axis=0)
    of_last += jnp.take(self.last_slot_table, places.last_slot_BxL, axis=0)
    return x + jnp.where(last_BxL[:, :, None] < 0, 0, of_last)

  def _labels(self, cond: Condition, places: Places, shape):
    """int32 [B, L]: the class of the sequence that each position belongs to."""
    null = jnp.full((shape[0], 1), self.cfg.n_classes, jnp.int32)
    label = null if cond.label_BxG is None else cond.label_BxG
    return of_segment(jnp.where(cond.null_BxG, self.cfg.n_classes, label), places, shape)

  def context(self, cond: Condition, places: Places, shape) -> Context | None:
    """Text features and the null vectors side by side; a mask chooses which of the two a query sees."""
    cfg, b = self.cfg, shape[0]
    if not cfg.ctx_dim:
      return None
    null = jnp.broadcast_to(self.null_text, (b, cfg.n_ctx_null, cfg.dim)).astype(jnp.float32)
    if cond.text_BxSxC is None:
      return Context(null, jnp.ones((b, 1, cfg.n_ctx_null), bool))
    text = cond.text_BxSxC.astype(cfg.dtype) @ self.text_in.astype(cfg.dtype)
    counts_BxS = cond.text_mask_BxS.astype(bool)
    if cond.text_segment_BxS is None:
      has_BxG = counts_BxS.any(1, keepdims=True)
      seen_BxLxS = counts_BxS[:, None]
    else:
      groups = jnp.arange(cond.null_BxG.shape[1])
      has_BxG = (counts_BxS[:, None] & (cond.text_segment_BxS[:, None] == groups[None, :, None])).any(2)
      seen_BxLxS = counts_BxS[:, None] & (cond.text_segment_BxS[:, None] == places.segment_BxL[:, :, None])
    has_BxLx1 = of_segment(has_BxG & ~cond.null_BxG, places, shape)[:, :, None]
    seen_BxLxS = seen_BxLxS & has_BxLx1
    no_text = jnp.broadcast_to(~has_BxLx1, (*has_BxLx1.shape[:2], cfg.n_ctx_null))
    vectors = jnp.concatenate([text.astype(jnp.float32), null], axis=1)
    return Context(vectors, jnp.concatenate([seen_BxLxS, no_text], axis=2))

  def logits(self, x_BxLxD) -> jax.Array:
    dtype = self.cfg.dtype
    x = self.norm(constrain(x_BxLxD, "batch", "length", None)).astype(dtype)
    y = matmul(x, self.head.astype(dtype), jnp.float32)
    return y + ranked(self.head_bias, y.ndim) if self.cfg.head_bias else y


class RMSNorm(nn.Module):
  """x / rms(x) * scale in float32."""

  eps: float = EPS

  @nn.compact
  def __call__(self, x):
    x = x.astype(jnp.float32)
    scale = self.param("scale", partitioned(nn.initializers.ones, "embed"), x.shape[-1:])
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * ranked(scale, x.ndim)


class Block(nn.Module):
  """x += attn(n1 x); x += xattn(nx x, text) if there is text; x += swiglu(n2 x).

  The carry is (x, cache): with a cache (k, v) [B, n, M, d] new keys are written at `position` and those of
  `seen_BxLxM` are seen; without one, own and earlier positions of the same segment. `drop` is dropout.
  """

  cfg: ARConfig

  def setup(self):
    cfg, d, n, e, h = self.cfg, self.cfg.dim, self.cfg.heads, self.cfg.head_dim, self.cfg.hidden
    kernel = lambda name, shape, axes: self.param(name, partitioned(xavier(d, d), *axes), shape)
    self.n1, self.n2 = RMSNorm(), RMSNorm()
    self.qkv = kernel("qkv", (d, 3, n, e), ("embed", None, "heads", "head_dim"))
    self.proj = kernel("proj", (n, e, d), ("heads", "head_dim", "embed"))
    if cfg.ctx_dim:
      self.nx = RMSNorm()
      self.text_q = kernel("text_q", (d, n, e), ("embed", "heads", "head_dim"))
      self.text_kv = kernel("text_kv", (d, 2, n, e), ("embed", None, "heads", "head_dim"))
      self.text_proj = kernel("text_proj", (n, e, d), ("heads", "head_dim", "embed"))
    mlp = lambda name, shape, axes: self.param(name, partitioned(xavier(d, h), *axes), shape)
    self.up = mlp("up", (d, 2, h), ("embed", None, "mlp"))
    self.down = mlp("down", (h, d), ("mlp", "embed"))

  def __call__(
    self, carry, context: Context | None, segment_BxL=None, drop=None, seen_BxLxM=None, text_kv=None, position=0
  ):
    (x, cache), cast = carry, lambda a: a.astype(self.cfg.dtype)
    kept = lambda y, kind: y if drop is None else getattr(drop, kind)(self.make_rng("dropout"), y)
    # Axes of a result stay where the matmul puts them: what is cut is the small result, never a weight made over.
    qkv = matmul(cast(self.n1(x)), cast(self.qkv))
    q, k, v = (part.swapaxes(1, 2) for part in parts(qkv, 2))
    if cache is None:
      y = attend_causal(q, k, v, segment_BxL)
    else:
      k, v = cache = tuple(
        jax.lax.dynamic_update_slice(old, new, (0, 0, position, 0)) for old, new in zip(cache, (k, v), strict=True)
      )
      y = attend_filled(q, k, v, seen_BxLxM, position + x.shape[1])
    y = checkpoint_name(y, "attn_out").swapaxes(1, 2)
    y = jnp.tensordot(y, cast(self.proj), axes=2).astype(jnp.float32)  # einsum would contract (E, n): a transpose
    x = x + kept(y, "attended")
    if context is not None:
      q = matmul(cast(self.nx(x)), cast(self.text_q)).swapaxes(1, 2)
      k, v = self.text_keys(context) if text_kv is None else text_kv
      y = attend_seen(q, k, v, context.seen_BxLxM)
      x = x + jnp.tensordot(y.swapaxes(1, 2), cast(self.text_proj), axes=2).astype(jnp.float32)
    up = matmul(cast(self.n2(x)), cast(self.up))
    hidden, gate = parts(up, 2)
    hidden = checkpoint_name(nn.silu(hidden) * gate, "mlp_up")
    x = x + kept((hidden @ cast(self.down)).astype(jnp.float32), "mlp")
    return (constrain(x, "batch", "length", None), cache), None

  def text_keys(self, context: Context):
    """(k, v) [B, n, M, d] of the text, the same for every position: made once per generated sequence."""
    dtype = self.cfg.dtype
    kv = matmul(context.vectors_BxMxD.astype(dtype), self.text_kv.astype(dtype))
    k, v = (part.swapaxes(1, 2) for part in parts(kv, 2))
    return k, v
