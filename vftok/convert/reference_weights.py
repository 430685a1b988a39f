"""One rename table between released checkpoints and our parameter tree, strict and used in both directions."""

from __future__ import annotations

from collections.abc import Mapping

from vftok.convert import vidtok
from vftok.convert.reference_config import Names
from vftok.io.layout import LINEAR_2IN, SAME, VECTOR, Rules
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import readout_stack
from vftok.models.transformer import StackConfig

PREFIX = "video_tokenizer."
VAE_PREFIX = "vae.vidtok."


# learnable [n, 1, D, m] <-> [n, m, D]; fixed [1, D, h, w] <-> [h, w, D]
LEARNED_TABLE = (lambda a, shape: a[:, 0].swapaxes(1, 2), lambda a: a.swapaxes(1, 2)[:, None])
FIXED_TABLE = (lambda a, shape: a[0].transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1)[None])


def rules(cfg: TokenizerConfig, names: Names) -> Rules:
  """Torch key (without `video_tokenizer.`) -> Rule, for every tensor the config asks for."""
  table = network_rules(cfg, names)
  table.update({VAE_PREFIX + key: rule for key, rule in vidtok.rules(cfg.vae, ("vae",)).items()})
  return table


def network_rules(cfg: TokenizerConfig, names: Names) -> Rules:
  """`rules` of encoder and decoder, without the VAE."""
  table = Rules()
  add, linear = table.add, table.linear
  for part, part_cfg, role_names in (
    ("encoder", cfg.encoder, names.encoder),
    ("decoder", cfg.decoder, names.decoder),
  ):
    at = {role: f"{part}.module_dict.{name}" for role, name in role_names.items()}
    linear(f"{at['patch_in']}.patch_proj", (part, "patch_in"))
    for role, field in (("patch_positions", "positions"), ("register_positions", "register_positions")):
      position = getattr(part_cfg, field, None)
      if position is not None:
        conversion = FIXED_TABLE if position.kind == "sincos" else LEARNED_TABLE
        add(f"{at[role]}.posembs", (part, role, "table"), conversion)
    flip = part == "decoder" and names.registers_first
    _stack_rules(table, at["stack"], (part, "stack", "blocks"), part_cfg.stack, flip)
    linear(f"{at['head']}.proj", (part, "head"), bias=part_cfg.head_bias)
  enc, dec = (
    {role: f"{part}.module_dict.{name}" for role, name in role_names.items()}
    for part, role_names in (("encoder", names.encoder), ("decoder", names.decoder))
  )
  add(f"{enc['registers']}.registers", ("encoder", "registers"), SAME)
  if cfg.encoder.global_token:
    linear("global_token_input.proj", ("encoder", "global_in"))
  linear(f"{dec['codes_in']}.proj", ("decoder", "codes_in"))
  tensor = {"mask": "dropout_mask_token", "prefix": "dropout_mask_token", "null": "nullcond"}
  for role in cfg.decoder.replacements:
    add(f"{dec[role]}.{tensor[role]}", ("decoder", f"{role}_token"), VECTOR)
  linear(f"{dec['time']}.mlp.0", ("decoder", "time_in"))
  linear(f"{dec['time']}.mlp.2", ("decoder", "time_out"))
  if cfg.decoder.head_adaln:
    linear(f"{dec['head']}.adaLN_modulation.1", ("decoder", "head_adaln"))
  if cfg.decoder.readout is not None:
    readout = readout_stack(cfg.decoder.stack, cfg.decoder.readout[0])
    _stack_rules(table, f"{dec['readout']}.transformer", ("decoder", "readout", "stack", "blocks"), readout, False)
    linear(f"{dec['readout']}.out_proj", ("decoder", "readout", "out"), bias=False)
  return table


def _stack_rules(table: Rules, key: str, path: tuple[str, ...], cfg: StackConfig, flip: bool) -> None:
  for i in range(cfg.depth):
    block = f"{key}.blocks.{i}"
    for j, name in enumerate(("wq", "wk", "wv")):
      table.layer(f"{block}.attn.{name}", (*path, "qkv"), i, j, bias=cfg.qkv_bias)
    table.layer(f"{block}.attn.proj", (*path, "proj"), i, how=LINEAR_2IN, bias=cfg.proj_bias)
    for j, name in enumerate(("fc1", "fc3") if cfg.gated_mlp else ("fc1",)):
      table.layer(f"{block}.mlp.{name}", (*path, "up"), i, j, bias=cfg.mlp_bias)
    table.layer(f"{block}.mlp.fc2", (*path, "down"), i, bias=cfg.mlp_bias)
    if cfg.adaln:
      kinds = slice(None, None, -1) if flip else slice(None)
      table.layer(f"{block}.adaLN_modulation.1", (*path, "adaln"), i, kinds)


def plain_keys(keys) -> dict[str, str]:
  """Plain key -> key in the file: without the wrapper's prefix, which released files have and SemanTok's lack."""
  prefixed = bool(keys) and all(key.startswith(PREFIX) for key in keys)
  names = {key: key.removeprefix(PREFIX) if prefixed else key for key in keys}
  return {name.replace("_checkpoint_wrapped_module.", ""): key for key, name in names.items()}


def infer_readout(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, int]:
  """(depth, features) of a stored REPA head, which its config entry does not tell in a known way."""
  blocks = {name.split(".")[5] for name in shapes if name.startswith(f"{key}.transformer.blocks.")}
  out = shapes.get(f"{key}.out_proj.weight")
  if not out:
    raise ValueError(f"the checkpoint lacks {key}.out_proj.weight: check that it and its config are of one model.")
  return len(blocks), int(out[0])
