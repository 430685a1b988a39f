"""FlexTok behind the interface of `vftok.Tokenizer`: a video is pictures one after another, each a chunk of its own."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

from vftok.convert.load import abstract_params
from vftok.convert.reference_weights import infer_readout, plain_keys
from vftok.families.flextok import export, released, vae_weights
from vftok.families.flextok.config import FlexTokConfig
from vftok.io import hub
from vftok.io.layout import converted
from vftok.models.config_checks import check
from vftok.tokenizer.api import Params, Tokenizer
from vftok.tokenizer.checks import check_dtype

LICENCE = (
  "released FlexTok weights are under the Apple Machine Learning Research Model licence: for research only, no "
  "commercial use, and the licence goes with every copy and derivative."
)


@dataclasses.dataclass(frozen=True)
class FlexTok(Tokenizer):
  """A FlexTok's configuration and its functions; it owns no arrays.

  All as in `vftok.Tokenizer`: a picture is a video [B, 1, H, W, 3] and has one time step, several frames are pictures
  by themselves. `vftok.APG(scale)` has the constants of the image pipeline.
  """

  cfg: FlexTokConfig

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the layout of released FlexTok models, whole or not at all: config.json and model.safetensors."""
    export.save(self.cfg, params, directory)

  export = save

  def check_latent_frames(self, frames: int) -> None:
    """Any number fits: a picture is a latent."""


def load(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[FlexTok, Params]:
  """(tokenizer, params) of a released FlexTok: a directory, a safetensors file with its config inside, or a Hub id.

  Tensors keep the dtype they are stored in. A warning says the licence of the released weights.

  Args:
    dtype: compute dtype, "float32" (default) or "bfloat16"; norms, softmax, FSQ and flow time stay float32.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  check_dtype(dtype)
  checkpoint = hub.open_checkpoint(name)
  sources = {_plain(key): (checkpoint, own) for key, own in plain_keys(checkpoint.shapes).items()}
  shapes = {key: checkpoint.shapes[own] for key, (_, own) in sources.items()}
  cfg, names = released.parse(checkpoint.config, _vae(checkpoint, shapes))
  if "readout" in names.decoder:
    readout = infer_readout(shapes, f"decoder.module_dict.{names.decoder['readout']}")
    cfg = dataclasses.replace(cfg, decoder=dataclasses.replace(cfg.decoder, readout=readout))
    check(cfg)
  rules = released.rules(cfg, names)
  params = converted(checkpoint.path, rules, sources, abstract_params(cfg))
  warnings.warn(LICENCE, stacklevel=4)  # whose code called `vftok.load`
  return FlexTok(cfg if dtype is None else cfg.with_dtype(dtype)), params


def _plain(key: str) -> str:
  return vae_weights.plain_key(key) if key.startswith(released.VAE_PREFIX) else key


def _vae(checkpoint: hub.Checkpoint, shapes: Mapping[str, tuple[int, ...]]):
  spec = released.parts_of(checkpoint.config)["vae"]
  prefix = released.VAE_PREFIX
  own: dict[str, Any] = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
  if not own:
    raise ValueError(f"{checkpoint.path} has no tensor under '{prefix}', expected the VAE there: fetch it again.")
  return released.vae_config(spec, own)
