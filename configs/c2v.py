"""Class-to-video: configs/c2v.py:SIZE with SIZE one of smoke, mini, 49m, 85m, 201m, 287m, ... 2.2b (configs/ar.py).

Also SIZE_semantok (over a tokenizer of configs/tokenizer.py:semantok, evaluated by its protocol) and SIZE_ours.
"""

from __future__ import annotations

from configs import ar, common
from vftok.tasks.losses import ARLoss


def get_config(size: str = "mini"):
  name, _, form = size.partition("_")
  if name not in ar.CLASS_SIZES:
    return {"smoke": smoke, "mini": mini}[size]()
  return {"": _paper, "ours": lambda d: ar.ours(_paper(d)), "semantok": _semantok}[form](ar.CLASS_SIZES[name])


def _paper(depth: int):
  """Kinetics-600 at all 256 tokens per step: 164 B tokens in the system comparison."""
  cfg = ar.paper(depth, "k600", text=False, slots=256, tokens_seen=164e9)
  cfg.model.ar.n_classes = 600
  return cfg


def _semantok(depth: int):
  cfg = _paper(depth)
  cfg.title += " over SemanTok"
  cfg.tokenize.tokenizer, cfg.tokenize.dino = "runs/semantok/model", "facebook/dinov2-large"
  for source in (cfg.data.sources.tokens, cfg.eval.sets.val.tokens):
    source.directory = ar.tokens("tokens_k600_semantok")["tokens"]["directory"]
  cfg.eval.generation.update(ar.SEMANTOK)
  return cfg


def smoke():
  return ar.smoke(text=False, directory="tokens_smoke")


def mini():
  """Over vftok-mini, on two CPU cores: the object of a rendered scene is its class."""
  sim, (val, test) = dict(sim=common.mini_data()["sim"]), common.mini_splits()
  return common.base(
    task="ar",
    title="vftok-mini-c2v",
    steps=2_000,
    batch_size=32,
    model=ar.model(4, text=False, width=192, n_classes=16),
    loss=ARLoss(),
    data=dict(sources=ar.tokens("tokens_mini_c2v"), workers=0, size=32),
    eval=dict(
      sets={split: ar.tokens("tokens_mini_c2v", split=split) for split in ("val", "test")},
      generation={**ar.GENERATION, "split": "test", "clips": 32, "steps": 12},
    ),
    optim=dict(lr=1e-3, warmup=100, b2=0.95, weight_decay=0.05, final=0.02),
    ema=0.998,
    sample=ar.SAMPLE,
    tokenize=ar.tokenize("vftok-mini", sim, val, test, size=32),
  )
