"""Released files of LARP and AdapTok <-> our parameters: one table of names, strict in both directions."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from vftok.families.query.config import PriorConfig, QueryConfig
from vftok.families.query.config_checks import check_scorer
from vftok.families.query.nets import decoder_blocks, encoder_blocks
from vftok.families.query.params import abstract_params
from vftok.families.query.positions import fixed_shapes
from vftok.families.query.released import PRIOR_HEADS, parse, to_json
from vftok.io import hub
from vftok.io.layout import LEADING, LINEAR_2IN, SAME, VECTOR, Rule, Rules, converted, convolution, exported
from vftok.models.config_checks import MAX_DEPTH, MAX_SIZE
from vftok.models.vit import BlocksConfig
from vftok.runtime.words import brief, cut, is_whole

PRIOR, SCORER = "prior_model.", "scorer."
OF_BOTTLENECK = ("in_linear", "out_linear", "regularizer")
INVERSE = "bottleneck.regularizer.stochastic_temperature_inv"
TABLES = {  # ours -> theirs
  "patch_positions": "encoder_patch_pe",
  "queries": "encoder_latent_query_embed",
  "latent_positions": "decoder_latent_pe",
  "patch_queries": "decoder_patch_query_embed",
}


TYPE = (VECTOR[0], lambda a: a[None, None])  # [1, 1, D] <-> [D]


def rules(cfg: QueryConfig) -> Rules:
  """Their key -> where and how it is ours, for every tensor of the file that `cfg` stands for."""
  table = Rules()
  add, linear, norm = table.add, table.linear, table.norm
  window = cfg.patch if cfg.patch[0] > 1 else cfg.patch[1:]
  linear("x_embedder.proj", ("encoder", "patch_in"), how=convolution(window))
  fixed = fixed_shapes(cfg)
  for name, key in TABLES.items():
    part = "encoder" if key.startswith("encoder") else "decoder"
    if name in fixed:
      add(key, ("fixed", name), SAME if name == "queries" else LEADING)
    elif name in ("queries", "latent_positions"):
      add(key, (part, name), SAME if name == "queries" else LEADING)
    else:
      for axis in "thw":
        key = "encode_w_embed" if (part, axis) == ("encoder", "w") else f"{part}_{axis}_embed"  # so spelled in files
        add(key, (part, f"{name}_{axis}"), LEADING)
  for switch, path in (
    ("encoder_patch", ("encoder", "patch_type")),
    ("encoder_latent_query", ("encoder", "query_type")),
    ("decoder_latent", ("decoder", "latent_type")),
    ("decoder_patch_query", ("decoder", "query_type")),
  ):
    if getattr(cfg, f"use_{switch}_token_type_embed"):
      add(f"{switch}_token_type_embed", path, TYPE)
  _block_rules(table, "encoder.blocks", ("encoder", "blocks", "layers"), encoder_blocks(cfg))
  _block_rules(table, "decoder.blocks", ("decoder", "blocks", "layers"), decoder_blocks(cfg))
  linear("bottleneck.in_linear", ("quantizer", "in"))
  if cfg.vq.norm != "none":
    norm(f"bottleneck.{cfg.vq.norm_module}", ("quantizer", "norm"))
  add("bottleneck.regularizer.embedding.weight", ("quantizer", "table"), SAME)
  if cfg.vq.stochastic_temperature < 0:
    add(INVERSE, ("quantizer", "inverse_temperature"), SAME)
  linear("bottleneck.out_linear", ("decoder", "codes_in"))
  norm("final_layer.norm_final", ("decoder", "norm"))
  linear("final_layer.linear", ("decoder", "head"))
  if cfg.prior is not None:
    _prior_rules(table, cfg.prior)
  if cfg.scorer:
    linear("scorer.project", ("scorer", "project"))
    add("scorer.latent_pe", ("scorer", "latent_positions"), SAME)
    stack = BlocksConfig(cfg.scorer_hidden_size, cfg.scorer_num_heads, cfg.scorer_depth, 4 * cfg.scorer_hidden_size)
    _block_rules(table, "scorer.blocks", ("scorer", "blocks", "layers"), stack)
    norm("scorer.ln_post", ("scorer", "norm"))
    linear("scorer.ffn.0", ("scorer", "hidden"))
    linear("scorer.ffn.2", ("scorer", "out"))
  for key in cfg.leading:
    table[key] = Rule(table[key].path, (), *LEADING)
  return table


def _block_rules(table: Rules, key: str, path: tuple[str, ...], cfg: BlocksConfig) -> None:
  for i in range(cfg.depth):
    at = f"{key}.{i}"
    for name in ("norm1", "norm2"):
      table.norm(f"{at}.{name}", (*path, name), (i,))
    table.layer(f"{at}.attn.qkv", (*path, "qkv"), i, bias=False)
    table.layer(f"{at}.attn.proj", (*path, "proj"), i, how=LINEAR_2IN)
    for theirs, ours in (("fc1", "up"), ("fc2", "down")):
      table.layer(f"{at}.mlp.{theirs}", (*path, ours), i)


def _prior_rules(table: Rules, cfg: PriorConfig) -> None:
  table.linear(f"{PRIOR}input_proj", ("prior", "in"))
  table.linear(f"{PRIOR}head", ("prior", "out"))
  table.norm(f"{PRIOR}ln_f", ("prior", "norm"))
  table.add(f"{PRIOR}pos_emb", ("prior", "positions"), LEADING)
  path = ("prior", "blocks", "layers")
  for i in range(cfg.depth):
    at = f"{PRIOR}blocks.{i}"
    for theirs, ours in (("ln1", "norm1"), ("ln2", "norm2")):
      table.norm(f"{at}.{theirs}", (*path, ours), (i,))
    for branch, name in enumerate(("query", "key", "value")):
      table.layer(f"{at}.attn.{name}", (*path, "qkv"), i, branch)
    table.layer(f"{at}.attn.proj", (*path, "proj"), i, how=LINEAR_2IN)
    for theirs, ours in (("mlp.0", "up"), ("mlp.2", "down")):
      table.layer(f"{at}.{theirs}", (*path, ours), i)


def load(name: str | os.PathLike, prior_heads: int | None = None) -> tuple[QueryConfig, dict[str, Any]]:
  """(config, parameters) of a released model. Tensors keep the dtype they are stored in.

  Raises:
    ValueError: a config that vftok does not know, or a file that does not fit it.
  """
  checkpoint = hub.open_checkpoint(name)
  cfg = with_parts_of(parse(checkpoint.config), checkpoint, prior_heads)
  return cfg, converted(checkpoint.path, rules(cfg), checkpoint.sources(), abstract_params(cfg))


def save(cfg: QueryConfig, params: Any, directory: str | os.PathLike) -> None:
  """Writes the released layout, whole or not at all: config.json and model.safetensors."""
  hub.save_files(directory, exported(rules(cfg), params), to_json(cfg))


def with_parts_of(cfg: QueryConfig, file: hub.Checkpoint, prior_heads: int | None) -> QueryConfig:
  """The config with what only tensors tell: axes, whether there is a prior or a scorer, their sizes, a norm's name."""
  shapes, leading = file.shapes, []
  if not cfg.learned_encoder_latent_query_embed and len(shapes.get(TABLES["queries"], ())) == 3:
    leading.append(TABLES["queries"])
  if cfg.vq.stochastic_temperature < 0 and shapes.get(INVERSE) == (1,):
    leading.append(INVERSE)
  cfg = dataclasses.replace(cfg, leading=tuple(leading))
  if cfg.vq.norm != "none":
    inside = {key.removeprefix("bottleneck.") for key in shapes if key.startswith("bottleneck.")}
    names = {key.rpartition(".")[0] for key in inside if key.split(".")[0] not in OF_BOTTLENECK}
    if len(names) == 1:
      cfg = dataclasses.replace(cfg, vq=dataclasses.replace(cfg.vq, norm_module=names.pop()))
  if cfg.nested and any(key.startswith(SCORER) for key in shapes):
    cfg = dataclasses.replace(cfg, scorer=True)
    check_scorer(cfg)
  if any(key.startswith(PRIOR) for key in shapes):
    cfg = dataclasses.replace(cfg, prior=_prior(file, json.loads(cfg.rest).get("prior_model"), prior_heads))
  return cfg


def _prior(file: hub.Checkpoint, named: Any, heads: int | None) -> PriorConfig:
  shapes, named = file.shapes, named if isinstance(named, Mapping) else {}
  args = named.get("args") if isinstance(named.get("args"), Mapping) else {}
  layers = {key.split(".")[2] for key in shapes if key.startswith(f"{PRIOR}blocks.")}
  try:
    dim = shapes[f"{PRIOR}input_proj.weight"][0]
    hidden = shapes[f"{PRIOR}blocks.0.mlp.0.weight"][0]
    length = shapes[f"{PRIOR}pos_emb"][1]
  except (KeyError, IndexError) as error:
    raise ValueError(f"{cut(file.path, 150)} has no whole prior, it lacks or bends {error}: fetch it again.") from None
  for what, n in (("width", dim), ("hidden width", hidden), ("length", length)):
    if not 0 < n <= MAX_SIZE:
      raise ValueError(f"{cut(file.path, 150)} has a prior of {what} {n}, expected 1..{MAX_SIZE}: fetch it again.")
  name = str(named.get("name") or "").removeprefix("gptc-")
  stated = 0 if args.get("n_head") is None else args["n_head"]
  heads = (heads or stated or PRIOR_HEADS.get(name, 0)) if is_whole(stated) else stated
  if not is_whole(heads) or heads < 0 or (heads and dim % heads):
    raise ValueError(f"the prior has {brief(heads)} heads, expected a divisor of its width {dim}: correct n_head.")
  temperature = named.get("latent_ce_temperature", 1.0)
  if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
    raise ValueError(f"the config has latent_ce_temperature = {brief(temperature)}, expected a number above 0.")
  if len(layers) > MAX_DEPTH:
    raise ValueError(f"{cut(file.path, 150)} has a prior of {len(layers)} layers, expected at most {MAX_DEPTH}.")
  normalized = args.get("l2_normalized", True) is not False
  return PriorConfig(len(layers), dim, hidden, length, heads, normalized, float(temperature))
