"""`vftok sample`: prompts to labelled videos, one row per sample, one column per budget."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vftok.generator.api import Generator
from vftok.generator.request import check_mean
from vftok.generator.sample import sample
from vftok.io.video_writer import check_video_name, video_writer
from vftok.models.lengths import check_counts
from vftok.runtime.files import check_target
from vftok.runtime.words import brief
from vftok.show.picture import labelled_grid, si
from vftok.show.progress import COMPILING, progress


def run(args, load_tokenizer, sampler) -> None:
  """Writes the video that the parsed arguments ask for and prints tokens per second.

  Raises:
    ValueError: arguments that do not fit together or the model.
  """
  prompt, out = _words(args)
  check_video_name(out, 1 if args.frames in (None, 1) else 2)
  check_target(out)
  if args.samples < 1:
    raise ValueError(f"-n is {args.samples}, expected 1 or more videos.")
  gen, gen_params = Generator.load(args.generator)
  args.label = None if args.label is None else _classes(args.label, gen.cfg.classes)
  if args.text_encoder is not None:
    if not gen.cfg.text:
      asked = brief(args.text_encoder)
      raise ValueError(f"--text-encoder is {asked}, but this generator names no text encoder: leave it out.")
    gen = dataclasses.replace(gen, cfg=dataclasses.replace(gen.cfg, text_path=args.text_encoder))
  name = args.tokenizer or gen.cfg.tokenizer
  if not name:
    raise ValueError("the generator names no tokenizer: pass --tokenizer.")
  tok, params = load_tokenizer(name, args.dino)
  if args.frames is None:
    check_video_name(out, tok.frames_for(gen.cfg.steps))
  budgets = _budgets(args, gen.cfg.ar)
  first = _first_frames(args, tok)
  options = dict(
    frames=args.frames,
    first_frames=first,
    context=args.context,
    decode=sampler(args, tok),
    batch=args.samples if prompt is None and args.label is None else None,
    guidance=args.gen_guidance,
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
  )
  made = functools.partial(
    sample, gen, gen_params, tok, params, jax.random.key(args.seed), _condition(args, prompt), **options
  )
  if args.frames == 0:
    _endless(args, _title(args, prompt), budgets, made)
  else:
    _finite(args, _title(args, prompt), budgets, made, np.log2(tok.codebook_size))


def _budgets(args, ar) -> dict[str, dict[str, Any]]:
  """{label of a column: options of `sample`}: --keep, --mean-length, or what the model does by itself."""
  if args.mean_length is not None:
    check_mean(ar, args.keep, args.mean_length)
    return {f"mean k = {args.mean_length:g}": dict(mean_length=args.mean_length)}
  if not args.keep and ar.lengths != "none":
    return {"own lengths": {}}
  keeps = sorted(set(args.keep or [ar.slots]))
  if not 1 <= keeps[0] <= keeps[-1] <= ar.slots:
    raise ValueError(f"--keep is {args.keep}, expected 1 to {ar.slots}, the generator's tokens per time step.")
  if ar.lengths != "none":
    check_counts(ar, keeps)
  return {f"k = {k}": dict(keep=k) for k in keeps}


def _finite(args, title: str, budgets, made, bits: float) -> None:
  """All budgets side by side. One key for all: where guidance is the same, a smaller one is a coarser view."""
  out = args.words[-1]
  columns, counts, rate = [], [], 0.0
  with progress("sampling", len(budgets), "budgets", first=COMPILING) as advance:
    for options in budgets.values():
      pieces = list(made(**options))
      columns.append(np.concatenate([piece.video for piece in pieces], axis=1))
      counts.append(sum(piece.made for piece in pieces) / len(columns[-1]))
      rate = sum(piece.made for piece in pieces) / max(sum(piece.seconds for piece in pieces), 1e-9)
      advance(1)
  labels = [f"{k}\n{n:.4g} tokens made, {si(n * bits, 'bit')}" for k, n in zip(budgets, counts, strict=True)]
  labels[0] = f"{title}\n{labels[0].replace(chr(10), ', ')}" if len(budgets) == 1 else labels[0]
  rows = [np.concatenate(list(column), axis=1) for column in columns]
  began = time.monotonic()
  with video_writer(out, args.fps) as writer:
    writer.write(labelled_grid(rows, labels))
  frames = columns[0].shape[1]
  made_each = ", ".join(f"{n:.4g}" for n in counts)
  print(
    f"{out}: {len(columns[0])} x {frames} frames of {title!r}, {made_each} tokens made per clip, {rate:.3g} tokens/s "
    f"(compiling included); written in {time.monotonic() - began:.1f} s"
  )


def _endless(args, title: str, budgets, made) -> None:
  """Writes pieces as they come until Ctrl-C, which ends the file and not the program's success."""
  if len(budgets) != 1:
    raise ValueError(f"--keep is {args.keep} for a video without end, expected one budget.")
  out, frames, ((label, options),) = args.words[-1], 0, budgets.items()
  with video_writer(out, args.fps) as writer, progress("until Ctrl-C", None, first=COMPILING) as advance:
    try:
      for piece in made(**options):
        rows = np.concatenate(list(piece.video), axis=1)
        writer.write(labelled_grid([rows], [f"{title}\n{label}"]))
        frames += piece.video.shape[1]
        advance(piece.video.shape[1])
    except KeyboardInterrupt:
      if not frames:
        raise
  print(f"{out}: {len(piece.video)} x {frames} frames of {title!r}")


def _words(args) -> tuple[str | None, str]:
  words = args.words
  expected = 1 if args.label is not None or (len(words) == 1 and args.first_frames) else 2
  if len(words) != expected:
    ways = "PROMPT OUT, or OUT alone with --class NAME or --first-frames VIDEO"
    raise ValueError(f"got {len(words)} words {brief(words, 150)}, expected {ways}.")
  prompt = words[0] if expected == 2 else None
  if prompt is not None and not prompt.strip():
    raise ValueError("the prompt is empty, expected what to show: write one, or use --class.")
  return prompt, words[-1]


def _classes(text: str, known: Sequence[str]) -> list[str]:
  """One class, whose name may hold commas, or several with commas between."""
  return [text] if text in known else [name.strip() for name in text.split(",")]


def _condition(args, prompt):
  if args.label is not None:
    return {"label": [label for label in args.label for _ in range(args.samples)]}
  return None if prompt is None else {"text": [prompt] * args.samples}


def _first_frames(args, tok):
  if not args.first_frames:
    return None
  from vftok.io.video import read_video

  count = args.first_count
  frames, _ = read_video(args.first_frames, tok.frame_size, args.fps, max_frames=count, min_frames=count)
  return frames[None]


def _title(args, prompt) -> str:
  return prompt or (f"class {', '.join(args.label)}" if args.label is not None else Path(args.first_frames).name)
