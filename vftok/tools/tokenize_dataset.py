"""Writes the tokens that a generator trains on: `python -m vftok.tools.tokenize_dataset --config=configs/t2v.py:mini`.

Reads `config.tokenize` (tokenizer, splits of sources, text encoder) and writes an ArrayRecord set to the directory that
`config.data.sources.tokens` names: ids at full length, caption, label and, where asked for, the caption's features and
what a router predicts the clip to lose at each number of tokens. Any budget is a slice of it. A run that was stopped
goes on where it was; the set appears when it is whole. On a pod, hosts share the work by chunks and the first one joins
them (on a file system that all of them see).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vftok.data.clip import ClipSpec
from vftok.data.dataset_writer import is_made, whole_directory, work_directory
from vftok.data.loader import make_loader
from vftok.data.sources import source_of
from vftok.data.tokens import write_tokens
from vftok.data.video_writer import whole_file
from vftok.process import begin
from vftok.progress import progress
from vftok.tools.command import or_exit

CHUNK = 256  # clips per file of the unfinished work


def main(argv: list[str]) -> None:
  begin(argv, distributed=flags.FLAGS.distributed)
  cfg = flags.FLAGS.config
  or_exit(lambda: print(tokenize(cfg, flags.FLAGS.out or _directory(cfg))))


def _directory(cfg: ConfigDict) -> str:
  for source in cfg.data.sources.values():
    if source.kind == "tokens":
      return source.directory
  raise ValueError("config.data.sources names no tokens, expected one of kind 'tokens': this config trains on video.")


def tokenize(cfg: ConfigDict, out: str | os.PathLike) -> str:
  """Makes the set of `cfg.tokenize` at `out` and returns one line about it.

  Raises:
    ValueError, FileNotFoundError: sources, tokenizer or text encoder that cannot be had; `out` holds something else.
  """
  import jax

  from vftok.tokenizer import Tokenizer

  if "tokenize" not in cfg:
    raise ValueError("this config has no `tokenize` part: pass one for generators, such as configs/t2v.py:mini.")
  law, out = cfg.tokenize, Path(out)
  tok, params = Tokenizer.load(law.tokenizer, dino=law.dino or None)
  if tok.frame_size != (law.size, law.size):
    raise ValueError(f"tokenize.size is {law.size}, expected {tok.frame_size[0]}: the tokenizer's frame size.")
  steps = tok.steps_for(law.frames)
  _check_label_names(law)
  encoder, router = _text_encoder(law), _router(law, tok.fingerprint(params))
  meta = {
    "set": "vftok_tokens",
    "version": "1.0.0",
    "tokenizer": law.tokenizer,
    "fingerprint": tok.fingerprint(params),
    "codebook_size": tok.codebook_size,
    "shape": [steps, tok.registers],
    "frames": law.frames,
    "fps": law.fps,
    "size": law.size,
    "text": law.text,
    "text_path": law.text_path,
    "text_shape": [encoder[0].max_tokens, encoder[0].dim] if encoder else None,
    "splits": json.loads(law.splits.to_json()),
  }
  if router:
    cfg = router[0].cfg
    weighed_by = dict(steps=cfg.steps, loss_mean=cfg.loss_mean, loss_std=cfg.loss_std)
    meta["router"] = dict(name=law.router, levels=list(cfg.levels), **weighed_by)
  if is_made(out, meta):
    return f"{out} is already there, made by this tokenizer from these sources."
  work = work_directory(out.with_name(f".{out.name}.chunks"), meta)
  splits = meta["splits"].items()
  done = {split: _encode_split(law, split, sources, work, tok, params, encoder, router) for split, sources in splits}
  counts = {split: count for split, (count, _) in done.items()}
  classes = _classes([names for _, of_sources in done.values() for names in of_sources])
  _await()
  if jax.process_index():
    return f"this host's part is in {work}."
  with whole_directory(out, meta) as directory:
    write_tokens(directory, {split: lambda s=split: _examples(work, s, counts[s]) for split in counts}, meta, classes)
  written = {split: sum(_length(path) for path in work.glob(f"{split}-*.npz")) for split in counts}
  shutil.rmtree(work)
  size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
  lost = sum(counts.values()) - sum(written.values())
  made = ", ".join(f"{split} {n}" for split, n in written.items())
  return f"{out}: {made} clips ({lost} could not be read), {size / 1e6:.1f} MB"


def _check_label_names(law) -> None:
  """Raises ValueError where a source names its labels otherwise in one split than in another."""
  known = {}
  for split, sources in law.splits.items():
    for name, entry in sources.items():
      names = tuple(getattr(source_of(entry, split), "label_names", ()))
      first, others = known.setdefault(name, (split, names))
      if names != others:
        raise ValueError(
          f"the source {name} has {len(names)} label names in {split} and {len(others)} in {first}, not the same, "
          "expected one list, or a number means two things: pass labels=[...] to both."
        )


def _text_encoder(law):
  if not law.text:
    return None
  from vftok import text

  return text.load(law.text, law.text_path or None, max_tokens=law.text_tokens)


def _router(law, fingerprint: str):
  """(router, params) that `law.router` names: a directory, "auto" for the one that comes with vftok, "" for none."""
  if not law.get("router"):
    return None
  from vftok.router import find

  return find(None if law.router == "auto" else law.router, fingerprint)


def _encode_split(
  law, split: str, sources: dict, work: Path, tok, params, encoder, router
) -> tuple[int, list[tuple[str, ...]]]:
  """Encodes this host's chunks of a split that are not there yet. Returns its clips, and each source's label names."""
  import jax

  spec = ClipSpec(frames=law.frames, size=(law.size, law.size), fps=law.fps or None)
  per_chunk = max(1, CHUNK // law.batch_size)

  def open_at(start: int):
    return make_loader(
      sources,
      spec,
      law.batch_size,
      split=split,
      train=False,
      start=start,
      process_index=0,
      process_count=1,
      bad_clips=work / "bad_clips.jsonl",
    )

  with open_at(0) as loader:
    total, batches, names = loader.examples, len(loader), loader.names
    label_names = [tuple(of_source) for of_source in loader.label_names.values()]
  chunks = [c for c in range(-(-batches // per_chunk)) if c % jax.process_count() == jax.process_index()]
  missing = [c for c in chunks if not _chunk(work, split, c).exists()]
  with progress(f"tokenizing {split}", len(missing) * per_chunk * law.batch_size, "clips") as done:
    for c in missing:
      with open_at(c * per_chunk * law.batch_size) as loader:
        rows = []
        for _, batch in zip(range(per_chunk), loader, strict=False):
          rows.append(_encode(batch, names, tok, params, encoder, router))
          done(law.batch_size)
      with whole_file(_chunk(work, split, c)) as path, open(path, "wb") as file:
        np.savez(file, **{key: np.concatenate([row[key] for row in rows]) for key in rows[0]})
  return total, label_names


def _classes(label_names) -> tuple[str, ...]:
  """The names that all sources agree on; numbers stay numbers where they do not."""
  known = {names for names in label_names if names}
  return known.pop() if len(known) == 1 else ()


def _encode(batch, names, tok, params, encoder, router) -> dict[str, np.ndarray]:
  """Arrays of the batch's readable clips."""
  good = batch["_mask"]
  if router:
    from vftok.router import encode_with_curves

    chunks = list(encode_with_curves(tok, params, [batch["video"]], "error", *router))
    ids, curves = (np.concatenate(parts, axis=1) for parts in ([c.ids for c, _ in chunks], [x for _, x in chunks]))
  else:
    ids = np.asarray(tok.encode(params, batch["video"]).ids)
  row = {
    "ids": ids.astype(np.uint16),
    "label": batch["label"].astype(np.int64),
    "caption": batch["caption"].astype(str),
    "name": np.array([f"{names[s]}:{i}" for s, i in zip(batch["source"], batch["index"], strict=True)]),
  }
  if router:
    row["curves"] = curves.astype(np.float32)
  if encoder:
    features, mask = encoder[0].embed(encoder[1], list(batch["caption"]))
    row |= {"text_emb": np.asarray(features, np.float16), "text_mask": np.asarray(mask)}
    if not np.isfinite(row["text_emb"]).all():
      raise ValueError("text features do not fit float16, expected finite ones below 65504: use another text encoder.")
  return {key: value[good] for key, value in row.items()}


def _chunk(work: Path, split: str, number: int) -> Path:
  return work / f"{split}-{number:06d}.npz"


def _length(path: Path) -> int:
  with np.load(path, allow_pickle=False) as chunk:
    return len(chunk["ids"])


def _await() -> None:
  """Waits until every host has written its chunks."""
  import jax

  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("vftok tokenize_dataset")
    time.sleep(1.0)  # network file systems show new names late


def _examples(work: Path, split: str, total: int) -> Iterator[dict]:
  found = sorted(work.glob(f"{split}-*.npz"))
  count = 0
  for path in found:
    with np.load(path, allow_pickle=False) as chunk:
      arrays = {key: chunk[key] for key in chunk.files}
    for i in range(len(arrays["ids"])):
      example = {key: value[i] for key, value in arrays.items()}
      yield example | {key: str(example[key]) for key in ("caption", "name")} | {"label": int(example["label"])}
    count += len(arrays["ids"])
  if not count:
    raise ValueError(f"split {split!r} has none of {total} clips that could be read: {work}/bad_clips.jsonl says why.")


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  config_flags.DEFINE_config_file("config", None, "Experiment file with a `tokenize` part: configs/t2v.py:mini.")
  flags.DEFINE_string("out", None, "Where the set goes; default: where the config looks for it.")
  flags.DEFINE_bool("distributed", False, "Join the other processes of a pod or SLURM job first.")
  flags.mark_flags_as_required(["config"])


if __name__ == "__main__":
  define_flags()
  app.run(main)
