"""What clips lose at each number of tokens per step.

`python -m vftok.tools.label_budgets --config=configs/router.py:mini`

Encodes the clips of `cfg.label` once and measures the decoder's flow loss under many assignments (`budget/curves.py`),
some the same for all clips, some drawn for each. Under the latter the first `label.sampled` clips of a split are also
decoded: LPIPS and the cosine of VGG16 features. All losses are stored, with the latents that a router reads. A run that
was stopped goes on where it was; the set appears when it is whole. Prints how the ranks of flow loss and of what was
sampled agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vftok.budget import curves
from vftok.budget.label import Label
from vftok.data.clip import ClipSpec
from vftok.data.curves import NAME, VERSION, features, finish_curves, read_meta
from vftok.data.curves import curves as read_curves
from vftok.data.dataset_writer import is_made
from vftok.data.loader import make_loader
from vftok.frozen.metrics.weights import load_lpips
from vftok.models.flow import gaussian
from vftok.runtime.ending import or_exit
from vftok.runtime.process import begin
from vftok.tokenizer import programs
from vftok.tokenizer.api import Tokenizer
from vftok.tokens import VideoTokens
from vftok.tools import label_assignments
from vftok.tools.chunks import (
  check_batch,
  copied,
  define_flags,
  directory_of,
  make_set,
  present_splits,
  shared,
  write_chunks,
  writing,
)
from vftok.train.experiment import run as run_main

CHUNK = 64  # clips of a shard: minutes of work


def main(argv: list[str]) -> None:
  begin(argv, distributed=flags.FLAGS.distributed)
  cfg = flags.FLAGS.config

  def run() -> None:
    out = flags.FLAGS.out or directory_of(cfg, "curves", "pass configs/router.py:mini")
    print(label(cfg, out, workers=flags.FLAGS.workers))
    if not jax.process_index():
      print(label_assignments.summary(out, meta) if (meta := read_meta(out)).get("every") else agreement(out))

  or_exit(run)


def label(cfg: ConfigDict, out: str | os.PathLike, *, workers: int = 0) -> str:
  """Makes the set of `cfg.label` at `out` and returns one line about it.

  Args:
    workers: processes that decode videos; 0: two threads.

  Raises:
    ValueError, FileNotFoundError: sources or a tokenizer that cannot be had, or `out` holds something else.
  """
  asked = Label.of(cfg)
  with writing(out):
    return _label(asked, Path(out), workers)


def _label(asked: Label, out: Path, workers: int) -> str:
  tok, params = Tokenizer.load(asked.tokenizer)
  if tok.one_pass:
    return _label_every(asked, out, tok, params, workers)
  asked.check_levels(tok.registers)
  check_batch(asked.batch_size, "label.batch_size")
  steps = tok.steps_for(asked.frames)
  if steps != tok.chunk_steps:
    raise ValueError(f"label.frames is {asked.frames}, expected {tok.chunk_frames}: one chunk of the tokenizer.")
  keep = curves.assignments(asked.levels, steps, asked.random, asked.seed)
  meta = {
    "set": NAME,
    "version": VERSION,
    "tokenizer": asked.tokenizer,
    "fingerprint": tok.fingerprint(params),
    "codebook_size": tok.codebook_size,
    "levels": list(asked.levels),
    "steps": steps,
    "times": list(asked.times),
    "random": asked.random,
    "seed": asked.seed,
    "latents_shape": list(tok.latent_shape(1, steps)[1:]),
    "losses_shape": [len(keep), steps, len(asked.times)],
    "drawn_shape": [asked.drawn, steps],
    "sampled": asked.sampled,
    "solver_steps": asked.solver_steps or tok.cfg.solver_steps,
    "frames": asked.frames,
    "size": asked.size,
    "fps": asked.fps,
    "clips": asked.clips,
    "splits": {split: asked.splits[split] for split in present_splits(asked.splits, "config.label.splits")},
  }
  if is_made(out, meta):
    return f"{out} is already there, made by this tokenizer from these sources."
  measure = Measure(asked, tok, copied(params), keep, meta["solver_steps"])
  made = make_set(
    out,
    meta,
    "label_budgets",
    lambda work: {
      s: _measure(asked, s, sources, work, meta, measure, workers) for s, sources in meta["splits"].items()
    },
    lambda directory, parts: finish_curves(directory, parts, meta),
  )
  if made is None:
    return "this host's part is done."
  counts, size = made
  clips = ", ".join(f"{split} {n}" for split, n in counts.items())
  return f"{out}: {clips} clips under {len(keep)} assignments each, {size / 1e6:.1f} MB"


def _label_every(asked: Label, out: Path, tok, params, workers: int) -> str:
  """Every assignment, decoded. Raises ValueError for a model whose ids do not depend on counts."""
  if tok.nested or len(tok.budgets) < 2:
    raise ValueError("this tokenizer knows no counts before it encodes, so a router has nothing to choose.")
  check_batch(asked.batch_size, "label.batch_size")
  meta = label_assignments.recipe(asked, tok, params)
  if is_made(out, meta):
    return f"{out} is already there, made by this tokenizer from these sources."
  measure = label_assignments.MeasureAll(tok, copied(params))
  rows = lambda batch, names, first, sampled: measure(batch | {"video": shared(batch["video"])}, names)
  made = make_set(
    out,
    meta,
    "label_budgets",
    lambda work: {s: _measure(asked, s, sources, work, meta, rows, workers) for s, sources in meta["splits"].items()},
    lambda directory, parts: finish_curves(directory, parts, meta),
  )
  if made is None:
    return "this host's part is done."
  clips = ", ".join(f"{split} {n}" for split, n in made[0].items())
  return f"{out}: {clips} clips under all {len(measure.keep)} assignments, {made[1] / 1e6:.1f} MB"


def _measure(asked: Label, split: str, sources: dict, work: Path, meta, measure, workers: int) -> list[Path]:
  """Measures this host's chunks of a split that are not there yet. Returns all its shards."""
  wanted = asked.clips[split]
  with _loader(asked, split, sources, 0, work) as loader:
    total = min(loader.examples, wanted) if wanted else loader.examples

    def measured(batch, number):
      first = number * asked.batch_size
      good = batch["_mask"] & (first + np.arange(asked.batch_size) < total)
      rows = measure(batch, loader.names, first, asked.sampled.get(split, 0))
      return lambda: _examples(rows, good)

    path_of = lambda number: work / f"{split}-{number:06d}"
    batches = -(-total // asked.batch_size)
    size, kinds = max(1, CHUNK // asked.batch_size), features(meta)
    return write_chunks(loader, batches, size, path_of, kinds, measured, what=f"measuring {split}", workers=workers)


def _loader(asked: Label, split, sources, start, work: Path | None):
  spec = ClipSpec(frames=asked.frames, size=(asked.size, asked.size), fps=asked.fps or None)
  log = work / "bad_clips.jsonl" if work else None
  return make_loader(
    sources,
    spec,
    asked.batch_size,
    split=split,
    train=False,
    start=start,
    process_index=0,
    process_count=1,
    bad_clips=log,
  )


def clips_of(asked: Label, split: str, count: int) -> np.ndarray:
  """uint8 [count, F, H, W, 3]: the first readable clips of a split, fewer where it has not so many."""
  found = []
  with _loader(asked, split, asked.splits[split], 0, None) as loader:
    for batch in loader:
      found += list(np.asarray(batch["video"])[batch["_mask"]])
      if len(found) >= count:
        break
  if not found:
    raise ValueError(f"split {split!r} has no clip that could be read: check its sources.")
  return np.stack(found[:count])


class Measure:
  """Rows of a set out of batches of clips."""

  def __init__(self, asked: Label, tok, params, keep, solver_steps: int):
    self.asked, self.tok, self.params, self.keep, self.solver_steps = asked, tok, params, keep, solver_steps
    self._key, self._net = jax.random.key(asked.seed), None

  def __call__(self, batch, names, first: int, sampled: int) -> dict[str, np.ndarray]:
    """Of the clips from number `first` of their split on, whose first `sampled` are decoded too."""
    asked, tok, params = self.asked, self.tok, self.params
    video = shared(batch["video"])
    latents = tok.encode_latents(params, video)
    ids = programs.encode_latents(tok.cfg, params, latents, video, tok.dino)
    flow = lambda keep: np.asarray(
      curves.flow_losses(tok.cfg, params, latents, ids, keep, asked.times, self._key), np.float32
    )
    numbers = np.arange(first, first + len(ids))
    steps = ids.shape[1]
    drawn = np.stack([curves.drawn(asked.levels, steps, asked.drawn, asked.seed, n) for n in numbers.tolist()])
    found = np.full((*drawn.shape, len(curves.MEASURES)), np.nan, np.float32)
    if asked.drawn:
      found[..., 0] = flow(drawn).mean(-1)
    if first < sampled and asked.drawn:
      self._net = self._net or load_lpips("vgg")
      noise = gaussian(self._key, tok.latent_shape(1, steps))
      how = (tok, params, self._net, batch["video"], VideoTokens.full(ids), drawn, noise)
      found[..., 1:] = curves.sampled_losses(*how, steps=self.solver_steps)
      found[numbers >= sampled, :, :, 1:] = np.nan
    where = zip(batch["source"], batch["index"], strict=True)
    return {
      "latents": np.asarray(latents, np.float16),
      "losses": flow(self.keep),
      "drawn": drawn,
      "sampled": found,
      "label": batch["label"].astype(np.int64),
      "caption": batch["caption"].astype(str),
      "name": np.array([f"{names[s]}:{i}" for s, i in where]),
    }


def _examples(rows: dict[str, np.ndarray], good: np.ndarray) -> Iterator[dict]:
  for i in np.flatnonzero(good):
    example = {key: value[i] for key, value in rows.items()}
    yield example | {key: str(example[key]) for key in ("caption", "name")} | {"label": int(example["label"])}


def agreement(directory: str | os.PathLike) -> str:
  """Rank correlation, over the assignments of a clip, of flow loss with what was sampled: its mean over "val"."""
  source = read_curves("val", directory=directory)
  sampled = (source[i]["sampled"] for i in range(len(source)))
  sampled = [losses.mean(1) for losses in sampled if np.isfinite(losses).all() and len(losses) > 2]
  if not sampled:
    return "no clip was decoded, so nothing says how far flow loss stands for it: set label.sampled and label.drawn."
  lines = []
  for i, name in enumerate(curves.MEASURES[1:], start=1):
    found = [curves.spearman(losses[:, 0], losses[:, i]) for losses in sampled]
    lines.append(f"{name} {np.mean(found):.3f} on average, {np.min(found):.3f} at least")
  return (
    f"Spearman of flow loss over the {len(sampled[0])} assignments of a clip, {len(sampled)} clips: {'; '.join(lines)}"
  )


if __name__ == "__main__":
  define_flags("Experiment file with a `label` part: configs/router.py:mini.")
  run_main(main)
