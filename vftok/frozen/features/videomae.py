"""VideoMAE (arXiv 2203.12602): a plain ViT over tubelets of 2 frames x 16 x 16 pixels, read at several depths.

Here it judges: EVATok's semantic critic looks at what it makes of real and of decoded clips. Weights are those of
`transformers` ("videomae"), of a classifier or as they were pre-trained; only their encoder is read. Positions are
fixed sines and cosines over the whole clip. Queries and values have biases, keys have none.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.frames import IMAGENET_MEAN, IMAGENET_STD
from vftok.frozen.features.vit import Block, ViTConfig
from vftok.io import hub
from vftok.io.layout import LINEAR, LINEAR_2IN, VECTOR, Rules, converted, convolution
from vftok.models.layers import Linear, patchify

PREFIX = "videomae."
# Known and not needed: masks and decoder of pre-training, norms and classifier on top.
UNUSED = r"encoder_to_decoder\.weight|mask_token|decoder\..+|(fc_norm|layernorm|classifier)\.(weight|bias)"
LAYER = "encoder.layer"
NAMED = "VideoMAE like MCG-NJU/videomae-base"


@dataclasses.dataclass(frozen=True)
class VideoMAE:
  """A frozen net: hashable, without parameters. `taps`: after how many blocks it is read, 0: the patches alone."""

  vit: ViTConfig = ViTConfig(768, 12, 12, 3072)
  patch: int = 16
  tubelet: int = 2
  size: int = 224
  taps: tuple[int, ...] = (0, 3, 6, 9, 12)

  def apply(self, params, video_BxFxHxWx3) -> list[jax.Array]:
    """float32 [B, N, D] at each of `taps`, of clips in [-1, 1], F a multiple of the tubelet, any H and W."""
    b, f, _, _, c = video_BxFxHxWx3.shape
    frames = jax.image.resize(video_BxFxHxWx3.astype(jnp.float32), (b, f, self.size, self.size, c), "linear")
    frames = (frames * 0.5 + 0.5 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    return VideoMAEModule(self).apply({"params": params}, frames)


class Read(Block):
  """A block that gives what comes out of it, too."""

  def __call__(self, x_BxNxD, rope):
    x_BxNxD, _ = super().__call__(x_BxNxD, rope)
    return x_BxNxD, x_BxNxD


class VideoMAEModule(nn.Module):
  """See `VideoMAE.apply`; normalised frames of the net's own size."""

  net: VideoMAE

  @nn.compact
  def __call__(self, video_BxFxHxWx3):
    net, dim = self.net, self.net.vit.dim
    x = patchify(video_BxFxHxWx3, (net.tubelet, net.patch, net.patch))
    x = Linear(dim, (None, "embed"), dtype=net.vit.dtype, name="patch_in")(x).reshape(len(x), -1, dim)
    x = x.astype(jnp.float32) + positions(x.shape[1], dim)
    run = nn.scan(
      nn.remat(Read, prevent_cse=False),  # its inputs have gradients, of which every block would be kept
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=net.vit.depth,
      in_axes=nn.broadcast,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    _, after = run(net.vit, name="layers")(x, None)
    return [after[i - 1] if i else x for i in net.taps]


def positions(length: int, dim: int) -> np.ndarray:
  """float32 [N, D]: of place n and channel j the sine (j even) or cosine of n / 10000^(2 (j // 2) / D)."""
  angles = np.arange(length)[:, None] / 10_000.0 ** (2 * (np.arange(dim) // 2) / dim)
  return np.where(np.arange(dim) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def load(path: str | os.PathLike, *, heads: int | None = None, **fields: Any) -> tuple[VideoMAE, dict[str, Any]]:
  """Net and float32 parameters of a safetensors file, a directory with model.safetensors, or a Hub id.

  Args:
    heads: attention heads, where a model of unusual size has not 64 channels a head.
    fields: of `VideoMAE`: size, taps; by default the tap before the first block and four of equal distance.

  Raises:
    FileNotFoundError: nothing there. ValueError: a pickle, a damaged file, or tensors missing, unknown or misshapen.
  """
  file = hub.open_weights(path)
  keys = {key.removeprefix(PREFIX): key for key in file.shapes}
  shapes = {key: file.shapes[name] for key, name in keys.items() if not re.fullmatch(UNUSED, key)}
  net = _infer(file.path, shapes, heads, fields)
  leaves, sources = abstract_params(net), {key: (file, keys[key]) for key in shapes}
  return net, converted(file.path, rules(net), sources, leaves, dict.fromkeys(leaves, np.float32), NAMED)


def abstract_params(net: VideoMAE) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  clip = jnp.zeros((1, net.tubelet, net.patch, net.patch, 3))
  init = lambda: VideoMAEModule(net).init(jax.random.key(0), clip)
  return traverse.flatten_dict(nn.unbox(jax.eval_shape(init))["params"])


def rules(net: VideoMAE) -> Rules:
  """Plain key -> where it goes, for every tensor the net needs."""
  table, patches = Rules(), convolution((net.tubelet, net.patch, net.patch))
  table.linear("embeddings.patch_embeddings.projection", ("patch_in",), how=patches)
  for i in range(net.vit.depth):
    layer, attention = f"{LAYER}.{i}", f"{LAYER}.{i}.attention.attention"
    for theirs, ours in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
      table.norm(f"{layer}.{theirs}", ("layers", ours), (i,))
    for j, name in enumerate(("query", "key", "value")):
      table.layer(f"{attention}.{name}", ("layers", "qkv"), i, j, bias=False)
      if name != "key":  # keys have no bias: it stays 0
        table.add(f"{attention}.{name[0]}_bias", ("layers", "qkv_bias"), VECTOR, (i, j))
    parts = (("attention.output", "proj", LINEAR_2IN), ("intermediate", "up", LINEAR), ("output", "down", LINEAR))
    for theirs, ours, how in parts:
      table.layer(f"{layer}.{theirs}.dense", ("layers", ours), i, how=how)
  return table


def _infer(path, shapes, heads, fields) -> VideoMAE:
  """The net whose sizes the tensors have."""
  patches, hidden = "embeddings.patch_embeddings.projection.weight", f"{LAYER}.0.intermediate.dense.bias"
  hub.report_keys(path, [key for key in (patches, hidden) if key not in shapes], [], NAMED)
  if len(shapes[patches]) != 5 or len(shapes[hidden]) != 1:
    raise ValueError(f"{path} holds {patches} with shape {tuple(shapes[patches])}, expected 5 axes: fetch it again.")
  dim, _, tubelet, patch, _ = shapes[patches]
  depth = 1 + max(int(m[1]) for key in shapes if (m := re.match(re.escape(LAYER) + r"\.(\d{1,3})\.", key)))
  heads = dim // 64 if heads is None else heads
  if heads < 1 or dim % heads:
    raise ValueError(f"{path} has width {dim}, which {heads} heads do not divide: pass heads=.")
  fields = {"taps": tuple(depth * n // 4 for n in range(5)), **fields}
  return VideoMAE(ViTConfig(dim, depth, heads, shapes[hidden][0]), patch, tubelet, **fields)
