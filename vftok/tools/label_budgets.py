"""What clips lose at each number of tokens per step.

`python -m vftok.tools.label_budgets --config=configs/router.py:mini [--sampled 16]`

Encodes the clips of `cfg.label` once and measures the decoder's flow loss under many assignments (`vftok/curves.py`).
All losses are stored, with the latents that a router reads. A run that was stopped goes on where it was; the set
appears when it is whole. --sampled N also decodes N validation clips under a part of the assignments and prints how the
ranks of the surrogate and of LPIPS agree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vftok import curves, programs
from vftok.data.clip import ClipSpec
from vftok.data.curves import write_curves
from vftok.data.dataset_writer import is_made, whole_directory, work_directory
from vftok.data.loader import make_loader
from vftok.data.video_writer import whole_file
from vftok.process import begin
from vftok.progress import progress
from vftok.tokenizer import Tokenizer
from vftok.tools.command import or_exit

CHUNK = 64  # clips per file of the unfinished work


def main(argv: list[str]) -> None:
  begin(argv, distributed=False)
  cfg = flags.FLAGS.config

  def run() -> None:
    print(label(cfg, flags.FLAGS.out or directory_of(cfg)))
    if flags.FLAGS.sampled:
      print(agreement(cfg, flags.FLAGS.sampled))

  or_exit(run)


def directory_of(cfg: ConfigDict) -> str:
  """Where the config looks for its curves. Raises ValueError where it names none."""
  for source in cfg.data.sources.values():
    if source.kind == "curves":
      return source.directory
  raise ValueError("config.data.sources names no curves, expected one of kind 'curves': pass configs/router.py:mini.")


def label(cfg: ConfigDict, out: str | os.PathLike) -> str:
  """Makes the set of `cfg.label` at `out` and returns one line about it.

  Raises:
    ValueError, FileNotFoundError: sources or a tokenizer that cannot be had, or `out` holds something else.
  """
  if "label" not in cfg:
    raise ValueError("this config has no `label` part: pass one for routers, such as configs/router.py:mini.")
  law, out = cfg.label, Path(out)
  tok, params = Tokenizer.load(law.tokenizer)
  check_levels(law.levels, tok.registers)
  steps = tok.steps_for(law.frames)
  if steps != tok.chunk_steps:
    raise ValueError(f"label.frames is {law.frames}, expected {tok.chunk_frames}: one chunk of the tokenizer.")
  keep = curves.assignments(law.levels, steps, law.random, law.seed)
  meta = {
    "set": "vftok_curves",
    "version": "1.0.0",
    "tokenizer": law.tokenizer,
    "fingerprint": tok.fingerprint(params),
    "codebook_size": tok.codebook_size,
    "levels": list(law.levels),
    "steps": steps,
    "times": list(law.times),
    "random": law.random,
    "seed": law.seed,
    "latents_shape": list(tok.latent_shape(1, steps)[1:]),
    "losses_shape": [len(keep), steps, len(law.times)],
    "frames": law.frames,
    "size": law.size,
    "fps": law.fps,
    "clips": law.clips.to_dict(),
    "splits": json.loads(law.splits.to_json()),
  }
  if is_made(out, meta):
    return f"{out} is already there, made by this tokenizer from these sources."
  work = work_directory(out.with_name(f".{out.name}.chunks"), meta)
  counts = {split: _measure(law, split, sources, work, tok, params, keep) for split, sources in meta["splits"].items()}
  with whole_directory(out, meta) as directory:
    write_curves(directory, {split: lambda s=split: _examples(work, s) for split in counts}, meta)
  shutil.rmtree(work)
  size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
  made = ", ".join(f"{split} {n}" for split, n in counts.items())
  return f"{out}: {made} clips under {len(keep)} assignments each, {size / 1e6:.1f} MB"


def check_levels(levels, most: int) -> None:
  """Raises ValueError unless levels rise from 1 to `most`."""
  levels = list(levels)
  if len(levels) < 2 or levels != sorted(set(levels)) or levels[0] != 1 or levels[-1] != most:
    raise ValueError(f"levels are {levels}, expected numbers of tokens that rise from 1 to the tokenizer's {most}.")


def _measure(law, split: str, sources: dict, work: Path, tok, params, keep) -> int:
  """Measures the chunks of a split that are not there yet. Returns how many clips it has."""
  wanted = law.clips[split]
  with _loader(law, split, sources, 0, work) as loader:
    total = min(loader.examples, wanted) if wanted else loader.examples
  chunks = -(-total // CHUNK)
  missing = [c for c in range(chunks) if not _chunk(work, split, c).exists()]
  with progress(f"measuring {split}", len(missing) * CHUNK, "clips") as done:
    for c in missing:
      rows = {"latents": [], "losses": [], "label": [], "caption": [], "name": []}
      with _loader(law, split, sources, c * CHUNK, work) as loader:
        for batch, _ in zip(loader, range(CHUNK // law.batch_size), strict=False):
          _add(rows, batch, loader.names, law, tok, params, keep)
          done(law.batch_size)
      with whole_file(_chunk(work, split, c)) as path, open(path, "wb") as file:
        np.savez(file, **{key: np.concatenate(parts) for key, parts in rows.items()})
  found = sum(_length(_chunk(work, split, c)) for c in range(chunks))
  if not found:
    raise ValueError(f"split {split!r} has no clip that could be read: {work}/bad_clips.jsonl says why.")
  return found


def _loader(law, split, sources, start, work: Path | None):
  spec = ClipSpec(frames=law.frames, size=(law.size, law.size), fps=law.fps or None)
  log = work / "bad_clips.jsonl" if work else None
  return make_loader(
    sources,
    spec,
    law.batch_size,
    split=split,
    train=False,
    start=start,
    process_index=0,
    process_count=1,
    bad_clips=log,
  )


def _add(rows, batch, names, law, tok, params, keep) -> None:
  """The batch's readable clips."""
  good = batch["_mask"]
  latents = tok.encode_latents(params, batch["video"])
  ids = programs.encode_latents(tok.cfg, params, latents, batch["video"], tok.dino)
  key = jax.random.key(law.seed)
  losses = curves.flow_losses(tok.cfg, params, latents, ids, keep, tuple(law.times), key)
  rows["latents"].append(np.asarray(latents, np.float16)[good])
  rows["losses"].append(np.asarray(losses)[good])
  rows["label"].append(batch["label"].astype(np.int64)[good])
  rows["caption"].append(batch["caption"].astype(str)[good])
  where = zip(batch["source"], batch["index"], strict=True)
  rows["name"].append(np.array([f"{names[s]}:{i}" for s, i in where])[good])


def _chunk(work: Path, split: str, number: int) -> Path:
  return work / f"{split}-{number:06d}.npz"


def _length(path: Path) -> int:
  with np.load(path, allow_pickle=False) as chunk:
    return len(chunk["losses"])


def _examples(work: Path, split: str) -> Iterator[dict]:
  for path in sorted(work.glob(f"{split}-*.npz")):
    with np.load(path, allow_pickle=False) as chunk:
      arrays = {key: chunk[key] for key in chunk.files}
    for i in range(len(arrays["losses"])):
      example = {key: value[i] for key, value in arrays.items()}
      yield example | {key: str(example[key]) for key in ("caption", "name")} | {"label": int(example["label"])}


def agreement(cfg: ConfigDict, clips: int) -> str:
  """Rank correlation of flow loss and LPIPS over assignments of the same clip, its mean over `clips` of "val"."""
  from vftok.data.video_writer import to_uint8
  from vftok.evals.nets.weights import load_lpips
  from vftok.evals.scores import clip_scores

  law, net, found = cfg.label, load_lpips("vgg"), []
  tok, params = Tokenizer.load(law.tokenizer)
  every = curves.assignments(law.levels, tok.chunk_steps, law.random, law.seed)
  keep = every[tok.chunk_steps * len(law.levels) :]  # the uniform and the random ones
  noise = jax.random.normal(jax.random.key(law.seed), tok.latent_shape(1, tok.chunk_steps))
  loader = _loader(law, "val", json.loads(law.splits.to_json())["val"], 0, None)
  with loader, progress("decoding", clips, "clips") as done:
    for batch in loader:
      video, tokens = batch["video"], tok.encode(params, batch["video"])
      shared = np.repeat(noise, len(video), 0)
      decode = lambda k, t=tokens, n=shared: tok.decode(params, t.truncate(k), noise=[n], collapse=False)
      videos = np.stack([to_uint8(decode(k)) for k in keep])
      lpips_NxB = clip_scores(net, video, videos)[2]
      latents = tok.encode_latents(params, video)
      key = jax.random.key(law.seed)
      losses = curves.flow_losses(tok.cfg, params, latents, tokens.ids, keep, tuple(law.times), key).mean((2, 3))
      good = np.flatnonzero(batch["_mask"])
      found += [curves.spearman(losses[i], lpips_NxB[:, i]) for i in good]
      done(len(video))
      if len(found) >= clips:
        break
  found = found[:clips]
  return (
    f"Spearman of flow loss and LPIPS over {len(keep)} assignments of a clip: {np.mean(found):.3f} on average, "
    f"{np.min(found):.3f} at least, {len(found)} clips"
  )


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  config_flags.DEFINE_config_file("config", None, "Experiment file with a `label` part: configs/router.py:mini.")
  flags.DEFINE_string("out", None, "Where the set goes; default: where the config looks for it.")
  flags.DEFINE_integer("sampled", 0, "Validation clips that are also decoded, to compare the surrogate with LPIPS.")
  flags.mark_flags_as_required(["config"])


if __name__ == "__main__":
  define_flags()
  app.run(main)
