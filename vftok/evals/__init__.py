"""Measures of videos and tokens. `EVALS` names what a run can be asked for; everything loads on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable

# name: where its function is; each takes batches and keyword settings and gives a `reconstruction.Evaluation`.
EVALS: dict[str, str] = {
  "reconstruction": "vftok.evals.reconstruction:evaluate",
  "vae": "vftok.evals.reconstruction:evaluate_vae",
}


def load_eval(name: str) -> Callable:
  """The function of an entry of EVALS. Raises ValueError for any other name."""
  if name not in EVALS:
    raise ValueError(f"evaluation is {name!r}, expected one of {', '.join(EVALS)}.")
  module, _, function = EVALS[name].partition(":")
  return getattr(importlib.import_module(module), function)
