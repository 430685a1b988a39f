"""What lengths that differ from clip to clip save, of a tokenizer that must know them before it encodes (EVATok)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vftok.budget.reward import Reward
from vftok.budget.router import Router
from vftok.budget.search import all_assignments
from vftok.data.curves import curves as read_curves
from vftok.data.curves import read_meta
from vftok.tokenizer.programs import to_float


def saved(router_dir: Path, curves_dir: Path) -> dict[str, Any]:
  """Tokens that the router saves in one pass, and that the best choice would, each at its own LPIPS.

  The clips of the split "val" were decoded under every assignment, so what any choice costs is known. At equal LPIPS:
  between two uniform counts by the logarithm of tokens.

  Returns:
    {"saved", "saved_best": shares, None where no uniform count is as good or as bad; "tokens", "lpips": of the router;
    "uniform": {count: LPIPS}; "clips"}.
  """
  meta = read_meta(curves_dir)
  records = read_curves("val", directory=curves_dir)
  clips = [records[i] for i in range(len(records))]
  lpips_NxA = np.stack([np.asarray(clip["losses"], np.float64)[:, 0, 0] for clip in clips])
  keep_AxT = np.asarray(all_assignments(meta["levels"], meta["steps"]))
  router, params = Router.load(router_dir)
  logits = np.asarray(router.predict(params, to_float(np.stack([clip["latents"] for clip in clips]))))
  reward = Reward.fitted(lpips_NxA, meta["levels"], meta["steps"])
  best_N = np.stack([reward(row, keep_AxT, router.cfg.preference) for row in lpips_NxA]).argmax(1)
  uniform = {count: float(lpips_NxA[:, (keep_AxT == count).all(1)].mean()) for count in meta["levels"]}
  own_N = logits.argmax(1)  # a class for each assignment
  tokens, lpips = _means(own_N, keep_AxT, lpips_NxA)
  of = lambda index_N: _share(*_means(index_N, keep_AxT, lpips_NxA), uniform, meta["steps"])
  facts = {"tokens": tokens, "lpips": lpips, "uniform": uniform, "clips": len(clips)}
  return {"saved": of(own_N), "saved_best": of(best_N), **facts}


def _means(index_N, keep_AxT, lpips_NxA) -> tuple[float, float]:
  """(tokens of a clip, LPIPS), means over clips that have the assignments of these numbers."""
  return float(keep_AxT[index_N].sum(1).mean()), float(lpips_NxA[np.arange(len(index_N)), index_N].mean())


def _share(tokens: float, lpips: float, uniform: dict[int, float], steps: int) -> float | None:
  """1 - tokens over those of the uniform count with that LPIPS; None outside of what uniform counts reach."""
  counts = np.array(sorted(uniform))
  losses = np.array([uniform[count] for count in counts])
  if not (np.diff(losses) < 0).all() or not losses[-1] <= lpips <= losses[0]:
    return None
  same = np.exp(np.interp(-lpips, -losses, np.log(counts * steps)))
  return float(1 - tokens / same)
