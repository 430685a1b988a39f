"""A clip beside its reconstructions at several budgets, and how good each is."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vftok.evals.pixels import PixelScores
from vftok.io.video_writer import to_uint8, video_writer
from vftok.models.flops import stack_flops
from vftok.runtime import target
from vftok.show.picture import labelled_grid, si
from vftok.show.progress import COMPILING, progress
from vftok.tokens import VideoTokens

# FLOPs beyond what a budget needs that take about as long as compiling one more program.
MORE_FLOPS = {"cpu": 2e11, "gpu": 2e14, "tpu": 2e14}


def side_by_side(
  tok, params, budgets: dict[int, VideoTokens], originals: Iterator[np.ndarray], out, fps: float, key, **options
) -> list[dict[str, Any]]:
  """Writes the video `out`: the original, then one column per budget. Returns one row of numbers per budget.

  Args:
    budgets: tokens per time step -> VideoTokens of one clip; `originals` gives its frames uint8 [H, W, 3].
    options: of `Tokenizer.decode_stream`.
  """
  keeps, tokens = list(budgets), next(iter(budgets.values()))
  frames, steps = tokens.frames, tokens.keep.shape[1]
  bits = math.log2(tok.codebook_size)
  rows = [{"keep": k, "tokens": k * steps, "bits": k * steps * bits} for k in keeps]
  labels = [f"original\n{frames} frames at {fps:.3g} fps"]
  labels += [f"k = {r['keep']}\n{r['tokens']} tokens, {si(r['bits'], 'bit')}" for r in rows]
  # One key for all budgets: the same noise, so that columns differ by their tokens alone.
  slots = None if tok.one_pass else shared_slots(tok, keeps, steps, options["steps"] * (1 + bool(options["guidance"])))
  streams = [tok.decode_stream(params, tokens, key, slots=slots, **options) for tokens in budgets.values()]
  scores, seconds = [PixelScores() for _ in keeps], [0.0] * len(keeps)
  with (
    video_writer(out, fps) as writer,
    progress("decoding", frames * len(keeps), first=COMPILING) as advance,
  ):
    while writer.frames < frames:  # all budgets advance together, chunk by chunk: memory stays small
      columns = []
      for i, stream in enumerate(streams):
        began = time.monotonic()
        columns.append(to_uint8(next(stream)[0]))
        seconds[i] += time.monotonic() - began
        advance(len(columns[-1]))
      original = np.stack(list(itertools.islice(originals, len(columns[0]))))
      for score, column in zip(scores, columns, strict=True):
        score.update(original, column)
      writer.write(labelled_grid([original, *columns], labels))
  for row, score, spent in zip(rows, scores, seconds, strict=True):
    row.update(psnr=score.psnr, ssim=score.ssim, seconds=spent)
  return rows


def shared_slots(tok, keeps: list[int], steps: int, evaluations: int) -> int | None:
  """`slots` of `Tokenizer.decode_stream` under which all budgets run one program; None where several pay.

  A budget's own program computes no more registers than it needs, which is worth compiling it for long clips and large
  models.

  Args:
    steps: time steps of the clip. evaluations: of the decoder for each chunk.
  """
  own = [tok.slots(np.int32(k)) for k in keeps]
  if None in own:  # the model computes all of them whatever the budget
    return None
  cfg, most = tok.cfg.decoder, max(own)
  patches = tok.cfg.latent_size[0] * tok.cfg.latent_size[1] // (cfg.patch[1] * cfg.patch[2])
  flops = lambda slots: stack_flops(cfg.stack, tok.chunk_steps * (patches + slots))
  chunks = max(1, steps // tok.chunk_steps)
  more = chunks * evaluations * sum(flops(most) - flops(slots) for slots in own)
  programs = len(set(own)) - 1
  return most if more <= programs * MORE_FLOPS[target.platform()] else None


def table(rows: list[dict[str, Any]], frames: int, fps: float) -> str:
  """The rows of `side_by_side` as text."""
  lines = [" keep   tokens       bits   kbit/s  PSNR dB    SSIM  frames/s"]
  for r in rows:
    rate, speed = r["bits"] * fps / frames / 1e3, frames / max(r["seconds"], 1e-9)
    quality = f"{r['psnr']:>8.2f} {r['ssim']:>7.4f}"
    lines.append(f"{r['keep']:>5} {r['tokens']:>8} {r['bits']:>10.0f} {rate:>8.3g} {quality} {speed:>9.3g}")
  return "\n".join(lines)
