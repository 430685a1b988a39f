"""`config.label` as a frozen dataclass: what a set of curves is measured with, and on which clips."""

from __future__ import annotations

import dataclasses
import json

from ml_collections import ConfigDict

from vftok.models.config_json import build


@dataclasses.dataclass(frozen=True)
class Label:
  tokenizer: str
  splits: dict  # {split: sources}
  clips: dict  # {split: how many; 0: all}
  sampled: dict = dataclasses.field(default_factory=dict)  # {split: how many of them get their own}
  levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
  times: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
  random: int = 16  # assignments beside those that curves are made of: rewards are standardised over them
  drawn: int = 16  # assignments of each clip's own, for what is sampled
  solver_steps: int = 0  # of that; 0: the tokenizer's own
  seed: int = 0
  frames: int = 17
  size: int = 256
  fps: float = 8.0
  batch_size: int = 8

  @classmethod
  def of(cls, cfg: ConfigDict) -> Label:
    """Of an experiment's config. Raises ValueError where it has no such part, or an unknown, missing or wrong field."""
    if "label" not in cfg:
      raise ValueError("this config has no `label` part: pass one for routers, such as configs/router.py:mini.")
    return build(cls, json.loads(cfg.label.to_json()), "config.label")  # in its own order, which is that of clips

  def check_levels(self, most: int) -> None:
    """Raises ValueError unless levels rise from 1 to `most`, the tokenizer's registers."""
    levels = list(self.levels)
    if len(levels) < 2 or levels != sorted(set(levels)) or levels[0] != 1 or levels[-1] != most:
      raise ValueError(f"levels are {levels}, expected numbers of tokens that rise from 1 to the tokenizer's {most}.")
