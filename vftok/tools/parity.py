"""Compares vftok with numbers the reference gave: `python -m vftok.tools.parity DIRECTORY`.

The directory holds golden safetensors files (reference inputs, random weights and outputs, torch layouts). Files that
are absent are skipped. Prints the worst relative L2 error per group and exits with 1 where one exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vftok.convert import reference_config, reference_weights, vidtok
from vftok.models import flow, fsq, masks
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder
from vftok.models.flow import APG, CFG
from vftok.models.vae import VAE, kl
from vftok.tokenizer import Tokenizer
from vftok.types import VideoTokens

TOLERANCE = 1e-4
FLEXIBLE = {  # the order of cross-step switches behind each flexible mask in the file
  "all_full": ("full",) * 4,
  "n2n_causal": ("full", "full", "full", "causal"),
  "n2n_none": ("full", "none", "full", "none"),
  "p2n_none_n2n_causal": ("full", "none", "full", "causal"),
  "p2p_only": ("full", "none", "none", "none"),
}


class Errors:
  """Relative L2 error per tensor of one golden file; equality counts as 0, a mismatch of integers as infinite."""

  def __init__(self, golden: Mapping[str, np.ndarray]):
    self.golden, self.found = golden, {}

  def close(self, key: str, value, name: str | None = None) -> None:
    expected = self.golden[key].astype(np.float64)
    value = np.asarray(value, np.float64).reshape(expected.shape)
    norm = np.linalg.norm(expected)
    self.found[name or key] = float(np.linalg.norm(value - expected) / max(norm, 1e-12))

  def equal(self, key: str, value) -> None:
    same = np.array_equal(np.asarray(value), self.golden[key])
    self.found[key] = 0.0 if same else float("inf")

  def not_compared(self, *given: str) -> list[str]:
    """Tensors of the file that are neither compared nor inputs."""
    skip = ("w.", "in.", *given)
    return [k for k in self.golden if k not in self.found and not k.startswith(skip) and not k.endswith("_with_bug")]


def last(x):
  """torch's channels first [B, C, ...] -> ours [B, ..., C]."""
  return np.moveaxis(x, 1, -1)


def first(x):
  return np.moveaxis(np.asarray(x), -1, 1)


def check_fsq(path: pathlib.Path) -> Errors:
  errors = Errors(load_file(path))
  for name in ("L888555", "L8555", "L7543"):
    g = {k.removeprefix(f"{name}."): v for k, v in errors.golden.items() if k.startswith(f"{name}.")}
    levels = tuple(int(n) for n in g["levels"])
    codes = fsq.quantize(g["z"], levels)
    errors.close(f"{name}.bounded", fsq.bound(g["z"], levels))
    errors.close(f"{name}.codes", codes)
    errors.equal(f"{name}.indices", fsq.codes_to_ids(codes, levels))
    errors.close(f"{name}.lookup_codes", fsq.ids_to_codes(g["lookup_indices"], levels))
    gradient = jax.grad(lambda z, w=g["ste_w"], n=levels: jnp.sum(fsq.quantize(z, n) * w))(g["z"][: len(g["ste_w"])])
    errors.close(f"{name}.ste_grad", gradient)
    errors.equal(f"{name}.basis", fsq.basis(levels))
  return errors


def check_masks(path: pathlib.Path) -> Errors:
  """The reference packs videos into one sequence; ours has a batch axis, so packing is put around our mask here."""
  errors = Errors(load_file(path))
  for key, packed in errors.golden.items():
    videos, mode = int(key[1]), key[3:]
    cross = FLEXIBLE[mode.removeprefix("flexible.")] if mode.startswith("flexible.") else ("full",) * 4
    mask = masks.dense(mode.split(".")[0], 3, 5, 4, cross)
    expected = np.zeros_like(packed)
    for i in range(videos):
      at = slice(i * len(mask), (i + 1) * len(mask))
      expected[at, at] = mask
    errors.equal(key, expected)
  return errors


def check_vae(path: pathlib.Path) -> Errors:
  g = load_file(path)
  errors = Errors(g)
  weights = {k.removeprefix("w.vidtok."): v for k, v in g.items() if k.startswith("w.")}
  cfg = vidtok.infer_config({k: v.shape for k, v in weights.items()})
  params: dict = {}
  for key, (where, kind) in vidtok.rules(cfg).items():
    node = params
    for name in where[:-1]:
      node = node.setdefault(name, {})
    node[where[-1]] = jnp.asarray(vidtok.KINDS[kind][0](weights[key]))
  encode = jax.jit(lambda x: VAE(cfg).apply({"params": params}, x, method=VAE.encode))
  decode = jax.jit(lambda z: VAE(cfg).apply({"params": params}, z, method=VAE.decode))
  mean, logvar = encode(last(g["in.video"]))
  errors.close("out.mean", first(mean))
  errors.close("out.logvar", first(logvar))
  errors.close("out.moments", np.concatenate([first(mean), first(logvar)], axis=1))
  errors.close("out.sample", first(mean + jnp.exp(0.5 * logvar) * last(g["in.eps"])))
  errors.close("out.decoded_from_mean", first(decode(mean)))
  errors.close("out.kl_loss", kl(mean, logvar))
  for t in (1, 5, 9, 16, 18):
    mean, _ = encode(last(g[f"T{t}.video"]))
    errors.close(f"T{t}.mean", first(mean))
    errors.close(f"T{t}.decoded", first(decode(mean)))
  return errors


def load_golden_model(path: pathlib.Path):
  """(tokenizer, params, rules, metadata) of the weights under `w.` and the config in the metadata."""
  with safe_open(path, framework="np") as file:
    metadata = file.metadata()
    weights = {key.removeprefix("w."): file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
  with tempfile.TemporaryDirectory() as directory:
    save_file(weights, pathlib.Path(directory) / "model.safetensors")
    (pathlib.Path(directory) / "config.json").write_text(metadata["config"])
    tok, params = Tokenizer.load(directory)
  _, names = reference_config.parse(json.loads(metadata["config"]), tok.cfg.vae)
  return tok, params, reference_weights.rules(tok.cfg, names), metadata


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


CHECKS = {
  "fsq": check_fsq,
  "masks": check_masks,
  "vae_layernorm_ch16": check_vae,
  "small": check_model,
  "model1": check_model,
  "sliding_window": check_sliding_window,
}
INPUTS = {
  "fsq": tuple(f"{n}.{k}" for n in ("L888555", "L8555", "L7543") for k in ("z", "levels", "lookup_indices", "ste_w")),
  "vae_layernorm_ch16": tuple(f"T{t}.video" for t in (1, 5, 9, 16, 18)),
  "sliding_window": (
    *(f"{name}.video_f16" for name in ("T17", "T33", "T40", "T49", "B2")),
    *(f"T33.decode.noise{i}" for i in (0, 1)),
  ),
}


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.parity", description=__doc__.split("\n\n")[0])
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--tolerance", type=float, default=TOLERANCE)
  parser.add_argument("--all", action="store_true", help="a line per tensor, not only the worst of each file")
  args = parser.parse_args(argv)
  failed = False
  print("| file | tensors compared | worst relative L2 | at |\n| --- | --- | --- | --- |")
  for name, check in CHECKS.items():
    path = args.directory / f"{name}.safetensors"
    if not path.is_file():
      print(f"| {name} | skipped: no such file | | |", flush=True)
      continue
    errors = check(path)
    worst = max(errors.found, key=errors.found.get)
    left = errors.not_compared(*INPUTS.get(name, ()))
    print(f"| {name} | {len(errors.found)} | {errors.found[worst]:.1e} | `{worst}` |", flush=True)
    if args.all:
      for key, value in errors.found.items():
        print(f"|  | {key} | {value:.1e} | |")
    failed |= bool(left) or not errors.found[worst] <= args.tolerance
    if left:
      print(f"not compared: {', '.join(left)}", file=sys.stderr)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
