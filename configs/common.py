"""What all experiments share. An experiment file starts from `base` and says what is its own."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from vftok.io.packaged import cache_dir
from vftok.tasks.losses import TokenizerLoss

# The two public tokenizers and the pixels they are made for: of Kinetics-600 and of Panda-70M.
RELEASED = {
  "k600": dict(tokenizer="EPFL-VILAB/videoflextok_d18_d18_k600", size=128),
  "panda": dict(tokenizer="EPFL-VILAB/videoflextok_d18_d28", size=256),
}
CLIP_FPS = 4.25  # 17 frames in 4 s, as tokenizers are trained; 81 frames of long video are 10 s at LONG_FPS
LONG_FPS = 8.0


def base(**own) -> ConfigDict:
  """The keys of every run, with `own` over them; a key that no run has is an error at the command line."""
  cfg = ConfigDict(
    dict(
      task="",
      title="",  # of reports and model cards
      seed=0,
      steps=1000,
      minutes=0.0,  # stop and save after so much time; 0: no limit
      batch_size=8,  # over all devices
      accumulate=1,  # slices of a batch computed one after the other
      mesh=dict(data=-1, fsdp=1, tensor=1, seq=1),
      freeze=(),  # parts of the model that stay as they are
      init_from="",  # a model to start from
      resume_from="",  # another run's workdir to go on from
      vae="",  # the VAE under a tokenizer
      dino="",  # DINOv2 weights, where a tokenizer's encoder reads them
      ema=0.999,
      optim=dict(
        lr=1e-3,
        schedule="cosine",
        warmup=100,
        first=0.0,  # share of the rate that it warms up from
        final=0.01,
        decay=0.2,  # of "wsd": share of all steps, at the end, in which the rate falls
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        mu_dtype="float32",
        weight_decay=0.02,
        clip=1.0,
        mup_base_width=0,  # 0: no muP
        muon=0.0,  # 0: Adam; else the root mean square of hidden matrices' steps, see vftok/train/muon.py
        lr_groups=dict(),  # {"critic": 2.0}: factors on the learning rate of parts
        every=dict(),  # {"critic": 5}: parts that are updated at every n-th step, with a clip of their own
        follow=dict(),  # {"critic/anchors": 0.001}: parts that take plain steps at this rate
      ),
      data=dict(
        sources=dict(),
        frames=17,
        size=64,
        fps=8.0,
        flip=False,
        scale=(1.0, 1.0),
        timeout=60.0,
        workers=2,
      ),
      eval=dict(
        sets=dict(),
        only=(),  # names of sets; (): all
        clips=0,  # of each set; 0: all
        batch_size=8,
        keeps=(),
        seeds=(0,),
        steps=25,
        guidance=1.0,  # scale of the decoder's; 1: none
        guidance_kind="cfg",  # or "apg"
        lpips_net="vgg",
        rfvd=True,
        media=6,
        probe=True,  # of tokenizers: what linear classifiers read off the first k tokens
        probe_clips=0,  # the first so many of each set, encoded but not decoded; 0: all
        probe_train="",  # what it learns from: "": a half of the set; "train": data.sources; or another set
      ),
      log_every=10,
      media_every=500,
      save_every=500,
      eval_every=0,
      keep_checkpoints=2,
      profile=(0, 0),
      wandb="",
    ),
    convert_dict=True,
  )
  for name, value in own.items():
    value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    if isinstance(value, dict) and name in cfg and cfg[name]:
      cfg[name].update(ConfigDict(value))
    else:
      cfg[name] = ConfigDict(value) if isinstance(value, dict) else value
  return cfg


def smoke(**own) -> ConfigDict:
  """`base` of runs that tests can wait for: four steps of four examples, saved on the way."""
  few = dict(steps=4, batch_size=4, optim=dict(lr=1e-3, warmup=2), log_every=1, save_every=2, media_every=0)
  return base(**few | own)


def on_shapes(frames: int, **own) -> dict:
  """What such a run over pixels reads and is judged by: moving shapes of 16x16, no net to download."""
  judged = dict(sets=dict(shapes=shapes(6)), lpips_net="", rfvd=False, batch_size=4, media=2, **own)
  return dict(data=dict(sources=shapes(), size=16, frames=frames, workers=0), eval=judged)


def videos(**own) -> dict:
  """Sources of a folder of one's own videos."""
  return dict(videos=dict(kind="video_folder", path="videos", **own))


def flow_paper(*, warmup: int, loss: dict, **own) -> ConfigDict:
  """What published sizes of VideoFlexTok and FlexTok share: REPA to DINOv2-L, muP, counts shared by all time steps."""
  repa = dict(share="shared", repa=1.0, features="dinov2", features_path="facebook/dinov2-large", show_guidance=0.0)
  return base(
    loss=TokenizerLoss(**repa, **loss),
    optim=dict(lr=1.124e-3, warmup=warmup, mup_base_width=256, b2=0.99, weight_decay=0.02),  # lr, warmup; else unknown
    ema=0.9998,  # unknown
    log_every=50,
    save_every=2000,
    media_every=5000,
    **own,
  )


def shapes(count: int = 64) -> dict:
  """Sources that need nothing on disk: moving shapes drawn by numpy."""
  return dict(shapes=dict(kind="shapes", count=count))


def mini_data() -> dict:
  """What the mini models see; `python -m vftok.tools.prepare_sim` and `prepare_clips` write it."""
  return dict(sim=dict(_sim(), weight=0.9), clips=dict(kind="clips", weight=0.1))


def mini_sets() -> dict:
  """Choose on `sim_val`, report on the others: unseen scenes, unseen combinations, unseen times, unseen sources."""
  return dict(
    sim_val=dict(sim=dict(_sim(), split="val")),
    sim_test=dict(sim=dict(_sim(), split="test")),
    clips_time=dict(clips=dict(kind="clips", split="val_time")),
    clips_source=dict(clips=dict(kind="clips", split="val_source")),
  )


def mini_splits() -> tuple[dict, dict]:
  """(sources to choose on, sources to report on) of mini generators."""
  sets = mini_sets()
  return dict(sim=dict(**sets["sim_val"]["sim"])), dict(sim=dict(**sets["sim_test"]["sim"]))


def world_data(clips: float = 0.15, frames: int = 17) -> dict:
  """Painted scenes, and a share of the real clips as `python -m vftok.tools.pack` packs them.

  With `keep` and a `count` that fits there (65,536 clips are 13 GB) scenes stay on the accelerator once painted.
  """
  world = dict(kind="world", weight=1 - clips, count=1_000_000, keep=False, frames=frames)
  return dict(world=world, clips=dict(kind="packed", path=packed_clips(), weight=clips)) if clips else dict(world=world)


def world_sets(count: int = 2048, frames: int = 17) -> dict:
  """Choose on `world_val`, report on the others: unseen scenes, unseen combinations, unseen times, unseen sources."""
  world = lambda split: dict(world=dict(kind="world", split=split, count=count, frames=frames))
  clips = lambda split: dict(clips=dict(kind="packed", path=packed_clips(), split=split))
  return dict(
    world_val=world("val"),
    world_test=world("test"),
    world_novel=world("novel"),
    clips_time=clips("val_time"),
    clips_source=clips("val_source"),
  )


def packed_clips() -> str:
  return str(cache_dir() / "clips64.npz")


def _sim() -> dict:
  return dict(kind="tfds", directory=str(cache_dir() / "sim"), video="frames", caption="caption", fps=8.0)
