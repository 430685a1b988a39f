"""EVATok models of tests: the golden one, and random ones of any config."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from vftok.families.evatok import programs
from vftok.families.evatok.api import EVATok
from vftok.families.evatok.config import EvatokConfig, QFormerConfig, check

GOLDEN = Path(__file__).parent / "data" / "evatok_small.safetensors"
TINY = EvatokConfig(
  encoder=QFormerConfig(16, 2, 2),
  decoder=QFormerConfig(24, 2, 3),
  frames=4,
  frame_size=(8, 16),
  patch=(2, 4, 4),
  counts=(2, 4, 8, 16),
  codebook_size=64,
  code_dim=4,
)


def random_model(seed=0, **fields):
  """(tokenizer, params) whose ids spread: sizes of values as in the golden file."""
  cfg = dataclasses.replace(TINY, **fields)
  check(cfg)
  rng = np.random.default_rng(seed)
  center, size = {"scale": 1.0}, {"scale": 0.25, "bias": 0.15, "places": 1.0, "codebook": 1.0}

  def draw(path, leaf):
    kind = path[-1].key.rsplit("_", 1)[-1]
    return np.float32(center.get(kind, 0) + size.get(kind, 0.3) * rng.standard_normal(leaf.shape, np.float32))

  return EVATok(cfg), jax.tree_util.tree_map_with_path(draw, abstract(cfg))


@functools.cache
def abstract(cfg):
  return jax.eval_shape(EVATok(cfg).init, jax.random.key(0))


def random_video(tok, batch=2, chunks=1, seed=1):
  shape = (batch, chunks * tok.chunk_frames, *tok.frame_size, 3)
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def parameters(cfg) -> int:
  return sum(int(np.prod(leaf.shape)) for leaf in programs.abstract_params(cfg).values())
