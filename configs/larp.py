"""LARP (arXiv 2410.21264): configs/larp.py:SIZE with SIZE one of smoke, mini64 and k600.

The recipe of the released run as far as it is known; values marked `unknown` are our defaults.
"""

from __future__ import annotations

import dataclasses

from configs import common
from vftok.families.query.config import PriorConfig, QueryConfig, VQConfig
from vftok.models.clip_critic import CriticConfig
from vftok.tasks.one_pass_loss import OnePassLoss

# Clips of K600's and UCF-101's training lists as they were published: what an epoch is, unknown.
EPOCH_CLIPS = 392_622 + 9_537


def get_config(size: str = "mini64"):
  return {make.__name__: make for make in (smoke, mini64, k600)}[size]()


def model(width: int, depth: int, *, tokens: int, codes: int, code_dim: int, size: int, prior: tuple, **own) -> dict:
  """A tokenizer's config as a plain dict; `prior`: (layers, heads, width)."""
  heads = max(1, width // 64)
  layers, prior_heads, prior_width = prior
  sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _half(width, heads, depth)}
  cfg = QueryConfig(
    **dict(
      bottleneck_token_num=tokens,
      input_size=size,
      frame_num=16,
      temporal_patch_size=4,
      patch_size=8,
      **sizes,
      vq=VQConfig(code_dim, codes),
      group_tokens=tokens,
      prior=PriorConfig(layers, prior_width, 4 * prior_width, tokens, prior_heads),
    )
    | own
  )
  return dataclasses.asdict(cfg)


def _half(width: int, heads: int, depth: int) -> tuple:
  return ("hidden_size", width), ("num_heads", heads), ("depth", depth)


def loss(**own) -> dict:
  """LARP's terms: VQ as a whole by 0.1, LeCam by 0.001 twice, as its code does."""
  terms = dict(codebook=0.1, commit=0.1 * 0.25, prior=0.06, adversarial=0.3, lecam=1e-6)
  return dataclasses.asdict(OnePassLoss(**(terms | own)))


def optim(**own) -> dict:
  """Adam; the critic has its turn at every 5th step, LeCam's means follow it by 1 - 0.999."""
  groups = {"tokenizer/prior": 50.0, "critic": 0.3}
  every, follow = {"critic": 5}, {"critic/anchors": 1e-3}
  laws = dict(b1=0.5, b2=0.9, weight_decay=0.0, clip=0.0, first=0.01, final=0.01)
  return dict(lr=1e-4, lr_groups=groups, every=every, follow=follow) | laws | own


def smoke():
  """Two seconds a step on any machine: for tests. Every term of the loss that needs no download is on."""
  return common.smoke(
    task="one_pass",
    title="LARP smoke",
    family="larp",
    freeze=("tokenizer/fixed",),
    model=model(32, 1, tokens=8, codes=32, code_dim=4, size=16, prior=(1, 2, 32)),
    loss=loss(l2=0.1, lpips=0.0, lpips_net="", critic=CriticConfig(32, 2, 1)),
    **common.on_shapes(16, probe=False),
    optim=optim(lr=1e-3, warmup=2, every={"critic": 2}, lr_groups={"tokenizer/prior": 2.0, "critic": 0.3}),
    ema=0.0,
  )


def mini64():
  """Pictures of 64x64, 256 tokens of 1,000 codes a clip; as large as configs/tokenizer.py:mini64 with its VAE."""
  return common.base(
    task="one_pass",
    title="LARP mini",
    family="larp",
    steps=100_000,
    batch_size=128,
    freeze=("tokenizer/fixed",),
    model=model(
      384, 6, tokens=256, codes=1000, code_dim=8, size=64, prior=(4, 3, 192), decoder_depth=7, dtype="bfloat16"
    ),
    loss=loss(critic=CriticConfig(192, 3, 4, dtype="bfloat16")),
    data=dict(sources=common.world_data(frames=16), size=64, frames=16),
    eval=dict(sets=common.world_sets(frames=16), clips=256, media=8),
    optim=optim(lr=4e-4, warmup=1000, lr_groups={"tokenizer/prior": 5.0, "critic": 0.3}),
    ema=0.0,
    log_every=20,
    save_every=0,
    media_every=0,
  )


def paper(epochs: int, **own):
  """Kinetics-600 and UCF-101 at 128x128 and their own rate, batch 128, warm-up of 8 epochs."""
  epoch = EPOCH_CLIPS // 128
  return common.base(
    task="one_pass",
    steps=epochs * epoch,
    batch_size=128,
    freeze=("tokenizer/fixed",),
    loss=loss(),
    data=dict(sources=common.videos(split="train"), size=128, frames=16, fps=0.0, flip=True, workers=16),
    eval=dict(sets=dict(val=common.videos(split="val")), clips=2048),
    optim=optim(warmup=8 * epoch),
    ema=0.0,
    log_every=50,
    save_every=2000,
    media_every=5000,
    **own,
  )


def k600():
  """LARP-L-long as it was released: 150 epochs."""
  cfg = dict(tokens=1024, codes=8192, code_dim=16, size=128, prior=(12, 6, 384), dtype="bfloat16")
  return paper(150, title="LARP-L-long", family="larp", model=model(768, 12, **cfg))
