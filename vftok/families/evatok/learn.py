"""Training of EVATok: the step that losses are made of (arXiv 2603.12267, sections 3 and 4 of our notes on it).

A proxy tokenizer learns under counts that are drawn for each clip, the final one under those of a frozen router. The
alignment head reads a decoder layer and stands beside the tokenizer: no model stores it.

Letters: B clips, T time steps, K slots, c channels of a code, V codes, h x w places of a step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.families.evatok import vq
from vftok.families.evatok.api import EVATok
from vftok.families.evatok.config import EvatokConfig
from vftok.families.evatok.networks import Decoder, Encoder
from vftok.frozen import features
from vftok.frozen.features.frames import FeatureNet, resize
from vftok.io import hub
from vftok.io.layout import read_leaves
from vftok.io.leaves import leaves_of
from vftok.models.config_json import FORMAT_ROUTER, from_dict, from_json
from vftok.models.flops import vit_flops
from vftok.models.layers import Linear, trunc_normal, unit
from vftok.models.router import RouterConfig, net
from vftok.runtime.words import brief, cut
from vftok.tokenizer.learner import Made
from vftok.tokens import kept_slots

COUNTS = ("all", "assignments", "router")


def evatok(model: dict[str, Any], loss_cfg) -> EvatokLearner:
  """Raises ValueError for counts that the model does not have, or a layer that its decoder has not."""
  cfg = from_dict(EvatokConfig, model)
  if loss_cfg.counts not in COUNTS:
    raise ValueError(f"loss.counts is {loss_cfg.counts!r}, expected one of {', '.join(COUNTS)} in the family 'evatok'.")
  if loss_cfg.align and not 1 <= loss_cfg.align_layer <= cfg.decoder.depth:
    raise ValueError(
      f"loss.align_layer is {loss_cfg.align_layer}, expected 1..{cfg.decoder.depth}, a layer of the decoder."
    )
  learner = EvatokLearner(EVATok(cfg), loss_cfg)
  learner.frozen()  # read here and not while a program is traced; what is wrong with it is said at once
  return learner


class AlignHead(nn.Module):
  """Features of a decoder layer [B, T, h, w, D] -> [B, T s, h, w, C]: an MLP D -> 4D -> 4D -> s C with SiLU, and
  its `s` target steps of each time step apart.
  """

  channels: int
  split: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x_BxTxhxwxD):
    d = 4 * x_BxTxhxwxD.shape[-1]
    make = lambda n, axes, name: Linear(n, axes, kernel_init=trunc_normal, dtype=self.dtype, name=name)
    x = nn.silu(make(d, ("embed", "mlp"), "up")(x_BxTxhxwxD))
    x = nn.silu(make(d, ("mlp", None), "middle")(x))
    x = make(self.split * self.channels, (None, None), "out")(x).astype(jnp.float32)
    return einops.rearrange(x, "b t h w (s c) -> b (t s) h w c", s=self.split)


@dataclasses.dataclass(frozen=True)
class EvatokLearner:
  """See `vftok.tokenizer.learner.Learner`."""

  tok: EVATok
  loss_cfg: Any

  @property
  def dtype(self) -> str:
    return self.tok.cfg.decoder.dtype

  def frozen(self) -> dict[str, Any]:
    found = {}
    if self.loss_cfg.align:
      found["features"] = self._features()[1]
    if self.loss_cfg.counts == "router":
      found["router"] = load_router(self.loss_cfg.router, self.tok)[1]
    return found

  def heads(self, key: jax.Array) -> Any:
    """{"align"} where it is asked for."""
    if not self.loss_cfg.align:
      return None
    places = jnp.zeros((1, 1, 1, 1, self.tok.cfg.decoder.dim))
    return {"align": self._head().init(key, places)["params"]}

  def counts(self, frozen, video_BxFxHxWx3, keys_B) -> jax.Array:
    cfg, shape = self.tok.cfg, (self.tok.chunk_steps,)
    if self.loss_cfg.counts == "all":
      return jnp.full((len(keys_B), *shape), cfg.slots)
    if self.loss_cfg.counts == "router":
      return routed(load_router(self.loss_cfg.router, self.tok)[0], frozen["router"], video_BxFxHxWx3)
    return jax.vmap(lambda key: jax.random.choice(key, jnp.array(cfg.counts), shape))(keys_B)

  def step(self, params, frozen, video_BxFxHxWx3, keep_BxT, keys_B, done) -> Made:
    cfg, loss_cfg = self.tok.cfg, self.loss_cfg
    kept = kept_slots(keep_BxT, cfg.slots)
    z = unit(Encoder(cfg).apply({"params": params["encoder"]}, video_BxFxHxWx3 / 2, keep_BxT))
    with jax.default_matmul_precision("highest"):  # VQ is float32 whatever the transformers compute in
      table = unit(params["quantizer"]["codebook"])
      ids = jnp.argmax(jax.lax.stop_gradient(z @ table.T), axis=-1).astype(jnp.int32)
      own = {"entropy": vq.entropy(z, table, kept)} if loss_cfg.entropy else {}
    codes = jnp.take(table, ids, axis=0)
    passed = vq.passed_on(z, jax.lax.stop_gradient(codes), rotate=loss_cfg.rotate)
    made = Decoder(cfg).apply({"params": params["decoder"]}, passed, keep_BxT, collect=bool(loss_cfg.align))
    frames, between = made if loss_cfg.align else (made, None)
    if loss_cfg.align:
      x = between["layers"][loss_cfg.align_layer - 1]
      x = einops.rearrange(x, "b (t h w) d -> b t h w d", t=cfg.steps, h=cfg.grid[0])
      own |= {"aligned": self._head().apply({"params": params["heads"]["align"]}, x)}
      own |= {"features": self.wanted(frozen["features"], video_BxFxHxWx3)}
    return Made(frames * 2, z, codes, jnp.where(kept, ids, 0), kept, None, own)

  def wanted(self, params, video_BxFxHxWx3) -> jax.Array:
    """float32 [B, T s, h, w, C]: what V-JEPA 2 sees of clips, at a size that gives the decoder's places."""
    target, (h, w) = self._features()[0], self.tok.cfg.grid
    size = h * target.stride, w * target.stride
    frames = resize(jax.lax.stop_gradient(video_BxFxHxWx3), size, target.resize_method)
    return jax.lax.stop_gradient(target.apply(params, target._normalise(frames)))

  def _features(self) -> tuple[FeatureNet, Any]:
    found = _vjepa2(self.loss_cfg.align_path)
    tubelet, frames = found[0].tubelet, self.tok.cfg.patch[0]
    if frames % tubelet:
      raise ValueError(f"model.patch has {frames} frames, expected a multiple of the {tubelet} that V-JEPA 2 joins.")
    return found

  def _head(self) -> AlignHead:
    target = self._features()[0]
    return AlignHead(target.dim, self.tok.cfg.patch[0] // target.tubelet, self.dtype)

  def flops(self) -> float:
    return sum(self.coding_flops())

  def coding_flops(self) -> tuple[float, float]:
    cfg = self.tok.cfg
    tokens, places = cfg.steps * cfg.slots, cfg.steps * cfg.places

    def half(part, queries: int, refs: int) -> float:
      seen = queries * (queries + refs) * (cfg.steps + 1) / (2 * cfg.steps)
      own = 2.0 * part.depth * 2 * part.dim**2 * (queries + refs)  # the second attention's own matrices
      return vit_flops(part.dim, part.depth, part.mlp_ratio * part.dim, queries, int(seen)) + own

    compared = 2.0 * tokens * cfg.code_dim * cfg.codebook_size
    return half(cfg.encoder, tokens, places) + compared, half(cfg.decoder, places, tokens)


@functools.lru_cache(maxsize=2)
def _vjepa2(path: str):
  return features.load("vjepa2", path)


@functools.lru_cache(maxsize=2)
def load_router(name: str, tok: EVATok) -> tuple[RouterConfig, Any]:
  """(config, parameters) of a router of classes over a model's counts and frames.

  Raises:
    FileNotFoundError, ValueError: none there, or one of another kind.
  """
  checkpoint = hub.open_checkpoint(name)
  if checkpoint.config.get("format") != FORMAT_ROUTER:
    kind = brief(checkpoint.config.get("format"))
    raise ValueError(f"{cut(checkpoint.path, 150)} is no router, its format is {kind}: train one.")
  cfg = from_json(RouterConfig, checkpoint.config)
  frames = (tok.chunk_frames, *tok.frame_size, 3)
  if (cfg.head, cfg.latents, cfg.levels) != ("classes", frames, tok.counts):
    found = f"head {cfg.head!r}, levels {brief(cfg.levels)} and reads {cfg.latents}"
    raise ValueError(
      f"the router {name} has {found}, expected 'classes', {tok.counts} and {frames}: train one for such a model."
    )
  return cfg, read_leaves(checkpoint, leaves_of(cfg, lambda key: net(cfg).init(key, jnp.zeros((1, *frames)))["params"]))


def routed(cfg: RouterConfig, params, video_BxFxHxWx3) -> jax.Array:
  """int32 [B, T]: the likeliest assignment of each clip, without gradient."""
  logits_BxA = net(cfg).apply({"params": jax.lax.stop_gradient(params)}, video_BxFxHxWx3)
  classes_AxT = np.array(list(itertools.product(cfg.levels, repeat=cfg.steps)), np.int32)
  return jnp.asarray(classes_AxT)[logits_BxA.argmax(1)]
