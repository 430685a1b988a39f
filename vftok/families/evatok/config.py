"""What decides an EVATok tokenizer, as plain data; the published one is `EvatokConfig()`."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax

from vftok.models.config_checks import DTYPES, MAX_CODEBOOK, MAX_DEPTH, MAX_SIZE, MAX_TOKENS
from vftok.models.config_json import KINDS
from vftok.models.router import RouterConfig
from vftok.runtime.words import brief

FORMAT = "vftok-evatok"


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
  """Attributes:
  dim, depth, heads: width, layers and attention heads; mlp_ratio: hidden width of the MLP in widths.
  remat: "none" or a name from `jax.checkpoint_policies`; scan=False unrolls the layers.
  """

  dim: int
  depth: int
  heads: int
  mlp_ratio: int = 4
  dtype: str = "float32"
  remat: str = "none"
  scan: bool = True


SIZES = {  # of GigaTok, on which EVATok builds; EVATok is "S-B", a small encoder and a base decoder
  "tiny": QFormerConfig(256, 4, 4),
  "small": QFormerConfig(512, 6, 8),
  "base": QFormerConfig(768, 12, 12),
  "large": QFormerConfig(1024, 24, 16),
  "xl": QFormerConfig(1280, 36, 20),
  "xxl": QFormerConfig(1536, 48, 24),
}


@dataclasses.dataclass(frozen=True)
class EvatokConfig:
  """Attributes:
  encoder, decoder: the two Q-Formers.
  frames, frame_size: of a clip, (H, W). patch: (frames, rows, columns) that become one place of the grid; as many
    frames are one time step.
  counts: numbers of tokens of a time step that the model knows, rising; the last one, a power of two, is K.
  codebook_size, code_dim: of the table of codes; 8,192 codes in the models for UCF-101 and K600.
  neck: width of a bottleneck before and after the codes, 0 for none. norm_in: whether a LayerNorm stands where each
    half gets its input. GigaTok has both, EVATok's released models may.
  """

  encoder: QFormerConfig = SIZES["small"]
  decoder: QFormerConfig = SIZES["base"]
  frames: int = 16
  frame_size: tuple[int, int] = (128, 128)
  patch: tuple[int, int, int] = (4, 8, 8)
  counts: tuple[int, ...] = (32, 64, 128, 256, 512)
  codebook_size: int = 16_384
  code_dim: int = 8
  neck: int = 0
  norm_in: bool = False

  @property
  def steps(self) -> int:
    """T, time steps of a clip."""
    return self.frames // self.patch[0]

  @property
  def grid(self) -> tuple[int, int]:
    """(rows, columns) of the places of a time step."""
    return self.frame_size[0] // self.patch[1], self.frame_size[1] // self.patch[2]

  @property
  def places(self) -> int:
    """P, places of a time step."""
    return math.prod(self.grid)

  @property
  def slots(self) -> int:
    """K, tokens of a time step at most."""
    return self.counts[-1]

  def with_dtype(self, dtype: str) -> EvatokConfig:
    halves = {name: dataclasses.replace(getattr(self, name), dtype=dtype) for name in ("encoder", "decoder")}
    return dataclasses.replace(self, **halves)


def check(cfg: EvatokConfig) -> None:
  """Raises ValueError naming the first value that no model can have, before anything is built from it."""
  for name in ("frames", "frame_size", "patch", "counts", "code_dim"):
    _sizes(name, getattr(cfg, name))
  _expect(1 < cfg.codebook_size <= MAX_CODEBOOK, "codebook_size", cfg.codebook_size, f"2..{MAX_CODEBOOK}")
  _expect(0 <= cfg.neck <= MAX_SIZE, "neck", cfg.neck, f"0 for none, or up to {MAX_SIZE}")
  whole = not any(n % p for n, p in zip((cfg.frames, *cfg.frame_size), cfg.patch, strict=True))
  _expect(whole, "patch", cfg.patch, f"divisors of {(cfg.frames, *cfg.frame_size)}, the frames and their size")
  _expect(all(a < b for a, b in itertools.pairwise(cfg.counts)), "counts", cfg.counts, "numbers that rise")
  k = cfg.slots
  _expect(k >= 2 and k & (k - 1) == 0, "counts", cfg.counts, "a power of two, 2 or more, as the last one")
  rows, columns = pooled_grid(k.bit_length() - 2)
  fits = cfg.grid[0] % rows == 0 and cfg.grid[1] % columns == 0
  _expect(fits, "counts", cfg.counts, f"a last one whose {rows} x {columns} means divide the grid {cfg.grid}")
  for name, n in (("counts", k), ("patch", cfg.places)):
    _expect(cfg.steps * n <= MAX_TOKENS, name, getattr(cfg, name), f"at most {MAX_TOKENS} tokens in a clip")
  for name in ("encoder", "decoder"):
    half = getattr(cfg, name)
    for field in ("dim", "heads", "mlp_ratio"):
      _sizes(f"{name}.{field}", getattr(half, field))
    _expect(0 < half.depth <= MAX_DEPTH, f"{name}.depth", half.depth, f"1..{MAX_DEPTH}")
    _expect(half.dim % half.heads == 0, f"{name}.heads", half.heads, f"a divisor of the width {half.dim}")
    _expect(half.dim * half.mlp_ratio <= MAX_SIZE, f"{name}.mlp_ratio", half.mlp_ratio, f"at most {MAX_SIZE} hidden")
    _expect(half.dtype in DTYPES, f"{name}.dtype", half.dtype, " or ".join(DTYPES))
    known = half.remat == "none" or half.remat in dir(jax.checkpoint_policies)
    _expect(known, f"{name}.remat", half.remat, "'none' or a name from jax.checkpoint_policies")


def router_config(cfg: EvatokConfig, *, preference: float = 1.2, **whose) -> RouterConfig:
  """The paper's router for such a tokenizer: a class per assignment, 6 layers of 512 over the clip's pixels.

  Ours also sees what changed from step to step, and has SwiGLU and QK-norm: 20.1 M parameters, 19.9 M published.
  `whose`: the fields tokenizer and fingerprint.
  """
  clip = dict(latents=(cfg.frames, *cfg.frame_size, 3), patch=cfg.patch, levels=cfg.counts)
  size = dict(dim=512, depth=6, head_dim=64, head="classes", measure="lpips")
  return RouterConfig(**size, **clip, preference=preference, codebook_size=cfg.codebook_size, **whose)


def pooled_grid(level: int) -> tuple[int, int]:
  """(rows, columns) of a level of nested pooling, 2^level means: columns are split first."""
  return 1 << level // 2, 1 << (level + 1) // 2


def _sizes(name: str, value) -> None:
  numbers = value if isinstance(value, tuple) else (value,)
  ok = numbers and all(0 < n <= MAX_SIZE for n in numbers)
  _expect(ok, name, value, f"whole numbers of 1..{MAX_SIZE}")


def _expect(ok, name: str, value, what: str) -> None:
  if not ok:
    raise ValueError(f"the config has {name} = {brief(value)}, expected {what}.")


KINDS[EvatokConfig] = (FORMAT, check)
