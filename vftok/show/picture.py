"""Pictures for people: labelled videos side by side, and curves of quality over tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vftok.runtime.files import whole_file

_TILE = 256  # pixels: the least width of a tile, so that two lines of label are legible
_CROWDED = 0.06  # of the width of a plot: points closer than that share one label of the axis
_ROW = 1800  # pixels: the most width before tiles go to a second row
_GAP, _BACKGROUND, _TITLE, _DETAIL = 8, (20, 22, 26), (245, 245, 245), (170, 176, 186)


def labelled_grid(videos: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
  """Videos side by side on dark ground, a label above each.

  Args:
    videos: uint8 [F, H, W, 3] each, all of one shape; small ones are enlarged (bicubic) to 256 wide at least.
    labels: one each; the first line is the title, further lines are smaller.

  Returns:
    uint8 [F, H', W', 3], H' and W' even. The same labels and sizes give the same layout, so a long video can
    be laid out piece by piece.

  Raises:
    ValueError: no video, different shapes or dtypes, or not one label each.
  """
  shapes = {(v.shape, str(v.dtype)) for v in videos}
  if len(shapes) != 1 or len(labels) != len(videos):
    raise ValueError(
      f"there are {len(videos)} videos of {len(shapes)} shapes with {len(labels)} labels, expected one shape "
      "and a label each: cut or resize them."
    )
  frames, height, width, _ = videos[0].shape
  if videos[0].dtype != np.uint8:
    raise ValueError(f"videos are {videos[0].dtype}, expected uint8: see vftok.io.video.to_uint8.")
  ground, corners, (tile_h, tile_w) = _layout(tuple(labels), height, width)
  grid = np.repeat(ground[None], frames, axis=0)
  for video, (top, left) in zip(videos, corners, strict=True):
    for f in range(frames):
      tile = video[f]
      if tile.shape[:2] != (tile_h, tile_w):
        tile = np.asarray(Image.fromarray(tile).resize((tile_w, tile_h), Image.Resampling.BICUBIC))
      grid[f, top : top + tile_h, left : left + tile_w] = tile
  return grid


def video_rows(columns: dict[str, np.ndarray]) -> np.ndarray:
  """One row per clip, one labelled column per kind: {label: uint8 [n, F, H, W, 3]} -> uint8 [F, H', W', 3]."""
  tall = [np.concatenate(list(clips), axis=1) for clips in columns.values()]
  return labelled_grid(tall, list(columns))


@functools.lru_cache(maxsize=4)
def _layout(labels, height, width):
  """(ground uint8 [H', W', 3] with the labels, corner (top, left) of each tile, tile (height, width))."""
  scale = max(1.0, _TILE / width)
  tile_h, tile_w = round(height * scale), round(width * scale)
  rows = math.ceil(len(labels) * (tile_w + _GAP) / max(_ROW, tile_w + _GAP))
  columns = math.ceil(len(labels) / rows)
  title, detail = max(15, tile_w // 14), max(12, tile_w // 19)
  ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
  written = [list(_lines(ruler, label, title, detail, tile_w)) for label in labels]
  bar = _GAP + max(sum(round(size * 1.35) for _, size, _ in lines) for lines in written)
  full_h, full_w = rows * (bar + tile_h + _GAP), columns * (tile_w + _GAP) + _GAP
  ground = Image.new("RGB", (full_w + full_w % 2, full_h + full_h % 2), _BACKGROUND)
  draw, corners = ImageDraw.Draw(ground), []
  for i, lines in enumerate(written):
    top, left = (i // columns) * (bar + tile_h + _GAP), _GAP + (i % columns) * (tile_w + _GAP)
    y = top + _GAP // 2
    for text, size, colour in lines:
      draw.text((left + 1, y), text, fill=colour, font=_fitting(draw, text, size, tile_w))
      y += round(size * 1.35)
    corners.append((top + bar, left))
  return np.asarray(ground), corners, (tile_h, tile_w)


def _lines(draw, label: str, title: int, detail: int, width: int):
  """(text, size, colour) of the lines of a label: a sentence wider than its tile goes on below, in the smaller size."""
  for n, text in enumerate(label.split("\n")):
    colour, size = (_DETAIL, detail) if n else (_TITLE, title)
    if _width(draw, text, size) > width:
      size = detail
    line = ""
    for word in text.split(" "):
      if line and _width(draw, f"{line} {word}", size) > width:
        yield line, size, colour
        line = word
      else:
        line = f"{line} {word}" if line else word
    yield line, size, colour


def _width(draw, text: str, size: int) -> float:
  return draw.textlength(text, font=ImageFont.load_default(size))


def _fitting(draw, text, size, width):
  """Pillow's own font (no font file is needed), smaller where a word is wider than its tile."""
  while size > 8 and _width(draw, text, size) > width:
    size -= 1
  return ImageFont.load_default(size)


def curves_png(
  path, keeps: Sequence[int], bits: Sequence[float], scores: dict, title: str = "", *, spreads=None, levels=None
) -> None:
  """Writes a PNG with one panel per score: over tokens per time step below, over bits of the clip above.

  Args:
    keeps: tokens per time step, each once, >= 0.
    bits: of the whole clip, one per keep.
    scores: {"PSNR (dB)": values, ...}, one value per keep; infinite ones are left out.
    spreads: {"PSNR (dB)": values, ...}, half the height of a band around the curve, one per keep.
    levels: {"PSNR (dB)": {"VAE alone": value, ...}, ...}, baselines as horizontal lines.
  """
  from matplotlib.figure import Figure  # without pyplot: no window system, no global state

  order = np.argsort(keeps)
  keeps, bits = np.asarray(keeps)[order], np.asarray(bits)[order]
  x = np.log2(np.maximum(keeps, 0.5))  # 0 tokens sit one step to the left of 1
  span = x[-1] - x[0]
  crowded = [0 < a - b < _CROWDED * span for b, a in zip([-np.inf, *x], x, strict=False)]
  columns = len(scores) if len(scores) < 4 else 2
  rows = math.ceil(len(scores) / columns)
  figure = Figure(figsize=(5.4 * columns, 4.2 * rows), dpi=160, layout="constrained")
  figure.suptitle(title, fontsize=11)
  colours = ("#1f6fb4", "#c8502d", "#3a8f4d", "#7a5bb0")
  panels = np.ravel(figure.subplots(rows, columns))
  for axes in panels[len(scores) :]:
    axes.set_visible(False)
  for i, (axes, (name, values)) in enumerate(zip(panels, scores.items(), strict=False)):
    y = np.asarray(values, float)[order]
    y[~np.isfinite(y)] = np.nan
    colour = colours[i % len(colours)]
    axes.plot(x, y, "-o", color=colour, linewidth=1.8, markersize=5)
    if spreads:
      half = np.asarray(spreads[name], float)[order]
      axes.fill_between(x, y - half, y + half, color=colour, alpha=0.18, linewidth=0)
    for (label, level), dashes in zip((levels or {}).get(name, {}).items(), ("--", ":", "-."), strict=False):
      axes.axhline(level, color="#777777", linewidth=1.1, linestyle=dashes, label=label)
    for at, value, close in zip(x, y, crowded, strict=True):
      if np.isfinite(value):
        text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
        beside = dict(xytext=(5, -11), ha="left") if close else dict(xytext=(-5, 4), ha="right")
        axes.annotate(text, (at, value), **beside, textcoords="offset points", fontsize=8, color=colour)
    axes.margins(y=0.12)
    axes.set_xlabel("tokens kept per time step")
    axes.set_ylabel(name)
    axes.grid(color="#e3e3e3", linewidth=0.7)
    if levels:
      axes.legend(fontsize=7, framealpha=0.9, edgecolor="none")
    axes.spines["right"].set_visible(False)
    above = axes.twiny()
    above.spines["right"].set_visible(False)
    above.set_xlabel("bits of the clip", fontsize=9, color="#666666")
    for axis, labels in (
      (axes, [f"{k:.3g}" if k < 1000 else f"{k:.0f}" for k in keeps]),
      (above, [si(b) for b in bits]),
    ):
      axis.set_xticks(x, labels=["" if close else label for close, label in zip(crowded, labels, strict=True)])
      axis.set_xlim(x[0] - 0.11 * span - 0.3, x[-1] + 0.04 * span + 0.2)
    above.tick_params(labelsize=8, colors="#666666")
  with whole_file(path) as temporary:
    figure.savefig(temporary, format="png")


def si(value: float, unit: str = "") -> str:
  """Three digits, unit prefix and unit: 79.9 bit, 1.28 kbit, 20.4 kbit."""
  factor, prefix = next((fp for fp in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= 0.9995 * fp[0]), (1, ""))
  return f"{value / factor:.3g} {prefix}{unit}".rstrip()
