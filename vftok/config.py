"""What defines a tokenizer, apart from its weights: frozen dataclasses and their JSON form."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from vftok.models.decoder import DecoderConfig
from vftok.models.encoder import EncoderConfig
from vftok.models.vae import VAEConfig

FORMAT = "vftok-tokenizer"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Attributes:
  levels: FSQ levels, the codebook is their product.
  chunk_frames, overlap_frames: geometry of long video; chunks advance by chunk_frames - overlap_frames.
  latent_size: (h, w) of the VAE grid the model was made for; pixels are 8 times that.
  dino_frames: "" or how DINO features of a frame group are made ("first", "avg"), where the encoder reads them.
  """

  vae: VAEConfig
  encoder: EncoderConfig
  decoder: DecoderConfig
  levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
  chunk_frames: int = 17
  overlap_frames: int = 1
  latent_size: tuple[int, int] = (32, 32)
  dino_frames: str = ""

  def with_dtype(self, dtype: str) -> TokenizerConfig:
    """The same model computing in `dtype`; norms, softmax, FSQ and flow time stay float32."""
    stack = lambda part: dataclasses.replace(part, stack=dataclasses.replace(part.stack, dtype=dtype))
    return dataclasses.replace(
      self,
      vae=dataclasses.replace(self.vae, dtype=dtype),
      encoder=stack(self.encoder),
      decoder=stack(self.decoder),
    )


def to_json(cfg: TokenizerConfig) -> dict[str, Any]:
  return {"format": FORMAT, "version": FORMAT_VERSION, **dataclasses.asdict(cfg)}


def from_json(data: dict[str, Any]) -> TokenizerConfig:
  """Raises ValueError naming the first unknown, missing or mistyped key."""
  version = data.get("version")
  if version != FORMAT_VERSION:
    raise ValueError(
      f"config version is {version!r}, expected {FORMAT_VERSION}: update vftok to read this model."
    )
  return _build(TokenizerConfig, {k: v for k, v in data.items() if k not in ("format", "version")}, "config")


def _build(kind, value, where: str):
  """Makes a dataclass, tuple or scalar of the annotated type `kind` from plain JSON."""
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    return None if value is None else _build(next(a for a in args if a is not type(None)), value, where)
  if dataclasses.is_dataclass(kind):
    if not isinstance(value, dict):
      raise ValueError(f"{where} is {value!r}, expected an object with the fields of {kind.__name__}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
      raise ValueError(
        f"{where} has the unknown key {unknown[0]!r}, expected one of {', '.join(sorted(hints))}."
      )
    missing = [
      f.name
      for f in dataclasses.fields(kind)
      if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
      raise ValueError(f"{where} lacks the key {missing[0]!r}: add it.")
    return kind(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      raise ValueError(f"{where} is {value!r}, expected a list.")
    variadic = len(args) == 2 and args[1] is Ellipsis
    if not variadic and len(args) != len(value):
      raise ValueError(f"{where} has {len(value)} entries, expected {len(args)}.")
    return tuple(
      _build(args[0] if variadic else a, v, where)
      for a, v in zip(args if not variadic else value, value, strict=True)
    )
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise ValueError(f"{where} is {value!r}, expected {kind.__name__}.")
  return value
