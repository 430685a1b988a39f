"""VidTok's parameter names <-> ours. One table, used in both directions."""

import re

import numpy as np

from vftok.io.layout import Rules
from vftok.models.vae import TIME_LEVELS, VAEConfig

# How a kind is turned, see `Rule`; torch keeps [out, in, *window], we keep [*window, in, out]
# with the window of a 3-D convolution turned from (t, h, w) to (h, w, t).
KINDS = {
  "conv1d": (lambda w, shape: np.transpose(w, (2, 1, 0)), lambda w: np.transpose(w, (2, 1, 0))),
  "conv2d": (lambda w, shape: np.transpose(w, (2, 3, 1, 0)), lambda w: np.transpose(w, (3, 2, 0, 1))),
  "conv3d": (lambda w, shape: np.transpose(w, (3, 4, 2, 1, 0)), lambda w: np.transpose(w, (4, 3, 2, 0, 1))),
  "point2d": (lambda w, shape: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None]),
  "point3d": (lambda w, shape: w[:, :, 0, 0, 0].T, lambda w: w.T[:, :, None, None, None]),
}


def rules(cfg: VAEConfig, path: tuple[str, ...] = ()) -> Rules:
  """Torch key (without prefix) -> Rule, for every tensor of the VAE; ours lie below `path`."""
  table = Rules()

  def norm(theirs, ours):
    table.norm(f"{theirs}.norm", (*path, *ours))

  def conv(theirs, ours, kind):
    table.linear(theirs, (*path, *ours), how=KINDS[kind])

  def block(theirs, ours, kind):
    inner = "" if kind == "conv2d" else ".conv"  # causal convolutions are wrapped once more
    for n in ("1", "2"):
      norm(f"{theirs}.norm{n}", (*ours, f"norm{n}"))
      conv(f"{theirs}.conv{n}{inner}", (*ours, f"conv{n}"), kind)

  widths = cfg.widths
  for side, way, blocks in (
    ("encoder", "down", cfg.num_res_blocks),
    ("decoder", "up", cfg.num_res_blocks + 1),
  ):
    sample = f"{way}sample"
    for end in ("conv_in", "conv_out"):
      conv(f"{side}.{end}.conv", (side, end), "conv3d")
    norm(f"{side}.norm_out", (side, "norm_out"))
    for n in ("1", "2"):
      block(f"{side}.mid.block_{n}", (side, "mid", f"block_{n}"), "conv3d")
    norm(f"{side}.mid.attn_1.norm", (side, "mid", "attn", "norm"))
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out")):
      conv(f"{side}.mid.attn_1.{theirs}.conv", (side, "mid", "attn", ours), "point3d")
    for i in range(len(widths)):
      for j in range(blocks):
        block(f"{side}.{way}.{i}.block.{j}", (side, f"{way}_{i}_block_{j}"), "conv2d")
        block(f"{side}.{way}_temporal.{i}.block.{j}", (side, f"{way}_{i}_time_{j}"), "conv1d")
      before = i - 1 if side == "encoder" else i + 1  # the level whose width comes in
      if widths[i] != (cfg.ch if before < 0 else widths[min(before, len(widths) - 1)]):
        conv(f"{side}.{way}.{i}.block.0.nin_shortcut", (side, f"{way}_{i}_block_0", "shortcut"), "point2d")
      if i < len(widths) - 1 if side == "encoder" else i > 0:
        conv(f"{side}.{way}.{i}.{sample}.conv", (side, f"{way}_{i}_space"), "conv2d")
      if i in TIME_LEVELS:
        theirs, ours = f"{side}.{way}_temporal.{i}.{sample}", (side, f"{way}_{i}_time")
        conv(f"{theirs}.conv.conv", (*ours, "conv"), "conv3d")
        table.add(f"{theirs}.mix_factor", (*path, *ours, "mix_factor"))
  return table


def infer_config(shapes: dict[str, tuple[int, ...]]) -> VAEConfig:
  """The configuration that a checkpoint's tensor shapes (torch keys and order, no prefix) imply."""

  def count(pattern):
    found = {int(m[1]) for key in shapes if (m := re.match(pattern, key))}
    return len(found)

  try:
    ch, in_channels = shapes["encoder.conv_in.conv.weight"][:2]
    levels = count(r"encoder\.down\.(\d+)\.")
    widths = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    z = shapes["decoder.conv_in.conv.weight"][1]
  except KeyError as e:
    raise ValueError(f"not a VidTok state dict: it has no tensor {e}") from None
  return VAEConfig(
    ch=int(ch),
    ch_mult=tuple(int(w) // int(ch) for w in widths),
    num_res_blocks=count(r"encoder\.down\.0\.block\.(\d+)\."),
    z_channels=int(z),
    in_channels=int(in_channels),
  )
