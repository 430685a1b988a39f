"""The VAE: configs/vae.py:SIZE with SIZE one of smoke, mini, vidtok."""

from __future__ import annotations

from configs import common
from vftok.models.vae import VAEConfig
from vftok.tasks.losses import VAELoss


def get_config(size: str = "mini"):
  return {"smoke": smoke, "mini": mini, "mini64": mini64, "vidtok": vidtok}[size]()


def smoke():
  """Two seconds a step on any machine: for tests."""
  return common.smoke(
    task="vae",
    title="VAE smoke",
    model=VAEConfig(ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, time_levels=(0, 1), stem=2, linear=True),
    loss=VAELoss(lpips=0.0, adversarial=0.1, critic_width=8, fit_batches=2),
    **common.on_shapes(9),
  )


def mini():
  """4x4x4 latents of 32 channels at 32x32: a linear encoder fitted to the data, and a convolutional decoder over it.

  The latents are the fitted code from the first step on, so tokenizers can train while this decoder gets better.
  """
  return common.base(
    task="vae",
    title="VAE mini",
    steps=1_500,
    batch_size=8,
    freeze=("vae/encoder",),
    model=VAEConfig(
      ch=56,
      ch_mult=(1, 1, 1),
      z_channels=32,
      time_levels=(0, 1),
      stem=4,  # all of it works on the grid of the latents: wide and small is what a CPU does well
      space_levels=(),
      linear=True,
      encoder_net=False,
    ),
    # L2: over a fitted code L1 looks at flat background, where nothing is left to gain (it lost 0.2 dB in 120 steps,
    # L2 won 0.35).
    loss=VAELoss(l1=0.0, l2=1.0, kl=0.0, sample=False, noise=0.1, lpips=0.0, fit_batches=150),
    data=dict(sources=common.mini_data(), size=32, flip=False),
    eval=dict(sets=common.mini_sets(), clips=256, media=8),
    optim=dict(lr=2e-3, warmup=100, weight_decay=0.0, b2=0.99),
    ema=0.999,
    save_every=500,
    media_every=500,
  )


def mini64():
  """4x4x4 latents of 16 channels at 64x64, learned on both sides: minutes on one GPU, see launch/gpu/README.md."""
  return common.base(
    task="vae",
    title="VAE mini",
    steps=20_000,
    batch_size=32,
    model=VAEConfig(
      ch=96,
      ch_mult=(1, 1, 1),
      num_res_blocks=1,
      z_channels=16,
      time_levels=(0, 1),
      stem=4,  # all of it works on the grid of the latents, where a picture is small and channels are many
      space_levels=(),
      linear=True,  # from random weights too: a way around each net's norms, worth 6 dB after 200 steps
      dtype="bfloat16",
    ),
    loss=VAELoss(lpips=0.5, unit=0.02, noise=0.1),
    data=dict(sources=common.world_data(), size=64),
    eval=dict(sets=common.world_sets(), clips=256, media=8),
    optim=dict(lr=2.5e-3, warmup=100, weight_decay=0.0, b2=0.99, final=0.02),
    ema=0.995,
    log_every=20,
    save_every=0,
    media_every=0,
  )


def vidtok():
  """VidTok's KL 4x8x8 with 16 channels, as under the released models. Its training recipe is not all known."""
  return common.base(
    task="vae",
    title="VAE 4x8x8x16",
    steps=500_000,
    batch_size=256,
    mesh=dict(data=-1),
    model=VAEConfig(dtype="bfloat16"),
    loss=VAELoss(adversarial=0.2, adversarial_from=50_000),
    data=dict(sources=common.videos(), size=256, fps=0.0, flip=True, workers=16),
    eval=dict(sets=dict(val=common.videos(split="val")), clips=2048),
    optim=dict(lr=1e-4, warmup=5000, weight_decay=0.0, b1=0.5, b2=0.9),
    ema=0.9999,
  )
