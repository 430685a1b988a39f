"""DINOv2 features as an input of the encoder: what SemanTok's tokenizers read beside the latents.

Per time step a grid of patch features as large as the latents', which goes before the latents' channels, and a class
vector for register 0. Frames come to the net by plain bicubic (a = -0.75, not antialiased), cut to [0, 1]; features are
those after the final norm. Patch features are of a step's first frame or the mean of all its frames; the class vector
is of the first frame of each step, or of frame 0 for all steps. Latents are rounded to float16.
Source: arXiv 2610.00686 and its public inference code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vftok.frozen import features
from vftok.frozen.features.dinov2 import DINOv2, cubic_matrix
from vftok.frozen.features.frames import GROUP, IMAGENET_MEAN, IMAGENET_STD, first_frames, group_mean
from vftok.models.config import TokenizerConfig


def reads_dino(cfg: TokenizerConfig) -> bool:
  """Whether the encoder has such an input."""
  return bool(cfg.dino_frames or cfg.encoder.global_token)


def load_dino(cfg: TokenizerConfig, path, **options) -> tuple[DINOv2, dict]:
  """(net, parameters) of the DINOv2 weights at `path`, for the encoder of `cfg`.

  Raises:
    FileNotFoundError: there are no such weights.
    ValueError: the encoder reads no features, or those of a net of another width.
  """
  if not reads_dino(cfg):
    raise ValueError(f"dino is {str(path)!r}, but this model's encoder reads no DINOv2 features: leave it out.")
  net, params = features.load("dinov2", path, **options)
  width = cfg.encoder.channels - cfg.vae.z_channels if cfg.dino_frames else cfg.encoder.global_token
  if net.dim != width:
    raise ValueError(f"{path} gives features of width {net.dim}, expected {width}: take DINOv2 of the size it reads.")
  return net, params


def check_dino(cfg: TokenizerConfig, net: DINOv2 | None) -> None:
  """Raises ValueError where the encoder reads features and there is no net to make them."""
  if net is None and reads_dino(cfg):
    raise ValueError(
      "this model's encoder reads DINOv2 features beside the video: pass dino='facebook/dinov2-large', or where its"
      " weights are, to Tokenizer.load (--dino on the command line); it decodes without."
    )


def dino_inputs(cfg: TokenizerConfig, net: DINOv2, params, video_BxFxHxWx3, latents_BxTxhxwxC):
  """(the encoder's grid [B, T, h, w, D + C], or C channels without patch features; vector [B, T, D] or None).

  video_BxFxHxWx3: float in [-1, 1], F = 4 (T - 1) + 1.
  """
  features = dino_features(cfg, net, params, video_BxFxHxWx3, latents_BxTxhxwxC.shape[2:4])
  return joined(cfg, *features, latents_BxTxhxwxC)


def dino_features(cfg: TokenizerConfig, net: DINOv2, params, video_BxFxHxWx3, grid: tuple[int, int]):
  """(patches float32 [B, T, h, w, D] as `cfg.dino_frames` makes them, classes [B, T, D] of each step's first frame).

  video_BxFxHxWx3: float in [-1, 1], F = 4 (T - 1) + 1. grid: (h, w).
  """
  b, frames = video_BxFxHxWx3.shape[:2]
  first = first_frames(frames)
  mean = cfg.dino_frames == "avg"
  images = video_BxFxHxWx3 if mean else video_BxFxHxWx3[:, first]
  n = images.shape[1]
  patches, classes = net.apply(params, _resized(net, images.reshape(b * n, *images.shape[2:]), grid))
  patches, classes = patches.reshape(b, n, *grid, -1), classes.reshape(b, n, -1)
  return (group_mean(patches, GROUP), classes[:, first]) if mean else (patches, classes)


def joined(cfg: TokenizerConfig, patches_BxTxhxwxD, classes_BxTxD, latents_BxTxhxwxC):
  """What `dino_inputs` gives, of features and latents."""
  grid = latents_BxTxhxwxC.astype(jnp.float16).astype(jnp.float32)
  if cfg.dino_frames:
    grid = jnp.concatenate([patches_BxTxhxwxD, grid], axis=-1)
  if not cfg.encoder.global_token:
    return grid, None
  first = jnp.broadcast_to(classes_BxTxD[:, :1], classes_BxTxD.shape)
  return grid, first if cfg.dino_class == "frame0" else classes_BxTxD


def _resized(net, images_NxHxWx3, grid: tuple[int, int]) -> jax.Array:
  """Images normalised for the net, of one cell per latent."""
  rows, columns = (
    jnp.asarray(cubic_matrix(old, cells * net.patch), jnp.float32)
    for old, cells in zip(images_NxHxWx3.shape[1:3], grid, strict=True)
  )
  resized = jnp.einsum("hH,wW,NHWC->NhwC", rows, columns, images_NxHxWx3 * 0.5 + 0.5, precision="highest")
  return (jnp.clip(resized, 0.0, 1.0) - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
