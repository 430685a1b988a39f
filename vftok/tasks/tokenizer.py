"""Training the tokenizer: rectified flow through encoder, FSQ and decoder with nested dropout (spec section 5)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from vftok.convert.load import load_vae
from vftok.io.video_writer import to_uint8
from vftok.models import config_checks, config_json, flops, flow, fsq
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.heads import PrefixHead, PrefixHeadConfig
from vftok.models.layers import patchify
from vftok.runtime.files import whole_file
from vftok.tasks import Metrics, mean
from vftok.tasks.draws import RoutedKeep, draw
from vftok.tasks.frozen_nets import FrozenNets
from vftok.tasks.high_noise import HighNoise
from vftok.tasks.linear_codes import step_code
from vftok.tasks.losses import TokenizerLoss
from vftok.tasks.objectives import OBJECTIVES, Made, per_example
from vftok.tokenizer import programs
from vftok.tokenizer.api import Tokenizer
from vftok.tokenizer.checks import guidance_of

ENCODER_NET = ("patch_in", "patch_positions", "registers", "stack", "head")  # what a linear encoder lacks
HEADS = "heads.safetensors"  # beside a tokenizer: its prefix heads
SHOWN = 64  # clips of a batch that the error with another clip's tokens is measured on, between two steps
HIGH_TIME = 0.8  # flow times above it show whether the tokens are used: below, the noisy latent tells nearly all


class TokenizerTask:
  """Parameters {"encoder", "decoder"} and, where the loss asks for them, {"heads"}; frozen {"vae"} and, likewise,
  {"features", "router"}, and {"dino"} where the encoder reads it.
  """

  CONFIG: type[TokenizerConfig] = TokenizerConfig
  load_vae = staticmethod(load_vae)  # (config, parameters) of `config.vae`

  def __init__(self, cfg: ConfigDict):
    self.cfg, self.loss_cfg = cfg, TokenizerLoss.of(cfg)
    model = config_json.build(self.CONFIG, cfg.model.to_dict(), "config")
    config_checks.check(model)
    self.vae_params = None
    if cfg.vae:  # the VAE's config travels with its weights
      vae, self.vae_params = self.load_vae(cfg.vae)
      model = dataclasses.replace(model, vae=vae)
      config_checks.check(model)
    self.nets = self._nets(model)
    self.tok = self._tokenizer(model)
    if self.loss_cfg.draft and model.decoder.draft is None:
      raise ValueError(f"loss.draft is {self.loss_cfg.draft}, but the decoder has no draft: set it to 0.")
    shape = self.tok.latent_shape(1, self.tok.chunk_steps)[1:]
    jax.eval_shape(functools.partial(draw, self.loss_cfg, self.tok, shape), jax.random.key(0))  # unknown laws say so
    self.heads = self._heads()
    self.router = None
    if self.loss_cfg.router:
      self.router, self.router_params = RoutedKeep.load(self.loss_cfg, self.tok)

  # ---- what differs in other families of this kind

  def _tokenizer(self, model) -> Tokenizer:
    return Tokenizer(model, self.nets.dino)

  def _opened(self, name) -> tuple[Tokenizer, Any]:
    return Tokenizer.load(name)

  def _vae_flops(self, way: str) -> float:
    """Of one clip; `way` is "encode" or "decode"."""
    both = flops.vae_flops(self.tok.cfg.vae, self.tok.chunk_frames, *self.tok.frame_size)
    return both[way == "decode"]

  # ---- parts

  def _nets(self, model) -> FrozenNets:
    return FrozenNets(self.loss_cfg, self.cfg.dino, model)

  def _heads(self) -> dict[str, PrefixHead]:
    """{target: its head}: of each that has a weight in the loss."""
    dec = self.tok.cfg.decoder
    sizes = {
      "latents": lambda: dec.channels * int(np.prod(dec.patch)),
      "features": lambda: self.nets.target.dim,
      "class": lambda: self.nets.target.dim,
    }
    make = lambda name: PrefixHead(
      PrefixHeadConfig(
        features=sizes[name](),
        code_dim=dec.code_dim,
        registers=self.tok.registers,
        max_grid=self.queries(name),
        dim=self.loss_cfg.prefix_width,
        depth=self.loss_cfg.prefix_depth,
        dtype=dec.stack.dtype,  # float32 has no fused attention on a GPU
      )
    )
    return {name: make(name) for name in sizes if getattr(self.loss_cfg, f"prefix_{name}")}

  def queries(self, head: str) -> tuple[int, int, int]:
    """(T, h, w) of what a head predicts: every patch, or one class feature a step."""
    return (self.tok.chunk_steps, 1, 1) if head == "class" else self._grid()

  def _grid(self) -> tuple[int, int, int]:
    """Patches of a chunk: time steps, height, width."""
    h, w = self.tok.cfg.latent_size
    _, ph, pw = self.tok.cfg.decoder.patch
    return self.tok.chunk_steps, h // ph, w // pw

  # ---- the protocol

  def init(self, key: jax.Array) -> Any:
    key, *head_keys = jax.random.split(key, 1 + len(self.heads))
    params = self.tok.init(key, boxed=True)
    del params["vae"]
    if self.heads:
      codes = jnp.zeros((1, self.tok.chunk_steps, self.tok.registers, self.tok.cfg.decoder.code_dim))
      keep = jnp.ones(codes.shape[:2], jnp.int32)
      run = lambda name, head, k: head.init(k, codes, keep, grid=self.queries(name))["params"]
      params["heads"] = {n: run(n, h, k) for (n, h), k in zip(self.heads.items(), head_keys, strict=True)}
    return params

  def frozen(self) -> Any:
    parts = {"vae": self.vae_params or self._random_vae}
    parts |= self.nets.params
    return parts | ({"router": self.router_params} if self.router else {})

  @functools.cached_property
  def _random_vae(self):
    """For a config without weights: smoke runs, or training on stored latents."""
    stride = self.tok.spatial_factor
    start = functools.partial(self.tok.cfg.vae.module().init, jax.random.key(0))
    return nn.unbox(jax.jit(start)(jnp.zeros((1, 1, stride, stride, 3))))["params"]

  def start(self, params, batches) -> Any:
    if not self.cfg.init_from:
      return self._fitted(params, batches) if self.tok.cfg.encoder.linear and self.loss_cfg.fit_batches else params
    source, loaded = self._opened(self.cfg.init_from)
    for part in ("encoder", "decoder"):
      mine, theirs = (dataclasses.asdict(getattr(t.cfg, part)) for t in (self.tok, source))
      loaded[part] = _fitting(part, loaded[part], params[part], mine, theirs)
    heads = Path(self.cfg.init_from) / HEADS
    if self.heads and heads.is_file():
      params = {**params, "heads": _like(params["heads"], load_file(heads))}
    return {**params, "encoder": loaded["encoder"], "decoder": loaded["decoder"]}

  def _fitted(self, params, batches) -> Any:
    """The encoder's linear map as the principal components of latents, the largest in the first registers."""
    frozen, encoder = self.frozen(), self.tok.cfg.encoder
    reads = lambda batch: self.nets.see(frozen, batch, self._latents(frozen, batch), self._grid()).grid
    inputs = (reads(batch) for batch in itertools.islice(batches, self.loss_cfg.fit_batches))
    steps = np.concatenate([np.asarray(patchify(x, encoder.patch)) for x in inputs])
    fit = step_code(steps.reshape(*steps.shape[:2], -1), encoder.registers * encoder.out_dim)
    return {**params, "encoder": {**params["encoder"], **fit}}

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    loss_cfg, cfg = self.loss_cfg, self.tok.cfg
    latents = self._latents(frozen, batch)
    draws = jax.vmap(functools.partial(draw, loss_cfg, self.tok, latents.shape[1:]))(keys_B)
    if self.router:
      draws["keep"] = self.router(frozen["router"], latents, draws["keep"], keys_B)

    seen = self.nets.see(frozen, batch, latents, self._grid())
    z = Encoder(cfg.encoder).apply({"params": params["encoder"]}, seen.grid, seen.vector)
    codes = fsq.quantize(z, cfg.levels)
    made = Made(latents, seen, z, codes, draws)
    if loss_cfg.flow:
      flow_B, readout = self._flow(params, latents, codes, draws)
      made = made._replace(flow_B=flow_B, readout=readout)
    weights = {name: getattr(loss_cfg, name) for name in OBJECTIVES}
    terms = {name: w * OBJECTIVES[name](self, params, made) for name, w in weights.items() if w}

    chex.assert_shape(list(terms.values()), (len(latents),))
    total_B = sum(terms.values())
    metrics = {name: mean(value) for name, value in terms.items()} | _codes_used(
      fsq.codes_to_ids(codes, cfg.levels), math.prod(cfg.levels)
    )
    if loss_cfg.flow:
      metrics |= self._at_high_noise(flow_B, draws)
    return total_B.mean(), metrics

  def _flow(self, params, latents, codes, draws) -> tuple[jax.Array, jax.Array | None]:
    """The flow's error of each example, and what the REPA head reads."""
    loss_cfg, cfg = self.loss_cfg, self.tok.cfg.decoder
    clean_latents = draws["given_BxL"][:, :, None, None, None]
    noisy = flow.interpolate(latents, draws["noise"], draws["t"])
    given = flow.interpolate(latents, draws["noise"], draws["given_t"])
    out = Decoder(cfg).apply(
      {"params": params["decoder"]},
      codes,
      draws["keep"],
      jnp.where(clean_latents, given, noisy),
      draws["t"],
      prefix_BxT=draws["given_BxL"][:, :: cfg.patch[0]] if "prefix" in cfg.replacements else None,
      null_B=draws["null"],
      readout_at=loss_cfg.repa_layer if loss_cfg.repa else None,
    )
    velocity, readout = out if loss_cfg.repa else (out, None)
    return per_example(velocity, flow.target(latents, draws["noise"]), ~draws["given_BxL"]), readout

  def _at_high_noise(self, flow_B, draws) -> Metrics:
    high = draws["t"] > HIGH_TIME
    few, all_kept = (draws["keep"] <= 1).all(1), (draws["keep"] >= self.tok.registers).all(1)
    shown = {"null": draws["null"], "k1": few & ~draws["null"], "all": all_kept & ~draws["null"]}
    return {f"high/{name}": mean(flow_B, high & where) for name, where in shown.items()}

  def _latents(self, frozen, batch) -> jax.Array:
    if "latents" in batch:
      return batch["latents"].astype(jnp.float32)
    mean_latents, _ = programs.vae_encode(self.tok.cfg, {"vae": frozen["vae"]}, batch["video"], quick=True)
    return jax.lax.stop_gradient(mean_latents)

  @property
  def dtype(self) -> str:
    return self.tok.cfg.decoder.stack.dtype

  def flops(self) -> float:
    encoder, decoder = self._stack_flops()
    stacks = encoder + (decoder if self.loss_cfg.flow else 0.0)
    return 3 * stacks + self._vae_flops("encode") + self.nets.flops(self._grid(), self.tok.cfg.latent_size)

  def coding_flops(self, evaluations: int) -> tuple[float, float]:
    """Forward FLOPs of (encoding, decoding) one clip with all tokens and so many evaluations of the decoder.

    Without the feature net that some encoders read.
    """
    encoder, decoder = self._stack_flops()
    return self._vae_flops("encode") + encoder, evaluations * decoder + self._vae_flops("decode")

  def _stack_flops(self) -> tuple[float, float]:
    """(encoder, decoder), forward, of one clip."""
    cfg, (t, h, w) = self.tok.cfg, self._grid()
    block = h * w + cfg.encoder.registers
    pairs = flops.attended_pairs(t, block)  # both masks see about the same: own and earlier steps
    encoder = flops.stack_flops(cfg.encoder.stack, t * block, pairs) if cfg.encoder.net else 0.0
    every = cfg.decoder.mask == "full"
    return encoder, flops.stack_flops(cfg.decoder.stack, t * block, None if every else pairs)

  # ---- looking

  def _full(self, params, frozen):
    full = {"vae": frozen["vae"], "encoder": params["encoder"], "decoder": params["decoder"]}
    return full | ({"dino": frozen["dino"]} if "dino" in frozen else {})

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    from vftok.show.picture import video_rows

    if "video" not in batch:  # stored latents: nothing to compare with
      return {}
    video, full, k = batch["video"][:4], self._full(params, frozen), self.tok.registers
    keeps = sorted({1, max(1, k // 4), k}) if self.tok.nested else [k]
    tokens = self.tok.encode(full, video)
    columns = {
      "original": video,
      "VAE": to_uint8(programs.vae_decode(self.tok.cfg, full, self.tok.encode_latents(full, video))),
    }
    guidance = guidance_of("cfg" if self.loss_cfg.show_guidance else "", self.loss_cfg.show_guidance, self.tok.cfg)
    for keep in keeps:
      out = self.tok.decode(
        full, tokens.truncate(keep), jax.random.key(0), steps=self.loss_cfg.show_steps, guidance=guidance
      )
      columns[f"k = {keep}"] = to_uint8(out)
    return {"reconstruction": video_rows(columns)} | self._wrong_tokens(full, batch)

  def _wrong_tokens(self, full, batch) -> dict[str, float]:
    """{"high/own", "high/wrong"}: error at fixed high noise with all own tokens and with those of another clip."""
    if not self.loss_cfg.flow:
      return {}
    watch, few = HighNoise(self.tok, full), {"video": batch["video"][:SHOWN]}
    list(watch.watch([few]))
    found = watch.scalars()
    return {"high/own": found["high/all"], "high/wrong": found["high/wrong"]} if found else {}

  def evaluate(self, params, frozen, batches, total, split, out) -> dict[str, float]:
    from vftok.evals import probe_run, reconstruction, report

    cfg, full = self.cfg.eval, self._full(params, frozen)
    watch = HighNoise(self.tok, full) if self.loss_cfg.flow else None
    evaluation = reconstruction.evaluate(
      self.tok,
      full,
      watch.watch(batches) if watch else batches,
      split=split,
      keeps=cfg.keeps or None,
      seeds=cfg.seeds,
      steps=cfg.steps,
      guidance=guidance_of(cfg.guidance_kind, cfg.guidance, self.tok.cfg),
      lpips_net=cfg.lpips_net or None,
      rfvd=cfg.rfvd,
      media=cfg.media,
      total=total,
    )
    table = probe_run.probe_set(self.cfg, self.tok, full, split) if cfg.probe else None
    evaluation = dataclasses.replace(evaluation, probe=table)
    report.write_report(out, [evaluation], title=self.cfg.title, fps=self.cfg.data.fps)
    return evaluation.scalars() | (watch.scalars() if watch else {})

  def save(self, params, frozen, directory) -> None:
    self.tok.save(self._full(params, frozen), directory)
    if self.heads:  # no tokenizer needs them; a run that goes on from this one does
      flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, nn.unbox(params["heads"])), sep="/")
      with whole_file(Path(directory) / HEADS) as path:
        save_file(flat, path)


def _like(heads, flat):
  """Stored heads where they fit these; else these, which start anew."""
  stored = traverse_util.unflatten_dict(flat, sep="/")
  fits = jax.tree.map(jnp.shape, nn.unbox(heads)) == jax.tree.map(jnp.shape, stored)
  return jax.tree.map(lambda mine, theirs: jnp.asarray(theirs, mine.dtype), heads, stored) if fits else heads


def _codes_used(ids_BxTxK, codes: int) -> Metrics:
  """How many of its `codes` a batch has in a register: the mean over registers, and the least."""
  registers = ids_BxTxK.shape[2]
  seen_KxV = jnp.zeros((registers, codes), bool).at[jnp.arange(registers), ids_BxTxK.reshape(-1, registers)].set(True)
  used_K = seen_KxV.sum(1).astype(jnp.float32)
  return {"codes/used_mean": mean(used_K), "codes/used_min": (used_K.min(), jnp.ones(()))}


def _fitting(part: str, loaded, params, mine, theirs):
  """Loaded weights where they fit this model; a mask may differ (stage 2), a readout or an encoder's net be new."""
  may_grow = ("readout",) if part == "decoder" else ENCODER_NET
  loaded = {**{name: params[name] for name in may_grow if name in params}, **loaded}
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  if jax.tree.structure(loaded) != jax.tree.structure(params) or shapes(loaded) != shapes(params):
    differ = sorted(k for k in mine if mine[k] != theirs[k])
    raise ValueError(
      f"init_from holds another {part}, it differs in {', '.join(differ)}: use the model it was made with."
    )
  return loaded
