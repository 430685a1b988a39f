"""Text-to-video: configs/t2v.py:SIZE with SIZE one of smoke, mini, mini_adaptive, long, 66m, 113m, 268m, ... 5.2b.

Published sizes follow the papers; SIZE_ours and long_ours are what we do otherwise (`ar.ours`).
`python -m vftok.tools.tokenize_dataset --config=configs/t2v.py:SIZE` makes the tokens it trains on.
"""

from __future__ import annotations

from configs import ar, common
from vftok.tasks.losses import ARLoss

PROMPTS = (
  "a red cube slides to the left on a grey floor under a blue sky, still camera",
  "a green cube slides to the left on a grey floor under a blue sky, still camera",
  "a red duck slides to the left on a grey floor under a blue sky, still camera",
  "a red cube comes closer on a grey floor under a blue sky, still camera",
  "a red cube slides to the left on a white floor under a pink sky, still camera",
  "a yellow ring jumps on a brown floor under a dark sky, still camera",
)


def get_config(size: str = "mini"):
  if size.endswith("_ours"):
    return ar.ours(get_config(size.removesuffix("_ours")))
  if size in ar.TEXT_SIZES:
    depth = ar.TEXT_SIZES[size]
    # Compute-optimal: 20 tokens per parameter (16 D^2 per block); the arm that learns 32 tokens per step.
    return ar.paper(depth, "panda", text=True, slots=32, tokens_seen=20 * 16 * (64 * depth) ** 2 * depth)
  own = (smoke, smoke_adaptive, mini, mini_adaptive, long)
  return {make.__name__: make for make in own}[size]()


def smoke():
  return ar.smoke(text=True, directory="tokens_smoke")


def smoke_adaptive():
  return ar.smoke(text=True, directory="tokens_smoke_adaptive", lengths="length_first")


def mini():
  """Over vftok-mini, on two CPU cores: captions of rendered scenes and of real clips."""
  train, (val, test) = common.mini_data(), common.mini_splits()
  return common.base(
    task="ar",
    title="vftok-mini-t2v",
    steps=1_700,
    batch_size=32,
    model=ar.model(4, text=True, width=192),
    loss=ARLoss(given_probs=(0.8, 0.1, 0.1)),
    data=dict(sources=ar.tokens("tokens_mini"), workers=0, size=32),
    eval=dict(
      sets={split: ar.tokens("tokens_mini", split=split) for split in ("val", "test")},
      generation={**ar.GENERATION, "split": "test", "clips": 32, "steps": 12, "prompts": PROMPTS},
    ),
    optim=dict(lr=1e-3, warmup=100, b2=0.95, weight_decay=0.05, final=0.02),
    ema=0.998,
    sample=ar.SAMPLE,
    tokenize=ar.tokenize("vftok-mini", train, val, test, size=32, text="minilm", text_tokens=24),
  )


def mini_adaptive():
  """As mini, and how many tokens each time step gets is the model's own choice, learned from a router."""
  cfg = mini()
  cfg.title = "vftok-mini-t2v, adaptive"
  cfg.model.ar.lengths = "length_first"
  # By vftok-mini-router 1.9 to 8.6 tokens per step on average; look at tokens_per_step.
  cfg.loss.preference = (1.4, 1.96)
  for source in (cfg.data.sources.tokens, cfg.eval.sets.val.tokens, cfg.eval.sets.test.tokens):
    source.directory = ar.tokens("tokens_mini_adaptive")["tokens"]["directory"]
  cfg.tokenize.router = "auto"
  return cfg


def long():
  """81 frames in 672 tokens: 21 time steps of 32, text, 3.2 B parameters, 55 B tokens."""
  return ar.paper(36, "panda", text=True, slots=32, tokens_seen=55e9, frames=81)
