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
from vftok.io.layout import LINEAR, LINEAR_2IN, VECTOR, Rule
from vftok.models.layers import Linear, patchify

PREFIX = "videomae."
# Known and not needed: masks and decoder of pre-training, norms and classifier on top.
UNUSED = r"encoder_to_decoder\.weight|mask_token|decoder\..+|(fc_norm|layernorm|classifier)\.(weight|bias)"
LAYER = "encoder.layer"
SOURCE = "MCG-NJU/videomae-base"


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
  table = rules(net)
  _report(file.path, table.keys() - shapes.keys(), shapes.keys() - table.keys())
  leaves = abstract_params(net)
  flat = {leaf: np.zeros(spec.shape, np.float32) for leaf, spec in leaves.items()}  # keys have no bias: it stays 0
  for key, rule in table.items():
    wanted = rule.to_theirs(np.broadcast_to(np.int8(0), leaves[rule.path].shape)[rule.index]).shape
    if tuple(shapes[key]) != wanted:
      raise ValueError(
        f"{file.path} holds {keys[key]} with shape {tuple(shapes[key])}, expected {wanted}: fetch it again."
      )
  for name, value in file.tensors(keys[key] for key in table):
    rule = table[name.removeprefix(PREFIX)]
    flat[rule.path][rule.index] = rule.to_ours(value.astype(np.float32), flat[rule.path][rule.index].shape)
  return net, traverse.unflatten_dict({leaf: jax.device_put(value) for leaf, value in flat.items()})


def abstract_params(net: VideoMAE) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Path -> shape of every parameter, without making one."""
  clip = jnp.zeros((1, net.tubelet, net.patch, net.patch, 3))
  init = lambda: VideoMAEModule(net).init(jax.random.key(0), clip)
  return traverse.flatten_dict(nn.unbox(jax.eval_shape(init))["params"])


def rules(net: VideoMAE) -> dict[str, Rule]:
  """Plain key -> where it goes, for every tensor the net needs."""
  window, table = (net.tubelet, net.patch, net.patch), {}
  to_ours = lambda a, shape: a.transpose(2, 3, 4, 1, 0).reshape(shape)
  to_theirs = lambda a: a.reshape(*window, -1, a.shape[-1]).transpose(4, 3, 0, 1, 2)
  patches = "embeddings.patch_embeddings.projection"
  table[f"{patches}.weight"] = Rule(("patch_in", "kernel"), (), to_ours, to_theirs)
  table[f"{patches}.bias"] = Rule(("patch_in", "bias"), (), *VECTOR)
  for i in range(net.vit.depth):
    layer, attention = f"{LAYER}.{i}", f"{LAYER}.{i}.attention.attention"
    for theirs, ours in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
      table[f"{layer}.{theirs}.weight"] = Rule(("layers", ours, "scale"), (i,), *VECTOR)
      table[f"{layer}.{theirs}.bias"] = Rule(("layers", ours, "bias"), (i,), *VECTOR)
    for j, name in enumerate(("query", "key", "value")):
      table[f"{attention}.{name}.weight"] = Rule(("layers", "qkv_kernel"), (i, slice(None), j), *LINEAR)
      if name != "key":
        table[f"{attention}.{name[0]}_bias"] = Rule(("layers", "qkv_bias"), (i, j), *VECTOR)
    parts = (("attention.output", "proj", LINEAR_2IN), ("intermediate", "up", LINEAR), ("output", "down", LINEAR))
    for theirs, ours, conversion in parts:
      table[f"{layer}.{theirs}.dense.weight"] = Rule(("layers", f"{ours}_kernel"), (i,), *conversion)
      table[f"{layer}.{theirs}.dense.bias"] = Rule(("layers", f"{ours}_bias"), (i,), *VECTOR)
  return table


def _infer(path, shapes, heads, fields) -> VideoMAE:
  """The net whose sizes the tensors have."""
  patches, hidden = "embeddings.patch_embeddings.projection.weight", f"{LAYER}.0.intermediate.dense.bias"
  _report(path, [key for key in (patches, hidden) if key not in shapes], [])
  if len(shapes[patches]) != 5 or len(shapes[hidden]) != 1:
    raise ValueError(f"{path} holds {patches} with shape {tuple(shapes[patches])}, expected 5 axes: fetch it again.")
  dim, _, tubelet, patch, _ = shapes[patches]
  depth = 1 + max(int(m[1]) for key in shapes if (m := re.match(re.escape(LAYER) + r"\.(\d{1,3})\.", key)))
  heads = dim // 64 if heads is None else heads
  if heads < 1 or dim % heads:
    raise ValueError(f"{path} has width {dim}, which {heads} heads do not divide: pass heads=.")
  fields = {"taps": tuple(depth * n // 4 for n in range(5)), **fields}
  return VideoMAE(ViTConfig(dim, depth, heads, shapes[hidden][0]), patch, tubelet, **fields)


def _report(path, missing, unknown) -> None:
  parts = []
  for found, what in ((sorted(missing), "lacks"), (sorted(unknown), "has the unknown")):
    if found:
      parts.append(f"{what} {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else ""))
  if parts:
    raise ValueError(f"{path} {' and '.join(parts)}, expected the tensors of a VideoMAE like {SOURCE}.")
