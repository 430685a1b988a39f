"""Generated clips against real ones, as a curve over budget: gFVD, agreement with the caption, nearest training clips.

Protocol, the same for every row of a table:
  each held-out clip gives its condition (caption or class) once; videos are rounded to 8 bits. Tokens are made once, at
    the largest budget and under its guidance; smaller budgets are prefixes of them. With `anew`
    each budget has its own, under its own guidance. A model that says lengths makes them anew for each budget, which
    is the mean it aims at, and once as it likes; `tokens` says what it made. Where ids depend on how many there are,
    only as it likes. A model that goes on from given frames gets those of the clip, and is scored on the frames after.
  gFVD (lower is better): `frechet` between generated clips and real ones on I3D logits, all frames. `gfvd_vae` has the
    VAE's reconstructions of the same real clips as reference (SemanTok's protocol); the two are not comparable.
  CLIP: `CLIPScore`, with the caption, of the user's own weights.
  alignment: `vftok.evals.alignment`, beside the tokenizer's own reconstructions at that budget and real clips.
  distance: root mean square over pixels (8x8, five frames, 0..1) to the nearest training clip: held-out clips have one
    too, and generated clips much nearer than these would be copies.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np

from vftok.evals import frechet
from vftok.evals.alignment import Agreement
from vftok.evals.reconstruction import text_of
from vftok.evals.scores import known_logits
from vftok.frozen.metrics import weights
from vftok.generator.given import given_tokens
from vftok.io.video_writer import to_uint8
from vftok.show.progress import progress

REAL, VAE, OWN = "real", "VAE alone", "generated own lengths"


@dataclasses.dataclass(frozen=True)
class GenerationEvaluation:
  """Attributes:
  rows: one dict per kind of clip and budget: `name`, `keep` (tokens per step), `tokens` (per clip, on average) and
    `bits` (None for real and VAE), `gfvd`, `gfvd_vae`,
    `clip`, `alignment` ({attribute: accuracy} or None), `distance` (median to the nearest training clip), and what the
    numbers depend on.
  media: per chosen clip {"caption": str, row name: uint8 [F, H, W, 3], "nearest training clip": ...}.
  """

  rows: list[dict[str, Any]]
  media: list[dict[str, Any]]

  def scalars(self) -> dict[str, float]:
    flat = {}
    for row in self.rows:
      flat |= {
        f"{m}/{row['name']}": row[m] for m in ("gfvd", "gfvd_vae", "clip", "distance", "tokens") if row[m] is not None
      }
      flat |= {f"alignment/{k}/{row['name']}": v for k, v in (row["alignment"] or {}).items()}
    return flat


def evaluate(
  gen,
  gen_params,
  tok,
  params,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  split: str,
  keeps: Sequence[int],
  seed: int = 0,
  decode: Mapping[str, Any] | None = None,
  guidance=None,
  temperature: float = 1.0,
  classifier=None,
  clip=None,
  neighbours: Neighbours | None = None,
  fvd: bool = True,
  media: int = 8,
  total: int | None = None,
  anew: bool = False,
) -> GenerationEvaluation:
  """Scores a generator at several budgets.

  Args:
    batches: "video" uint8 [b, F, H, W, 3], "caption", "label", "_mask"; all of one b.
    decode: options of the tokenizer's `decode`; guidance, temperature: of the generator.
    anew: makes the tokens of each budget anew, under that budget's own guidance, as SemanTok does; else they are
      prefixes of those of the largest.
    classifier: of `alignment.train`, or None. clip: a `CLIPScore`, or None.

  Raises:
    ValueError: no clips.
  """
  decode, inception = dict(decode or {}), weights.load_i3d() if fvd else None
  adaptive = gen.cfg.ar.lengths != "none"
  names = [f"{kind} keep {k}" for k in keeps for kind in ("generated", "reconstructed")]
  names += [OWN] if adaptive else []
  names += [] if keeps else ["reconstructed"]
  shown_as, given = f"generated keep {max(keeps)}" if keeps else OWN, gen.cfg.condition_frames
  totals: dict[str, list] = {name: [] for name in names}
  statistics = {name: frechet.Statistics() for name in ((REAL,) if tok.one_pass else (REAL, VAE)) + tuple(names)}
  agreement = {name: Agreement(classifier) for name in statistics} if classifier is not None else {}
  distances: dict[str, list] = {name: [] for name in statistics}
  clip_scores: dict[str, list] = {name: [] for name in statistics}
  kept, clips, shape, wishes = [], 0, None, None
  key = jax.random.key(seed)
  with progress(f"evaluating {split}", total and total * max(len(keeps), 1), "clips", first="compiling") as done:
    for number, batch in enumerate(batches):
      video, mask = np.asarray(batch["video"]), np.asarray(batch["_mask"], bool)
      shape, clips = video.shape[1:], clips + int(mask.sum())
      made_key, paint_key = jax.random.split(jax.random.fold_in(key, number))
      cond, own = _condition(gen, batch), tok.encode(params, video)
      options = dict(guidance=guidance, temperature=temperature) | ({} if cond else {"batch": len(video)})
      options |= dict(given=given_tokens(tok, params, video[:, :given], gen.cfg.condition)) if given else {}
      if adaptive:
        wishes = wishes or _wishes(gen, gen_params, made_key, cond, keeps, options)
        made = {name: gen.generate(gen_params, made_key, cond, **wish, **options) for name, wish in wishes.items()}
      elif anew:
        made = {f"generated keep {k}": gen.generate(gen_params, made_key, cond, keep=k, **options) for k in keeps}
      else:
        whole = gen.generate(gen_params, made_key, cond, keep=max(keeps), **options)
        made = {f"generated keep {k}": whole.truncate(k) for k in keeps}
      made |= {f"reconstructed keep {k}": own.truncate(k) for k in keeps} if keeps else {"reconstructed": own}
      videos = {REAL: video} | _vae_alone(tok, params, video)
      for name in names:
        tokens = made[name].widen(tok.registers)
        videos[name] = to_uint8(tok.decode(params, tokens, paint_key, **decode))
        totals[name].append(np.asarray(tokens.total())[mask])
        done(int(mask.sum()) if name == shown_as or name.startswith("generated keep") else 0)
      for name, frames in ((name, frames[:, given:]) for name, frames in videos.items()):
        if inception is not None:
          statistics[name].update(known_logits(inception, frames), mask)
        if agreement:
          agreement[name].update(frames[mask], batch["caption"][mask])
        if clip is not None:
          clip_scores[name].append(clip(frames, batch["caption"])[mask])
        if neighbours is not None:
          distances[name].append(neighbours.nearest(frames[mask])[0])
      for i in np.flatnonzero(mask)[: media - len(kept)]:
        shown = {"caption": str(batch["caption"][i]), **{name: frames[i] for name, frames in videos.items()}}
        if neighbours is not None:
          at = neighbours.nearest(videos[shown_as][i : i + 1])[1][0]
          shown["nearest training clip"] = neighbours.clips[at]
        kept.append(shown)
  if not clips:
    raise ValueError(f"the set {split!r} has no clips to evaluate: check its source and split.")
  facts = dict(clips=clips, frames=shape[0], size=list(shape[1:3]), split=split, seed=seed, anew=anew)
  facts |= dict(steps=decode.get("steps", 1), decoder=text_of(decode.get("guidance")), temperature=temperature)
  facts |= dict(i3d_net=weights.SOURCES["i3d"].short if fvd else None)
  facts |= dict(indicative=clips < frechet.INDICATIVE_BELOW)
  rows, time_steps = [], tok.steps_for(shape[0])
  for name, own in statistics.items():
    known = statistics if fvd and clips > 1 else {}
    distance = lambda other: frechet.distance(own, known[other]) if other in known else None  # noqa: B023
    near = np.concatenate(distances[name]) if neighbours is not None else None
    tokens = float(np.mean(np.concatenate(totals[name]))) if name in totals else None
    keep = {f"{kind} keep {k}": k for k in keeps for kind in ("generated", "reconstructed")}.get(name)
    if name in totals and adaptive and name.startswith("generated"):
      keep = tokens / time_steps  # what was made, not what was aimed at
    row = dict(name=name, keep=keep, tokens=tokens, gfvd=distance(REAL), gfvd_vae=distance(VAE))
    row |= dict(bits=None if keep is None else keep * time_steps * math.log2(tok.codebook_size))
    row |= dict(clip=float(np.nanmean(np.concatenate(clip_scores[name]))) if clip is not None else None)
    row |= dict(alignment=agreement[name].summary() if agreement else None)
    rows.append(row | dict(distance=None if near is None else float(np.median(near)), **facts))
  return GenerationEvaluation(rows, kept)


def _vae_alone(tok, params, video) -> dict[str, np.ndarray]:
  """{VAE: the clips as the tokenizer's VAE gives them back}; {} where it has none."""
  return {} if tok.one_pass else {VAE: to_uint8(tok.decode_pixels(params, tok.encode_latents(params, video)))}


def _wishes(gen, params, key, cond, keeps, options) -> dict[str, dict[str, float]]:
  """{name of the row: what to ask an adaptive model for}."""
  aimed = {f"generated keep {k}": gen.aimed(params, key, cond, mean_length=k, **options) for k in keeps}
  return aimed | {OWN: {}}


def _condition(gen, batch):
  if gen.cfg.ar.ctx_dim:
    texts = [str(caption) for caption in batch["caption"]]
    return {"text": [text if text.strip() else "a video" for text in texts]}
  return {"label": np.maximum(batch["label"], 0)} if gen.cfg.ar.n_classes else None


class Neighbours:
  """Training clips to compare with: `clips` uint8 [N, F, H, W, 3], made small once."""

  def __init__(self, clips: np.ndarray):
    self.clips, self._small = clips, _small(clips)

  def nearest(self, video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance [B], index [B]) of the nearest training clip of each."""
    a, b = _small(video), self._small
    square = (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)
    at = square.argmin(1)
    return np.sqrt(np.maximum(square[np.arange(len(a)), at], 0) / a.shape[1]), at


def _small(video: np.ndarray) -> np.ndarray:
  """float32 [B, n]: five frames at 8x8, values 0..1."""
  _, f, h, w, _ = video.shape
  frames = video[:, np.linspace(0, f - 1, 5).round().astype(int)].astype(np.float32) / 255
  frames = frames[:, :, : h // 8 * 8, : w // 8 * 8]
  return einops.reduce(frames, "b f (h i) (w j) c -> b (f h w c)", "mean", h=8, w=8)
