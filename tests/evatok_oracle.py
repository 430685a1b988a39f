"""EVATok in float64 NumPy, clip by clip with dropped tokens truly left out: no masks, no padding, no batches."""

import numpy as np
from scipy.special import erf

from vftok.families.evatok.config import EvatokConfig


def tree64(params):
  return {k: tree64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in params.items()}


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
  return x @ p["kernel"] + p["bias"]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def attention(q, k, v, p, name, block_q, block_k):
  """[N, D]; `block_*` are the time steps of queries and keys."""
  parts = []
  for head in range(p[f"{name}_qkv_kernel"].shape[2]):
    kernel, bias = p[f"{name}_qkv_kernel"][:, :, head], p[f"{name}_qkv_bias"][:, head]
    qh, kh, vh = (x @ kernel[:, i] + bias[i] for i, x in enumerate((q, k, v)))
    logits = qh @ kh.T / np.sqrt(qh.shape[-1])
    logits = np.where(block_k[None] <= block_q[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    parts.append(weights / weights.sum(-1, keepdims=True) @ vh @ p[f"{name}_out_kernel"][head])
  return sum(parts) + p[f"{name}_out_bias"]


def qformer(x, refs, p, block_x, block_refs, place, place_refs):
  for i in range(p["layers"]["up_kernel"].shape[0]):
    layer = {k: {n: a[i] for n, a in v.items()} if isinstance(v, dict) else v[i] for k, v in p["layers"].items()}
    a = norm(x, layer["norm1"])
    x = x + attention(a + place, a + place, a, layer, "self", block_x, block_x)
    a = norm(x, layer["norm2"])
    x = x + attention(a + place, refs + place_refs, refs, layer, "cross", block_x, block_refs)
    up = norm(x, layer["norm3"]) @ layer["up_kernel"] + layer["up_bias"]
    x = x + (0.5 * up * (1 + erf(up / np.sqrt(2)))) @ layer["down_kernel"] + layer["down_bias"]
  return norm(x, p["norm"])


def pooled(grid, slots):
  """[slots, D] of one step's map [h, w, D]."""
  h, w, _ = grid.shape
  rows, columns, out = 1, 1, [grid.mean((0, 1))]
  while len(out) < slots:
    for i in range(rows):
      for j in range(columns):
        cell = grid[i * h // rows : (i + 1) * h // rows, j * w // columns : (j + 1) * w // columns]
        out.append(cell.mean((0, 1)))
    rows, columns = (rows, columns * 2) if rows == columns else (rows * 2, columns)
  return np.array(out)


def blocks(counts):
  return np.repeat(np.arange(len(counts)), counts)


def places(table, counts, slots):
  """Rows of the table [T * slots, D] for the first `counts` of every step."""
  return np.concatenate([table[t * slots : t * slots + k] for t, k in enumerate(counts)])


def encode(cfg: EvatokConfig, params, video, counts):
  """(z [sum k, c], ids [sum k]) of one clip [F, H, W, 3] in [-1, 1]."""
  p, (pt, ph, pw), (h, w) = tree64(params)["encoder"], cfg.patch, cfg.grid
  x = np.asarray(video, np.float64) / 2
  patches = x.reshape(cfg.steps, pt, h, ph, w, pw, 3).transpose(0, 2, 4, 1, 3, 5, 6).reshape(cfg.steps, h, w, -1)
  grid = linear(patches, p["patch_in"])
  grid = norm(grid, p["norm_in"]) if cfg.norm_in else grid
  queries = np.concatenate([pooled(g, cfg.slots)[:k] for g, k in zip(grid, counts, strict=True)])
  spread = [cfg.places] * cfg.steps
  at = places(p["qformer"]["query_places"], counts, cfg.slots), p["qformer"]["ref_places"]
  queries = linear(queries, p["pool_out"])
  out = qformer(queries, grid.reshape(-1, grid.shape[-1]), p["qformer"], blocks(counts), blocks(spread), *at)
  z = linear(linear(out, p["neck"]) if cfg.neck else out, p["head"])
  return z, (unit(z) @ unit(tree64(params)["quantizer"]["codebook"]).T).argmax(-1)


def decode(cfg: EvatokConfig, params, ids, counts):
  """Frames [F, H, W, 3] of ids [sum k]."""
  p, (pt, ph, pw), (h, w) = tree64(params)["decoder"], cfg.patch, cfg.grid
  refs = linear(unit(tree64(params)["quantizer"]["codebook"])[ids], p["codes_in"])
  refs = linear(refs, p["neck"]) if cfg.neck else refs
  refs = norm(refs, p["norm_in"]) if cfg.norm_in else refs
  first, spread = np.cumsum([0, *counts[:-1]]), [cfg.places] * cfg.steps
  queries = np.repeat(refs[first], cfg.places, axis=0)
  at = p["qformer"]["query_places"], places(p["qformer"]["ref_places"], counts, cfg.slots)
  out = linear(qformer(queries, refs, p["qformer"], blocks(spread), blocks(counts), *at), p["head"])
  out = out.reshape(cfg.steps, h, w, pt, ph, pw, 3).transpose(0, 3, 1, 4, 2, 5, 6)
  return 2 * out.reshape(cfg.frames, *cfg.frame_size, 3)
