"""FlexTok (arXiv 2502.13967), pictures: configs/flextok.py:SIZE with SIZE one of smoke, mini, d12_d12, d18_d18 and
d18_d28; vae_smoke and vae_mini, the 2-D VAE under `mini`; or c2i_mini, class to picture over `mini`'s tokens.

The recipe is VideoFlexTok's, whose relative it is; values marked `unknown` are not published, they are our defaults.
"""

from __future__ import annotations

import dataclasses

from configs import ar, common
from vftok.families.flextok.config import FlexTokConfig
from vftok.families.flextok.vae import KLConfig
from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.layers import PositionConfig
from vftok.models.transformer import StackConfig
from vftok.tasks.losses import ARLoss, TokenizerLoss, VAELoss

BATCH = 1024  # unknown
STEPS = 1_000_000  # unknown


def get_config(size: str = "smoke"):
  sizes = (smoke, mini, d12_d12, d18_d18, d18_d28, vae_smoke, vae_mini, c2i_mini)
  return {make.__name__: make for make in sizes}[size]()


def model(encoder: int, decoder: int, vae: KLConfig, *, registers=256, latent=32, levels=(8, 8, 8, 5, 5, 5), **own):
  """A FlexTok's config as a plain dict: so many blocks of 64 channels each; `own` goes to StackConfig."""
  patch, readout = (1, 2, 2), own.pop("readout", None)
  grid = PositionConfig("sincos", (latent // patch[1], latent // patch[2]))
  cfg = FlexTokConfig(
    vae=vae,
    encoder=EncoderConfig(
      stack=StackConfig(64 * encoder, encoder, **own),
      patch=patch,
      channels=vae.z_channels,
      positions=grid,
      t_max=1,
      registers=registers,
      out_dim=len(levels),
      mask="time_block_causal_last",
    ),
    decoder=DecoderConfig(
      stack=StackConfig(64 * decoder, decoder, adaln=2, **own),
      patch=patch,
      channels=vae.z_channels,
      code_dim=len(levels),
      registers=registers,
      positions=grid,
      register_positions=PositionConfig("learnable_sum", (registers,)),
      replacements=("mask", "null"),
      mask="full",
      readout=readout,
    ),
    levels=levels,
    latent_size=(latent, latent),
  )
  return dataclasses.asdict(cfg)


def smoke():
  """A second a step on any machine, over a VAE of random weights: for tests."""
  vae = KLConfig(widths=(32, 32), blocks=1, z_channels=4)
  return common.base(
    task="flextok",
    title="FlexTok smoke",
    steps=4,
    batch_size=4,
    model=model(1, 1, vae, registers=4, latent=8, levels=(5, 5)),
    loss=TokenizerLoss(share="shared", prefix_latents=0.5, prefix_width=64, prefix_depth=1, show_steps=2),
    data=dict(sources=common.shapes(), frames=1, size=16, workers=0),
    eval=dict(
      sets=dict(shapes=common.shapes(6)), keeps=(1, 4), steps=2, lpips_net="", rfvd=False, batch_size=4, media=2
    ),
    optim=dict(lr=1e-3, warmup=2),
    log_every=1,
    save_every=2,
    media_every=0,
  )


def vae_smoke():
  """A second a step on any machine: for tests. Every term of the loss that needs no download is on."""
  return common.smoke(
    task="flextok_vae",
    title="FlexTok VAE smoke",
    model=KLConfig(widths=(32, 32), blocks=1, z_channels=4),
    loss=VAELoss(lpips=0.0, unit=0.02, noise=0.1, frames=1, adversarial=0.1, critic_width=8),
    **common.on_shapes(1),
  )


def _scenes(split: str = "train", count: int = 1_000_000) -> dict:
  """First frames of plain scenes of one large object."""
  shown = dict(size=32, frames=1, objects=1, plain=True, scale=1.6)
  return dict(world=dict(kind="world", split=split, count=count, **shown))


def vae_mini():
  """4x4 patches of 32x32 to 8 channels, learned on both sides: minutes on two CPU cores. Its model is `mini`'s VAE."""
  return common.base(
    task="flextok_vae",
    title="FlexTok VAE mini",
    steps=500,
    batch_size=32,
    model=KLConfig(widths=(32, 64, 64), blocks=1, z_channels=8, attention=False),
    loss=VAELoss(l1=0.0, l2=1.0, unit=0.02, noise=0.1, lpips=0.0),
    data=dict(sources=_scenes(), size=32, frames=1, workers=0),
    eval=dict(sets=dict(val=_scenes("val", 1024), test=_scenes("test", 1024)), clips=256, media=8, rfvd=False),
    optim=dict(lr=2e-3, warmup=50, weight_decay=0.0, b2=0.99, final=0.02),
    ema=0.99,
    log_every=20,
    save_every=100,
    media_every=0,
  )


def mini():
  """16 registers of 1,000 codes for a picture of 32x32: a quarter of an hour on two CPU cores."""
  return common.base(
    task="flextok",
    title="FlexTok mini",
    steps=1_000,
    batch_size=64,
    vae="runs/flextok_vae/model",
    model=model(2, 3, KLConfig(z_channels=8), registers=16, latent=8, levels=(8, 5, 5, 5)),
    loss=TokenizerLoss(share="shared", high=0.3, prefix_latents=0.5, prefix_width=128, show_guidance=1.5),
    data=dict(sources=_scenes(), size=32, frames=1, workers=0),
    eval=dict(
      sets=dict(val=_scenes("val", 1024), test=_scenes("test", 1024)),
      clips=256,
      media=8,
      guidance=1.5,
      steps=20,
      rfvd=False,
    ),
    optim=dict(lr=1e-3, warmup=100, b2=0.98, final=0.02, muon=0.6),
    ema=0.998,
    log_every=20,
    save_every=200,
    media_every=0,
  )


def c2i_mini():
  """Over `mini`'s tokens, minutes on two CPU cores: the object of a rendered scene is its class."""
  directory, train = "tokens_flextok_mini", 40_000
  stored = lambda split: ar.tokens(directory, split=split)
  return common.base(
    task="ar",
    title="FlexTok mini, class to picture",
    steps=1_000,
    batch_size=64,
    model=ar.model(4, text=False, width=192, n_classes=8),
    loss=ARLoss(),
    data=dict(sources=ar.tokens(directory), frames=1, size=32, workers=0),
    eval=dict(
      sets={split: stored(split) for split in ("val", "test")},
      generation={**ar.GENERATION, "split": "test", "clips": 128, "keeps": (1, 4, 16), "steps": 20, "fvd": False},
    ),
    optim=dict(lr=1e-3, warmup=100, b2=0.95, weight_decay=0.05, final=0.02),
    ema=0.998,
    sample=ar.SAMPLE,
    media_every=0,
    tokenize=ar.tokenize(
      "runs/flextok/model",
      _scenes(count=train),
      _scenes("val", 1024),
      _scenes("test", 1024),
      frames=1,
      size=32,
      batch_size=64,
    ),
  )


def _paper(encoder: int, decoder: int, **own):
  """Pictures of 256x256; REPA to DINOv2-L on the first block, counts by the uniform law."""
  pictures = lambda split: dict(pictures=dict(kind="image_folder", path="imagenet", split=split))
  return common.flow_paper(
    task="flextok",
    title=f"FlexTok d{encoder}-d{decoder}",
    vae="flextok_vae_c16",  # a folder: EPFL-VILAB's, or another AutoencoderKL of 16 channels
    steps=STEPS,
    batch_size=BATCH,
    mesh=dict(data=-1, fsdp=1),
    model=model(
      encoder, decoder, KLConfig(), readout=(2, 1024), dtype="bfloat16", remat="dots_with_no_batch_dims_saveable"
    ),
    warmup=10_000,  # unknown
    loss=dict(nested="uniform", show_steps=20),
    data=dict(sources=pictures("train"), frames=1, size=256, flip=True, workers=16),
    eval=dict(sets=dict(val=pictures("val")), clips=5000, guidance=7.5, guidance_kind="apg", steps=20, rfvd=False),
    **own,
  )


def d12_d12():
  """Of `flextok_d12_d12_in1k`."""
  return _paper(12, 12)


def d18_d18():
  """Of `flextok_d18_d18_in1k`."""
  return _paper(18, 18)


def d18_d28():
  """Of `flextok_d18_d28_in1k` and `_dfn`."""
  return _paper(18, 28)
