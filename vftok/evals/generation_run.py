"""The generation evaluation as `cfg.eval.generation` asks for it: held-out clips, classifier, training pool, report."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from pathlib import Path

import jax
import numpy as np

from vftok.data.clip import ClipSpec
from vftok.data.loader import first_clips, make_loader
from vftok.evals import alignment, generation, generation_report
from vftok.evals.captions import SCENES
from vftok.evals.clips import Clips
from vftok.evals.protocol import Protocol, fingerprint, leave
from vftok.frozen.metrics.clip import CLIPScore
from vftok.generator.api import Generator
from vftok.generator.sample import check_pair
from vftok.io.video_writer import to_uint8
from vftok.models.flow import gaussian
from vftok.tokens import VideoTokens

BATCH = 16


def check(cfg) -> None:
  """Raises ValueError where the split to evaluate is none of those that were tokenized."""
  split, splits = cfg.eval.generation.split, cfg.tokenize.splits
  if split not in splits:
    raise ValueError(
      f"eval.generation.split is {split!r}, expected one of config.tokenize.splits: {', '.join(splits)}; set "
      "--config.eval.generation.split."
    )


def evaluate(cfg, gen, params, tok, tok_params, decode, out, asked: Protocol | None = None) -> dict[str, float]:
  """Scalars; writes a report to OUT/generation. `decode`: options of the tokenizer's decoding. See `check`.

  `asked`: the protocol of another evaluation, whose settings `cfg` has, to be done again on its clips.
  """
  settings, data, out = cfg.eval.generation, cfg.tokenize, Path(out)
  who = fingerprint(params, tok_params)
  if asked:
    asked.check_model(who)
  if settings.get("beside"):  # read first: a wrong name must not cost an evaluation
    other = Generator.load(settings.beside)
    check_pair(other[0], tok, tok_params)
  splits = data.splits.to_dict()
  spec = ClipSpec(frames=data.frames, size=(data.size, data.size), fps=data.fps or None)
  where = dict(process_index=0, process_count=1, seed=cfg.seed)
  clip = CLIPScore(settings.clip) if settings.get("clip") else None
  classifier = None
  known = next((name for name in splits["train"] if name in SCENES), None)
  if settings.classifier_steps and known:
    source = json.dumps({known: splits["train"][known]}, sort_keys=True, default=list)
    classifier = _classifier(source, spec, settings.classifier_steps, cfg.seed)
  with contextlib.closing(make_loader(splits["train"], spec, BATCH, split="train", train=False, **where)) as loader:
    pool = [
      np.asarray(batch["video"])[batch["_mask"]] for batch in itertools.islice(loader, -(-settings.pool // BATCH))
    ]
  with contextlib.closing(
    make_loader(splits[settings.split], spec, BATCH, split=settings.split, train=False, **where)
  ) as loader:
    some = loader if asked else first_clips(loader, settings.clips)
    clips = Clips(some, loader.names, asked.clips["indices"] if asked else None)
    evaluation = generation.evaluate(
      gen,
      params,
      tok,
      tok_params,
      clips,
      split=settings.split,
      keeps=_keeps(settings, gen, tok),
      seed=settings.seed,
      anew=settings.anew,
      decode=decode,
      guidance=settings.guidance or None,
      classifier=classifier,
      clip=clip,
      neighbours=generation.Neighbours(np.concatenate(pool)),
      fvd=settings.fvd,
      total=asked.count if asked else min(settings.clips, loader.examples),
    )
  prompts = [(cfg.title, _prompts(gen, params, tok, tok_params, settings, decode))]
  if settings.get("beside"):
    prompts.append((str(settings.beside), _prompts(*other, tok, tok_params, settings, decode)))
  generation_report.write(
    out / "generation", evaluation, prompts, title=cfg.title, fps=data.fps or 8.0, training=out.parent / "curves.png"
  )
  leave("generation", settings.split, cfg, splits[settings.split], clips, who, out / "generation", asked)
  return {f"generation/{k}": v for k, v in evaluation.scalars().items()}


@functools.lru_cache(maxsize=1)  # many generators over the same clips are judged one after the other
def _classifier(source: str, spec: ClipSpec, steps: int, seed: int) -> alignment.Judge:
  """`source`: JSON of one that SCENES names."""
  sources = json.loads(source)
  (known,) = sources
  where = dict(workers=0, process_index=0, process_count=1, seed=seed)
  with contextlib.closing(make_loader(sources, spec, 64, **where)) as loader:
    return alignment.train(loader, (spec.frames, *spec.size, 3), steps, scenes=SCENES[known])


def _keeps(settings, gen, tok) -> tuple[int, ...]:
  """Budgets to score a generator at; none where lengths are its own alone."""
  return tuple(settings.keeps) if tok.nested else () if gen.cfg.ar.levels else (tok.registers,)


def _prompts(gen, params, tok, tok_params, settings, decode) -> dict[str, np.ndarray]:
  """{prompt: uint8 [budgets, F, H, W, 3]}: one noise, one row per budget, other prompts; one program paints all."""
  if not settings.prompts or not gen.cfg.ar.ctx_dim:
    return {}
  keeps = _keeps(settings, gen, tok) or (tok.registers,)
  out, key, rows = {}, jax.random.key(settings.seed), len(keeps)
  for prompt in settings.prompts:
    made = gen.generate(params, key, {"text": [prompt]}, guidance=settings.guidance or None).widen(tok.registers)
    ids = np.repeat(made.ids, rows, axis=0)
    keep = np.minimum(np.asarray(keeps)[:, None], made.keep)
    noise = {} if tok.one_pass else {"noise": [np.repeat(x, rows, axis=0) for x in _noise(tok, key, ids.shape[1])]}
    tokens = VideoTokens.full(ids, nested=tok.nested).truncate(keep)
    out[prompt] = to_uint8(tok.decode(tok_params, tokens, **noise, **decode))
  return out


def _noise(tok, key, steps: int) -> list[np.ndarray]:
  """What `tok.decode` draws for one video of so many time steps from `key`, chunk after chunk."""
  chunks = 1 + (steps - tok.chunk_steps) // (tok.chunk_steps - tok.overlap_steps)
  shape = tok.latent_shape(1, tok.chunk_steps)
  return [np.asarray(gaussian(jax.random.fold_in(key, i), shape)) for i in range(chunks)]
