"""One attention for all networks: only the visible part of the mask is computed.

q and k are LayerNorms without affine (QK-norm) and logits are scaled by 8 / head_dim, so |logit| <= 8: the softmax
needs no pass for the maximum. Where QK-norm is off, `bounded=False` brings that pass back.

On TPU the splash kernel does it, on GPU cuDNN in half precision (see `target.attention`), both without a written-out
mask but for the few rows of registers that are causal within their step; the rest is plain XLA.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import chex
import einops
import jax
import jax.numpy as jnp
import numpy as np

from vftok.models import cudnn, masks
from vftok.runtime import target

LOGIT_BOUND = 8.0
SHORT = 256  # positions up to which one product under a mask is cheaper than one per group of rows: less to compile
FILLED_LEAST = 512  # positions of a cache from which on reading less of it pays for compiling attention a few times
FEW_CALLS = 1024  # positions up to which a GPU attends in one call for all steps: cuDNN compiles each, for seconds
QUERY_CHUNK = 512  # rows of the score matrix alive at once on a CPU: 6 heads x 2560 keys stay near its cache


@dataclasses.dataclass(frozen=True)
class Layout:
  """The sequence [patches | registers] x steps and its visibility; static, so it drives what is compiled.

  Attributes:
    steps, patches, registers: T, P, R of the sequence; it has T * (P + R) positions.
    mode: one of `masks.MODES`; `cross` belongs to mode "flexible".
    last_stands_for: how many equal registers the last one of every step stands for (exact collapse):
      M equal keys are one key with log M added to its logit, and one query serves all of them.
  """

  steps: int
  patches: int
  registers: int
  mode: str
  cross: tuple[str, ...] = ("full",) * 4
  last_stands_for: int = 1

  @property
  def block(self) -> int:
    return self.patches + self.registers

  @property
  def length(self) -> int:
    return self.steps * self.block

  def row_groups(self) -> list[tuple[int, int, int, bool]]:
    """(first row, rows, visible keys, causal among them), which together cover the mask exactly."""
    p, r, s = self.patches, self.registers, self.block
    steps = range(self.steps)
    if self.mode == "full":
      return [(0, self.length, self.length, False)]
    if self.mode == "causal":
      return [(t * s, s, (t + 1) * s, True) for t in steps]
    if self.mode == "time_block_causal":
      return [(t * s, s, (t + 1) * s, False) for t in steps]
    if self.mode == "time_block_causal_last":
      pairs = [[(t * s, p, t * s + p, False), (t * s + p, r, (t + 1) * s, True)] for t in steps]
      return [group for pair in pairs for group in pair if group[1]]
    raise ValueError(f"mask mode {self.mode!r} has no row groups, use the dense mask.")

  def last_visible(self) -> np.ndarray:
    """int32 [N]: the last key that each row sees; it sees all before it."""
    last = np.empty(self.length, np.int32)
    for first, count, visible, causal in self.row_groups():
      rows = slice(first, first + count)
      last[rows] = np.arange(first, first + count) if causal else visible - 1
    return last

  def dense_mask(self) -> np.ndarray:
    return masks.dense(self.mode, self.steps, self.patches, self.registers, self.cross)

  def log_multiplicity(self) -> np.ndarray | None:
    """float32 [N], what is added to each key's logit; None where no key stands for others."""
    if self.last_stands_for == 1:
      return None
    per_step = np.zeros(self.block, np.float32)
    per_step[-1] = math.log(self.last_stands_for)
    return np.tile(per_step, self.steps)


def attend(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, layout: Layout, *, bounded: bool = True) -> jax.Array:
  """Softmax attention under `layout`, logits scaled by 8 / d. Returns [B, N, n, d] in v's dtype.

  `bounded=True` promises q and k after QK-norm (LayerNorm without affine): |logit| <= 8, channels that sum to 0.
  Softmax runs in float32.
  """
  chex.assert_equal_shape([k_BxnxNxd, v_BxnxNxd])
  chex.assert_axis_dimension(q_BxnxNxd, 2, layout.length)
  if layout.mode == "flexible":
    return attend_dense(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, layout)
  scale = 8.0 / k_BxnxNxd.shape[-1]  # the muP form of 1/sqrt(64)
  bias_N, kernel = layout.log_multiplicity(), target.attention(q_BxnxNxd.dtype)
  if kernel == "splash":
    from vftok.models import splash  # Pallas takes a tenth of a second to import

    last_N = layout.last_visible()
    return splash.attend_up_to(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, last_N, scale=scale, bias_M=bias_N).swapaxes(1, 2)
  if kernel == "cudnn" and cudnn.fits(k_BxnxNxd.shape[-1]):
    return _attend_cudnn(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, layout, scale, normed=bounded)
  k_BxnxdxN = k_BxnxNxd.swapaxes(2, 3) * scale
  rows = functools.partial(_attend_rows, bounded=bounded)
  groups = layout.row_groups()
  if len(groups) > 1 and layout.length <= SHORT:
    return rows(q_BxnxNxd, k_BxnxdxN, v_BxnxNxd, bias_N, last_Q=layout.last_visible())
  out = [
    rows(
      q_BxnxNxd[:, :, first : first + count],
      k_BxnxdxN[:, :, :, :visible],
      v_BxnxNxd[:, :, :visible],
      None if bias_N is None else bias_N[:visible],
      first_row=first if causal else None,
    )
    for first, count, visible, causal in groups
  ]
  return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def attend_dense(q, k, v, layout: Layout) -> jax.Array:
  """The textbook form over the written-out mask: oracle of the tests and path of mode "flexible"."""
  logits = jnp.einsum("bnqd,bnkd->bnqk", q, k, preferred_element_type=jnp.float32) * (8.0 / q.shape[-1])
  bias_N = layout.log_multiplicity()
  logits = logits if bias_N is None else logits + bias_N[None, None, None]
  weights = jax.nn.softmax(jnp.where(layout.dense_mask()[None, None], logits, -jnp.inf), axis=-1)
  return jnp.einsum("bnqk,bnkd->bqnd", weights.astype(v.dtype), v)


def attend_causal(q_BxnxLxd, k_BxnxLxd, v_BxnxLxd, segment_BxL=None) -> jax.Array:
  """Softmax attention of the generator, logits scaled by 1 / sqrt(d): own and earlier positions of the same segment.

  Returns [B, n, L, d] in v's dtype; softmax runs in float32.
  """
  length, scale = q_BxnxLxd.shape[2], q_BxnxLxd.shape[3] ** -0.5
  kernel = target.attention(q_BxnxLxd.dtype)
  if kernel == "splash":
    from vftok.models import splash

    last_L = np.arange(length)
    return splash.attend_up_to(q_BxnxLxd, k_BxnxLxd, v_BxnxLxd, last_L, scale=scale, segment_BxN=segment_BxL)
  if kernel == "cudnn" and segment_BxL is None and cudnn.fits(q_BxnxLxd.shape[3]):  # it takes segments as a bias only
    return cudnn.attend(q_BxnxLxd, k_BxnxLxd, v_BxnxLxd, scale=scale, causal=True).swapaxes(1, 2)
  seen_BxLxL = jnp.asarray(np.tri(length, dtype=bool))[None]
  if segment_BxL is not None:
    seen_BxLxL = seen_BxLxL & (segment_BxL[:, :, None] == segment_BxL[:, None])
  return attend_seen(q_BxnxLxd, k_BxnxLxd, v_BxnxLxd, seen_BxLxL)


def attend_seen(q_BxnxLxd, k_BxnxMxd, v_BxnxMxd, seen_BxLxM) -> jax.Array:
  """As `attend_causal`, under a mask [B or 1, L or 1, M] of its own."""
  logits = jnp.einsum("Bnld,Bnmd->Bnlm", q_BxnxLxd, k_BxnxMxd, preferred_element_type=jnp.float32)
  logits = jnp.where(seen_BxLxM[:, None], logits * q_BxnxLxd.shape[-1] ** -0.5, -1e30)
  weights = jax.nn.softmax(logits, axis=-1).astype(v_BxnxMxd.dtype)
  return jnp.einsum("Bnlm,Bnmd->Bnld", weights, v_BxnxMxd)


def attend_filled(q_BxnxLxd, k_BxnxMxd, v_BxnxMxd, seen_BxLxM, filled) -> jax.Array:
  """As `attend_seen` over a cache of which nothing is seen from position `filled` (a number or data) on.

  A CPU reads the first eighth, quarter, half or all of the cache, whichever holds what is filled. A GPU reads it all:
  it would wait for the host to choose.
  """
  length = k_BxnxMxd.shape[2]
  if target.platform() != "cpu" or length < FILLED_LEAST:
    return attend_seen(q_BxnxLxd, k_BxnxMxd, v_BxnxMxd, seen_BxLxM)
  sizes = [-(-length // part) for part in (8, 4, 2, 1)]
  cut = lambda m: lambda q, k, v, seen: attend_seen(q, k[:, :, :m], v[:, :, :m], seen[:, :, :m])
  if isinstance(filled, int):
    size = next(m for m in sizes if filled <= m)
    return cut(size)(q_BxnxLxd, k_BxnxMxd, v_BxnxMxd, seen_BxLxM)
  which = sum((filled > m).astype(jnp.int32) for m in sizes[:-1])
  return jax.lax.switch(which, [cut(m) for m in sizes], q_BxnxLxd, k_BxnxMxd, v_BxnxMxd, seen_BxLxM)


def _attend_cudnn(q, k, v, layout: Layout, scale: float, *, normed: bool):
  """[B, N, n, d]: one call per group of rows, over the keys that it sees."""
  bias_N = layout.log_multiplicity()
  if bias_N is not None and normed:
    q, k = cudnn.folded(q, k, bias_N, scale=scale)
    bias_N = None
  if layout.mode == "causal":
    return cudnn.attend(q, k, v, scale=scale, bias_M=bias_N, causal=True)
  if len(layout.row_groups()) > 1 and layout.length <= FEW_CALLS:
    return _attend_steps(q, k, v, layout, scale, bias_N)
  out = []
  for first, count, visible, causal in layout.row_groups():
    rows, keys = slice(first, first + count), slice(visible)
    mask = jnp.asarray(np.tri(count, visible, first, dtype=bool)) if causal else None  # cuDNN's own starts at key 0
    bias = None if bias_N is None else bias_N[keys]
    out.append(cudnn.attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], scale=scale, bias_M=bias, mask_QxM=mask))
  return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def _attend_steps(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, layout: Layout, scale: float, bias_N):
  """[B, N, n, d] by one call, or two: the steps of a sample are samples of their own, beside all keys.

  Registers that are causal within their step are causal rows of the whole sequence: the second call is for them.
  """
  b = q_BxnxNxd.shape[0]
  steps, block, own = layout.steps, layout.block, layout.mode == "time_block_causal_last"
  rows = layout.patches if own else block
  split = lambda x: einops.rearrange(x, "b n (t s) d -> (b t) n s d", t=steps)[:, :, :rows]
  keys, values = (cudnn.for_each_step(x, steps) for x in (k_BxnxNxd, v_BxnxNxd))
  visible = jnp.tile(jnp.arange(steps, dtype=jnp.int32) * block + rows, b)
  attend_all = functools.partial(cudnn.attend, scale=scale, bias_M=bias_N)
  out = attend_all(split(q_BxnxNxd), keys, values, first_B=visible)
  out = einops.rearrange(out, "(b t) s n d -> b t s n d", t=steps)
  if own:
    causal = attend_all(q_BxnxNxd, k_BxnxNxd, v_BxnxNxd, causal=True)
    causal = einops.rearrange(causal, "b (t s) n d -> b t s n d", t=steps)
    out = jnp.concatenate([out, causal[:, :, rows:]], axis=2)
  return einops.rearrange(out, "b t s n d -> b (t s) n d")


def _attend_rows(q_BxnxQxd, k_BxnxdxM, v_BxnxMxd, bias_M, *, bounded: bool, first_row=None, last_Q=None) -> jax.Array:
  """Rows that see all M keys; or (first_row given) key j only from absolute row i >= j on; or (last_Q given, of rows
  that are one chunk) keys up to a row's own last.
  """
  q_len = q_BxnxQxd.shape[2]
  chunks = -(-q_len // QUERY_CHUNK) if target.platform() == "cpu" else 1  # elsewhere a loop of small kernels
  size = -(-q_len // chunks)

  @jax.checkpoint  # scores are made again in the backward pass instead of being stored: N^2 floats a head
  def chunk(start, q_Bxnxcxd):
    logits = jnp.einsum("bncd,bndm->bncm", q_Bxnxcxd, k_BxnxdxM, preferred_element_type=jnp.float32)
    if first_row is not None:
      row = first_row + start + jnp.arange(size)[:, None]
      logits = jnp.where(jnp.arange(k_BxnxdxM.shape[3])[None] <= row, logits, -jnp.inf)
    if last_Q is not None:
      logits = jnp.where(np.arange(k_BxnxdxM.shape[3]) <= last_Q[:, None], logits, -jnp.inf)
    shift = LOGIT_BOUND if bounded else jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    p_Bxnxcxm = jnp.exp(logits - (shift if bias_M is None else shift - bias_M[None, None, None]))
    out = jnp.einsum(
      "bncm,bnmd->bncd", p_Bxnxcxm.astype(v_BxnxMxd.dtype), v_BxnxMxd, preferred_element_type=jnp.float32
    )
    return (out / p_Bxnxcxm.sum(axis=-1, keepdims=True)).astype(v_BxnxMxd.dtype).swapaxes(1, 2)

  if chunks == 1:
    return chunk(0, q_BxnxQxd)
  q = jnp.pad(q_BxnxQxd, ((0, 0), (0, 0), (0, chunks * size - q_len), (0, 0)))
  q = einops.rearrange(q, "b n (k c) d -> k b n c d", k=chunks)
  out = jax.lax.map(lambda args: chunk(*args), (jnp.arange(chunks) * size, q))
  return einops.rearrange(out, "k b c n d -> b (k c) n d")[:, :q_len]
