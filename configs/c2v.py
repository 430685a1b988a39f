"""Class-to-video: configs/c2v.py:SIZE with SIZE one of smoke, mini, 49m, 85m, 201m, 287m, ... 2.2b (configs/ar.py)."""

from __future__ import annotations

from configs import ar, common


def get_config(size: str = "mini"):
  if size in ar.CLASS_SIZES:
    # Kinetics-600 at all 256 tokens per step: 164 B tokens in the system comparison.
    cfg = ar.paper(ar.CLASS_SIZES[size], text=False, slots=256, tokens_seen=164e9, length=1280)
    cfg.model.ar.n_classes = 600
    return cfg
  return {"smoke": smoke, "mini": mini}[size]()


def smoke():
  return ar.smoke(text=False, directory="tokens_smoke")


def mini():
  """Over vftok-mini, on two CPU cores: the object of a rendered scene is its class."""
  sim = dict(sim=common.mini_data()["sim"])
  return common.base(
    task="ar",
    title="vftok-mini-c2v",
    steps=2_000,
    batch_size=32,
    model=ar.model(4, text=False, width=192, n_classes=16),
    loss=ar.LOSS,
    data=dict(sources=ar.tokens("tokens_mini_c2v"), workers=0, size=32),
    eval=dict(sets=dict(val=ar.tokens("tokens_mini_c2v", split="val"))),
    optim=dict(lr=1e-3, warmup=100, b2=0.95, weight_decay=0.05, final=0.02),
    ema=0.998,
    sample=ar.SAMPLE,
    tokenize=ar.tokenize("vftok-mini", sim, size=32),
  )
