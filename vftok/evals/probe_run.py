"""The semantic probe as `cfg.eval` asks for it: clips of a set encoded, never decoded, and what is known of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np
from ml_collections import ConfigDict

from vftok.data.configured import eval_loader
from vftok.data.loader import first_clips
from vftok.data.sources import source_of
from vftok.evals.captions import SIM
from vftok.evals.probe import MIN_CLIPS, ProbeTable, probe
from vftok.io.video_writer import to_uint8
from vftok.show.progress import progress
from vftok.tokenizer import programs

POOLED = 8192  # numbers of a clip's latents, after averaging over space where there are more
SHOWN, SIDE = 5, 16  # frames of a clip, and their height and width, that the ceiling of pixels sees


def probe_set(cfg: ConfigDict, tok, params, split: str) -> ProbeTable | None:
  """The probe on the set `split` of `cfg.eval.sets`; None where its clips are few or no attribute differs in them.

  `cfg.eval.probe_train` is "" (one half of the set teaches, the other is judged), "train": the sources of `cfg.data`,
  or the name of another set.

  Raises:
    ValueError: `probe_train` is no set.
  """
  settings, sets = cfg.eval, cfg.eval.sets.to_dict()
  if settings.probe_train not in ("", "train", *sets):
    raise ValueError(f"eval.probe_train is {settings.probe_train!r}, expected '', 'train' or one of {', '.join(sets)}.")
  test = gather(cfg, tok, params, sets[split], settings.probe_clips, split)
  if len(test[0]) < MIN_CLIPS or not test[1]:
    return None
  train = None
  if settings.probe_train:
    sources = cfg.data.sources.to_dict() if settings.probe_train == "train" else sets[settings.probe_train]
    train = gather(cfg, tok, params, sources, settings.probe_clips, settings.probe_train)
  keeps = [k for k in settings.keeps or tok.budgets if k]
  codes, attributes, extra = test
  try:
    return probe(codes, attributes, keeps, tuple(range(3)), extra, train=train, train_set=settings.probe_train)
  except ValueError as error:
    if "two known classes" not in str(error):
      raise
    return None


def gather(cfg: ConfigDict, tok, params, sources: Mapping[str, Any], clips: int, name: str):
  """(codes float32 [B, T, K, D], {attribute: int32 [B]}, {"vae latents": [B, F], "pixels": [B, F]}) of a set's clips.

  Args:
    clips: the first so many; 0: all.
  """
  opened = [source_of(entry) for entry in sources.values()]
  ids, latents, pixels, known = [], [], [], []
  with contextlib.closing(eval_loader(cfg, sources)) as loader:
    total = min(loader.examples, clips or loader.examples)
    with progress(f"encoding {name} for the probe", total, "clips") as advance:
      for batch in first_clips(loader, total):
        mask, video = np.asarray(batch["_mask"]), batch["video"]
        z = None if tok.one_pass else tok.encode_latents(params, video)
        if z is not None and video.shape[1] == tok.chunk_frames:
          found = programs.encode_latents(tok.cfg, params, z, video, tok.dino)
        else:
          found = tok.encode(params, video).ids
        ids.append(np.asarray(found)[mask])
        latents += [] if z is None else [_pooled(np.asarray(z)[mask])]
        pixels.append(_small(to_uint8(np.asarray(video)[mask])))
        known.append(attributes_of(opened, batch))
        advance(int(mask.sum()))
  codes = np.asarray(tok.codes_of(params, np.concatenate(ids)))
  extra = {"vae latents": np.concatenate(latents)} if latents else {}
  extra["pixels"] = np.concatenate(pixels)
  names = dict.fromkeys(a for part in known for a in part)
  return codes, {a: _joined(known, a) for a in names}, extra


def attributes_of(sources: Sequence, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """{attribute: int32 [b]} of the clips of a batch that count, -1 where unknown: what their source knows by index,
  else what their captions say, else their label.
  """
  mask = np.asarray(batch["_mask"])
  source, index, label = (np.asarray(batch[key])[mask] for key in ("source", "index", "label"))
  caption = [text for text, counts in zip(batch["caption"], mask, strict=True) if counts]
  found: dict[str, np.ndarray] = {}

  def put(where, values: Mapping[str, Any]):
    for name, value in values.items():
      found.setdefault(name, np.full(len(source), -1, np.int32))[where] = value

  for i in np.unique(source):
    where = np.flatnonzero(source == i)
    if getattr(sources[i], "attribute_names", None):  # `sim` has a method of the same name and another meaning
      put(where, sources[i].attributes(index[where].astype(np.int64)))
      continue
    said = SIM.labels(caption[j] for j in where)
    put(where, said if (said[next(iter(SIM.attributes))] >= 0).any() else {"label": label[where]})
  return found


def _joined(parts: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
  """[B]: batches in which no clip has the attribute are all unknown."""
  unknown = lambda part: np.full(len(next(iter(part.values()), ())), -1, np.int32)
  return np.concatenate([part.get(name, unknown(part)) for part in parts])


def _pooled(latents_BxTxhxwxC) -> np.ndarray:
  """float32 [B, F]: averaged over squares of space until at most POOLED numbers are left."""
  x = np.asarray(latents_BxTxhxwxC, np.float32)
  while x[0].size > POOLED and x.shape[2] % 2 == x.shape[3] % 2 == 0:
    x = einops.reduce(x, "b t (h i) (w j) c -> b t h w c", "mean", i=2, j=2)
  return x.reshape(len(x), -1)


def _small(video_BxFxHxWx3) -> np.ndarray:
  """float32 [B, F] in [0, 1]: SHOWN frames of equal distance, means over squares of about H / SIDE pixels."""
  _, f, h, w, _ = video_BxFxHxWx3.shape
  x = video_BxFxHxWx3[:, np.unique(np.linspace(0, f - 1, SHOWN).round().astype(int))] / np.float32(255)
  rows, columns = max(h // SIDE, 1), max(w // SIDE, 1)
  x = x[:, :, : h // rows * rows, : w // columns * columns]
  return einops.reduce(x, "b f (h i) (w j) c -> b (f h w c)", "mean", i=rows, j=columns)
