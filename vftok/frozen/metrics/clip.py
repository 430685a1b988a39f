"""CLIP (arXiv 2103.00020): does a picture show what a text says? With the user's weights, in `transformers`' layout.

A directory holds config.json, model.safetensors and tokenizer.json, as `openai/clip-vit-base-patch32` has them on the
Hub. Checked against a float64 oracle on random weights of that layout, never against the originals.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.text import tokenizer, weights
from vftok.frozen.text.layers import Attention, layer_norm
from vftok.io.layout import Rules, convolution
from vftok.models.layers import Linear, partitioned, patchify, repeated, trunc_normal
from vftok.runtime.words import brief, cut

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
START, END = "<|startoftext|>", "<|endoftext|>"
UNUSED = r"(text|vision)_model\.embeddings\.position_ids|logit_scale"
ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class Tower:
  dim: int
  depth: int
  heads: int
  hidden: int
  act: str = "quick_gelu"
  eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """size, patch: of the pictures, in pixels; projection: width of the space both towers meet in."""

  text: Tower
  vision: Tower
  vocab: int = 49_408
  positions: int = 77
  size: int = 224
  patch: int = 32
  projection: int = 512

  def module(self) -> nn.Module:
    return CLIPModule(self)


class CLIPModule(nn.Module):
  """(ids int32 [B, S], mask bool [B, S], images [N, size, size, 3] normalised) -> unit vectors [B, P] and [N, P]."""

  cfg: CLIPConfig

  @nn.compact
  def __call__(self, ids_BxS, mask_BxS, images_NxHxWx3=None):
    cfg = self.cfg
    if images_NxHxWx3 is None:
      images_NxHxWx3 = jnp.zeros((1, cfg.size, cfg.size, 3))
    texts, images = self._texts(ids_BxS, mask_BxS), self._images(images_NxHxWx3)
    return tuple(x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (texts, images))

  def _texts(self, ids_BxS, mask_BxS):
    cfg, s = self.cfg, ids_BxS.shape[1]
    x = self._table("text_tokens", cfg.vocab, cfg.text.dim)[ids_BxS]
    x = x + self._table("text_positions", cfg.positions, cfg.text.dim)[:s]
    earlier = jnp.where(jnp.tril(jnp.ones((s, s), bool)), 0.0, -1e9)[None]
    x = repeated(Layer, cfg.text.depth)(cfg.text, name="text")(x, jnp.ones_like(mask_BxS), earlier)[0]
    x = layer_norm(cfg.text.eps, "text_norm")(x)
    last = jnp.take_along_axis(x, (mask_BxS.sum(1) - 1)[:, None, None], axis=1)[:, 0]  # the end of the text
    return Linear(cfg.projection, ("embed", None), use_bias=False, name="text_out")(last)

  def _images(self, images_NxHxWx3):
    cfg, p = self.cfg, self.cfg.patch
    x = patchify(images_NxHxWx3[:, None], (1, p, p))[:, 0]
    n, h, w, _ = x.shape
    x = Linear(cfg.vision.dim, (None, "embed"), use_bias=False, name="patch_in")(x).reshape(n, h * w, -1)
    init = partitioned(trunc_normal, "embed")
    first = jnp.broadcast_to(self.param("class_token", init, (cfg.vision.dim,)), (n, 1, cfg.vision.dim))
    x = jnp.concatenate([first, x], axis=1) + self._table("image_positions", 1 + h * w, cfg.vision.dim)
    x = layer_norm(cfg.vision.eps, "image_norm_in")(x)
    x = repeated(Layer, cfg.vision.depth)(cfg.vision, name="vision")(x, jnp.ones(x.shape[:2], bool), None)[0]
    x = layer_norm(cfg.vision.eps, "image_norm")(x[:, 0])
    return Linear(cfg.projection, ("embed", None), use_bias=False, name="image_out")(x)

  def _table(self, name: str, rows: int, dim: int):
    return self.param(name, partitioned(trunc_normal, None, "embed"), (rows, dim))


class Layer(nn.Module):
  """x += Attn(LN x); x += MLP(LN x)."""

  tower: Tower

  @nn.compact
  def __call__(self, x_BxSxD, mask_BxS, bias_1xSxS):
    cfg, e = self.tower, self.tower.dim // self.tower.heads
    attention = Attention(cfg.heads, e, e**-0.5, True, "float32", name="attention")
    x = x_BxSxD + attention(layer_norm(cfg.eps, "norm1")(x_BxSxD), mask_BxS, bias_1xSxS)
    y = ACTIVATIONS[cfg.act](Linear(cfg.hidden, ("embed", "mlp"), name="up")(layer_norm(cfg.eps, "norm2")(x)))
    return x + Linear(cfg.dim, ("mlp", "embed"), name="down")(y), None


class CLIPScore:
  """Cosine of clips and captions, the mean over `frames` of each clip; -1..1, real pairs have some 0.2 to 0.35.

  Raises (on construction): FileNotFoundError, ValueError: no such directory, or not a CLIP's.
  """

  def __init__(self, path: str | os.PathLike, frames: int = 5):
    self.net, self.params, self.vocabulary = load(path)
    self.frames = frames

  def __call__(self, video_BxFxHxWx3: np.ndarray, texts: list[str]) -> np.ndarray:
    """float32 [B] of clips uint8 [B, F, H, W, 3], any size; texts that say nothing give NaN."""
    ids, mask = tokenizer.tokenize(self.vocabulary, list(texts), self.net.positions)
    at = np.linspace(0, video_BxFxHxWx3.shape[1] - 1, self.frames).round().astype(int)
    scores = np.asarray(_cosines(self.net, self.params, ids, mask, video_BxFxHxWx3[:, at]))
    return np.where(mask.any(1), scores, np.nan)


@functools.partial(jax.jit, static_argnums=0)
def _cosines(net: CLIPConfig, params, ids_BxS, mask_BxS, video_BxFxHxWx3):
  b, f, h, w, _ = video_BxFxHxWx3.shape
  images = video_BxFxHxWx3.reshape(b * f, h, w, 3).astype(jnp.float32) / 255
  images = jnp.clip(jax.image.resize(images, (b * f, net.size, net.size, 3), "cubic"), 0, 1)
  images = (images - jnp.asarray(MEAN)) / jnp.asarray(STD)
  texts, seen = net.module().apply({"params": params}, ids_BxS, mask_BxS, images)
  return jnp.einsum("bp,bfp->b", texts, seen.reshape(b, f, -1)) / f


def load(path: str | os.PathLike) -> tuple[CLIPConfig, dict[str, Any], tokenizer.Vocabulary]:
  """(net, float32 parameters, vocabulary) of a directory.

  Raises:
    FileNotFoundError: nothing there. ValueError: damaged, another model, or tensors missing, unknown or misshapen.
  """
  config, files = weights.open_directory(path)
  net = _config_of(path, config)
  vocabulary = tokenizer.from_json(pathlib.Path(path) / "tokenizer.json", (START,), (END,))
  weights.check_vocabulary(path, vocabulary.size, net.vocab)
  return net, weights.read(path, "CLIP", files, net, table_of(net), UNUSED, "float32"), vocabulary


def _config_of(path, config) -> CLIPConfig:
  if config.get("model_type") != "clip":
    kind = brief(config.get("model_type"))
    raise ValueError(f"{cut(path, 150)} has model_type {kind}, expected 'clip': pass a CLIP's directory.")
  text, vision = (config.get(f"{name}_config") or {} for name in ("text", "vision"))
  parts = {}
  for name, part in (("text", text), ("vision", vision)):
    if not isinstance(part, Mapping):
      raise ValueError(f"{cut(path, 150)} has {name}_config {brief(part)}, expected an object: fetch its config again.")
    number = lambda key, default, part=part: weights.whole_number(path, part, key, default)
    dim = number("hidden_size", 512 if name == "text" else 768)
    heads = number("num_attention_heads", 8 if name == "text" else 12)
    depth = weights.whole_number(path, part, "num_hidden_layers", 12, high=weights.MAX_DEPTH)
    hidden, act = number("intermediate_size", 4 * dim), part.get("hidden_act", "quick_gelu")
    if not isinstance(act, str) or act not in ACTIVATIONS or dim % heads:
      raise ValueError(
        f"{cut(path, 150)} has hidden_act {brief(act)} and {heads} heads for {dim}, which no CLIP here has."
      )
    parts[name] = Tower(dim, depth, heads, hidden, act, weights.epsilon(path, part, "layer_norm_eps", 1e-5))
  size = weights.whole_number(path, vision, "image_size", 224)
  patch = weights.whole_number(path, vision, "patch_size", 32)
  if size % patch:
    raise ValueError(f"{path} has image_size {size} and patch_size {patch}, expected a multiple: fetch it again.")
  return CLIPConfig(
    **parts,
    vocab=weights.whole_number(path, text, "vocab_size", 49_408),
    positions=weights.whole_number(path, text, "max_position_embeddings", 77),
    size=size,
    patch=patch,
    projection=weights.whole_number(path, config, "projection_dim", 512),
  )


def table_of(net: CLIPConfig) -> Rules:
  """Tensor name -> where it goes."""
  table = Rules()
  table.add("text_model.embeddings.token_embedding.weight", ("text_tokens",))
  table.add("text_model.embeddings.position_embedding.weight", ("text_positions",))
  table.add("vision_model.embeddings.position_embedding.weight", ("image_positions",))
  table.add("vision_model.embeddings.class_embedding", ("class_token",))
  table.linear("vision_model.embeddings.patch_embedding", ("patch_in",), how=convolution((net.patch,) * 2), bias=False)
  table.norm("text_model.final_layer_norm", ("text_norm",))
  table.norm("vision_model.pre_layrnorm", ("image_norm_in",))  # as it is spelled in the files
  table.norm("vision_model.post_layernorm", ("image_norm",))
  table.linear("text_projection", ("text_out",), bias=False)
  table.linear("visual_projection", ("image_out",), bias=False)
  linears = {f"self_attn.{n}_proj": ("attention", n) for n in ("q", "k", "v", "out")}
  linears |= {"mlp.fc1": ("up",), "mlp.fc2": ("down",)}
  for name, tower in (("text", net.text), ("vision", net.vision)):
    for i in range(tower.depth):
      at = f"{name}_model.encoder.layers.{i}"
      for theirs, ours in linears.items():
        table.linear(f"{at}.{theirs}", (name, *ours), (i,))
      for n in ("1", "2"):
        table.norm(f"{at}.layer_norm{n}", (name, f"norm{n}"), (i,))
  return table
