"""The golden image model of `vftok.tools.parity`: VAE, every block, ids, velocities and samples."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from vftok.models import flow, fsq
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.flow import APG, CFG
from vftok.tokenizer import programs
from vftok.tokens import VideoTokens
from vftok.tools.golden import Errors, first, last, open_golden


def check_flextok(path: pathlib.Path) -> Errors:
  """Every tensor of the file but weights and inputs."""
  tok, params, metadata = open_golden(path)
  errors = Errors(load_file(path))
  with jax.default_matmul_precision("highest"):
    latents = _check_vae(errors, tok, params)
    _check_encoder(errors, tok, params, latents)
    _check_decoder(errors, tok, params, latents, float(metadata["velocity_time"]), json.loads(metadata["keeps"]))
    _check_samples(errors, tok, params, int(metadata["steps"]), json.loads(metadata["keeps"])[0])
  return errors


def _pictures(x):
  """torch's [B, C, H, W] -> our [B, 1, H, W, C]."""
  return jnp.asarray(last(x))[:, None]


def _torch(x):
  return first(np.asarray(x)[:, 0])


def _sequence(errors: Errors, key: str, x_BxNxD) -> None:
  """Compares rows of the reference's one sequence of all pictures, without those that pad it."""
  b, n, d = x_BxNxD.shape
  errors.golden[key] = errors.golden[key][0, : b * n]
  errors.close(key, np.asarray(x_BxNxD).reshape(b * n, d))


def _check_vae(errors: Errors, tok, params):
  latents, logvar = programs.vae_encode(tok.cfg, params, _pictures(errors.golden["in.image"]))
  scaling = tok.cfg.vae.scaling
  errors.close("vae.mean", _torch(latents / scaling))
  errors.close("vae.logvar", _torch(logvar - 2 * np.log(scaling)))
  errors.close("latents", _torch(latents))
  errors.close("vae.decoded_mean", _torch(tok.decode_pixels(params, latents)))
  return latents


def _check_encoder(errors: Errors, tok, params, latents) -> None:
  g = errors.golden
  run = jax.jit(lambda p, x: Encoder(tok.cfg.encoder).apply({"params": p}, x, collect=True))
  z, named = run(params["encoder"], latents)
  errors.close("enc.patches", named["patches"])
  _sequence(errors, "enc.packed", named["packed"])
  for i, block in enumerate(named["blocks"]):
    _sequence(errors, f"enc.block{i}", block)
  errors.close("enc.z", z)
  bounded = fsq.bound(z, tok.levels)
  errors.close("fsq.bounded", bounded)
  errors.close("fsq.margin", (0.5 - jnp.abs(bounded - jnp.round(bounded))).min(-1))
  errors.close("quants", fsq.quantize(z, tok.levels))
  errors.equal("ids", tok.encode(params, _pictures(g["in.image"])).ids[:, 0])


def _check_decoder(errors: Errors, tok, params, latents, t: float, keeps: list[list[int]]) -> None:
  g = errors.golden
  tokens, noise = VideoTokens.full(g["ids"][:, None]), _pictures(g["in.noise"])
  mixed = lambda t: flow.interpolate(latents, noise, jnp.full((len(latents),), t))
  errors.close("dec.xt", _torch(mixed(t)))
  run = jax.jit(lambda p, *of: Decoder(tok.cfg.decoder).apply({"params": p}, *of, collect=True))
  codes = fsq.ids_to_codes(tokens.ids, tok.levels)
  _, named = run(params["decoder"], codes, tokens.keep, mixed(t), jnp.full((len(latents),), t))
  for name in ("registers", "patches", "temb"):
    errors.close(f"dec.{name}", named[name])
  for i, block in enumerate(named["blocks"]):
    _sequence(errors, f"dec.block{i}", block)
  cases = {
    "v_all": (tokens, t, {}),
    "v_null": (tokens, t, {"null": True}),
    "v_t1": (tokens, 1.0, {}),
    "v_t025": (tokens, 0.25, {}),
    **{f"v_keep{a}_{b}": (tokens.truncate(np.array([[a], [b]])), t, {}) for a, b in keeps},
  }
  for key, (kept, at, options) in cases.items():
    errors.close(f"dec.{key}", _torch(tok.velocity(params, kept, mixed(at), at, **options)))
  v = tok.velocity(params, cases["v_null"][0], mixed(t), t, null=True, collapse=False)
  errors.close("dec.v_null", _torch(v), "dec.v_null (not collapsed)")


def _check_samples(errors: Errors, tok, params, steps: int, keep: list[int]) -> None:
  g = errors.golden
  full, noise = VideoTokens.full(g["ids"][:, None]), _pictures(g["in.noise"])
  kept = full.truncate(np.array(keep)[:, None])
  for key, tokens, guidance in (("none", full, None), ("cfg3", kept, CFG(3.0)), ("apg7_5", kept, APG(7.5))):
    out = tok.decode_latents(params, tokens, noise=noise, steps=steps, guidance=guidance)
    errors.close(f"sample.{key}.latents", _torch(out))
  image = tok.decode(params, kept, noise=[noise], steps=steps, guidance=APG(7.5), clip=False)
  errors.close("sample.apg7_5.image", _torch(image))
