"""What limits a small tokenizer? `python -m vftok.tools.study.linear_limit --config=configs/tokenizer.py:mini`

Scores held-out clips, decoded by the tokenizer's own VAE, out of
  linear n     the best n numbers per time step of a linear map of its latents (principal components of training clips,
               one map for the first step and one for the others), without any rounding: what no linear code of that
               size goes below;
  draft        the tokenizer's deterministic estimate from all its tokens, where it has one: the flow decoder's start;
  VAE alone    the ceiling.
"""

from __future__ import annotations

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vftok.data.configured import eval_loader
from vftok.data.loader import first_clips
from vftok.evals.reconstruction import VAE, score_rows
from vftok.models import fsq
from vftok.models.decoder import draft_of
from vftok.models.layers import patchify, unpatchify
from vftok.runtime.ending import or_exit
from vftok.runtime.process import begin
from vftok.show import page
from vftok.tasks.linear_codes import principal
from vftok.tokenizer.api import Tokenizer
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  or_exit(run)


def run() -> None:
  cfg, (tok, params) = flags.FLAGS.config, Tokenizer.load(flags.FLAGS.model)
  sources, sizes = cfg.eval.sets.to_dict()[flags.FLAGS.set], [int(n) for n in flags.FLAGS.sizes]
  train = {name: {**source, "split": "train"} for name, source in sources.items()}
  with contextlib.closing(eval_loader(cfg, train)) as loader:
    latents = [tok.encode_latents(params, batch["video"]) for batch in first_clips(loader, flags.FLAGS.fit)]
  maps = step_maps(_patches(tok, np.concatenate(latents)), max(sizes))
  with contextlib.closing(eval_loader(cfg, sources)) as loader:
    table = scores(tok, params, first_clips(loader, flags.FLAGS.clips), maps, sizes, flags.FLAGS.set)
  print(page.markdown_table(table))


def _patches(tok, latents) -> np.ndarray:
  """[B, T, P]: all latents of a time step."""
  patches = np.asarray(patchify(latents, tok.cfg.decoder.patch))
  return patches.reshape(*patches.shape[:2], -1)


def step_maps(patches_BxTxP: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """[(mean [P], components [P, size])] of the first time step and of all others."""
  out = []
  for some in (patches_BxTxP[:, :1], patches_BxTxP[:, 1:]):
    x = some.reshape(-1, some.shape[-1])
    middle = x.mean(0)
    out.append((middle, principal(np.cov(x - middle, rowvar=False), size)[1]))
  return out


def scores(tok, params, batches, maps, sizes, split: str, lpips_net: str | None = "vgg") -> list[list[str]]:
  """Table cells: error of the latents as a share of their variance, PSNR and LPIPS, a row each."""
  errors: dict[str, list[float]] = {}
  draft = draft_of(tok.cfg.decoder) if tok.cfg.decoder.draft else None

  @jax.jit
  def drafted(decoder, ids):
    codes, keep = fsq.ids_to_codes(ids, tok.levels), jnp.full(ids.shape[:2], tok.registers)
    return draft.apply({"params": decoder["draft"]}, codes, keep)[0]

  def reconstruct(video, ids, mask):
    del ids
    latents = tok.encode_latents(params, video)
    x = _patches(tok, latents)

    def decoded(name, patches):
      errors.setdefault(name, []).append(float(np.square(patches - x)[mask].mean() / x[mask].var()))
      grid = (n // p for n, p in zip(tok.cfg.latent_size, tok.cfg.decoder.patch[1:], strict=True))
      return name, 0, tok.decode_pixels(params, unpatchify(patches.reshape(*x.shape[:2], *grid, -1), patch))

    patch = tok.cfg.decoder.patch
    for n in sizes:
      parts = zip((x[:, :1], x[:, 1:]), maps, strict=True)
      rebuilt = [(part - middle) @ some[:, :n] @ some[:, :n].T + middle for part, (middle, some) in parts]
      yield decoded(f"linear {n}", np.concatenate(rebuilt, axis=1).astype(np.float32))
    if draft:
      yield decoded("draft", np.asarray(drafted(params["decoder"], tok.encode(params, video).ids)).reshape(x.shape))
    yield VAE, 0, tok.decode_pixels(params, latents)

  rows = {row["name"]: row for row in score_rows(reconstruct, batches, split, {}, lpips_net, False, 0, None, 0).rows}
  cells = [["per time step", "latent error", "PSNR (dB)", "LPIPS"]]
  for name in itertools.chain(errors, [VAE]):
    error = f"{np.mean(errors[name]):.3f}" if name in errors else "0"
    lpips = "-" if rows[name]["lpips"] is None else f"{rows[name]['lpips']:.3f}"
    cells.append([name, error, f"{rows[name]['psnr']:.1f}", lpips])
  return cells


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  define_config("Experiment file: configs/tokenizer.py:mini.")
  flags.DEFINE_string("model", "vftok-mini", "Tokenizer.")
  flags.DEFINE_string("set", "sim_val", "Which of config.eval.sets is scored; its train split is fitted to.")
  flags.DEFINE_integer("clips", 32, "How many clips are scored.")
  flags.DEFINE_integer("fit", 2400, "How many training clips the maps are fitted to.")
  flags.DEFINE_list("sizes", ["16", "32", "64", "128", "256", "512", "1024"], "Numbers per time step.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
