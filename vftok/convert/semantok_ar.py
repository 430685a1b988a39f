"""SemanTok's autoregressive checkpoints (arXiv 2610.00686) <-> ours: one table of names, strict in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vftok.io.layout import LINEAR, LINEAR_2IN, SAME, Rules
from vftok.models.ar import ARConfig
from vftok.runtime.words import brief, is_whole

STEPS = 5  # latent steps of the 17 frames that released models make
KEYS = {"depth", "vocab", "seq_len", "n_classes", "ctx_dim", "n_ctx_null", "head_bias"}


def parse(config: Mapping[str, Any]) -> ARConfig:
  """The model's config; `seq_len` alone is known of its shape, so T is 5 where that divides it, else 1.

  Raises:
    ValueError: a missing, unknown or impossible entry.
  """
  unknown = sorted(set(config) - KEYS)
  if unknown:
    raise ValueError(f"the generator's config has {brief(unknown[0])}, expected only {', '.join(sorted(KEYS))}.")
  values = {}
  for key in KEYS - {"head_bias"}:
    value = config.get(key, 0)
    value = 0 if value is None else value
    least = 1 if key in ("depth", "vocab", "seq_len") else 0
    if not is_whole(value) or not least <= value <= 2**24:
      raise ValueError(f"the generator's config has {key} = {brief(value)}, expected a whole number from {least} on.")
    values[key] = value
  bias = config.get("head_bias") or False
  if not isinstance(bias, bool):
    raise ValueError(f"the generator's config has head_bias = {brief(bias)}, expected true or false.")
  length = values["seq_len"]
  steps = STEPS if length % STEPS == 0 else 1
  return ARConfig(
    vocab=values["vocab"],
    steps=steps,
    slots=length // steps,
    depth=values["depth"],
    n_classes=values["n_classes"],
    ctx_dim=values["ctx_dim"],
    n_ctx_null=values["n_ctx_null"],
    head_bias=bias,
    positions="flat",
  )


def config_of(cfg: ARConfig) -> dict[str, Any]:
  """Inverse of `parse`.

  Raises:
    ValueError: a model that their layout cannot hold.
  """
  if cfg.lengths != "none":
    raise ValueError(
      f"this generator's lengths are {brief(cfg.lengths)}, expected 'none' for SemanTok's layout: save it."
    )
  if cfg.positions != "flat" or cfg.order != "time_first" or cfg.dim != 64 * cfg.depth or cfg.head_dim != 64:
    raise ValueError("this generator has no place in SemanTok's layout: it needs flat positions and width 64 * depth.")
  out = {"depth": cfg.depth, "vocab": cfg.vocab, "seq_len": cfg.length}
  optional = {"n_classes": cfg.n_classes, "ctx_dim": cfg.ctx_dim, "n_ctx_null": cfg.n_ctx_null}
  return out | {key: value for key, value in optional.items() if value} | ({"head_bias": True} if cfg.head_bias else {})


def rules(cfg: ARConfig) -> Rules:
  """Their key -> where and how it is ours."""
  table = Rules()
  table.add("tok_emb.weight", ("token_table",))
  table.add("pos_emb", ("position_table",))
  table.add("sos", ("start",))
  table.norm("norm", ("norm",), bias=False)
  table.add("head.weight", ("head",), LINEAR)
  if cfg.head_bias:
    table.add("head.bias", ("head_bias",))
  if cfg.n_classes:
    table.add("cls_emb.weight", ("class_table",))
  if cfg.ctx_dim:
    table.add("ctx_in.weight", ("text_in",), LINEAR)
    table.add("ctx_null", ("null_text",))
  block = {
    "n1.weight": (SAME, ("n1", "scale")),
    "n2.weight": (SAME, ("n2", "scale")),
    "attn.qkv.weight": (LINEAR, ("qkv",)),
    "attn.proj.weight": (LINEAR_2IN, ("proj",)),
    "ffn.w2.weight": (LINEAR, ("down",)),
  }
  if cfg.ctx_dim:
    block |= {
      "nx.weight": (SAME, ("nx", "scale")),
      "xattn.q.weight": (LINEAR, ("text_q",)),
      "xattn.kv.weight": (LINEAR, ("text_kv",)),
      "xattn.proj.weight": (LINEAR_2IN, ("text_proj",)),
    }
  for i in range(cfg.depth):
    at = f"blocks.{i}"
    for key, (how, path) in block.items():
      table.add(f"{at}.{key}", ("blocks", *path), how, (i,))
    for branch, key in enumerate(("ffn.w1.weight", "ffn.w3.weight")):  # silu(w1 x) * w3 x
      table.add(f"{at}.{key}", ("blocks", "up"), LINEAR, (i, slice(None), branch))
  return table
