"""Families at equal data, steps, optimizer and parameters: configs/study.py:ARM-SIZE, as `vftok.tools.study.families`
runs them. ARM is one of nested, grid, grid_4, grid_16, larp, adaptok and evatok, or of RECIPES, other ways to train
nested that no claim is about; SIZE is smoke (seconds, for tests),
pocket (32x32, about 15 hours on two CPU cores by estimate) or mini64 (64x64, for one GPU).

ARM-SIZE-DEPTH is a generator of that depth over the arm's tokens, its condition the object that a scene shows.
"""

from __future__ import annotations

import dataclasses
import importlib

from configs import ar, common, evatok
from configs import vae as vae_experiments
from vftok.families.evatok.config import EvatokConfig
from vftok.models.config_json import from_dict
from vftok.tasks.losses import ARLoss

ARMS = ("nested", "grid", "grid_4", "grid_16", "larp", "adaptok", "evatok")
RECIPES = {
  "nested_flow": dict(prefix_latents=0.0, prefix_features=0.0),  # no head that sees the kept prefix alone
  "nested_features": dict(prefix_features=1.0, features_reduce="first", features_standard=True),  # of VGG16
  "nested_white": {},  # over latents whose channels are half whitened
}
# Frames of a clip: a causal VAE reads 1 + 4m of them, the others whole patches. Scored are the first FRAMES of all.
FRAMES = 16


@dataclasses.dataclass(frozen=True)
class Size:
  """What all arms of a size share.

  Attributes:
    pixels: height and width of frames. objects, plain: what scenes show, see `vftok.data.world.WorldSource`.
    steps, batch: of a tokenizer; ar_steps, ar_batch, depths: of the generators.
    lr, warmup, muon: of every tokenizer's optimizer.
    clips: how many there are to train on; held_out: in each of the other sets.
    chosen_on, judged_on: clips of a set that the best guidance is chosen on, and that numbers are of.
    probed_on: clips of "test" that the probe is of, and of "train" that it learns from.
    guidances: scales of a flow decoder that are tried; solver_steps: of it. classifier_steps: of what sees attributes.
    labelled: clips that are decoded under every assignment of an arm whose ids depend on counts, to learn from and
      to be judged by; router_steps: of what learns to choose.
    net: whether LPIPS and FVD are computed, which downloads their nets.
  """

  pixels: int
  steps: int
  batch: int
  ar_steps: int
  ar_batch: int
  depths: tuple[int, ...]
  lr: float
  warmup: int
  clips: int
  held_out: int
  chosen_on: int
  judged_on: int
  guidances: tuple[float, ...]
  solver_steps: int
  classifier_steps: int = 1500
  labelled: tuple[int, int] = (192, 64)
  router_steps: int = 300
  net: bool = True
  objects: int = 3
  plain: bool = False
  scale: float = 1.0
  probed_on: int = 1024
  muon: float = 0.6


SIZES = {
  "smoke": Size(
    pixels=16,
    steps=2,
    batch=4,
    ar_steps=2,
    ar_batch=4,
    depths=(1, 2),
    lr=1e-3,
    warmup=1,
    clips=16,
    held_out=24,
    chosen_on=4,
    judged_on=8,
    guidances=(1.0, 2.0),
    solver_steps=1,
    classifier_steps=2,
    labelled=(8, 8),
    router_steps=2,
    net=False,
    probed_on=24,
  ),
  "pocket": Size(
    pixels=32,
    objects=1,
    plain=True,
    scale=1.6,
    steps=1000,
    batch=32,
    ar_steps=600,
    ar_batch=32,
    depths=(2, 4, 6),
    lr=1e-3,
    warmup=100,
    clips=100_000,
    held_out=1024,
    chosen_on=32,
    judged_on=128,
    guidances=(1.0, 1.5, 2.0, 3.0),
    solver_steps=12,
    classifier_steps=300,
  ),
  "mini64": Size(
    pixels=64,
    steps=40_000,
    batch=128,
    ar_steps=20_000,
    ar_batch=128,
    depths=(4, 6, 8),
    lr=1e-3,
    warmup=200,
    clips=1_000_000,
    held_out=2048,
    chosen_on=256,
    judged_on=2048,
    guidances=(1.0, 1.5, 2.0, 3.0),
    solver_steps=12,
    labelled=(4096, 512),
    router_steps=4000,
  ),
}


def get_config(name: str = "nested-pocket"):
  arm, _, rest = name.partition("-")
  size, _, depth = rest.partition("-")
  if arm not in (*ARMS, *RECIPES) or size not in SIZES or (depth and not depth.isdecimal()):
    raise KeyError(name)
  return generator(arm, size, int(depth)) if depth else tokenizer(arm, size)


def frames(arm: str) -> int:
  """Of a clip as the arm reads it."""
  return FRAMES + is_flow(arm)


def scenes(arm: str, size: Size, split: str = "train", most: int = 1 << 31) -> dict:
  """The same scenes for every arm, a frame more or less."""
  count = min(most, size.clips if split == "train" else size.held_out)
  shown = dict(objects=size.objects, plain=size.plain, scale=size.scale)
  return dict(world=dict(kind="world", split=split, size=size.pixels, frames=frames(arm), count=count, **shown))


def tokenizer(arm: str, name: str):
  """An arm's own loss and model; all else is the same for all."""
  size = SIZES[name]
  cfg = _own(arm, name)
  cfg.loss.update(RECIPES.get(arm, {}))
  cfg.title, cfg.steps, cfg.batch_size, cfg.minutes, cfg.ema = f"{arm} {name}", size.steps, size.batch, 0.0, 0.999
  cfg.data.update(dict(sources=scenes(arm, size), size=size.pixels, frames=frames(arm), fps=8.0, workers=0))
  cfg.data.sources = scenes(arm, size)
  cfg.eval.sets = dict(val=scenes(arm, size, "val"), test=scenes(arm, size, "test"))
  cfg.optim.update(dict(lr=size.lr, warmup=size.warmup, b1=0.9, b2=0.98, weight_decay=0.0, clip=1.0, final=0.02))
  cfg.optim.update(dict(schedule="cosine", first=0.0, muon=size.muon))
  cfg.log_every, cfg.media_every, cfg.eval_every = max(1, size.steps // 100), 0, 0
  cfg.save_every = max(1, size.steps // 10)
  return cfg


def is_flow(arm: str) -> bool:
  return arm.startswith(("nested", "grid"))


def vae_name(arm: str) -> str:
  """What the folder of the VAE under a flow arm is called."""
  return "vae_white" if arm == "nested_white" else "vae"


def vae(name: str, arm: str = "nested"):
  """The VAE under a flow arm of a size, the same for all but `nested_white`, trained before it; None where their
  configs name one.

  Eight channels of one scale: of them tokens tell a flow much within minutes, of 32 half-whitened ones little (at high
  noise an error of .76 without tokens and .32 with one after 270 steps; there .53 and .44 after 390).
  """
  if name != "pocket":
    return None
  size, cfg = SIZES[name], vae_experiments.get_config("mini")
  cfg.title, cfg.steps, cfg.batch_size, cfg.ema = f"VAE {name}", 600, 16, 0.99
  cfg.model.update(dict(ch=48, z_channels=8))
  cfg.loss.update(dict(fit_batches=40, fit_whiten=0.5 if arm == "nested_white" else 0.0))
  cfg.data.update(dict(size=size.pixels, frames=frames("nested"), fps=8.0, workers=0))
  cfg.data.sources, cfg.eval.sets = scenes("nested", size), dict(val=scenes("nested", size, "val"))
  cfg.log_every, cfg.media_every, cfg.save_every = 25, 0, 0
  return cfg


def _own(arm: str, name: str):
  flow, grid = is_flow(arm), arm.startswith("grid")
  module = importlib.import_module("configs.tokenizer" if flow else f"configs.{arm}")
  if not flow:
    cfg = module.get_config(name) if name != "pocket" else _pocket_one_pass(arm, module)
    if arm == "evatok":
      cfg.model.update(dict(frames=FRAMES, patch=(4, *cfg.model.patch[1:])))
    return cfg
  end = arm.removeprefix("grid")
  if name != "pocket":
    return module.get_config(f"grid_{name}{end}" if grid else name)
  cfg = module.get_config(f"grid_mini{end}" if grid else "mini")
  cfg.model.encoder.update(dict(linear=False, net=True))
  below = vae(name).model
  cfg.vae, cfg.model.vae = "", below  # the study's own
  cfg.model.encoder.channels = cfg.model.decoder.channels = below.z_channels
  cfg.model.encoder.stack.update(dict(dim=128, depth=3))
  cfg.model.decoder.stack.update(dict(dim=128, depth=4))
  cfg.model.decoder.draft, cfg.freeze, cfg.init_from = None, (), ""
  cfg.model.decoder.stack.adaln = 1  # as grids have it
  cfg.loss.update(dict(draft=0.0, fit_batches=0, prefix_latents=0.5, prefix_width=128, high=0.3, given_probs=(1.0,)))
  return cfg


def _pocket_one_pass(arm: str, module):
  """As many parameters as nested-pocket has with its VAE, to 5 %, and about as many bits a clip."""
  cfg = module.get_config("mini64")
  cfg.loss.critic.dtype = "float32"
  # A twentieth of VGG16's cost, and of a quarter of the frames; judged are all by VGG16.
  cfg.loss.update(dict(lpips_net="alex", lpips_frames=4))
  cfg.loss.critic.update(dict(dim=96, depth=2, heads=2))  # the other one is larger than the tokenizer
  if arm == "evatok":
    cfg.model.update(dict(frame_size=(32, 32), counts=(4, 8, 16)))
    cfg.loss.adversarial = 0.0  # it would begin at step 20,000
    for part, depth in (("encoder", 4), ("decoder", 6)):
      cfg.model[part].update(dict(dim=128, depth=depth, heads=2, dtype="float32"))
    return cfg
  tokens = {"larp": 80, "adaptok": 64}[arm]
  cfg.model.update(dict(input_size=32, dtype="float32", bottleneck_token_num=tokens))
  cfg.model.group_tokens = tokens if arm == "larp" else tokens // 4
  cfg.model.prior.update(dict(length=tokens, depth=2, dim=128, hidden=512, heads=2))
  for part in ("encoder", "decoder"):
    cfg.model.update({f"{part}_hidden_size": 192, f"{part}_num_heads": 3, f"{part}_depth": 3})
  if arm == "adaptok":
    cfg.loss.update(dict(counts_mean=8.0, counts_std=4.0))
  return cfg


def router(arm: str, name: str, model: str, directory: str):
  """What chooses the arm's counts, over `directory`, where labels go; judged by scenes of "test"."""
  size = SIZES[name]
  own = from_dict(EvatokConfig, tokenizer(arm, name).model.to_dict())
  sources = (scenes(arm, size), scenes(arm, size, "test"))
  cfg = evatok.router_over(
    own,
    directory,
    model,
    sources,
    fps=8.0,
    title=f"{arm} {name}, router",
    steps=size.router_steps,
    batch_size=min(16, size.labelled[0]),
    optim=dict(lr=1e-3, warmup=max(1, size.router_steps // 20)),
    ema=0.0,
    save_every=max(1, size.router_steps // 4),
    log_every=max(1, size.router_steps // 20),
  )
  cfg.model.update(dim=128, depth=3, head_dim=32)
  cfg.data.workers = 0
  cfg.label.clips.update(dict(zip(("train", "val"), size.labelled, strict=True)))
  return cfg


def generator(arm: str, name: str, depth: int):
  """The arm's tokens, all of them, after a class; width is 48 a block."""
  size, lengths = SIZES[name], "length_first" if arm == "evatok" else "none"
  sources = lambda split: ar.tokens(f"study/{arm}-{name}", split=split)
  cfg = common.base(
    task="ar",
    title=f"{arm} {name} d{depth}",
    steps=size.ar_steps,
    batch_size=size.ar_batch,
    model=ar.model(depth, text=False, width=48 * depth, n_classes=8, head_dim=48, lengths=lengths),
    loss=ARLoss(),
    data=dict(sources=ar.tokens(f"study/{arm}-{name}"), workers=0, size=size.pixels, frames=frames(arm)),
    eval=dict(
      sets=dict(val=sources("val"), test=sources("test")),
      batch_size=min(32, size.judged_on),
      generation={
        **ar.GENERATION,
        "split": "test",
        "clips": size.judged_on,
        "fvd": size.net,
        "classifier_steps": size.classifier_steps,
      },
    ),
    optim=dict(lr=1e-3, warmup=size.warmup, b2=0.95, weight_decay=0.05, final=0.02),
    ema=0.998,
    save_every=max(1, size.ar_steps // 10),
    media_every=0,
    log_every=max(1, size.ar_steps // 100),
    sample=ar.SAMPLE,
    tokenize=ar.tokenize(
      "",
      scenes(arm, size, most=size.ar_steps * size.ar_batch),  # no clip that training would not come to
      scenes(arm, size, "val"),
      scenes(arm, size, "test"),
      size=size.pixels,
      frames=frames(arm),
    ),
  )
  return cfg
