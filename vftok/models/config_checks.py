"""Values that no model can have, named before anything is built from them."""

from __future__ import annotations

import math

import jax

from vftok.models import masks
from vftok.models.config import GeneratorConfig, TokenizerConfig
from vftok.models.flow import GUIDANCES
from vftok.models.layers import POSITION_KINDS, PositionConfig
from vftok.models.transformer import StackConfig
from vftok.models.vae import VAEConfig
from vftok.runtime.words import brief

# Far above any model; below what could exhaust memory while a damaged config is looked at.
MAX_SIZE, MAX_DEPTH, MAX_CODEBOOK, MAX_TOKENS = 65_536, 1_024, 2**24, 2**15
MAX_STEPS, MAX_BLOCKS = 256, 32  # time steps of a chunk, residual blocks of a VAE: tracing takes time for each
DTYPES = ("float32", "bfloat16")


def check(cfg: TokenizerConfig) -> None:
  """Raises ValueError naming the first value that no model can have, before anything is built from it."""
  vae, enc, dec = cfg.vae, cfg.encoder, cfg.decoder
  if isinstance(vae, VAEConfig):  # another family's checks itself
    check_vae(vae)
  _counts("config", levels=cfg.levels, chunk_frames=cfg.chunk_frames, latent_size=cfg.latent_size)
  _expect(
    cfg.levels and math.prod(cfg.levels) <= MAX_CODEBOOK,
    "levels",
    cfg.levels,
    f"a product of 1..{MAX_CODEBOOK}",
  )
  _expect(min(cfg.levels) >= 2, "levels", cfg.levels, "2 or more each")
  _expect(cfg.chunk_frames % 4 == 1, "chunk_frames", cfg.chunk_frames, "1 + a multiple of 4")
  overlap = cfg.overlap_frames
  fits = overlap == 0 or (overlap % 4 == 1 and 0 < overlap < cfg.chunk_frames)
  _expect(fits, "overlap_frames", overlap, "0, or 1 + a multiple of 4 below chunk_frames")
  _expect(cfg.guidance in GUIDANCES, "guidance", cfg.guidance, f"one of {', '.join(GUIDANCES)}")
  _expect(math.isfinite(cfg.scale), "scale", cfg.scale, "a number")
  _counts("config", solver_steps=cfg.solver_steps)
  _expect(cfg.dino_frames in ("", "first", "avg"), "dino_frames", cfg.dino_frames, "'', 'first' or 'avg'")
  _expect(cfg.dino_class in ("per_frame", "frame0"), "dino_class", cfg.dino_class, "'per_frame' or 'frame0'")
  latents = cfg.chunk_latents
  _expect(latents <= MAX_STEPS, "chunk_frames", cfg.chunk_frames, f"at most {4 * MAX_STEPS - 3}")
  grid = (latents, *cfg.latent_size)
  for name, part in (("encoder", enc), ("decoder", dec)):
    _check_stack(f"{name}.stack", part.stack)
    _counts(name, patch=part.patch, channels=part.channels)
    _expect(0 <= part.registers <= MAX_SIZE, f"{name}.registers", part.registers, f"whole numbers of 0..{MAX_SIZE}")
    _expect(len(part.patch) == 3, f"{name}.patch", part.patch, "3 sizes: time, height, width")
    _expect(
      not any(n % p for n, p in zip(grid, part.patch, strict=True)),
      f"{name}.patch",
      part.patch,
      f"divisors of {grid}",
    )
    patches = tuple(n // p for n, p in zip(grid, part.patch, strict=True))
    _check_positions(f"{name}.positions", part.positions, patches, part.stack.dim)
    _expect(part.mask in masks.MODES, f"{name}.mask", part.mask, f"one of {', '.join(masks.MODES)}")
    tokens = patches[0] * (patches[1] * patches[2] + part.registers)
    _expect(tokens <= MAX_TOKENS, f"{name}.registers", part.registers, f"at most {MAX_TOKENS} tokens in a chunk")
    known = len(part.cross) == 4 and set(part.cross) <= set(masks.CROSS)
    _expect(known, f"{name}.cross", part.cross, f"4 of {', '.join(masks.CROSS)}")
  steps, kept = latents // enc.patch[0], (overlap - 1) // 4 + 1
  _expect(kept % enc.patch[0] == 0, "overlap_frames", overlap, f"latents in whole steps of {enc.patch[0]}")
  _counts("encoder", t_max=enc.t_max, out_dim=enc.out_dim)
  _expect(enc.net or enc.linear, "encoder.net", enc.net, "True, or encoder.linear = True beside it")
  _expect(enc.t_max >= steps, "encoder.t_max", enc.t_max, f"at least {steps}, the time steps of a chunk")
  _expect(0 <= enc.global_token <= MAX_SIZE, "encoder.global_token", enc.global_token, f"0..{MAX_SIZE}")
  _expect(enc.out_dim == len(cfg.levels), "encoder.out_dim", enc.out_dim, f"one per FSQ level, {len(cfg.levels)}")
  known = enc.channels == vae.z_channels or cfg.dino_frames
  _expect(known, "encoder.channels", enc.channels, f"the VAE's {vae.z_channels}")
  _expect(enc.stack.adaln == 0, "encoder.stack.adaln", enc.stack.adaln, "0")
  _expect(dec.stack.adaln > 0, "decoder.stack.adaln", dec.stack.adaln, "1 or 2")
  _expect(dec.code_dim == len(cfg.levels), "decoder.code_dim", dec.code_dim, f"one per FSQ level, {len(cfg.levels)}")
  _expect(dec.registers == enc.registers, "decoder.registers", dec.registers, f"the encoder's {enc.registers}")
  _counts("encoder", cell=enc.cell)
  _expect(dec.cell == enc.cell, "decoder.cell", dec.cell, f"the encoder's {enc.cell}")
  if enc.registers:
    _expect(enc.cell == (1, 1), "encoder.cell", enc.cell, "(1, 1) where there are registers")
  else:
    _check_grid(cfg)
  _expect(dec.patch[0] == enc.patch[0], "decoder.patch", dec.patch, f"the encoder's {enc.patch[0]} latents per step")
  _expect(dec.channels == vae.z_channels, "decoder.channels", dec.channels, f"the VAE's {vae.z_channels}")
  named = set(dec.replacements) <= {"mask", "prefix", "null"} and len(set(dec.replacements)) == len(dec.replacements)
  _expect(named, "decoder.replacements", dec.replacements, "mask, prefix and null at most once each")
  _check_positions("decoder.register_positions", dec.register_positions, (steps, dec.registers), dec.stack.dim)
  _counts("decoder", time_features=dec.time_features, readout=dec.readout or ())
  if dec.draft is not None:
    _counts("decoder.draft", grid=dec.draft.grid, hidden=dec.draft.hidden)
    draft_grid = tuple(n // p for n, p in zip(cfg.latent_size, dec.patch[1:], strict=True))
    _expect(dec.draft.grid == draft_grid, "decoder.draft.grid", dec.draft.grid, f"the patches of a step, {draft_grid}")
    _expect(0 <= dec.draft.context < latents, "decoder.draft.context", dec.draft.context, f"0..{latents - 1}")
  _expect(dec.time_features % 2 == 0, "decoder.time_features", dec.time_features, "an even number")
  ok = math.isfinite(dec.max_timestep) and dec.max_timestep > 0
  _expect(ok, "decoder.max_timestep", dec.max_timestep, "a positive number")


def _check_grid(cfg: TokenizerConfig) -> None:
  """Of a model without registers, whose codes are those of its patches."""
  enc, dec = cfg.encoder, cfg.decoder
  _expect(dec.patch == enc.patch, "decoder.patch", dec.patch, f"the encoder's {enc.patch}, for codes are its patches'")
  patches = tuple(n // p for n, p in zip(cfg.latent_size, enc.patch[1:], strict=True))
  whole = not any(n % c for n, c in zip(patches, enc.cell, strict=True))
  _expect(whole, "encoder.cell", enc.cell, f"divisors of {patches}, the patches of a step")
  _expect(dec.stack.adaln == 1, "decoder.stack.adaln", dec.stack.adaln, "1 where there are no registers")
  _expect(
    dec.register_positions is None, "decoder.register_positions", dec.register_positions, "None without registers"
  )
  _expect("mask" not in dec.replacements, "decoder.replacements", dec.replacements, "no mask: all tokens are kept")
  for name, value in (("encoder.linear", enc.linear), ("encoder.global_token", enc.global_token)):
    _expect(not value, name, value, "none without registers")
  _expect(dec.draft is None, "decoder.draft", "a draft", "none without registers")


def check_vae(vae: VAEConfig) -> None:
  """`check` of a VAE by itself."""
  _counts("vae", ch=vae.ch, ch_mult=vae.ch_mult, num_res_blocks=vae.num_res_blocks, z_channels=vae.z_channels)
  _counts("vae", stem=vae.stem)
  fits = vae.num_res_blocks * len(vae.ch_mult) <= MAX_BLOCKS
  _expect(fits, "vae.num_res_blocks", vae.num_res_blocks, f"at most {MAX_BLOCKS} blocks on all levels together")
  _expect(vae.in_channels == 3, "vae.in_channels", vae.in_channels, "3")
  _expect(vae.dtype in DTYPES, "vae.dtype", vae.dtype, " or ".join(DTYPES))


def check_generator(cfg: GeneratorConfig) -> None:
  """As `check`, of a generator."""
  ar = cfg.ar
  _counts("ar", steps=ar.steps, slots=ar.slots, head_dim=ar.head_dim)
  _expect(0 < ar.vocab <= MAX_CODEBOOK, "ar.vocab", ar.vocab, f"1..{MAX_CODEBOOK}")
  _expect(0 < ar.depth <= MAX_DEPTH, "ar.depth", ar.depth, f"1..{MAX_DEPTH}")
  _expect(ar.length <= MAX_CODEBOOK, "ar.slots", ar.slots, f"at most {MAX_CODEBOOK} positions")
  for name in ("width", "hidden_dim", "n_classes", "ctx_dim", "n_ctx_null"):
    _expect(0 <= getattr(ar, name) <= MAX_SIZE, f"ar.{name}", getattr(ar, name), f"0..{MAX_SIZE}")
  _expect(ar.dtype in DTYPES, "ar.dtype", ar.dtype, " or ".join(DTYPES))
  _expect(0 < cfg.text_tokens <= MAX_SIZE, "text_tokens", cfg.text_tokens, f"1..{MAX_SIZE}")


def _check_stack(name: str, stack: StackConfig) -> None:
  _counts(name, dim=stack.dim, head_dim=stack.head_dim)
  _expect(0 < stack.depth <= MAX_DEPTH, f"{name}.depth", stack.depth, f"1..{MAX_DEPTH}")
  _expect(stack.dim % stack.head_dim == 0, f"{name}.head_dim", stack.head_dim, f"a divisor of the width {stack.dim}")
  usable = math.isfinite(stack.mlp_ratio) and 0 < stack.mlp_ratio <= 64 and stack.hidden > 0
  _expect(usable, f"{name}.mlp_ratio", stack.mlp_ratio, "a number above 0, 64 at most")
  _expect(0 <= stack.adaln <= 2, f"{name}.adaln", stack.adaln, "0, 1 or 2")
  _expect(stack.dtype in DTYPES, f"{name}.dtype", stack.dtype, " or ".join(DTYPES))
  known = stack.remat == "none" or stack.remat in dir(jax.checkpoint_policies)
  _expect(known, f"{name}.remat", stack.remat, "'none' or a name from jax.checkpoint_policies")


def _check_positions(name: str, position: PositionConfig | None, grid: tuple[int, ...], dim: int) -> None:
  if position is None:
    return
  sizes, first = position.max_sizes, len(grid) - len(position.max_sizes)
  if first > 0 and set(grid[:first]) == {1}:  # of one time step, which needs no positions
    grid = grid[first:]
  rank = len(grid)
  _counts(name, max_sizes=sizes)
  _expect(position.kind in POSITION_KINDS, f"{name}.kind", position.kind, f"one of {', '.join(POSITION_KINDS)}")
  fits = len(sizes) == rank and all(n <= m for n, m in zip(grid, sizes, strict=True))
  _expect(fits, f"{name}.max_sizes", sizes, f"{rank} sizes, at least {grid}")
  _expect(
    position.kind != "sincos" or (rank == 2 and dim % 4 == 0),
    f"{name}.kind",
    position.kind,
    "learned positions here",
  )


def _counts(where: str, **fields) -> None:
  for name, value in fields.items():
    for n in value if isinstance(value, tuple) else (value,):
      _expect(0 < n <= MAX_SIZE, f"{where}.{name}", value, f"whole numbers of 1..{MAX_SIZE}")


def _expect(ok, name: str, value, what: str) -> None:
  if not ok:
    raise ValueError(f"the config has {name} = {brief(value)}, expected {what}.")
