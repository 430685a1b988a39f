"""LARP and AdapTok behind the interface of `vftok.Tokenizer`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.families.query import params as parameters
from vftok.families.query import programs, weights
from vftok.families.query.config import QueryConfig
from vftok.runtime.words import brief, is_whole
from vftok.tokenizer.checks import check_dtype, check_key, check_tokens, check_video
from vftok.tokenizer.one_pass import OnePass
from vftok.tokenizer.programs import to_float
from vftok.tokens import VideoTokens, is_concrete

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class QueryTokenizer(OnePass):
  """What the two have in common. Letters: B videos, F frames, T blocks of time, K tokens of each, c of a code."""

  cfg: QueryConfig

  @property
  def registers(self) -> int:
    return self.cfg.group_tokens

  @property
  def levels(self) -> tuple[int, ...]:
    return (self.cfg.vq.codebook_size,)

  @property
  def frame_size(self) -> tuple[int, int]:
    return self.cfg.input_size, self.cfg.input_size

  @property
  def chunk_frames(self) -> int:
    return self.cfg.frames

  @property
  def chunk_steps(self) -> int:
    return self.cfg.groups

  @property
  def nested(self) -> bool:
    return self.cfg.nested

  # ---- saving and starting

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes the released layout, whole or not at all: config.json and model.safetensors."""
    weights.save(self.cfg, params, directory)

  export = save

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    params = parameters.init(self.cfg, key)
    return params if boxed else nn.unbox(params)

  # ---- what the base asks for

  def ids_of(self, params: Params, video: jax.Array) -> jax.Array:
    return programs.encode(self.cfg, params, video)[0]

  def frames_of(self, params: Params, ids: jax.Array, keep: jax.Array) -> jax.Array:
    if not self.nested:
      if is_concrete(keep) and np.min(keep) < self.registers:
        found = int(np.min(keep))
        raise ValueError(f"tokens.keep is {found}, expected {self.registers} everywhere: this model reads all tokens.")
      return programs.decode(self.cfg, params, ids)
    most = int(np.max(keep)) if is_concrete(keep) else self.registers
    slots = min(1 << max(most - 1, 0).bit_length(), self.registers)  # a program per bucket of counts
    return programs.decode(self.cfg, params, ids[:, :, :slots], keep)

  def codes_of(self, params: Params, ids) -> jax.Array:
    return programs.codes(self.cfg, params, jnp.asarray(ids))

  def decides(self, params: Params) -> tuple[Any, Any]:
    cfg = dataclasses.asdict(self.cfg)
    of_ids = ("bottleneck_token_num", "input_size", "frame_num", "temporal_patch_size", "patch_size")
    plain = {name: cfg[name] for name in of_ids}
    plain |= {k: v for k, v in cfg.items() if "encoder_" in k and not k.startswith("decoder")}
    plain |= {k: cfg["vq"][k] for k in ("norm", "l2_normalized", "stochastic")}
    plain |= {"groups": cfg["groups"], "read_frames": cfg["read_frames"]}
    fixed = {name: params["fixed"][name] for name in ("patch_positions", "queries") if name in params.get("fixed", {})}
    return plain, {"encoder": params["encoder"], "quantizer": params["quantizer"], "fixed": fixed}

  def describe(self, params: Params) -> dict[str, Any]:
    """What `vftok info` shows: geometry, parameter counts per part ("fixed": tables of positions), fingerprint."""
    cfg, facts = self.cfg, super().describe(params)
    for part in ("encoder", "decoder"):
      width, depth = getattr(cfg, f"{part}_hidden_size"), getattr(cfg, f"{part}_depth")
      facts[part] = {"depth": depth, "width": width, "mask": getattr(cfg, f"{part}_attn_type"), "patch": [*cfg.patch]}
    return {"family": type(self).__name__, **facts}

  # ---- beyond the interface

  def features(self, params: Params, video) -> jax.Array:
    """z float32 [B, T, K, c] of one chunk of video [B, F, H, W, 3]: what is compared with the codes, for probing."""
    return programs.encode(self.cfg, params, self._chunk(video))[1]

  def sampled_ids(self, params: Params, video, key: jax.Array) -> VideoTokens:
    """Tokens of one chunk drawn from the softmax over codes, as training does; `encode` takes the likeliest.

    Raises:
      ValueError: the model's ids are not of a softmax.
    """
    check_key(key, "sampled_ids")
    if not self.cfg.vq.stochastic:
      raise ValueError("this model's ids are of nearest codes, expected of a softmax to draw from: use encode.")
    video = self._chunk(video)
    return VideoTokens.full(programs.encode(self.cfg, params, video, key)[0], self.chunk_frames, nested=self.nested)

  def prior_logits(self, params: Params, tokens: VideoTokens) -> jax.Array:
    """The AR prior's logits float32 [B, T K - 1, V] of the ids of one chunk, from the second one on (LARP section 4).

    Of tokens that are cut, those kept come first, in order and with the positions that they had; what follows is of
    the dropped ones and means nothing.

    Raises:
      ValueError: the file has no prior, or does not tell its heads.
    """
    if self.cfg.prior is None or "prior" not in params:
      raise ValueError("this model's file has no prior, expected prior_model tensors: load one that has.")
    if not self.cfg.prior.heads:
      raise ValueError("the prior's number of heads is in no released config: load with prior_heads=.")
    check_tokens(tokens, self.registers, self.codebook_size)
    if tokens.ids.shape[1] != self.chunk_steps:
      raise ValueError(f"the tokens have {tokens.ids.shape[1]} time steps, expected one chunk of {self.chunk_steps}.")
    return programs.prior(self.cfg, params, tokens.ids, tokens.keep if self.nested else None)[1]

  def _chunk(self, video) -> jax.Array:
    video = check_video(video, self.frame_size)
    if video.shape[1] != self.chunk_frames:
      raise ValueError(f"the video has {video.shape[1]} frames, expected one chunk of {self.chunk_frames}.")
    return to_float(jnp.asarray(video))


@dataclasses.dataclass(frozen=True)
class LARP(QueryTokenizer):
  """LARP (arXiv 2410.21264): a clip becomes one unordered set of K tokens, so T is 1 and none can be left out."""

  def shorter(self, frames: int) -> LARP:
    """The same model for clips of fewer frames: fewer patches, as many tokens (section 2.3; its quality is unknown).

    Raises:
      ValueError: frames that are no whole patches, or more than the model reads.
    """
    t = self.cfg.temporal_patch_size
    if not is_whole(frames) or not 0 < frames <= self.cfg.frame_num or frames % t:
      raise ValueError(f"frames is {brief(frames)}, expected a multiple of {t} up to {self.cfg.frame_num}.")
    return dataclasses.replace(self, cfg=dataclasses.replace(self.cfg, read_frames=int(frames)))


@dataclasses.dataclass(frozen=True)
class AdapTok(QueryTokenizer):
  """AdapTok (arXiv 2505.17011): T blocks of time, causal, any first tokens of each decode."""

  @property
  def score_counts(self) -> tuple[int, ...]:
    """Counts of a block that `scores` predicts losses for."""
    step = self.cfg.scorer_step
    return tuple(range(step, self.registers + 1, step)) if self.cfg.scorer else ()

  def scores(self, params: Params, video, keep=None) -> jax.Array:
    """Predicted losses float32 [B, T, m] of one chunk: of block t, if it keeps `score_counts[j]` tokens (section 2).

    Args:
      keep: int [B, T], tokens that the scorer sees; None: all.

    Raises:
      ValueError: the file has no scorer.
    """
    return self.scores_of(params, *self.ids_and_features(params, self._chunk(video)), keep)

  def ids_and_features(self, params: Params, video) -> tuple[jax.Array, jax.Array]:
    """(ids int32 [B, T, K], encoder outputs float32 [B, T K, D]) of a chunk as `ids_of` takes it."""
    ids, _, features = programs.encode(self.cfg, params, video)
    return ids, features

  def scores_of(self, params: Params, ids, features, keep=None) -> jax.Array:
    """As `scores`, of what `ids_and_features` gives."""
    if not self.cfg.scorer or "scorer" not in params:
      raise ValueError("this model's file has no scorer, expected scorer tensors: load one that has, or pass counts.")
    keep = jnp.full(ids.shape[:2], self.registers) if keep is None else jnp.asarray(keep)
    return programs.scores(self.cfg, params, ids, features, keep)


def load(name: str | os.PathLike, *, dtype: str | None = None, prior_heads: int | None = None):
  """(tokenizer, params) of a released LARP or AdapTok model, as `vftok.load` opens them.

  Args:
    dtype: compute dtype of the transformers, "float32" (default) or "bfloat16".
    prior_heads: of the AR prior where neither the config nor its name tells them; nothing but `prior_logits` needs it.

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  check_dtype(dtype)
  if prior_heads is not None and not (is_whole(prior_heads) and prior_heads >= 1):
    raise ValueError(f"prior_heads is {brief(prior_heads)}, expected a whole number of 1 or more.")
  cfg, params = weights.load(name, prior_heads)
  cfg = cfg if dtype is None else dataclasses.replace(cfg, dtype=dtype)
  return (AdapTok if cfg.nested else LARP)(cfg), params
