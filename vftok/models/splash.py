"""Attention by the splash kernel of JAX's Pallas library (TPU), for masks in which row i sees keys 0..last[i].

Every mask of the tokenizer and the causal mask of the generator are of that kind, so a kernel computes them from one
number per row and stores none of N x N. Memory is linear in N.
"""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vftok.runtime.sharding import spec_for

LANES = 128
BLOCKS = (512, 384, 256, 128)  # rows of a tile, the largest that divides the length


def attend_up_to(
  q_BxnxNxd, k_BxnxMxd, v_BxnxMxd, last_N, *, scale: float, bias_M=None, segment_BxN=None, interpret: bool = False
) -> jax.Array:
  """Softmax attention, [B, n, N, d] in v's dtype: row i sees the keys 0..last_N[i] of its own segment.

  Under a mesh batch, heads and rows are cut as `sharding.RULES` says and every chip has all keys of its heads.

  Args:
    last_N: int [N] of NumPy, 0..M-1; M = N.
    bias_M: float32 [M] of NumPy, added to the logits of a key; two more features carry it, to 16 bits.
    segment_BxN: int32; None: one segment.
    interpret: run on any platform, slowly.
  """
  n, length = q_BxnxNxd.shape[1:3]
  if bias_M is not None:
    q_BxnxNxd, k_BxnxMxd = _with_bias(q_BxnxNxd, k_BxnxMxd, bias_M, scale)
  mesh = jax.sharding.get_abstract_mesh()
  alone = mesh.empty or mesh.size == 1
  rows = ("batch", "heads", "length", None)
  shards = 1 if alone else _shards(mesh, spec_for(rows[1:3], (n, 2**20), mesh)[1])
  padded = -(-length // (LANES * shards)) * LANES * shards
  wide = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, 0)))
  q, k, v = wide(q_BxnxNxd * jnp.asarray(scale, q_BxnxNxd.dtype)), wide(k_BxnxMxd), wide(v_BxnxMxd)
  ids = None
  if segment_BxN is not None:
    ids = kernels.SegmentIds(*[jnp.pad(segment_BxN, ((0, 0), (0, padded - length)), mode="edge")] * 2)
  last = np.pad(np.asarray(last_N, np.int32), (0, padded - length), constant_values=length - 1)
  if alone:
    make = _kernel(last.tobytes(), n, 1, 1, interpret)
    out = jax.vmap(make)(q, k, v, ids)
  else:
    spec = spec_for(rows, q.shape, mesh)
    keys = P(spec[0], spec[1], None, None)
    kernel = _kernel(last.tobytes(), n, _shards(mesh, spec[1]), _shards(mesh, spec[2]), interpret)
    places: Any = (P(spec[0], spec[2]), P(spec[0], None))
    of_ids = None if ids is None else kernels.SegmentIds(*places)
    cut = jax.shard_map(
      lambda kernel, *arrays: jax.vmap(kernel)(*arrays),
      in_specs=(kernel.manual_sharding_spec(NamedSharding(mesh, P(spec[1], spec[2]))), spec, keys, keys, of_ids),
      out_specs=spec,
      check_vma=False,
    )
    out = cut(kernel, q, k, v, ids)
  return out[:, :, :length].astype(v_BxnxMxd.dtype)


class _UpTo(splash_masks.CausalMask):
  """The causal mask compares a row's number with a key's; here each row brings the number of its last key."""

  def __init__(self, last_N: np.ndarray):
    super().__init__((len(last_N), len(last_N)))
    self.q_sequence = last_N


@functools.lru_cache(maxsize=32)
def _kernel(last: bytes, heads: int, head_shards: int, row_shards: int, interpret: bool):
  rows = np.frombuffer(last, np.int32)
  block = next(size for size in BLOCKS if len(rows) // row_shards % size == 0)
  names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
  sizes: dict[str, Any] = {f"block_{name}": block for name in names}

  def make():
    kernel = kernels.make_splash_mha(
      splash_masks.MultiHeadMask([_UpTo(rows)] * heads),
      block_sizes=kernels.BlockSizes(**sizes),
      head_shards=head_shards,
      q_seq_shards=row_shards,
      interpret=interpret,
    )
    return jax.tree.map(np.asarray, kernel)

  # Its tables are constants, but made by JAX: in another thread no transformation turns them into tracers.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(make).result()


def _with_bias(q, k, bias_M, scale: float):
  """Two more products of a query and a key: 1 times the bias, in two parts so that half precision keeps it."""
  high = bias_M.astype(q.dtype)
  both = np.stack([high, (bias_M - high.astype(np.float32)).astype(q.dtype)], axis=-1)
  extra = jnp.broadcast_to(jnp.asarray(both), (*k.shape[:3], 2))
  ones = jnp.full((*q.shape[:3], 2), 1 / scale, q.dtype)  # queries are scaled later
  return jnp.concatenate([q, ones], axis=-1), jnp.concatenate([k, extra], axis=-1)


def _shards(mesh, axes) -> int:
  axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
  return int(np.prod([mesh.shape[a] for a in axes]))
