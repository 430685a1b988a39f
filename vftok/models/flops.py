"""FLOPs written out: XLA's counter sees a scanned layer only once.

One multiply-add is 2 FLOPs. Norms, activations, position tables, adaLN vectors (per sample, not per token) and the
embedding and head projections are left out: under 1 % at the sizes of the released models.
"""

from __future__ import annotations

from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig


def stack_flops(cfg: StackConfig, length: int, pairs: int | None = None) -> float:
  """Forward FLOPs of a transformer stack over one sequence of `length` tokens.

  depth * (2 * length * (4 D^2 + m D H) + 4 * pairs * D), m = 3 for a gated MLP, else 2; `pairs` is the number of
  (query, key) pairs computed, by default all length^2 of them (the dense algorithm).
  """
  pairs = length * length if pairs is None else pairs
  matrices = 4 * cfg.dim**2 + (3 if cfg.gated_mlp else 2) * cfg.dim * cfg.hidden
  return cfg.depth * (2 * length * matrices + 4 * pairs * cfg.dim)


def vit_flops(dim: int, depth: int, hidden: int, length: int, pairs: int | None = None) -> float:
  """Forward FLOPs of a plain vision transformer over `length` tokens: depth * (2 L (4 D^2 + 2 D H) + 4 pairs D).

  `pairs` of query and key, by default all L^2.
  """
  pairs = length * length if pairs is None else pairs
  return depth * (2 * length * (4 * dim**2 + 2 * dim * hidden) + 4 * pairs * dim)


def ar_flops(dim: int, depth: int, hidden: int, vocab: int, length: int, text: int = 0) -> float:
  """Forward FLOPs of the autoregressive model over one sequence, head included: the causal half of all pairs counts.

  depth * (2 L (4 D^2 + 3 D H) + 2 L^2 D) + 2 L D V, and per block 2 (2 L + 2 S) D^2 + 4 L S D for S text features.
  """
  block = 2 * length * (4 * dim**2 + 3 * dim * hidden) + 2 * length**2 * dim
  cross = 4 * (length + text) * dim**2 + 4 * length * text * dim if text else 0
  return depth * (block + cross) + 2 * length * dim * vocab


def attended_pairs(steps: int, block: int) -> int:
  """(query, key) pairs of a time-causal mask: step t sees the t + 1 blocks up to its own."""
  return block * block * steps * (steps + 1) // 2


def vae_flops(cfg: VAEConfig, frames: int, height: int, width: int) -> tuple[float, float]:
  """(encode, decode) forward FLOPs of the VAE on one video by its plain convolutions and attention.

  Counted as the dense algorithm runs: causal zero padding and nearest upsampling included, nothing skipped.
  """
  blocks, ch, last, pixels = cfg.num_res_blocks, cfg.ch, len(cfg.ch_mult) - 1, cfg.in_channels * cfg.stem**2
  widths = [ch * m for m in cfg.ch_mult]
  padded = -(-frames // 4) * 4  # what the network really sees: 17 -> 20

  def middle(positions: float, spatial: float, c: int) -> float:
    return positions * (4 * 27 * c * c + 4 * c * c + 2 * spatial * c) * 2

  def level(positions: float, c_in: int, c_out: int, count: int) -> float:
    total = 0.0
    for i in range(count):
      c = c_in if i == 0 else c_out
      total += (
        positions * 2 * (9 * c * c_out + 9 * c_out * c_out + (c * c_out if c != c_out else 0) + 6 * c_out * c_out)
      )
    return total

  area, time, c = height * width / cfg.stem**2, padded, ch
  encode = time * area * 2 * 27 * pixels * ch
  for i, wide in enumerate(widths):
    encode += level(time * area, c, wide, blocks)
    c = wide
    if i in cfg.halves_space:
      area /= 4
      encode += time * area * 2 * 9 * c * c
    if i in cfg.time_levels:
      time /= 2
      encode += time * area * 2 * 27 * c * c
  encode += middle(time * area, area, c) + time * area * 2 * 27 * c * 2 * cfg.z_channels

  decode = time * area * 2 * 27 * cfg.z_channels * c + middle(time * area, area, c)
  for i in range(last, -1, -1):
    decode += level(time * area, c, widths[i], blocks + 1)
    c = widths[i]
    if i - 1 in cfg.halves_space:
      area *= 4
      decode += time * area * 2 * 9 * c * c
    if i in cfg.time_levels:
      time *= 2
      decode += time * area * 2 * 27 * c * c
  decode += time * area * 2 * 27 * c * pixels
  code = padded * height * width * 2 * cfg.in_channels * cfg.z_channels if cfg.linear else 0.0
  return (encode if cfg.encoder_net else 0.0) + code, decode + code
