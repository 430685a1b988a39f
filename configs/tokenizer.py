"""VideoFlexTok: configs/tokenizer.py:SIZE, with SIZE one of smoke, mini_draft, mini, mini64, mini_routed, d12_d12,
d18_d18, d18_d18_stage2, d18_d28, d18_d28_stage2 and semantok.

The paper's recipe as far as it is known; values marked `unknown` are not published, they are our defaults. What we do
otherwise on purpose has a name of its own: SIZE_ours keeps counts per time step too, which adaptive budgets need.

grid_SIZE is the control of the paper's claim: the same data, VAE, widths and flow, but a token for every patch in place
of registers; grid_SIZE_4 and grid_SIZE_16 have one for every 2x2 and 4x4 patches, so a 4th and a 16th as many.
"""

from __future__ import annotations

import dataclasses
import functools

from configs import common, grids
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import DecoderConfig
from vftok.models.draft import DraftConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.layers import PositionConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig
from vftok.tasks.losses import TokenizerLoss


def get_config(size: str = "mini"):
  own = (smoke, mini_draft, mini, mini64, mini_routed)
  published = (d12_d12, d18_d18, d18_d18_stage2, d18_d28, d18_d28_stage2, semantok)
  sizes = {make.__name__: make for make in (*own, *published)}
  sizes |= {f"{make.__name__}_ours": lambda make=make: _ours(make()) for make in published}
  for make in (smoke, mini, mini64, *published[:-1]):
    for end, side in grids.SIDES.items():
      sizes[f"grid_{make.__name__}{end}"] = functools.partial(grids.grid, make, side)
  return sizes[size]()


def _model(
  width,
  encoder,
  decoder,
  *,
  registers,
  levels,
  latent,
  patch,
  vae=None,
  decoder_width=None,
  readout=None,
  draft=None,
  linear=False,
  net=True,
  sampling=(),
  adaln=2,
  **stack,
):
  """The tokenizer's config as a plain dict; widths are 64 per head. `sampling`: how it is decoded by default."""
  grid = PositionConfig("learnable_sum", (16, 16, 16))
  vae = vae or VAEConfig()
  cfg = TokenizerConfig(
    **dict(sampling),
    vae=vae,
    encoder=EncoderConfig(
      stack=StackConfig(width, encoder, **stack),
      patch=patch,
      channels=vae.z_channels,
      positions=grid,
      registers=registers,
      out_dim=len(levels),
      linear=linear,
      net=net,
    ),
    decoder=DecoderConfig(
      stack=StackConfig(decoder_width or width, decoder, adaln=adaln, **stack),
      patch=patch,
      channels=vae.z_channels,
      positions=grid,
      registers=registers,
      register_positions=PositionConfig("learnable_sum", (max(16, registers),) * 2),
      code_dim=len(levels),
      readout=readout,
      draft=draft,
    ),
    levels=levels,
    latent_size=(latent, latent),
  )
  return dataclasses.asdict(cfg)


def smoke():
  """Two seconds a step on any machine: for tests. Every term of the loss that needs no download is on."""
  vae = VAEConfig(ch=8, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, time_levels=(0, 1), stem=2, linear=True)
  vae = dataclasses.replace(vae, encoder_net=False)
  return common.smoke(
    task="tokenizer",
    title="tokenizer smoke",
    model=_model(
      64,
      1,
      2,
      registers=4,
      levels=(5, 5),
      latent=4,
      patch=(1, 2, 2),
      vae=vae,
      linear=True,
      draft=DraftConfig((2, 2), hidden=16, context=1),
    ),
    loss=TokenizerLoss(
      draft=0.5,
      fit_batches=3,
      prefix_latents=0.5,
      prefix_width=64,
      prefix_depth=1,
      usage=0.1,
      high=0.3,
      given_probs=(0.5, 0.5),
      show_steps=2,
    ),
    **common.on_shapes(17, keeps=(1, 4), steps=2),
  )


def mini():
  """16 registers at 32x32: what the shipped `vftok-mini` is trained with, on two CPU cores, after `mini_draft`.

  The encoder is the linear map that `mini_draft` leaves and stays as it is. With --config.model.encoder.net=True a ViT
  joins it, without changing a code at first; then drop `freeze`.
  """
  vae = VAEConfig(ch=56, ch_mult=(1, 1, 1), z_channels=32, time_levels=(0, 1), stem=4, space_levels=(), linear=True)
  return common.base(
    task="tokenizer",
    title="vftok-mini",
    steps=20_000,
    batch_size=8,
    vae="vftok-mini",  # the shipped one; or the model of a run of configs/vae.py:mini
    model=_model(
      192,
      3,
      5,
      registers=16,
      levels=(8, 5, 5, 5),
      latent=8,
      patch=(1, 2, 2),
      vae=vae,
      linear=True,
      net=False,
      draft=DraftConfig((4, 4), hidden=384, context=4),
      sampling=dict(guidance="cfg", scale=2.0, solver_steps=12),
    ),
    loss=TokenizerLoss(draft=0.5, fit_batches=64, usage=0.05, given_probs=(0.8, 0.2), show_guidance=2.0),
    data=dict(sources=common.mini_data(), size=32),
    eval=dict(sets=common.mini_sets(), clips=256, media=8, seeds=(0, 1, 2), guidance=2.0, steps=12),
    freeze=("encoder",),
    optim=dict(lr=8e-4, final=0.03, warmup=200, b2=0.98, lr_groups={"decoder/draft": 0.3}),
    ema=0.999,
  )


def mini64():
  """The paper's graph end to end at 64x64: a register encoder, FSQ, a flow decoder; 64 registers of 1,000 codes a step.

  Minutes on one GPU, see launch/gpu/README.md.
  """
  vae = VAEConfig(ch=96, ch_mult=(1, 1, 1), num_res_blocks=1, time_levels=(0, 1), stem=4, space_levels=())
  vae = dataclasses.replace(vae, linear=True, dtype="bfloat16")
  return common.base(
    task="tokenizer",
    title="vftok-mini",
    steps=100_000,
    batch_size=128,
    vae="runs/vae/model",
    model=_model(
      320,
      5,
      6,
      registers=64,
      levels=(8, 5, 5, 5),
      latent=16,
      patch=(1, 2, 2),
      vae=vae,
      adaln=1,
      dtype="bfloat16",
      sampling=dict(guidance="cfg", scale=2.0, solver_steps=12),
    ),
    loss=TokenizerLoss(
      high=0.3,
      given_probs=(0.8, 0.2),
      prefix_latents=0.5,
      prefix_features=1.0,
      prefix_width=320,
      features_reduce="first",
      features_standard=True,
      usage=0.05,
      show_guidance=2.0,
    ),
    data=dict(sources=common.world_data(), size=64),
    eval=dict(sets=common.world_sets(), clips=256, media=8, seeds=(0, 1, 2), guidance=2.0, steps=12),
    optim=dict(lr=1e-3, final=0.02, warmup=200, b2=0.98, muon=0.6),
    ema=0.995,
    log_every=20,
    save_every=0,
    media_every=0,
  )


def mini_routed():
  """After `mini`: its decoder tuned to what a router asks for in half of the clips. Encoder and ids stay the same."""
  cfg = mini()
  cfg.title, cfg.init_from, cfg.steps = "vftok-mini routed", "vftok-mini", 4_000
  cfg.loss.router = "runs/router/model"
  cfg.optim.lr = 3e-4
  return cfg


def mini_draft():
  """Before `mini`: its linear encoder and its draft, without the flow; give `mini` the result as init_from."""
  cfg = mini()
  cfg.title, cfg.freeze = "vftok-mini draft", ()
  cfg.loss.update(dict(flow=0.0, draft=1.0))
  cfg.batch_size, cfg.steps = 64, 2500
  cfg.optim.lr, cfg.optim.lr_groups = 1e-3, {}
  cfg.save_every = cfg.media_every = 1000
  return cfg


# One VAE token is one patch: 1280 a clip, so 512 clips are 655,360 tokens a step. Batch size is unknown.
TOKENS_PER_STEP = 512 * 1280
WARMUP = 6_100  # 4 B tokens


def _paper(encoder: int, decoder: int, *, size: int, patch, fsdp: int, remat: str = "nothing_saveable", **own):
  """Stage 1 of the paper: encoder and decoder of 64 * depth, REPA to DINOv2-L on the first block, muP."""
  return common.flow_paper(
    task="tokenizer",
    title=f"VideoFlexTok d{encoder}-d{decoder}",
    vae=common.RELEASED["k600"]["tokenizer"],  # any model that carries the VidTok VAE
    mesh=dict(data=-1, fsdp=fsdp),  # by `vftok.tools.sizing`, see launch/README.md
    batch_size=512,
    model=_model(
      64 * encoder,
      encoder,
      decoder,
      registers=256,
      levels=(8, 8, 8, 5, 5, 5),
      latent=size // 8,
      patch=patch,
      decoder_width=64 * decoder,
      readout=(2, 1024),
      dtype="bfloat16",
      remat=remat,
      sampling=dict(guidance="apg", scale=3.0, solver_steps=50),  # SemanTok's, of retrained decoders; released: 20
    ),
    warmup=WARMUP,
    loss=dict(show_steps=30),
    data=dict(
      sources=common.videos(),
      size=size,
      fps=common.CLIP_FPS,
      flip=True,
      workers=16,
    ),
    eval=dict(
      sets=dict(val=common.videos(split="val")),
      clips=2048,
      guidance=3.0,
      guidance_kind="apg",
      steps=50,
    ),
    **own,
  )


def _k600(depth: int, *, fsdp: int, tokens: float):
  """Kinetics-600 at 128x128, for so many VAE tokens."""
  return _paper(depth, depth, size=128, patch=(1, 1, 1), fsdp=fsdp, steps=round(tokens / TOKENS_PER_STEP))


def d12_d12():
  """The paper's ablation model on Kinetics-600: 100 B VAE tokens."""
  return _k600(12, fsdp=1, tokens=100e9)


def d18_d18():
  """Kinetics-600 at 128x128: 400 B VAE tokens, 4 B of warm-up."""
  return _k600(18, fsdp=8, tokens=400e9)


def d18_d28():
  """Panda-70M at 256x256: 400 B VAE tokens, 4 B of warm-up."""
  keep = dict(fsdp=4, remat="dots_with_no_batch_dims_saveable")
  return _paper(18, 28, size=256, patch=(1, 2, 2), **keep, steps=round(400e9 / TOKENS_PER_STEP))


def d18_d18_stage2():
  """As the released Kinetics-600 model, whose decoder is bidirectional."""
  return _stage2(d18_d18())


def d18_d28_stage2():
  """As the released Panda-70M model."""
  return _stage2(d18_d28())


def _stage2(cfg):
  """Stage 2: encoder frozen, decoder tuned with full attention and the first latent given in half of the clips."""
  cfg.init_from = "stage1/model"
  cfg.freeze = ("encoder",)
  cfg.model.decoder.mask = "full"
  cfg.loss.given_probs = (0.5, 0.5)
  cfg.loss.repa = 0.0
  cfg.steps = 50_000  # unknown
  cfg.optim.lr = 1e-4  # unknown
  return cfg


def semantok():
  """SemanTok (arXiv 2610.00686) on Kinetics-600: DINOv2 beside the latents, heads on the kept prefix in place of REPA.

  Its equal-compute comparison: 200,000 steps, 131 B VAE tokens; its VideoFlexTok arm is d18_d18 for as many.
  """
  cfg = d18_d18()
  cfg.title, cfg.steps, cfg.dino = "SemanTok d18-d18", 200_000, "facebook/dinov2-large"
  cfg.model.encoder.channels += 1024
  cfg.model.encoder.global_token = 1024
  cfg.model.dino_frames, cfg.model.dino_class = "avg", "per_frame"
  cfg.model.decoder.readout = None
  cfg.loss.update(repa=0.0, prefix_features=0.5, prefix_class=0.5)
  return cfg


def _ours(cfg):
  """Counts per time step in half of the clips, which a router's uneven budgets need; the paper has one for all."""
  cfg.title += ", ours"
  cfg.loss.share = "mix"
  return cfg
