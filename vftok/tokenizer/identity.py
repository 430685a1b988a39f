"""Who a model is: the fingerprint stored beside its tokens, and the facts `vftok info` prints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vftok.models.config import TokenizerConfig
from vftok.models.vae import VAEConfig
from vftok.tokenizer.geometry import FlowGeometry

SHOWN_SIDES = (64, 128, 256)  # of frames whose latents `describe_vae` gives
SAMPLES = 64  # values of each tensor that enter the fingerprint


def fingerprint(cfg: TokenizerConfig, params) -> str:
  """16 hex digits of VAE encoder, register encoder, levels and chunk geometry; not of how they are computed."""
  encoder = dataclasses.asdict(cfg.encoder)
  for name in ("dtype", "remat", "scan"):
    del encoder["stack"][name]
  if encoder["cell"] == (1, 1):  # came later than the first fingerprints
    del encoder["cell"]
  decides = [encoder, cfg.levels, cfg.chunk_frames, cfg.overlap_frames, cfg.latent_size, cfg.dino_frames]
  if cfg.vae.latent_std:  # part of the encoder where a model has them; none of the released ones does
    decides += [cfg.vae.latent_mean, cfg.vae.latent_std]
  if cfg.dino_class != "per_frame":
    decides.append(cfg.dino_class)
  digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
  sampled(digest, nn.unbox({"vae": params["vae"]["encoder"], "encoder": params["encoder"]}))
  return digest.hexdigest()[:16]


def sampled(digest, tensors) -> None:
  """Adds the path, shape and some values of every tensor of a tree to a hash."""
  here = np.asarray if jax.default_backend() == "cpu" else lambda x: x  # JAX would compile a program per shape
  for path, value in jax.tree_util.tree_flatten_with_path(tensors)[0]:
    flat = here(value).reshape(-1)
    sample = np.asarray(flat[:: max(1, flat.size // SAMPLES)][:SAMPLES], np.float32)
    digest.update(f"{jax.tree_util.keystr(path)}{value.shape}".encode() + sample.tobytes())


def parameter_counts(params) -> dict[str, int]:
  """Of every part, and "total"."""
  parts = {name: sum(int(x.size) for x in jax.tree.leaves(tree)) for name, tree in params.items()}
  return {**parts, "total": sum(parts.values())}


def describe(tok: FlowGeometry, params) -> dict[str, Any]:
  """Geometry, parameter counts per part, switches, fingerprint: plain JSON."""
  enc, dec = tok.cfg.encoder, tok.cfg.decoder
  return {
    "frame_size": list(tok.frame_size),
    "chunk_frames": tok.chunk_frames,
    "overlap_frames": tok.overlap_frames,
    "steps_per_chunk": tok.chunk_steps,
    "tokens_per_step": tok.registers,
    "codebook_size": tok.codebook_size,
    "levels": list(tok.levels),
    "parameters": parameter_counts(params),
    "dtype": str(jax.tree.leaves(params)[0].dtype),
    "encoder": {"depth": enc.stack.depth, "width": enc.stack.dim, "mask": enc.mask, "patch": list(enc.patch)},
    "decoder": {"depth": dec.stack.depth, "width": dec.stack.dim, "mask": dec.mask, "patch": list(dec.patch)},
    "learned_vectors": list(dec.replacements),
    "collapse": dec.collapsible,
    "fingerprint": fingerprint(tok.cfg, params),
  }


def describe_vae(cfg: VAEConfig, params) -> dict[str, Any]:
  """Strides, channels, latents of some clips, parameter counts of a VAE by itself: plain JSON."""
  time, height, width = cfg.patch
  frames = 1 + 4 * time  # the first frame is a latent step of its own
  fits = [side for side in SHOWN_SIDES if side % height == 0]
  return {
    "kind": "VAE",
    "strides": {"time": time, "height": height, "width": width},
    "channels": cfg.z_channels,
    "latents": {f"{frames}x{side}x{side}": [5, side // height, side // width, cfg.z_channels] for side in fits},
    "parameters": parameter_counts(params),
    "dtype": str(jax.tree.leaves(params)[0].dtype),
    "widths": list(cfg.widths),
    "linear": cfg.linear,
  }
