"""What people ask for -> arrays a generator takes: classes by number or name, texts, text features, or nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.io.finite import is_finite
from vftok.models.ar_inputs import Condition
from vftok.models.config import GeneratorConfig
from vftok.runtime.words import brief, cut, is_whole
from vftok.tokens import is_concrete

KINDS = "None, {'label': ...}, {'text': [...]} or {'text_emb': ..., 'text_mask': ...}"
MAX_CHARACTERS = 2_000
MAX_BATCH = 2**20


def condition(cfg: GeneratorConfig, cond: Mapping | None, batch: int | None = None) -> Condition:
  """A checked Condition of B rows; see `Generator.generate`.

  Raises:
    ValueError: a kind the model does not know, classes out of range, empty prompts, or shapes that do not fit.
  """
  if batch is not None and not (is_whole(batch) and 1 <= batch <= MAX_BATCH):
    raise ValueError(f"batch is {brief(batch)}, expected how many videos to make, a whole number of 1..{MAX_BATCH}.")
  if isinstance(cond, Condition):  # arrays that are checked already: of a batch
    return cond
  if cond is None:
    return Condition(null_BxG=jnp.ones((1 if batch is None else batch, 1), bool))
  keys = set(cond) if isinstance(cond, Mapping) else None
  if keys not in ({"label"}, {"text"}, {"text_emb", "text_mask"}):
    raise ValueError(f"cond is {brief(cond)}, expected {KINDS}.")
  if "label" in keys:
    out = Condition(label_BxG=_labels(cfg, cond["label"])[:, None])
  else:
    if not cfg.ar.ctx_dim:
      raise ValueError(f"this generator knows no text, {_known(cfg)}.")
    features, mask = _text(cfg, cond["text"]) if "text" in keys else (cond["text_emb"], cond["text_mask"])
    out = _features(cfg, features, mask)
  b = len(out.label_BxG if out.text_BxSxC is None else out.text_BxSxC)
  if batch not in (None, b):
    raise ValueError(f"batch is {batch}, expected {b}, as many as the condition has rows: leave it out.")
  return out._replace(null_BxG=jnp.zeros((b, 1), bool))


def _known(cfg: GeneratorConfig) -> str:
  """What to pass in place of a condition of the wrong kind."""
  if cfg.ar.n_classes or cfg.ar.ctx_dim:
    return f"expected a {'class' if cfg.ar.n_classes else 'text'}: pass one, or None"
  return "expected no condition: pass None, and first frames where it goes on from some"


def _labels(cfg: GeneratorConfig, labels: Any) -> jax.Array:
  n = cfg.ar.n_classes
  if not n:
    raise ValueError(f"this generator knows no classes, {_known(cfg)}.")
  if isinstance(labels, (list, tuple)) and any(isinstance(name, str) for name in labels):
    labels = [class_index(cfg.classes, name) if isinstance(name, str) else name for name in labels]
  try:
    labels_B: Any = np.asarray(labels) if is_concrete(labels) else labels
  except ValueError:
    raise ValueError(f"label is {brief(labels)}, expected integers [B], or names of classes.") from None
  if labels_B.ndim != 1 or np.dtype(labels_B.dtype).kind not in "iu" or not labels_B.size:
    raise ValueError(f"label has shape {labels_B.shape} and dtype {labels_B.dtype}, expected integers [B].")
  if not is_concrete(labels_B):
    return labels_B.astype(jnp.int32)
  if labels_B.min() < 0 or labels_B.max() >= n:
    bad = labels_B.min() if labels_B.min() < 0 else labels_B.max()
    raise ValueError(f"label is {bad}, expected 0..{n - 1}: this generator knows {n} classes.")
  return jnp.asarray(labels_B, jnp.int32)


def class_index(classes: Sequence[str], name: str) -> int:
  """The number of a class by its name, or by itself written in digits."""
  if name in classes:
    return classes.index(name)
  if name.isdecimal():
    return int(name)
  known = cut(", ".join(classes[:8]) + (", ..." if len(classes) > 8 else ""), 150)
  known = known or "a number: this generator has no class names"
  raise ValueError(f"class {brief(name)} is unknown, expected {known}.")


def _text(cfg: GeneratorConfig, texts):
  if not cfg.text:
    raise ValueError(
      "this generator names no text encoder: pass text_emb and text_mask of the one it was trained with."
    )
  if (
    isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts) or not texts
  ):
    raise ValueError(f"text is {brief(texts)}, expected a list of strings.")
  for text in texts:
    if not text.strip():
      raise ValueError("a prompt is empty: write one, or pass None for no condition.")
    if len(text) > MAX_CHARACTERS:
      raise ValueError(f"a prompt has {len(text)} characters, expected at most {MAX_CHARACTERS}: shorten it.")
  encoder, params = text_encoder(cfg.text, cfg.text_path, cfg.text_tokens)
  return encoder.embed(params, list(texts))


@functools.cache
def text_encoder(name: str, path: str, max_tokens: int):
  """(encoder, params), read once per process."""
  from vftok.frozen import text

  return text.load(name, path or None, max_tokens=max_tokens)


def _features(cfg: GeneratorConfig, features, mask) -> Condition:
  try:
    features, mask = jnp.asarray(features), jnp.asarray(mask)
  except (TypeError, ValueError):
    raise ValueError(
      f"text_emb is {brief(features)} and text_mask {brief(mask)}, expected arrays [B, S, {cfg.ar.ctx_dim}] and [B, S]."
    ) from None
  if features.ndim != 3 or features.shape[2] != cfg.ar.ctx_dim or features.shape[:2] != mask.shape:
    raise ValueError(
      f"text_emb has shape {features.shape} and text_mask {mask.shape}, expected [B, S, {cfg.ar.ctx_dim}] and [B, S]."
    )
  if not is_finite(features):
    raise ValueError("text_emb holds NaN or infinite values, expected finite features: embed the texts in float32.")
  return Condition(text_BxSxC=features.astype(jnp.float32), text_mask_BxS=mask.astype(bool))
