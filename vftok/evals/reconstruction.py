"""Reconstruction quality as a curve over tokens kept, beside the baselines that say what the numbers mean.

Conventions, the same for every row of a table:
  videos: rounded to 8 bits first, as a viewer and a video file get them; scored at their own size.
  PSNR (dB, higher is better): of each clip as in `pixels`, cut at 100 dB; SSIM likewise; mean over clips.
  LPIPS (lower is better): VGG16 or AlexNet on each frame at its own size, mean over frames and clips.
  Cosine (higher is better): of the same net's last features of each frame, all positions as one vector, mean likewise.
  rFVD (lower is better): `frechet` between real and reconstructed clips on I3D logits, all frames of each clip.
A clip's noise depends on the seed and on the clip's own (source, index) only: not on batch size, order or tokens kept.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.evals import frechet
from vftok.evals.codebook import CodebookUsage
from vftok.evals.probe import ProbeTable
from vftok.evals.scores import METRICS, Scores
from vftok.frozen.metrics import weights
from vftok.frozen.metrics.i3d import MIN_FRAMES
from vftok.io.video_writer import to_uint8
from vftok.models.flow import Guidance
from vftok.show.progress import progress

VAE, FIRST_FRAME, MEAN_FRAME = "VAE alone", "first frame repeated", "temporal mean"


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation gives; `vftok.evals.report` writes it.

  Attributes:
    rows: one dict per row of the table: `name`, `keep` (None for baselines), `tokens` and `bits` per clip, the
      METRICS (None where not computed), `spread` and `per_seed` of each metric, and what the numbers depend on: clips,
      frames, size, split, seeds, steps, solver, guidance, lpips_net, i3d_net, indicative.
    codebook: of `CodebookUsage.summary`, or None.
    media: per chosen clip {"original": uint8 [F, H, W, 3], row name: the same of the first seed, ...}.
    probe: what the tokens say of the clips' attributes, where that was asked for and they have some.
  """

  rows: list[dict[str, Any]]
  codebook: dict[str, Any] | None
  media: list[dict[str, np.ndarray]]
  probe: ProbeTable | None = None

  def scalars(self) -> dict[str, float]:
    """{"psnr/keep 4": value, ...} for a metric writer; absent numbers are left out."""
    flat = {f"{m}/{row['name']}": row[m] for row in self.rows for m in METRICS if row[m] is not None}
    if self.codebook:
      flat.update({f"codebook/{k}": self.codebook[k] for k in ("used", "entropy_bits", "entropy_bits_per_clip")})
    return flat | (self.probe.scalars() if self.probe else {})


def evaluate(
  tok,
  params,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  split: str,
  keeps: Sequence[int] | None = None,
  seeds: Sequence[int] = (0,),
  steps: int = 30,
  guidance: Guidance = None,
  solver: str = "euler",
  collapse: bool = True,
  lpips_net: str | None = "vgg",
  rfvd: bool = True,
  media: int | Sequence[int] = 4,
  total: int | None = None,
) -> Evaluation:
  """Scores a tokenizer at several budgets on a set of clips of any size, streaming: no batch is kept.

  Args:
    tok, params: of `Tokenizer.load`, or in training.
    batches: dicts of "video" uint8 [b, F, H, W, 3] of one F, H, W; "_mask" bool [b], False for padding (optional: all
      count); "source" and "index" int [b], the clip's identity (optional: its place in the set).
    split: what the set is called beside every number.
    keeps: tokens per time step; None means 1, 2, 4, ... and all.
    seeds: of the noise; each is decoded, and their spread is reported.
    steps, guidance, solver, collapse: of `Tokenizer.decode`. With collapse each keep is a program of its own, which is
      cheaper to run and takes longer to compile; the result is the same.
    lpips_net: "vgg", "alex" or None; rfvd: False leaves the Frechet distance out.
    media: how many clips to keep for pictures (the first ones; spread over the set where `total` is given), or which.
    total: number of clips where known, for the time left.

  Raises:
    ValueError: no clips, clips of several sizes, or settings that do not fit the model, in one sentence.
  """
  keeps = tok.budgets if keeps is None else sorted(set(keeps))
  bits = math.log2(tok.codebook_size)
  names = [f"keep {k}" for k in keeps]
  usage = CodebookUsage(tok.registers, tok.codebook_size)
  options = {} if tok.one_pass else dict(steps=steps, guidance=guidance, solver=solver, collapse=collapse)
  seeds = seeds[:1] if tok.one_pass else seeds  # there is no noise

  def reconstruct(video, ids, mask):
    tokens = tok.encode(params, video)
    usage.update(tokens, mask)
    if not tok.one_pass:
      yield VAE, 0, tok.decode_pixels(params, tok.encode_latents(params, video))
    for s, seed in enumerate(seeds):
      noise = {} if tok.one_pass else {"noise": noise_of(tok, seed, ids, tokens.ids.shape[1])}
      for k, name in zip(keeps, names, strict=True):
        shorter = tokens.truncate(k) if tok.nested else tok.encode(params, video, budget=k)
        yield name, s, tok.decode(params, shorter, **noise, **options)

  context = dict(seeds=list(seeds), steps=steps, solver=solver, guidance=text_of(guidance))
  if tok.one_pass:
    context = dict(seeds=[], steps=1, solver="one pass", guidance="none")
  videos = len(seeds) * len(keeps) + (not tok.one_pass)
  evaluation = score_rows(reconstruct, batches, split, context, lpips_net, rfvd, media, total, videos)
  for row in evaluation.rows:
    if row["name"] in names:
      k = keeps[names.index(row["name"])]
      row.update(keep=k, tokens=k * tok.steps_for(row["frames"]), bits=k * tok.steps_for(row["frames"]) * bits)
  return dataclasses.replace(evaluation, codebook=usage.summary())


def evaluate_vae(
  reconstruct: Callable[[np.ndarray], Any],
  batches: Iterable[dict[str, np.ndarray]],
  *,
  split: str,
  lpips_net: str | None = "vgg",
  rfvd: bool = True,
  media: int | Sequence[int] = 4,
  total: int | None = None,
) -> Evaluation:
  """Like `evaluate` for a VAE alone: reconstruct(uint8 [b, F, H, W, 3]) -> floats in [-1, 1] of the same shape."""

  def once(video, ids, mask):
    yield VAE, 0, reconstruct(video)

  return score_rows(once, batches, split, {}, lpips_net, rfvd, media, total, 1)


def score_rows(reconstruct, batches, split, context, lpips_net, rfvd, media, total, count) -> Evaluation:
  """A table of `count` rows per clip: reconstruct(video, ids, mask) yields (row name, seed number, frames) of a batch.

  The baselines that need no model are added; `context` stands beside every number.
  """
  perceptual = weights.load_lpips(lpips_net) if lpips_net else None
  inception = weights.load_i3d() if rfvd else None
  score = Scores(perceptual, inception)
  wanted = _places(media, total)
  kept: list[dict[str, np.ndarray]] = []
  work = None if total is None else total * (count + 2)
  with progress(f"evaluating {split}", work, "reconstructions", first="compiling") as advance:
    for video, mask, ids, places in _batches(batches):
      if rfvd and video.shape[1] < MIN_FRAMES:
        raise ValueError(
          f"clips have {video.shape[1]} frames, rFVD needs {MIN_FRAMES}: pass rfvd=False or more frames."
        )
      videos = {}
      for name, s, frames in itertools.chain(reconstruct(video, ids, mask), _baselines(video)):
        if frames.shape != video.shape:
          raise ValueError(f"{name} gave {frames.shape}, expected the clips' {video.shape}: check frames and size.")
        pixels, finite = _to_uint8(frames)
        if not finite:
          raise ValueError(f"{name} made frames that are NaN or infinite, expected pictures: check its weights.")
        videos[name, s] = np.asarray(pixels)
        score.features(name, s, videos[name, s], mask)
        advance(int(mask.sum()))
      score.frames(video, videos, mask)
      for i in np.flatnonzero(mask & np.isin(places, wanted)):
        kept.append({"original": video[i], **{name: v[i] for (name, s), v in videos.items() if s == 0}})
  if not score.clips:
    raise ValueError(f"the set {split!r} has no clips to evaluate: check its source and split.")
  facts = dict(clips=score.clips, frames=score.shape[0], size=list(score.shape[1:3]), split=split, **context)
  facts |= dict(lpips_net=lpips_net and weights.SOURCES[lpips_net].short, i3d_net=weights.SOURCES["i3d"].short)
  facts |= dict(i3d_net=facts["i3d_net"] if rfvd else None, indicative=score.clips < frechet.INDICATIVE_BELOW)
  rows = [dict(name=name, keep=None, tokens=None, bits=None, **numbers, **facts) for name, numbers in score.table()]
  return Evaluation(rows, None, kept)


@jax.jit
def _to_uint8(video):
  """(uint8 of the same shape, whether all was finite)."""
  if video.dtype == jnp.uint8:
    return video, jnp.bool_(True)
  return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8), jnp.isfinite(video).all()


def _baselines(video):
  if video.shape[1] == 1:
    return  # a picture is its own first frame
  yield FIRST_FRAME, 0, np.repeat(video[:, :1], video.shape[1], axis=1)
  mean = np.rint(video.mean(1, keepdims=True, dtype=np.float64)).astype(np.uint8)
  yield MEAN_FRAME, 0, np.repeat(mean, video.shape[1], axis=1)


def _batches(batches):
  """Yields (video, mask [b], identity int64 [b, 2], place in the set [b]), filled up to the first batch's b."""
  size, shape, seen = None, None, 0
  for batch in batches:
    video = to_uint8(batch["video"])
    if video.ndim != 5 or video.shape[-1] != 3 or (shape and video.shape[1:] != shape):
      expected = shape and f"[b, {', '.join(map(str, shape))}]"
      raise ValueError(f"video is {video.shape}, expected {expected or '[b, F, H, W, 3]'}: bring clips to one size.")
    b = len(video)
    size, shape = max(size or b, b), video.shape[1:]
    mask = np.asarray(batch.get("_mask", np.ones(b, bool)), bool)
    places = np.where(mask, seen + np.cumsum(mask) - 1, -1)
    index = np.asarray(batch.get("index", places), np.int64)
    source = np.asarray(batch.get("source", np.zeros(b)), np.int64)
    seen += int(mask.sum())
    if mask.any():
      ids, places = np.stack([source, index], axis=1) * mask[:, None], np.where(mask, places, -1)
      real = np.arange(size) < b
      yield (
        _filled(video, size),
        _filled(mask, size) & real,
        _filled(ids, size),
        np.where(real, _filled(places, size), -1),
      )


def _filled(x, size: int):
  return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)]) if len(x) < size else x


def noise_of(tok, seed: int, ids_Bx2, steps: int) -> list[np.ndarray]:
  """Noise of an evaluation: an array per chunk of `steps` time steps, each clip's from (seed, source, index, chunk)."""
  chunks = 1 + (steps - tok.chunk_steps) // (tok.chunk_steps - tok.overlap_steps)
  shape = (tok.chunk_steps * tok.cfg.decoder.patch[0], *tok.cfg.latent_size, tok.cfg.decoder.channels)
  draw = lambda *words: np.random.default_rng(words).standard_normal(shape, np.float32)
  return [np.stack([draw(seed, *ids, i) for ids in ids_Bx2.tolist()]) for i in range(chunks)]


def _places(media, total) -> list[int]:
  if not isinstance(media, int):
    return list(media)
  return list(range(media)) if not total else np.linspace(0, total - 1, min(media, total)).round().astype(int).tolist()


def text_of(guidance: Guidance) -> str:
  """A guidance as it stands beside numbers: "none", "CFG(scale=2.0)"."""
  if guidance is None:
    return "none"
  values = ", ".join(f"{f.name}={np.asarray(getattr(guidance, f.name)).tolist()}" for f in dataclasses.fields(guidance))
  return f"{type(guidance).__name__}({values})"
