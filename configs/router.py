"""The router: configs/router.py:SIZE with SIZE one of smoke, mini, mini_flow, d12, d18_k600 and d18.

d18 and d18_k600 are over the two public tokenizers (Panda-70M, Kinetics-600), d12 over one that you trained.

`python -m vftok.tools.label_budgets --config=configs/router.py:SIZE` measures what it learns from.
"""

from __future__ import annotations

from configs import common
from vftok.budget.label import Label
from vftok.io.packaged import cache_dir
from vftok.models.router import RouterConfig
from vftok.tasks.losses import RouterLoss

TOKENIZERS = {
  "d12": dict(tokenizer="runs/d12_d12/model", size=128),  # none is public: yours, of configs/tokenizer.py:d12_d12
  "d18_k600": common.RELEASED["k600"],
  "d18": common.RELEASED["panda"],
}


def get_config(size: str = "mini"):
  if size in TOKENIZERS:
    return _paper(size, **TOKENIZERS[size])
  return {make.__name__: make for make in (smoke, mini, mini_flow)}[size]()


def curves(name: str = "curves", **own) -> dict:
  return dict(curves=dict(kind="curves", directory=str(cache_dir() / name), **own))


def smoke():
  """Seconds on any machine: for tests."""
  return common.smoke(
    task="router",
    title="router smoke",
    model=RouterConfig(dim=64, depth=1),
    data=dict(sources=dict(curves=dict(kind="curves", directory="curves_smoke")), workers=0),
    eval=dict(sets=dict(val=dict(curves=dict(kind="curves", directory="curves_smoke", split="val"))), batch_size=4),
    loss=RouterLoss("flow"),
    label=Label(
      "",
      splits=dict(train=common.shapes(8), val=common.shapes(4)),
      clips=dict(train=0, val=0),
      levels=(1, 2, 4),
      times=(0.5,),
      random=4,
      drawn=4,
      sampled=dict(train=8, val=2),
      solver_steps=2,
      size=16,
      batch_size=4,
    ),
  )


def mini():
  """Over vftok-mini, on two CPU cores: rendered scenes and real clips."""
  data = {"sources": common.mini_data()}
  return common.base(
    task="router",
    title="vftok-mini-router",
    steps=300,
    batch_size=64,
    model=RouterConfig(dim=96, depth=3, head_dim=32),
    data=dict(sources=curves("curves_mini"), workers=0, size=32),
    eval=dict(sets=dict(val=curves("curves_mini", split="val"))),
    loss=RouterLoss("lpips", noise=1.0),
    optim=dict(lr=5e-4, warmup=20, weight_decay=0.05, final=0.02),
    ema=0.98,
    save_every=1000,
    media_every=0,
    label=Label(
      "vftok-mini",
      # Real clips first: clips are taken in order, up to the number below.
      splits=dict(
        train={name: {**data["sources"][name], "split": "train"} for name in ("clips", "sim")},
        val=common.mini_splits()[0],
      ),
      clips=dict(train=512, val=64),
      levels=(1, 2, 4, 8, 16),
      times=(0.5, 0.85),
      random=6,
      drawn=12,
      sampled=dict(train=512, val=64),
      solver_steps=6,
      size=32,
    ),
  )


def mini_flow():
  """By flow loss alone, a small part of the work: of six times as many clips a router learns what is their own.

  `mini` may start from it (init_from).
  """
  cfg = mini()
  cfg.title, cfg.steps = "vftok-mini-router, flow loss", 800
  cfg.loss.measure, cfg.loss.noise = "flow", 0.3
  cfg.label.clips.train, cfg.label.sampled = 3072, dict(train=0, val=0)
  cfg.data.sources, cfg.eval.sets.val = curves("curves_flow"), curves("curves_flow", split="val")
  return cfg


def _paper(name: str, tokenizer: str, size: int):
  """EVATok's router has 20 M parameters and 100,000 labelled clips."""
  return common.base(
    task="router",
    title=f"router over {name}",
    steps=50_000,
    batch_size=128,
    mesh=dict(data=-1),
    model=RouterConfig(dim=384, depth=4, patch=(1, 4, 4), dtype="bfloat16"),  # 2 % of the work of a d12 encoder
    data=dict(sources=curves(f"curves_{name}"), size=size, fps=common.CLIP_FPS, workers=4),
    eval=dict(sets=dict(val=curves(f"curves_{name}", split="val"))),
    loss=RouterLoss("lpips"),
    optim=dict(lr=1e-4, warmup=1000, weight_decay=0.05),
    ema=0.9998,
    save_every=2000,
    media_every=0,
    label=Label(
      tokenizer,
      splits=dict(
        train=common.videos(),
        val=common.videos(split="val"),
      ),
      clips=dict(train=100_000, val=2_000),
      sampled=dict(train=20_000, val=2_000),
      size=size,
      fps=common.CLIP_FPS,
    ),
  )
