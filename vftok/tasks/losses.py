"""`config.loss` as frozen dataclasses, one a task: read once, where a task is made.

Experiments take their defaults from here. A weight of 0 leaves a term out.
"""

from __future__ import annotations

import dataclasses
from typing import Self

from ml_collections import ConfigDict

from vftok.data.curves import MEASURES
from vftok.models.config_json import build


@dataclasses.dataclass(frozen=True)
class Loss:
  """What all have in common: how they are read."""

  @classmethod
  def of(cls, cfg: ConfigDict) -> Self:
    """Of an experiment's config. Raises ValueError where a field is unknown, missing or no such value."""
    return build(cls, cfg.loss.to_dict(), "config.loss")


@dataclasses.dataclass(frozen=True)
class TokenizerLoss(Loss):
  flow: float = 1.0  # 0 trains the encoder and the draft alone
  draft: float = 0.0  # weight of the draft's own error, where the decoder has a draft
  fit_batches: int = 0  # batches that an encoder's linear map is fitted to before the first step
  time: str = "mode"  # law of the flow time: mode, logit_normal or uniform; unknown
  mode_scale: float = 0.25  # unknown
  high: float = 0.0  # share of flow times from [high_from, 1] instead
  high_from: float = 0.75
  nested: str = "pow2"  # law of the registers kept
  share: str = "mix"  # ours: counts per time step too, which adaptive budgets need; paper: shared
  null: float = 0.1  # share of clips without condition; unknown
  given_probs: tuple[float, ...] = (1.0,)  # P(0, 1, ... latents given clean at the start)
  given_clean: float = 0.5  # share of these without any noise
  given_noise: float = 0.02  # flow time of the others is uniform below it
  repa: float = 0.0  # weight of aligning a decoder layer to a frozen net
  repa_layer: int = 0  # index of that block; unknown whether 0 or 1
  prefix_latents: float = 0.0  # weight of the head that rebuilds latents from the kept prefix alone
  prefix_features: float = 0.0  # the same for features of a frozen net (SemanTok)
  prefix_class: float = 0.0  # the same for one vector a step, DINOv2's class feature (SemanTok)
  prefix_width: int = 768
  prefix_depth: int = 2
  features: str = "vgg16"  # vgg16, dinov2 or vjepa2
  features_path: str = ""  # its weights; vgg16 needs none
  features_reduce: str = "mean"  # of the frames of a latent; unknown
  features_standard: bool = False  # prefix features by squared error of standardised channels in place of the cosine
  usage: float = 0.0  # weight of keeping codes spread over the batch
  router: str = ""  # a router whose counts a share of the clips gets in place of drawn ones
  router_share: float = 0.5
  router_preferences: tuple[float, float] = (0.6, 1.8)  # of these, w_q is drawn uniformly from it
  show_steps: int = 12
  show_guidance: float = 1.5  # CFG; 0: the model's own guidance

  def __post_init__(self):
    if self.repa and not self.flow:
      raise ValueError(f"loss.repa is {self.repa}, but without loss.flow no decoder runs: set repa to 0 too")


@dataclasses.dataclass(frozen=True)
class VAELoss(Loss):
  l1: float = 1.0
  l2: float = 0.0
  kl: float = 1e-6
  sample: bool = True  # decode a sample of the posterior, not its mean
  unit: float = 0.0  # weight of keeping every channel of the latents at mean 0 and variance 1
  noise: float = 0.0  # on latents before decoding, uniform in size up to this: forgives a tokenizer's errors
  lpips: float = 1.0
  lpips_net: str = "vgg"
  frames: int = 2  # of each clip that LPIPS and the critic see
  adversarial: float = 0.0  # weight of the adversarial term; 0: no critic
  adversarial_from: int = 0  # step
  critic_width: int = 64
  fit_batches: int = 0  # fit the linear code to so many batches before the first step
  fit_whiten: float = 0.5


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Rates: of token embeddings, of what attention and MLPs add."""

  token: float = 0.0
  residual: float = 0.0
  ffn: float = 0.0


@dataclasses.dataclass(frozen=True)
class ARLoss(Loss):
  null: float = 0.1  # share of clips without condition
  given_probs: tuple[float, ...] = (1.0,)  # P(0, 1, 2, ... time steps given at the start)
  slot_weights: tuple[float, ...] = ()  # of the loss, slot after slot; the last one stands for those after it
  dropout: Dropout = Dropout()
  show_steps: int = 12
  show_guidance: float = 2.0  # CFG of the tokenizer's decoder; 0: its own guidance
  show_scale: float = 2.0  # of the generator
  # Of models that say their own lengths:
  preference: tuple[float, float] = (1.0, 1.4)  # range of w_q under which a router is asked how long clips are
  pack: int = 2  # clips that share a row

  def __post_init__(self):
    low, high = self.preference
    if not 0 < low <= high < 2:
      raise ValueError(f"loss.preference is {(low, high)}, expected 0 < low <= high < 2")


@dataclasses.dataclass(frozen=True)
class RouterLoss(Loss):
  measure: str  # one of MEASURES; a router of classes (model.head) takes "flow"
  size: bool = False  # keep apart what the total alone decides: fits losses better, and chose worse on vftok-mini
  noise: float = 0.0  # added to latents, in their own deviation
  preference: float = 1.2  # w_q of a router of classes; EVATok's default
  soft: float = 0.0  # of classes: temperature of soft targets; 0: the best assignment is the target, as in EVATok

  def __post_init__(self):
    if self.measure not in MEASURES:
      raise ValueError(f"loss.measure is {self.measure!r}, expected one of {', '.join(MEASURES)}")
