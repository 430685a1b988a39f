"""Softmax attention by cuDNN's fused kernels, through JAX's own interface: half precision on NVIDIA cards.

A bias would cost twice: cuDNN reads [Q, M] numbers of 8 bits (log 240 is off by 0.012) and its backward pass makes
their gradient, which nobody reads. What one key adds to all rows goes into the product instead. After QK-norm it costs
nothing, see `folded`. Otherwise it takes columns of its own: q gets ones, k the value as a sum of three half-precision
numbers, v zeros. Products are exact and sums float32, so the logit is right to 2e-7, in the backward pass too.
The key that makes an odd length even, as training wants, is hidden by saying how many there are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 128  # cuDNN's head dimension before Hopper; 256 from there on
PARTS = 3  # of 8 bits each
HIDDEN = -3e4  # times any scale that we use, exp of it is 0; float16 has it too


def fits(head_dim: int) -> bool:
  """Whether a head of this width, with its extra columns, is one that cuDNN takes on every card."""
  return _width(head_dim, PARTS) <= WIDEST


def folded(q_BxnxQxd, k_BxnxMxd, bias_M: np.ndarray, *, scale: float) -> tuple[jax.Array, jax.Array]:
  """(q, k) whose logits have `bias_M` added to those of each key, where both are LayerNorms without affine.

  The channels of such vectors sum to 0, so that direction is free: (q + 1) . (k + b) = q . k + d b. It is rounded as
  q and k are: the logit of a key that stands for 240 others is off by 0.002 in bfloat16.
  """
  add = lambda x, y: (x.astype(jnp.float32) + y).astype(x.dtype)
  b_M = np.asarray(bias_M / (scale * k_BxnxMxd.shape[3]), np.float32)
  return add(q_BxnxQxd, 1.0), add(k_BxnxMxd, b_M[None, None, :, None])


def for_each_step(x_Bx: jax.Array, steps: int) -> jax.Array:
  """[B, ...] -> [B * T, ...]: every step of a sample as a sample of its own, that has all of x."""
  return jnp.repeat(x_Bx, steps, axis=0)


def attend(
  q_BxnxQxd,
  k_BxnxMxd,
  v_BxnxMxd,
  *,
  scale: float,
  bias_M=None,
  seen_BxM=None,
  first_B=None,
  mask_QxM=None,
  causal=False,
):
  """Softmax attention [B, Q, n, d] in v's dtype, logits scaled by `scale`.

  Args:
    bias_M: float32 NumPy array, added to each key's logit. seen_BxM: bool, keys that any row of a sample may see.
    first_B: int32, how many keys a sample has: it sees the first so many.
    mask_QxM: bool, brings cuDNN a bias [1, 1, Q, M] and its backward pass that bias's gradient.
    causal: row i sees keys 0..i.
  """
  rows, d, keys = q_BxnxQxd.shape[2], q_BxnxQxd.shape[3], k_BxnxMxd.shape[2]
  longer = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))
  q, k, v = longer(q_BxnxQxd), longer(k_BxnxMxd), longer(v_BxnxMxd)
  added = np.zeros(k.shape[2], np.float32)
  added[:keys] = 0.0 if bias_M is None else bias_M
  if keys % 2 and not causal and seen_BxM is None and first_B is None:  # causal rows end before the key put behind
    first_B = jnp.full(len(k), keys, jnp.int32)
  lengths: dict[str, Any] = {} if first_B is None else {"key_value_seq_lengths": first_B}
  columns_BxMxE: Any = _parts(added / scale, q.dtype)[None] if added.any() else None
  if seen_BxM is not None:
    seen_BxM = jnp.pad(seen_BxM, ((0, 0), (0, keys % 2)))
    hidden_BxM = jnp.where(seen_BxM, 0, HIDDEN).astype(q.dtype)[:, :, None]
    columns_BxMxE = hidden_BxM if columns_BxMxE is None else _beside(columns_BxMxE, hidden_BxM)
  extra = 0 if columns_BxMxE is None else columns_BxMxE.shape[2]
  wider = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, _width(d, extra) - x.shape[3])))
  if columns_BxMxE is not None:
    q = jnp.concatenate([q, jnp.ones((*q.shape[:3], extra), q.dtype)], axis=3)
    k = jnp.concatenate([k, jnp.broadcast_to(columns_BxMxE[:, None], (*k.shape[:3], extra))], axis=3)
  if mask_QxM is not None:
    mask_QxM = jnp.pad(mask_QxM, ((0, rows % 2), (0, keys % 2)), constant_values=True)[None, None]
  q, k, v = (wider(x).swapaxes(1, 2) for x in (q, k, v))
  call = jax.nn.dot_product_attention
  return call(q, k, v, mask=mask_QxM, scale=scale, is_causal=causal, **lengths, implementation="cudnn")[:, :rows, :, :d]


def _width(head_dim: int, extra: int) -> int:
  """A multiple of 8, as cuDNN wants it."""
  return -(-(head_dim + extra) // 8) * 8


def _parts(x_M: np.ndarray, dtype) -> jax.Array:
  """[M, PARTS] numbers of `dtype` whose sums are x to float32's accuracy."""
  parts, left = [], x_M.astype(np.float32)
  for _ in range(PARTS):
    parts.append(left.astype(dtype))
    left = left - parts[-1].astype(np.float32)
  return jnp.asarray(np.stack(parts, axis=-1))


def _beside(one_BxMxE, other_BxMxE) -> jax.Array:
  batch = max(len(one_BxMxE), len(other_BxMxE))
  return jnp.concatenate([jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (one_BxMxE, other_BxMxE)], axis=2)
