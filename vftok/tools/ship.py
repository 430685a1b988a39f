"""Puts a trained model into the package, in float16: `python -m vftok.tools.ship RUN/model vftok/weights/NAME`.

A tokenizer, a generator, a router or a VAE; with --int8 in half of that. --vae takes a tokenizer's VAE decoder from
another run: one that went on training while its encoder, and so the latents, stayed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from vftok.budget.router import Router
from vftok.convert.load import load_vae, save_vae
from vftok.generator.api import Generator
from vftok.io import hub
from vftok.io.int8 import narrowed
from vftok.models.config_json import FORMAT_GENERATOR, FORMAT_ROUTER, FORMAT_VAE
from vftok.models.flow import GUIDANCES
from vftok.runtime.ending import exit_code
from vftok.tokenizer.api import Tokenizer
from vftok.tokenizer.identity import fingerprint

OTHERS = {FORMAT_GENERATOR: Generator, FORMAT_ROUTER: Router}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns the exit code: 0, or 2 after a sentence on stderr."""
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.ship", description=__doc__)
  parser.add_argument("model", help="a model's directory")
  parser.add_argument("out", help="where to write model.safetensors and config.json")
  parser.add_argument("--vae", help="a VAE with the same encoder, whose decoder is taken")
  parser.add_argument("--int8", action="store_true", help="bytes and scales in place of float16, see vftok/io/int8.py")
  parser.add_argument("--guidance", choices=list(GUIDANCES), help="how it is decoded by default, with --scale")
  parser.add_argument("--scale", type=float)
  parser.add_argument("--solver-steps", type=int)
  return exit_code("ship", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
  usual = {name: getattr(args, name) for name in ("guidance", "scale", "solver_steps")}
  ship(args.model, args.out, args.vae, **{k: v for k, v in usual.items() if v is not None})
  if args.int8:
    file = hub.open_checkpoint(args.out)
    hub.save_files(args.out, narrowed(dict(file.tensors(file.shapes))), file.config)
  size = sum(path.stat().st_size for path in Path(args.out).iterdir())
  print(f"{args.out}: {size / 1e6:.1f} MB, {_whose(args.out)}")


def _whose(out) -> str:
  if _format(out) == FORMAT_VAE:
    return "a VAE"
  if kind := OTHERS.get(_format(out)):
    cfg = kind.load(out)[0].cfg
    return f"for tokens of {cfg.tokenizer}, fingerprint {cfg.fingerprint}"
  tok, params = Tokenizer.load(out)
  return f"fingerprint {fingerprint(tok.cfg, params)}"


def _format(model) -> str | None:
  return hub.open_checkpoint(model).config.get("format")


def ship(model, out, vae=None, **usual) -> None:
  """Writes the model at `model` to `out` in float16; `usual` replaces fields of a tokenizer's config.

  Raises:
    ValueError: `vae` has another config or encoder than the tokenizer was trained on, another model is given options of
      tokenizers, or a value overflows float16.
  """
  kind = OTHERS.get(_format(model))
  if (kind is not None or _format(model) == FORMAT_VAE) and (vae is not None or usual):
    raise ValueError(f"{model} is no tokenizer, and only these take --vae and sampling options: leave them out.")
  if _format(model) == FORMAT_VAE:
    cfg, params = load_vae(model)
    save_vae(cfg, _halved(params, model), out)
    return
  if kind is not None:
    own, params = kind.load(model)
    own.save(_halved(params, model), out)
    return
  tok, params = Tokenizer.load(model)
  tok = Tokenizer(dataclasses.replace(tok.cfg, **usual))
  if vae is not None:
    cfg, newer = load_vae(vae)
    same = jax.tree.structure(newer) == jax.tree.structure(params["vae"]) and cfg == tok.cfg.vae
    if not same or not jax.tree.all(jax.tree.map(np.array_equal, newer["encoder"], params["vae"]["encoder"])):
      raise ValueError(f"{vae} has another encoder than {model} was trained on: train one of them again.")
    params = {**params, "vae": newer}
  tok.save(_halved(params, model), out)


def _halved(params, model):
  with np.errstate(over="ignore"):  # reported below
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(half)):
    raise ValueError(f"{model} has values beyond float16's range: keep it in float32.")
  return half


if __name__ == "__main__":
  sys.exit(main())
