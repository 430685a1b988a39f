"""EVATok (arXiv 2603.12267): configs/evatok.py:SIZE with SIZE one of smoke, smoke_final, mini64, proxy and final.

`proxy` learns under random assignments of tokens. `label` then measures what clips lose under every one
(`python -m vftok.tools.label_budgets --config=configs/evatok.py:router`), `router` learns from that, and `final` learns
anew under its choices (final_videomae: with the semantic critic); smoke_router and smoke_final are these of smoke.
Generators: `c2v` and `k600`, of three sizes as c2v_b, c2v_l and c2v_l_plus. What the paper leaves open is marked
`unknown` and is our default.
"""

from __future__ import annotations

import dataclasses

from configs import ar, common
from vftok.families.evatok.config import EvatokConfig, QFormerConfig, router_config
from vftok.io.packaged import cache_dir
from vftok.models.clip_critic import CriticConfig
from vftok.tasks.losses import ARLoss, Dropout
from vftok.tasks.one_pass_loss import OnePassLoss

GENERATORS = {"b": (12, 768, 2048), "l": (24, 1024, 2816), "l_plus": (30, 1280, 3584)}  # layers, width, of the MLP
DROPOUT = Dropout(token=0.1, residual=0.1, ffn=0.1)
UCF_CLIPS, K600_CLIPS = 9_537, 392_622  # of the training lists


def get_config(size: str = "mini64"):
  name, _, of = size.partition("_")
  if name in ("c2v", "k600") and (of or "b") in GENERATORS:
    return {"c2v": c2v, "k600": k600}[name](of or "b")
  known = (smoke, smoke_final, smoke_router, smoke_c2v, smoke_k600, mini64, proxy, router, final, final_videomae)
  return {make.__name__: make for make in known}[size]()


def model(**fields) -> dict:
  return dataclasses.asdict(EvatokConfig(**fields))


def loss(**own) -> dict:
  """l1, LPIPS, VQ with its entropy, alignment, and a critic of patches by hinge, 0.3 from step 20,000 on (unknown)."""
  terms = dict(codebook=1.0, commit=0.25, entropy=0.02, adversarial=0.3, form="hinge", adversarial_from=20_000)
  return dataclasses.asdict(OnePassLoss(**(terms | dict(critic=CriticConfig(per_patch=True)) | own)))


def optim(**own) -> dict:
  """Warm-up and the critic's rate, that of the tokenizer, are unknown."""
  return dict(lr=1e-4, warmup=5_000, final=0.01, b1=0.9, b2=0.95, weight_decay=1e-4, clip=10.0) | own


def _tiny() -> EvatokConfig:
  half = QFormerConfig(32, 1, 2)
  sizes = dict(encoder=half, decoder=half, frames=4, frame_size=(16, 16), patch=(2, 4, 4), counts=(2, 4, 8, 16))
  return EvatokConfig(**sizes, codebook_size=64, code_dim=4)


def smoke():
  """Two seconds a step on any machine: for tests; a proxy."""
  return common.smoke(
    task="one_pass",
    title="EVATok smoke",
    family="evatok",
    model=dataclasses.asdict(_tiny()),
    loss=loss(
      lpips=0.0,
      lpips_net="",
      counts="assignments",
      adversarial_from=1,
      critic=CriticConfig(32, 2, 1, (2, 4, 4), per_patch=True),
    ),
    **common.on_shapes(4, probe=False),
    optim=optim(lr=1e-3, warmup=2),
  )


def smoke_final():
  """The same under a router's choices; name it in loss.router."""
  cfg = smoke()
  cfg.title, cfg.loss.counts, cfg.loss.router = "EVATok smoke, final", "router", "router"
  return cfg


def router_over(cfg: EvatokConfig, directory: str, proxy_model: str, sources: tuple[dict, dict], *, fps: float, **own):
  """A router of a model's assignments; clips of `sources` (to learn and judge by) are labelled in `directory`."""
  curves = lambda split: dict(curves=dict(kind="curves", directory=directory, split=split))
  network = dataclasses.asdict(router_config(cfg))
  return common.base(
    task="assignment_router",
    model=network,
    data=dict(sources=curves("train"), frames=cfg.frames, size=cfg.frame_size[0], fps=fps),
    eval=dict(sets=dict(val=curves("val"))),
    # w_q; temperature of soft targets, 0: the best assignment; pictures are mirrored, which changes no label.
    loss=dict(preference=1.2, soft=0.0, flip=True),
    media_every=0,
    label=dict(
      tokenizer=proxy_model,
      splits=dict(zip(("train", "val"), sources, strict=True)),
      clips=dict(train=0, val=0),  # 0: all
      frames=cfg.frames,
      size=cfg.frame_size[0],
      fps=fps,
      batch_size=8,
    ),
    **own,
  )


def smoke_router():
  cfg = router_over(
    _tiny(),
    "curves_evatok_smoke",
    "",
    (common.shapes(8), common.shapes(4)),
    fps=8.0,
    title="EVATok smoke, router",
    steps=4,
    batch_size=4,
    optim=dict(lr=1e-3, warmup=2),
    log_every=1,
    save_every=2,
  )
  cfg.model.update(dim=32, depth=1, head_dim=16)
  cfg.label.batch_size = cfg.eval.batch_size = 4
  return cfg


def mini64():
  """Pictures of 64x64, 16 to 128 tokens in each four frames, 1,024 codes; a proxy."""
  half = lambda depth: QFormerConfig(320, depth, 5, dtype="bfloat16")
  sizes = dict(frame_size=(64, 64), counts=(16, 32, 64), codebook_size=1024)
  critic = CriticConfig(192, 3, 4, per_patch=True, dtype="bfloat16")
  return common.base(
    task="one_pass",
    title="EVATok mini",
    family="evatok",
    steps=100_000,
    batch_size=128,
    model=model(encoder=half(4), decoder=half(8), **sizes),
    loss=loss(counts="assignments", critic=critic),
    data=dict(sources=common.world_data(), size=64, frames=16),
    eval=dict(sets=common.world_sets(), clips=256, media=8),
    optim=optim(lr=4e-4, warmup=1000),
    log_every=20,
    save_every=0,
    media_every=0,
  )


def proxy():
  """Random assignments, 16,384 codes, 400k steps of 128 clips at 3 frames a second."""
  return common.base(
    task="one_pass",
    title="EVATok proxy",
    family="evatok",
    steps=400_000,
    batch_size=128,
    model=_in_bfloat16(EvatokConfig()),
    loss=loss(counts="assignments", align=0.7, align_path="facebook/vjepa2-vitl-fpc64-256"),
    data=dict(sources=common.videos(split="train"), size=128, frames=16, fps=3.0, flip=True, workers=16),
    eval=dict(sets=dict(val=common.videos(split="val")), clips=2048),
    optim=optim(),
    ema=0.9999,  # unknown
    log_every=50,
    save_every=2000,
    media_every=5000,
  )


def router():
  """6 layers of 512 over 1,024 patches; 100,000 clips under 625 assignments each, 50k steps."""
  cfg = router_over(
    EvatokConfig(),
    str(cache_dir() / "curves_evatok"),
    "runs/evatok_proxy/model",
    (common.videos(split="train"), common.videos(split="val")),
    fps=3.0,
    title="EVATok router",
    steps=50_000,
    batch_size=128,
    optim=dict(lr=1e-4, warmup=1000, weight_decay=0.05),  # unknown
    save_every=2000,
  )
  cfg.label.clips.update(train=100_000, val=2_000)
  return cfg


def final():
  """UCF-101 and K600 at their own rate with 8,192 codes, from scratch under the router's choices, 1,000k steps."""
  cfg = proxy()
  cfg.title, cfg.steps, cfg.data.fps, cfg.model.codebook_size = "EVATok", 1_000_000, 0.0, 8192
  cfg.loss.update(counts="router", router="runs/evatok_router/model")
  return cfg


def final_videomae():
  """The same with VideoMAE's features judging in place of patches: 0.5 from step 80,000 on (unknown)."""
  cfg = final()
  cfg.title += " with VideoMAE"
  cfg.loss.update(critic_path="MCG-NJU/videomae-base", adversarial=0.5, adversarial_from=80_000)
  return cfg


def _generator(of: str, name: str, title: str, clips: int, epochs: int, warmup: int, **own):
  """Constant rate and the last fifth down to 0; 3e-4 is unknown."""
  depth, width, hidden = GENERATORS[of]
  epoch = clips // 128
  sizes = dict(width=width, hidden_dim=hidden, positions="sequence", dtype="bfloat16", **own)
  splits = [common.videos(split=split) for split in ("train", "val")]
  return common.base(
    task="ar",
    title=f"{title} {of}",
    steps=epochs * epoch,
    batch_size=128,
    model=ar.model(depth, text=False, lengths="length_first", remat="dots_with_no_batch_dims_saveable", **sizes),
    loss=ARLoss(show_scale=1.75 if of != "b" else 2.5, dropout=DROPOUT),
    data=dict(sources=ar.tokens(name), frames=16, size=128, fps=0.0, workers=8),
    eval=dict(sets=dict(val=ar.tokens(name, split="val")), generation={**ar.GENERATION, "clips": 2048, "keeps": ()}),
    optim=dict(
      lr=3e-4, schedule="wsd", decay=0.2, final=0.0, warmup=warmup * epoch, b1=0.9, b2=0.95, weight_decay=0.05
    ),
    ema=0.9999,  # unknown
    sample=ar.SAMPLE,
    log_every=50,
    save_every=2000,
    media_every=5000,
    tokenize=ar.tokenize("runs/evatok_final/model", *splits, frames=16, size=128, fps=0.0)
    | dict(router="runs/evatok_router/model"),
  )


def c2v(of: str):
  """UCF-101 by its classes: 3,000 epochs, guidance 2.5 for the small model and 1.75 for others."""
  cfg = _generator(of, "tokens_evatok_ucf", "EVATok on UCF-101", UCF_CLIPS, 3000, 4, n_classes=101)
  cfg.model.guidance = ((65536, cfg.loss.show_scale),)
  return cfg


def k600(of: str):
  """Kinetics-600, 5 frames given in 640 tokens of their own: 75 epochs, no guidance."""
  cfg = _generator(of, "tokens_evatok_k600", "EVATok on K600", K600_CLIPS, 75, 1)
  cfg.model.guidance, cfg.loss.null = ((65536, 1.0),), 0.0
  cfg.tokenize.condition.update(frames=5, counts=(512, 128))
  return cfg


def smoke_c2v():
  cfg = ar.smoke(text=False, directory="tokens_evatok_smoke", lengths="length_first")
  cfg.model.ar.positions, cfg.loss.given_probs = "sequence", (1.0,)
  cfg.loss.dropout.update(dataclasses.asdict(DROPOUT))
  cfg.optim.update(schedule="wsd", final=0.0)
  cfg.tokenize.frames = 4
  return cfg


def smoke_k600():
  cfg = smoke_c2v()
  cfg.model.ar.n_classes, cfg.loss.null = 0, 0.0
  cfg.tokenize.condition.update(frames=1, counts=(8,))
  return cfg


def _in_bfloat16(cfg: EvatokConfig) -> dict:
  return dataclasses.asdict(cfg.with_dtype("bfloat16"))
