"""T5 encoders from the user's files: T5 (ReLU), T5 v1.1, FLAN and mT5 (gated GELU), umT5 (position biases per layer).

No T5 scales its attention logits by the head size; positions enter as a learned bias per head and bucket of distance.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.text import tokenizer, weights
from vftok.frozen.text.encoder import TextEncoder
from vftok.frozen.text.layers import Attention
from vftok.io.layout import Rules
from vftok.models.layers import Linear, partitioned, repeated, trunc_normal
from vftok.runtime.words import brief, cut

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}
BIAS_PER_LAYER = {"t5": False, "mt5": False, "umt5": True}  # by model_type
DECODER = r"(decoder|lm_head)\..+"
SHARED, EMBED_TOKENS = "shared.weight", "encoder.embed_tokens.weight"


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Attributes:
  buckets, max_distance: half of the buckets is for later keys, half for earlier ones; distances from max_distance
    on share the last one.
  activation: a key of `ACTIVATIONS`. gated: times a second projection.
  bias_per_layer: every layer has a table of position biases (umT5), or all share one.
  dtype: of the matrix products; residual stream, norms and softmax stay float32.
  """

  vocab: int = 32_128
  dim: int = 512
  depth: int = 8
  heads: int = 6
  head_dim: int = 64
  hidden: int = 1_024
  buckets: int = 32
  max_distance: int = 128
  activation: str = "gelu_new"
  gated: bool = True
  bias_per_layer: bool = False
  eps: float = 1e-6
  dtype: str = "float32"

  @property
  def positions(self) -> None:
    return None

  def module(self) -> nn.Module:
    return T5(self)


class T5(nn.Module):
  """Pre-norm encoder: see `encoder.Net.module`."""

  cfg: T5Config

  @nn.compact
  def __call__(self, ids_BxS, mask_BxS):
    cfg = self.cfg
    init = partitioned(trunc_normal, None, "embed")
    x_BxSxD = nn.Embed(cfg.vocab, cfg.dim, embedding_init=init, name="tokens")(ids_BxS).astype(jnp.float32)
    bias = None if cfg.bias_per_layer else PositionBias(cfg, name="bias")(ids_BxS.shape[1])
    x_BxSxD, _ = repeated(T5Layer, cfg.depth)(cfg, name="layers")(x_BxSxD, mask_BxS, bias)
    return rms_norm(cfg, "norm")(x_BxSxD)


class T5Layer(nn.Module):
  """x += Attn(RMS x); x += MLP(RMS x). `bias` [n, S, S]: None where the layer has its own."""

  cfg: T5Config

  @nn.compact
  def __call__(self, x_BxSxD, mask_BxS, bias):
    cfg = self.cfg
    if cfg.bias_per_layer:
      bias = PositionBias(cfg, name="bias")(x_BxSxD.shape[1])
    y = rms_norm(cfg, "norm1")(x_BxSxD)
    y = Attention(cfg.heads, cfg.head_dim, 1.0, False, cfg.dtype, name="attention")(y, mask_BxS, bias)
    x_BxSxD = x_BxSxD + y.astype(jnp.float32)
    y = rms_norm(cfg, "norm2")(x_BxSxD)
    up = lambda name: Linear(cfg.hidden, ("embed", "mlp"), use_bias=False, dtype=cfg.dtype, name=name)(y)
    hidden = ACTIVATIONS[cfg.activation](up("up"))
    hidden = hidden * up("gate") if cfg.gated else hidden
    y = Linear(cfg.dim, ("mlp", "embed"), use_bias=False, dtype=cfg.dtype, name="down")(hidden)
    return x_BxSxD + y.astype(jnp.float32), None


class PositionBias(nn.Module):
  """float32 [n, S, S]: what is added to the logit of query (row) and key (column)."""

  cfg: T5Config

  @nn.compact
  def __call__(self, length: int):
    cfg = self.cfg
    init = partitioned(trunc_normal, None, "heads")
    table = self.param("table", init, (cfg.buckets, cfg.heads))
    distance = np.arange(-length + 1, length)
    bias_nxd = table[buckets_of(distance, cfg.buckets, cfg.max_distance)].T  # every distance once
    place = jnp.arange(length)
    return bias_nxd[:, place[None, :] - place[:, None] + length - 1]


def buckets_of(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
  """int [...]: the bucket of a key `distance` tokens after its query.

  Of each side's buckets the first half holds one distance each, the others grow by a common ratio.
  """
  side = buckets // 2
  exact = side // 2
  far = np.maximum(np.abs(distance), exact).astype(np.float32)  # as the released code rounds it
  steps = np.log(far / np.float32(exact)) / np.float32(np.log(max_distance / exact)) * np.float32(side - exact)
  bucket = np.where(np.abs(distance) < exact, np.abs(distance), np.minimum(exact + steps.astype(int), side - 1))
  return bucket + side * (distance > 0)


def rms_norm(cfg: T5Config, name: str) -> nn.Module:
  ones = partitioned(nn.initializers.ones, "embed")
  return nn.RMSNorm(cfg.eps, jnp.float32, scale_init=ones, name=name)


def load(path, *, max_tokens: int = 128, dtype: str = "float32") -> tuple[TextEncoder, dict[str, Any]]:
  """The encoder in a directory; see `text.load`."""
  if path is None:
    raise FileNotFoundError("t5 has no weights of its own: pass path=, a directory with a T5's files from the Hub.")
  config, files = weights.open_directory(path)
  net = config_of(path, config, dtype)
  vocabulary = vocabulary_of(path)
  weights.check_vocabulary(path, vocabulary.size, net.vocab)
  encoder = TextEncoder("t5", max_tokens, net, vocabulary)
  # One table under two names: T5 ties what its encoder and its decoder read, and files hold either or both.
  embedding, other = (SHARED, EMBED_TOKENS) if SHARED in files else (EMBED_TOKENS, SHARED)
  table = table_of(net, embedding)
  return encoder, weights.read(path, "T5 encoder", files, net, table, rf"{DECODER}|{other}", dtype)


def vocabulary_of(path: str | os.PathLike) -> tokenizer.Vocabulary:
  """tokenizer.json goes before spiece.model, which is the same vocabulary."""
  as_json, as_model = (pathlib.Path(path) / name for name in ("tokenizer.json", "spiece.model"))
  if as_json.is_file():
    return tokenizer.from_json(as_json, (), ("</s>",))
  if as_model.is_file():
    return tokenizer.from_sentencepiece(as_model)
  raise FileNotFoundError(f"{path} has no tokenizer: put {as_json.name} or {as_model.name} there.")


def config_of(where: str | os.PathLike, config: dict[str, Any], dtype: str) -> T5Config:
  """Raises ValueError where the config is not that of a T5 as it is built here."""
  kind = config.get("model_type")
  if not isinstance(kind, str) or kind not in BIAS_PER_LAYER:
    raise ValueError(
      f"{cut(where, 150)} has model_type {brief(kind)}, expected one of {', '.join(BIAS_PER_LAYER)}: pass a T5."
    )
  number = lambda key, default=None: weights.whole_number(where, config, key, default)
  activation, gated = _activation(where, config, "relu" if kind == "t5" else "gated-gelu")
  net = T5Config(
    number("vocab_size"),
    number("d_model"),
    weights.whole_number(where, config, "num_layers", high=weights.MAX_DEPTH),
    number("num_heads"),
    number("d_kv"),
    number("d_ff"),
    number("relative_attention_num_buckets", 32),
    number("relative_attention_max_distance", 128),
    activation,
    gated,
    BIAS_PER_LAYER[kind],
    weights.epsilon(where, config, "layer_norm_epsilon", 1e-6),
    dtype,
  )
  if net.buckets % 4 or net.max_distance <= net.buckets // 4:
    raise ValueError(
      f"{where} has {net.buckets} buckets up to a distance of {net.max_distance}, expected a multiple of 4 and more "
      "than a quarter of that: fetch its config again."
    )
  return net


def _activation(where, config, default: str) -> tuple[str, bool]:
  """(name, gated). Newer configs say it twice, as feed_forward_proj and as dense_act_fn with is_gated_act."""
  words, where = str(config.get("feed_forward_proj", default)), cut(where, 100)
  gated, name = words.startswith("gated-"), words.removeprefix("gated-")
  name = "gelu_new" if words == "gated-gelu" else name  # a name from before the erf form was there
  if "feed_forward_proj" not in config:
    name, gated = str(config.get("dense_act_fn", name)), config.get("is_gated_act", gated)
  if name not in ACTIVATIONS or not isinstance(gated, bool):
    raise ValueError(
      f"{where} has the feed-forward {brief(words)} ({brief(name)}, gated {brief(gated)}), expected gated- or not, and "
      f"one of {', '.join(ACTIVATIONS)}: no other can be loaded."
    )
  again = config.get("dense_act_fn", name), config.get("is_gated_act", gated)
  if again != (name, gated):
    raise ValueError(
      f"{where} has feed_forward_proj {brief(words)} and dense_act_fn {brief(again[0])} with is_gated_act "
      f"{brief(again[1])}, which contradict each other: fetch its config again."
    )
  return name, gated


def table_of(net: T5Config, embedding: str) -> Rules:
  table = Rules()
  table.add(embedding, ("tokens", "embedding"))
  table.norm("encoder.final_layer_norm", ("norm",), bias=False)
  up = {"wi_0": "up", "wi_1": "gate"} if net.gated else {"wi": "up"}
  for i in range(net.depth):
    attention, mlp = (f"encoder.block.{i}.layer.{j}" for j in range(2))
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
      table.linear(f"{attention}.SelfAttention.{theirs}", ("layers", "attention", ours), (i,), bias=False)
    if net.bias_per_layer or i == 0:
      path, index = (("layers", "bias", "table"), (i,)) if net.bias_per_layer else (("bias", "table"), ())
      table.add(f"{attention}.SelfAttention.relative_attention_bias.weight", path, index=index)
    for theirs, ours in (*up.items(), ("wo", "down")):
      table.linear(f"{mlp}.DenseReluDense.{theirs}", ("layers", ours), (i,), bias=False)
    table.norm(f"{attention}.layer_norm", ("layers", "norm1"), (i,), bias=False)
    table.norm(f"{mlp}.layer_norm", ("layers", "norm2"), (i,), bias=False)
  return table
