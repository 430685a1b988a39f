"""Compares vftok with numbers the reference gave: `python -m vftok.tools.parity DIRECTORY`.

The directory holds golden safetensors files (reference inputs, random weights and outputs, torch layouts). Files that
are absent are skipped. Prints the worst relative L2 error per group and exits with 1 where one exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from vftok.convert import vidtok
from vftok.models import fsq, masks
from vftok.models.vae import VAE, kl
from vftok.runtime.ending import exit_code
from vftok.tools.golden import Errors, first, last
from vftok.tools.parity_evatok import check_evatok
from vftok.tools.parity_flextok import check_flextok
from vftok.tools.parity_generator import check_generator
from vftok.tools.parity_model import check_model, check_sliding_window
from vftok.tools.parity_query import INPUTS as QUERY_INPUTS
from vftok.tools.parity_query import check_adaptok, check_larp

TOLERANCE = 1e-4
FLEXIBLE = {  # the order of cross-step switches behind each flexible mask in the file
  "all_full": ("full",) * 4,
  "n2n_causal": ("full", "full", "full", "causal"),
  "n2n_none": ("full", "none", "full", "none"),
  "p2n_none_n2n_causal": ("full", "none", "full", "causal"),
  "p2p_only": ("full", "none", "none", "none"),
}


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
  flat = {rule.path: jnp.asarray(rule.to_ours(weights[key], ())) for key, rule in vidtok.rules(cfg).items()}
  params = traverse.unflatten_dict(flat)
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


CHECKS = {
  "fsq": check_fsq,
  "masks": check_masks,
  "vae_layernorm_ch16": check_vae,
  "small": check_model,
  "model1": check_model,
  "sliding_window": check_sliding_window,
  "ar_class": check_generator,
  "ar_text": check_generator,
  "flextok_small": check_flextok,
  "larp_small": check_larp,
  "adaptok_small": check_adaptok,
  "evatok_small": check_evatok,
}
INPUTS = {
  **QUERY_INPUTS,
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
  return exit_code("parity", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
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
