"""What one-pass training minimises: `config.loss` of configs/larp.py, adaptok.py and evatok.py, and its checks."""

from __future__ import annotations

import dataclasses

from vftok.models.clip_critic import CriticConfig
from vftok.runtime.words import brief
from vftok.tasks.losses import Loss

FORMS = ("soft", "hinge")
COUNTS = ("all", "normal", "grid", "assignments", "router")


@dataclasses.dataclass(frozen=True)
class OnePassLoss(Loss):
  """Weights of `vftok.tasks.one_pass_objectives.OBJECTIVES` by name, 0 leaves one out; then how they are made.

  Attributes:
    l1, l2: of pixels in [0, 1]. lpips: of frames at their own size. codebook, commit: of VQ, over kept tokens.
    critic_path: of VideoMAE weights; heads over its features then judge in place of the `critic` of patches.
    prior: cross-entropy of the AR prior. scorer: squared error of AdapTok's scorer.
    adversarial: of what the critic makes of decoded clips; lecam: of keeping its numbers near those of the other kind.
    lpips_net: "vgg", "alex", or "" for none. lpips_frames: frames of each clip that it sees, 0: all.
    form: "hinge", or "soft": softplus with targets that are off by |n| times `soften`, at most `soften_most`, n normal.
    adversarial_from: step from which there are both players.
    sampled: whether ids are drawn, where the model knows how; else the likeliest.
    entropy: of EVATok's VQ; rotate: whether its gradient is turned and stretched, or passes as it is.
    align: of how far a decoder layer's features (`align_layer`, 1 is the first) are from V-JEPA 2's at `align_path`.
    counts: of kept tokens. "all"; "normal": drawn per step, cut to counts_least..K; "grid": those that a scorer knows;
      "assignments": each step one of those that the model knows; "router": by EVATok's router at the path `router`.
    mixed: share of its own guesses that the prior reads in the end; mixed_until: share of the run until then.
    scorer_mean, scorer_std: LPIPS is taken less the one and over the other.
  """

  l1: float = 1.0
  l2: float = 0.0
  lpips: float = 1.0
  codebook: float = 0.1
  commit: float = 0.025
  prior: float = 0.0
  adversarial: float = 0.0
  lecam: float = 0.0
  scorer: float = 0.0
  entropy: float = 0.0
  align: float = 0.0

  lpips_net: str = "vgg"
  lpips_frames: int = 0
  form: str = "soft"
  soften: float = 0.15
  soften_most: float = 0.3
  adversarial_from: int = 0
  critic: CriticConfig = CriticConfig()
  sampled: bool = True
  counts: str = "all"
  counts_mean: float = 256.0
  counts_std: float = 128.0
  counts_least: int = 32
  mixed: float = 0.5
  mixed_until: float = 0.3
  scorer_mean: float = 0.0
  scorer_std: float = 1.0
  rotate: bool = True
  align_path: str = ""
  align_layer: int = 3
  router: str = ""
  critic_path: str = ""

  def __post_init__(self):
    _check(self)


WEIGHTS = ("l1", "l2", "lpips", "codebook", "commit", "prior", "adversarial", "lecam", "scorer", "entropy", "align")


def _check(cfg: OnePassLoss) -> None:
  """Raises ValueError naming the first value that no training can have."""
  for name in (*WEIGHTS, "soften", "soften_most", "adversarial_from", "lpips_frames"):
    _expect(getattr(cfg, name) >= 0, name, getattr(cfg, name), "0 or more")
  _expect(cfg.lpips_net in ("vgg", "alex", ""), "lpips_net", cfg.lpips_net, "'vgg', 'alex' or '' for none")
  for name in ("lpips", "scorer"):
    _expect(cfg.lpips_net or not getattr(cfg, name), name, getattr(cfg, name), "0 where lpips_net is ''")
  _expect(cfg.adversarial or not cfg.lecam, "lecam", cfg.lecam, "0 where adversarial is 0: there is no critic")
  _expect(cfg.form in FORMS, "form", cfg.form, " or ".join(FORMS))
  _expect(cfg.counts in COUNTS, "counts", cfg.counts, " or ".join(COUNTS))
  _expect(0 <= cfg.mixed <= 1, "mixed", cfg.mixed, "a share of 0..1")
  for name, path in (("align", "align_path"), ("counts", "router")):
    asked = cfg.align if name == "align" else cfg.counts == "router"
    _expect(bool(asked) == bool(getattr(cfg, path)), path, getattr(cfg, path), f"a path where loss.{name} asks for it")
  for name in ("mixed_until", "counts_std", "scorer_std"):
    _expect(getattr(cfg, name) > 0, name, getattr(cfg, name), "a number above 0")
  _expect(any(getattr(cfg, name) for name in WEIGHTS), "l1", cfg.l1, "a weight above 0 of it or another term")


def _expect(ok, name: str, value, what: str) -> None:
  if not ok:
    raise ValueError(f"loss.{name} is {brief(value)}, expected {what}.")
