"""Checks of configs that were made here, not read: every sentence names the first value that no model has."""

from __future__ import annotations

import dataclasses

import jax

from vftok.families.query.config import QueryConfig
from vftok.families.query.released import parse, to_json
from vftok.models.config_checks import DTYPES
from vftok.models.config_json import KINDS
from vftok.runtime.words import brief


def check(cfg: QueryConfig) -> None:
  """Raises ValueError naming the first value of a config made here that no model has."""
  parse(to_json(cfg))
  if cfg.scorer:
    check_scorer(cfg)
  if cfg.dtype not in DTYPES:
    raise ValueError(f"the config has dtype = {brief(cfg.dtype)}, expected {' or '.join(DTYPES)}.")
  if cfg.remat != "none" and cfg.remat not in dir(jax.checkpoint_policies):
    raise ValueError(f"the config has remat = {brief(cfg.remat)}, expected 'none' or one of jax.checkpoint_policies.")
  p = cfg.prior
  if p is None:
    return
  if min(p.depth, p.dim, p.hidden, p.heads) < 1 or p.dim % p.heads or not 0 <= p.dropout < 1 or p.temperature <= 0:
    raise ValueError(
      f"the config has prior = {brief(dataclasses.astuple(p))}, expected sizes of 1 or more, whole heads."
    )
  if p.length != cfg.bottleneck_token_num:
    raise ValueError(f"the config has prior.length = {p.length}, expected {cfg.bottleneck_token_num}, all tokens.")


def check_scorer(cfg: QueryConfig) -> None:
  """Raises ValueError where a scorer's sizes are missing or do not fit."""
  for name in ("scorer_hidden_size", "scorer_num_heads", "scorer_depth", "scorer_step"):
    if not getattr(cfg, name):
      raise ValueError(f"the file has a scorer, and the config no {name}: add it.")
  if cfg.scorer_hidden_size % cfg.scorer_num_heads or cfg.group_tokens % cfg.scorer_step:
    raise ValueError(
      f"the config has scorer_hidden_size = {cfg.scorer_hidden_size}, scorer_num_heads = {cfg.scorer_num_heads} and "
      f"scorer_step = {cfg.scorer_step}, expected a multiple of the heads and a divisor of {cfg.group_tokens} tokens."
    )
  if cfg.encoder_hidden_size != cfg.decoder_hidden_size:
    widths = f"{cfg.encoder_hidden_size} and {cfg.decoder_hidden_size}"
    raise ValueError(f"the encoder and decoder are {widths} wide, expected one width where there is a scorer.")


KINDS[QueryConfig] = ("larp", check)  # the format stands in no file: what is saved is the released layout
