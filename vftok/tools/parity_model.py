"""The golden models of `vftok.tools.parity`: every block, velocities, samples, loss and gradients, long video."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from vftok.convert import reference_weights
from vftok.models import flow, fsq, masks
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.flow import APG, CFG
from vftok.tokenizer.api import Tokenizer
from vftok.tokens import VideoTokens
from vftok.tools.golden import Errors, first, last, load_golden_model


def check_model(path: pathlib.Path) -> Errors:
  """Encoder, decoder, samplers, loss and gradients of one golden model."""
  tok, params, rules, metadata = load_golden_model(path)
  g = load_file(path)
  errors, some = Errors(g), int(metadata["keep_k"])
  latents, noise, noise2 = (jnp.asarray(last(g[f"in.{name}"])) for name in ("latents", "noise", "noise2"))
  _check_encoder(errors, tok, params, latents)
  tokens = VideoTokens.full(g["enc.token_ids"])
  _check_velocities(errors, tok, params, tokens, latents, noise, some)
  _check_batches(errors, tok, params, tokens, noise, noise2)
  _check_samples(errors, tok, params, tokens, noise, some)
  _check_training(errors, tok, params, rules, json.loads(metadata["grad_norms"]), latents, noise, some)
  return errors


def _padded(x, expected):
  """Our sequence filled up with zero rows to the reference's multiple of 128."""
  return np.pad(np.asarray(x), ((0, 0), (0, expected.shape[1] - x.shape[1]), (0, 0)))


def _check_stack(errors: Errors, part: str, named) -> None:
  g = errors.golden
  errors.close(f"{part}.packed_in", _padded(named["packed"], g[f"{part}.packed_in"]))
  for i, block in enumerate(named["blocks"]):
    errors.close(f"{part}.block{i}", _padded(block, g[f"{part}.block{i}"]))
  errors.close(f"{part}.patches_posemb", named["patches"])


def _check_mask(errors: Errors, key: str, cfg, tok: Tokenizer) -> None:
  h, w = (n // p for n, p in zip(tok.cfg.latent_size, cfg.patch[1:], strict=True))
  mask = masks.dense(cfg.mask, tok.chunk_steps, h * w, tok.registers, cfg.cross)
  padded = np.zeros_like(errors.golden[key])
  padded[: len(mask), : len(mask)] = mask
  errors.equal(key, padded)


def _check_encoder(errors: Errors, tok: Tokenizer, params, latents) -> None:
  g = errors.golden
  errors.close("in.latents", first(tok.encode_latents(params, last(g["in.video"]))))
  encoder = jax.jit(lambda p, x: Encoder(tok.cfg.encoder).apply({"params": p}, x, collect=True))
  z, named = encoder(params["encoder"], latents)
  _check_stack(errors, "enc", named)
  errors.close("enc.registers_out", named["registers_out"])
  errors.close("enc.prequant", z)
  errors.close("enc.quants", fsq.quantize(z, tok.levels))
  errors.equal("enc.token_ids", tok.encode(params, last(g["in.video"])).ids)
  _check_mask(errors, "enc.mask", tok.cfg.encoder, tok)


def _check_velocities(errors: Errors, tok: Tokenizer, params, tokens, latents, noise, some: int) -> None:
  g = errors.golden
  x, t = jnp.asarray(last(g["dec.xt"])), float(g["dec.t"][0])
  cases = {
    "dec.v_all": (tok.registers, {}),
    "dec.v_keep0": (0, {}),
    "dec.v_keep1": (1, {}),
    f"dec.v_keep{some}": (some, {}),
    f"dec.v_keep{some}_prefix1": (some, {"prefix": 1}),
    "dec.v_null": (tok.registers, {"null": True}),
  }
  for key, (keep, options) in cases.items():
    for collapse in (True, False):
      v = tok.velocity(params, tokens.truncate(keep), x, t, collapse=collapse, **options)
      errors.close(key, first(v), key if collapse else f"{key} (not collapsed)")
  for at in ("0.0", "0.25", "1.0"):
    on_path = flow.interpolate(latents, noise, jnp.array([float(at)]))
    errors.close(f"dec.v_all_t{at}", first(tok.velocity(params, tokens, on_path, float(at))))
  codes = fsq.ids_to_codes(tokens.ids, tok.levels)
  t_1 = jnp.array([t])
  run = lambda p, c, keep, **more: Decoder(tok.cfg.decoder).apply({"params": p}, c, keep, x, t_1, **more)
  decoder = jax.jit(run, static_argnames=("total", "collect"))
  _, named = decoder(params["decoder"], codes, tokens.keep, collect=True)
  _check_stack(errors, "dec", named)
  errors.close("dec.registers_posemb", named["registers"])  # all kept, so nothing was replaced
  errors.close("dec.temb", named["temb"])
  errors.equal("dec.t", g["dec.t"])
  errors.close("dec.xt", first(flow.interpolate(latents, noise, t_1)))
  truncated = decoder(params["decoder"], codes[:, :, :some], tokens.keep * 0 + some, total=some)
  errors.close(f"dec.v_truncated{some}", first(truncated))
  _check_mask(errors, "dec.mask", tok.cfg.decoder, tok)


def _check_batches(errors: Errors, tok: Tokenizer, params, tokens, noise, noise2) -> None:
  ids2 = fsq.codes_to_ids(jnp.asarray(errors.golden["in.quants2"]), tok.levels)
  both = VideoTokens.full(jnp.concatenate([tokens.ids, ids2]))
  x = jnp.concatenate([noise, noise2])
  for times, keys in (
    ((0.6, 0.6), ("batch.v0_t0.6", "batch.v1_t0.6")),
    ((0.9, 0.2), ("batch.v0_t0.9_alone", "batch.v1_t0.2_alone")),
  ):
    v = first(tok.velocity(params, both, x, jnp.array(times)))
    for i, key in enumerate(keys):
      errors.close(key, v[i : i + 1])


def _check_samples(errors: Errors, tok: Tokenizer, params, tokens, noise, some: int) -> None:
  cond = {"first_latents": last(errors.golden["in.cond_latents"])}
  full = tok.registers
  cases = {
    "apg5": (APG(5.0), full, {}),
    "apg5_eta.5_mom-.5_thr2.5": (APG(5.0, eta=0.5, momentum=-0.5, threshold=2.5), full, {}),
    "apg5_thr0": (APG(5.0, threshold=0.0), full, {}),
    "cfg1": (CFG(1.0), full, {}),
    "cfg3": (CFG(3.0), full, {}),
    f"keep{some}_apg5": (APG(5.0), some, {}),
    f"keep{some}_cfg3": (CFG(3.0), some, {}),
    "cond_clean_apg5": (APG(5.0), full, cond),
    "cond_clean_noprefixmask": (None, full, {**cond, "mask_prefix": False}),
    "cond_sdedit": (None, full, {**cond, "first_mode": "sdedit"}),
  }
  for name, (guidance, keep, options) in cases.items():
    out = tok.decode_latents(params, tokens.truncate(keep), noise=noise, steps=4, guidance=guidance, **options)
    errors.close(f"samp4.{name}", first(out))
  video = tok.decode(params, tokens, noise=[noise], steps=4, guidance=CFG(3.0), clip=False)
  errors.close("out.video_cfg3", first(video))


def _check_training(errors: Errors, tok: Tokenizer, params, rules, norms, latents, noise, some: int) -> None:
  g = errors.golden
  sigma = jnp.asarray(g["train.sigma"])

  def loss_of(p):
    z = Encoder(tok.cfg.encoder).apply({"params": p["encoder"]}, latents)
    keep = jnp.full(z.shape[:2], some)
    x = flow.interpolate(latents, noise, sigma)
    v = Decoder(tok.cfg.decoder).apply({"params": p["decoder"]}, fsq.quantize(z, tok.levels), keep, x, sigma)
    return flow.loss(v, latents, noise)

  loss, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
  errors.close("train.loss", loss)
  errors.equal("train.sigma", g["train.sigma"])

  def theirs(key: str) -> np.ndarray:
    rule, value = rules[key.removeprefix(reference_weights.PREFIX)], gradient
    for name in rule.path:
      value = value[name]
    return rule.to_theirs(np.asarray(value)[rule.index])

  for key in [k for k in g if k.startswith("train.grad.")]:
    errors.close(key, theirs(key.removeprefix("train.grad.")))
  errors.found[f"{len(norms)} gradient norms"] = max(
    abs(float(np.linalg.norm(theirs(key))) - norm) / norm for key, norm in norms.items()
  )


def check_sliding_window(path: pathlib.Path) -> Errors:
  """Chunk-with-overlap encode and sequential decode; the weights are those of model1 beside it."""
  tok, params, _, _ = load_golden_model(path.with_name("model1.safetensors"))
  g = load_file(path)
  errors = Errors(g)
  video = {name: last(g[f"{name}.video_f16"]).astype(np.float32) for name in ("T17", "T33", "T40", "T49", "B2")}
  for name in ("T17", "T33", "T49", "B2"):
    errors.equal(f"{name}.tokens", tok.encode(params, video[name]).ids)
  errors.equal("T40.tokens", tok.encode(params, video["T40"][:, :33]).ids)
  for name, chunks in (("T33", 2), ("T49", 3)):
    for i in range(chunks):
      frames = video[name][:, i * tok.stride : i * tok.stride + tok.chunk_frames]
      latents = tok.encode_latents(params, frames)
      errors.close(f"{name}.chunk{i}.latents", first(latents))
      errors.close(f"{name}.chunk{i}.prequant", tok.features(params, latents))
      errors.equal(f"{name}.chunk{i}.tokens_full", tok.encode(params, frames).ids)
  tokens = VideoTokens.full(g["T33.tokens"]).truncate(6)
  noise = [last(g[f"T33.decode.noise{i}"]) for i in (0, 1)]
  out = tok.decode(params, tokens, noise=noise, steps=4, guidance=APG(5.0), clip=False)
  errors.close("T33.decode.video_keep6_apg5_4steps", first(out))
  return errors
