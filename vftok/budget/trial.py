"""The spread of a budget that is best for this very clip, by decoding it: `Auto(mean=4, tries=16)`.

A router guesses from latents what a step is worth; whoever encodes can know, for the clip is there to compare with.
Assignments of the router's total are proposed around its curves, decoded under the same noise and compared by LPIPS.
That costs `tries` decodings and more, once, and nothing later: a stored or sent video is encoded once.
"""

from __future__ import annotations

import functools

import numpy as np

from vftok.budget import allocate, curves
from vftok.tokens import VideoTokens

SOLVER_STEPS = 4  # ranks of many steps are those of few
BEND = 0.7  # deviation of the log of what a router believes a step gains, level by level and as a whole
NOISE = 20_260_311  # seed of the noise, no seed that a video is likely to be decoded with
FINAL = 4  # one in so many gets a second look, under other noise
LOOKS = 3  # noises of a second look, the first one included


def proposals(curve_Txm, levels, keep_T, first: int, count: int) -> np.ndarray:
  """int32 [count, T]: `keep_T`, the even spread of its total, then what curves like the router's would choose.

  Such curves are the router's with each gain times the exponential of a normal draw, the same draws for every clip.

  Args:
    curve_Txm: what a router predicts for each of `levels`.
    first: how many steps keep their count.
  """
  rng = np.random.default_rng(NOISE)
  drops, rest = -np.diff(np.asarray(curve_Txm, np.float64), axis=1), np.asarray(keep_T[first:])
  total, steps = int(rest.sum()), len(rest)
  even = np.full(steps, total // steps) + (np.arange(steps) < total % steps)
  found = dict.fromkeys([tuple(rest.tolist()), tuple(even.tolist())])
  for _ in range(8 * count):  # many draws choose the same
    if len(found) >= count:
      break
    bent = drops * np.exp(BEND * (rng.standard_normal((len(drops), 1)) + rng.standard_normal(drops.shape)))
    falling = np.concatenate([bent[:, ::-1].cumsum(1)[:, ::-1], np.zeros((len(drops), 1))], 1)
    found.setdefault(tuple(allocate.for_total(allocate.at_every_count(falling, levels)[first:], total).tolist()))
  chosen = (list(found) + [tuple(rest.tolist())] * count)[:count]
  return np.concatenate([np.repeat(np.asarray(keep_T[:first])[None], count, 0), np.array(chosen)], 1).astype(np.int32)


def best(tok, params, chunk, ids, predicted_BxTxm, levels, keep_BxT, first: int, tries: int) -> np.ndarray:
  """int32 [B, T]: of `tries` assignments of one chunk with the totals of `keep_BxT`, that of the lowest LPIPS.

  Args:
    chunk: video [B, F, H, W, 3], uint8 or float in [-1, 1]; ids: its tokens, all of them.
    first: how many steps keep their count.
  """
  of_clip = zip(predicted_BxTxm, keep_BxT, strict=True)
  keep_BxMxT = np.stack([proposals(curve, levels, keep, first, tries) for curve, keep in of_clip])
  look = functools.partial(_lpips, tok, params, chunk, VideoTokens.full(ids))
  losses_BxM = look(keep_BxMxT, 0)
  order_BxM = losses_BxM.argsort(1, kind="stable")[:, : max(2, tries // FINAL)]
  keep_BxMxT = np.take_along_axis(keep_BxMxT, order_BxM[:, :, None], 1)
  losses_BxM = np.take_along_axis(losses_BxM, order_BxM, 1)
  # The lowest of many is low by luck too: the few that are left are seen again.
  losses_BxM = losses_BxM + sum(look(keep_BxMxT, number) for number in range(1, LOOKS))
  return keep_BxMxT[np.arange(len(keep_BxMxT)), losses_BxM.argmin(1)]


def _lpips(tok, params, chunk, tokens: VideoTokens, keep_BxMxT, number: int) -> np.ndarray:
  """float32 [B, M], under noise number `number`."""
  return curves.sampled_lpips(tok, params, _net(), chunk, tokens, keep_BxMxT, NOISE + number, steps=SOLVER_STEPS)


@functools.cache
def _net():
  from vftok.frozen.metrics.weights import load_lpips

  return load_lpips("vgg")
