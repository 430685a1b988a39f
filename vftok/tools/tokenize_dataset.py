"""Writes the tokens that a generator trains on: `python -m vftok.tools.tokenize_dataset --config=configs/t2v.py:mini`.

Reads `config.tokenize` (tokenizer, splits of sources, text encoder) and writes an ArrayRecord set to the directory that
`config.data.sources.tokens` names: ids at full length, caption, label and, where asked for, the caption's features and
what a router predicts the clip to lose at each number of tokens. Any budget is a slice of it; of a model whose ids
depend on how many there are, a router of classes chooses, and its counts are stored. A run that was stopped goes on
where it was; the set appears when it is whole. Every chunk of clips is one shard of the set, written by whoever encoded
it: on a pod (--distributed), hosts share the chunks, on a file system that all of them see, and the devices of a host
share each batch. --workers=16 decodes videos in so many processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vftok.data import bad_clips
from vftok.data.clip import ClipSpec
from vftok.data.configured import BAD_CLIPS
from vftok.data.dataset_writer import is_made
from vftok.data.loader import make_loader
from vftok.data.sources import Source
from vftok.data.tokens import NAME, VERSION, features, finish_tokens, stored
from vftok.runtime.ending import or_exit
from vftok.runtime.process import begin
from vftok.tools.chunks import (
  check_batch,
  copied,
  cut,
  define_flags,
  directory_of,
  make_set,
  present_splits,
  shared,
  write_chunks,
  writing,
)
from vftok.train.experiment import run as run_main

CHUNK = 1024  # clips of a shard


def main(argv: list[str]) -> None:
  begin(argv, distributed=flags.FLAGS.distributed)
  cfg = flags.FLAGS.config
  out = lambda: flags.FLAGS.out or directory_of(cfg, "tokens", "this config trains on video")
  or_exit(lambda: print(tokenize(cfg, out(), workers=flags.FLAGS.workers)))


def tokenize(cfg: ConfigDict, out: str | os.PathLike, *, workers: int = 0) -> str:
  """Makes the set of `cfg.tokenize` at `out` and returns one line about it.

  Args:
    workers: processes that decode videos; 0: two threads.

  Raises:
    ValueError, FileNotFoundError: sources, tokenizer or text encoder that cannot be had; `out` holds something else.
  """
  if "tokenize" not in cfg:
    raise ValueError("this config has no `tokenize` part: pass one for generators, such as configs/t2v.py:mini.")
  with writing(out):
    return _tokenize(cfg, Path(out), workers)


def _tokenize(cfg: ConfigDict, out: Path, workers: int) -> str:
  from vftok.tokenizer.api import Tokenizer

  asked = cfg.tokenize
  tok, params = Tokenizer.load(asked.tokenizer, dino=asked.dino or None)
  if tok.frame_size != (asked.size, asked.size):
    raise ValueError(f"tokenize.size is {asked.size}, expected {tok.frame_size[0]}: the tokenizer's frame size.")
  steps = tok.steps_for(asked.frames)
  check_batch(asked.batch_size, "tokenize.batch_size")
  splits = json.loads(asked.splits.to_json())
  opened = present_splits(splits, "config.tokenize.splits")
  _check_label_names(opened)
  encoder, router = _text_encoder(asked), _router(asked, tok.fingerprint(params))
  counted = _counted(asked, tok, router)
  meta = {
    "set": NAME,
    "version": VERSION,
    "tokenizer": asked.tokenizer,
    "fingerprint": tok.fingerprint(params),
    "codebook_size": tok.codebook_size,
    "shape": [steps, tok.registers],
    "frames": asked.frames,
    "fps": asked.fps,
    "size": asked.size,
    "text": asked.text,
    "text_path": asked.text_path,
    "text_shape": [encoder[0].max_tokens, encoder[0].dim] if encoder else None,
    "splits": {split: splits[split] for split in opened},
  }
  if not tok.nested:
    meta["nested"] = False
  if counted:
    meta |= counted.meta
    meta["shape"] = [steps + len(counted.first), tok.registers]
  elif router:
    of = router[0].cfg
    weighed_by = dict(steps=of.steps, loss_mean=of.loss_mean, loss_std=of.loss_std)
    meta["router"] = dict(name=asked.router, levels=list(of.levels), **weighed_by)
  if is_made(out, meta):
    return f"{out} is already there, made by this tokenizer from these sources."

  def write(work: Path):
    how = (work, meta, tok, copied(params), encoder, counted or router, workers)
    return {split: _encode_split(asked, split, sources, *how) for split, sources in meta["splits"].items()}

  def finish(directory: Path, parts) -> dict[str, int]:
    classes = _classes(names for _, of_sources in parts.values() for names in of_sources)
    return finish_tokens(directory, {split: paths for split, (paths, _) in parts.items()}, meta, classes)

  made = make_set(out, meta, "tokenize_dataset", write, finish)
  if made is None:
    return "this host's part is done."
  written, size = made
  said = bad_clips.told(bad_clips.Tally(out / BAD_CLIPS)(), out / BAD_CLIPS)
  clips = ", ".join(f"{split} {n}" for split, n in written.items())
  rate = f"{size / 1e6:.1f} MB, {size / sum(written.values()):.0f} bytes a clip"
  return f"{out}: {clips} clips, {rate}" + (f"; {said}" if said else "")


def _check_label_names(opened: dict[str, dict[str, Source]]) -> None:
  """Raises ValueError where a source names its labels otherwise in one split than in another."""
  known = {}
  for split, sources in opened.items():
    for name, source in sources.items():
      names = tuple(getattr(source, "label_names", ()))
      first, others = known.setdefault(name, (split, names))
      if names != others:
        raise ValueError(
          f"the source {name} has {len(names)} label names in {split} and {len(others)} in {first}, "
          "expected one list, or a number means two things: pass labels=[...] to both."
        )


def _text_encoder(asked):
  if not asked.text:
    return None
  from vftok.frozen import text

  # T5-class encoders are large and were trained in bfloat16.
  dtype = asked.get("text_dtype") or ("bfloat16" if asked.text == "t5" else "float32")
  encoder, params = text.load(asked.text, asked.text_path or None, max_tokens=asked.text_tokens, dtype=dtype)
  return encoder, cut(params)


def _router(asked, fingerprint: str):
  """(router, params) that `asked.router` names: a directory, "auto" for the one that comes with vftok, "" for none."""
  if not asked.get("router"):
    return None
  from vftok.budget.router import find

  return find(None if asked.router == "auto" else asked.router, fingerprint)


class Counted(NamedTuple):
  """How clips are tokenized where ids depend on counts.

  Attributes:
    budget: of `encode`. frames, first: of given frames, whose tokens under the counts `first` go before a clip's own;
      0 and (): none. meta: what the set's recipe says of it.
  """

  budget: Any
  frames: int
  first: tuple[int, ...]
  meta: dict[str, Any]


def _counted(asked, tok, router) -> Counted | None:
  """None for a model whose ids do not depend on counts. Raises ValueError where config and model do not fit."""
  condition = asked.get("condition") or {"frames": 0, "counts": ()}
  frames, first, keep = condition["frames"], tuple(condition["counts"]), asked.get("keep", 0)
  if tok.nested or len(tok.budgets) < 2:
    if keep or frames:
      raise ValueError("tokenize.keep and condition are of models whose ids depend on counts: leave them out.")
    return None
  if bool(frames) != bool(first) or (first and len(first) >= tok.steps_for(asked.frames)):
    raise ValueError(
      f"tokenize.condition is {dict(condition)}, expected frames and fewer counts than a clip has steps."
    )
  if router and (keep or router[0].cfg.head != "classes"):
    raise ValueError("tokenize.router is set, expected one of classes, and tokenize.keep 0, for this model's counts.")
  from vftok.budget.auto import Auto

  meta: dict[str, Any] = {"counts": list(tok.budgets), "keep": keep}
  if first:
    meta["condition"] = {"frames": frames, "counts": list(first)}
  if not router:
    return Counted(keep or None, frames, first, meta)
  weight = router[0].cfg.preference
  meta["counts_by"] = {"router": asked.router, "preference": weight}
  return Counted(Auto(preference=weight, router=router, first=first), frames, first, meta)


def _encode_split(
  asked, split: str, sources: dict, work: Path, meta, tok, params, encoder, router, workers: int
) -> tuple[list[Path], list[tuple[str, ...]]]:
  """Encodes this host's chunks of a split that are not there yet: (its shards, label names of each source)."""
  spec = ClipSpec(frames=asked.frames, size=(asked.size, asked.size), fps=asked.fps or None)
  whole = dict(train=False, process_index=0, process_count=1, bad_clips=work / BAD_CLIPS)
  with make_loader(sources, spec, asked.batch_size, split=split, **whole) as loader:

    def encoded(batch, _):
      arrays = _encode(batch, loader.names, tok, params, encoder, router)
      return lambda: map(stored, _examples(arrays, batch["_mask"]))

    path_of = lambda number: work / f"{split}-{number:06d}"
    paths = write_chunks(
      loader,
      len(loader),
      max(1, CHUNK // asked.batch_size),
      path_of,
      features(meta),
      encoded,
      what=f"tokenizing {split}",
      workers=workers,
    )
    return paths, [tuple(names) for names in loader.label_names.values()]


def _classes(label_names) -> tuple[str, ...]:
  """The names that all sources agree on; numbers stay numbers where they do not."""
  known = {names for names in label_names if names}
  return known.pop() if len(known) == 1 else ()


def _encode(batch, names, tok, params, encoder, router) -> dict[str, Any]:
  """Arrays of the batch's clips; those of a device may still be in the making."""
  video = shared(batch["video"])
  if isinstance(router, Counted):
    row = _encode_counted(tok, params, video, router)
  elif router:
    from vftok.budget.spread import encode_with_curves

    chunks = list(encode_with_curves(tok, params, [video], "error", *router))
    parts = [c.ids for c, _ in chunks], [x for _, x in chunks]
    row = {key: np.concatenate(part, axis=1) for key, part in zip(("ids", "curves"), parts, strict=True)}
  else:
    row = {"ids": tok.encode(params, video).ids}
  row |= {
    "label": batch["label"],
    "caption": batch["caption"],
    "name": [f"{names[s]}:{i}" for s, i in zip(batch["source"], batch["index"], strict=True)],
  }
  if encoder:
    row["text_emb"], row["text_mask"] = encoder[0].embed(encoder[1], list(batch["caption"]))
  return row


def _encode_counted(tok, params, video, how: Counted) -> dict[str, Any]:
  """ "ids" [B, T, K] and "keep" [B, T], those of given frames first."""
  parts = [tok.encode(params, video, budget=how.budget)]
  if how.first:
    from vftok.generator.given import given_tokens

    parts.insert(0, given_tokens(tok, params, video[:, : how.frames], how.first))
  return {key: np.concatenate([getattr(part, key) for part in parts], axis=1) for key in ("ids", "keep")}


_STORED = {
  "ids": np.uint16,
  "keep": np.int32,
  "label": np.int64,
  "curves": np.float32,
  "text_emb": np.float16,
  "text_mask": bool,
}


def _examples(arrays: dict[str, Any], good: np.ndarray) -> Iterator[dict[str, Any]]:
  """Examples of the readable clips of a batch."""
  host = {key: np.asarray(value).astype(_STORED[key]) if key in _STORED else value for key, value in arrays.items()}
  for i in np.flatnonzero(good):
    example = {key: value[i] for key, value in host.items()}
    yield example | {"caption": str(example["caption"]), "label": int(example["label"])}


if __name__ == "__main__":
  define_flags("Experiment file with a `tokenize` part: configs/t2v.py:mini.")
  run_main(main)
