"""What a one-pass tokenizer's loss is made of: a function and a row of OBJECTIVES each, weighted by `config.loss`.

All give float32 [B], an error of each clip whose mean over the batch is the term. "critic" is the other player's, of
weight 1 where there is one; "anchors" adds nothing but the gradient that brings LeCam's running means along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vftok.frozen.metrics import vgg
from vftok.models.heads import cosine_similarity
from vftok.tasks.one_pass_loss import OnePassLoss
from vftok.tokenizer.learner import Made


class Judged(NamedTuple):
  """The critic's numbers, float32 [B, P] each, high for what it takes for real.

  Attributes:
    real, fake: of clips and of decoded ones, for the critic to learn from; 0 where it is not its turn.
    passed: of decoded ones, for the tokenizer to learn from. turn: float32, 1 where it is the critic's turn, else 0.
    on: float32, 0 before `loss.adversarial_from`, then 1. anchors: {"real", "fake"}, LeCam's running means.
  """

  real: jax.Array
  fake: jax.Array
  passed: jax.Array
  turn: jax.Array
  on: jax.Array
  anchors: dict[str, jax.Array]


class Shown(NamedTuple):
  """What objectives are made of.

  Attributes:
    loss_cfg: of `config.loss`. video: float32 [B, F, H, W, 3] in [-1, 1]. made: of the learner. keep: int32 [B, T].
    lpips: float32 [B, F'], of frames, where it is asked for. judged: where there is a critic.
    scores: float32 [B, T], what a scorer says of `keep`, where it learns. keys_B: of clips, for what is drawn here.
  """

  loss_cfg: OnePassLoss
  video: jax.Array
  made: Made
  keep: jax.Array
  keys_B: jax.Array
  lpips: jax.Array | None = None
  judged: Judged | None = None
  scores: jax.Array | None = None


def l1(shown: Shown) -> jax.Array:
  return jnp.abs(shown.made.frames - shown.video).mean((1, 2, 3, 4)) / 2


def l2(shown: Shown) -> jax.Array:
  return jnp.square(shown.made.frames - shown.video).mean((1, 2, 3, 4)) / 4


def lpips(shown: Shown) -> jax.Array:
  return shown.lpips.mean(1)


def codebook(shown: Shown) -> jax.Array:
  """Only codes learn from it."""
  made = shown.made
  return over_kept(jnp.square(made.codes - jax.lax.stop_gradient(made.z)).mean(-1), made.kept)


def commit(shown: Shown) -> jax.Array:
  """Only features learn from it."""
  made = shown.made
  return over_kept(jnp.square(made.z - jax.lax.stop_gradient(made.codes)).mean(-1), made.kept)


def prior(shown: Shown) -> jax.Array:
  """Cross-entropy with the clip's ids, mean over rounds and places."""
  logits, ids, counts = shown.made.predicted
  rounds = [jnp.take_along_axis(jax.nn.log_softmax(x), ids[..., None], axis=-1)[..., 0] for x in logits]
  return -over_kept(sum(rounds) / len(rounds), counts)


def generator(shown: Shown) -> jax.Array:
  """Decoded clips should be taken for real."""
  judged = shown.judged
  each = jax.nn.softplus(-judged.passed) if shown.loss_cfg.form == "soft" else -judged.passed
  return judged.on * each.mean(1)


def critic(shown: Shown) -> jax.Array:
  """The mean of both kinds' errors."""
  judged = shown.judged
  if shown.loss_cfg.form == "hinge":
    each = jax.nn.relu(1 - judged.real) + jax.nn.relu(1 + judged.fake)
  else:
    target = soft_targets(shown.loss_cfg, shown.keys_B)
    each = soft_error(judged.real, 1 - target["real"]) + soft_error(judged.fake, target["fake"])
  return judged.turn * judged.on * each.mean(1) / 2


def lecam(shown: Shown) -> jax.Array:
  """What is far above the running mean of the other kind (Tseng et al. 2021, arXiv 2104.03310), one-sided."""
  judged = shown.judged
  far = jnp.square(jax.nn.relu(judged.real - judged.anchors["fake"]))
  far += jnp.square(jax.nn.relu(judged.anchors["real"] - judged.fake))
  return judged.turn * judged.on * far.mean(1)


def anchors(shown: Shown) -> jax.Array:
  """0, whose gradient for a running mean is how far it is from the batch's mean, in the critic's turn."""
  judged, stop = shown.judged, jax.lax.stop_gradient
  way = lambda kind: judged.anchors[kind] * stop(judged.anchors[kind] - getattr(judged, kind).mean())
  total = judged.turn * judged.on * (way("real") + way("fake"))
  return jnp.broadcast_to(total - stop(total), len(shown.video))


def scorer(shown: Shown) -> jax.Array:
  """Of what each step loses by its count, as the scorer says before it is known (AdapTok section 2)."""
  loss_cfg, (b, t) = shown.loss_cfg, shown.keep.shape
  lost_BxT = shown.lpips.reshape(b, t, -1).mean(2)
  return jnp.square(shown.scores - (jax.lax.stop_gradient(lost_BxT) - loss_cfg.scorer_mean) / loss_cfg.scorer_std).mean(
    1
  )


def entropy(shown: Shown) -> jax.Array:
  """Of EVATok's VQ over the batch as a whole."""
  return jnp.broadcast_to(shown.made.own["entropy"], len(shown.video))


def align(shown: Shown) -> jax.Array:
  """One minus the cosine of a decoder layer's features and a frozen net's (EVATok section 4.1)."""
  found, wanted = (shown.made.own[name] for name in ("aligned", "features"))
  return 1 - cosine_similarity(found, wanted).mean((1, 2, 3))


OBJECTIVES: dict[str, Callable[[Shown], jax.Array]] = {
  "l1": l1,
  "l2": l2,
  "lpips": lpips,
  "codebook": codebook,
  "commit": commit,
  "prior": prior,
  "generator": generator,
  "critic": critic,
  "lecam": lecam,
  "anchors": anchors,
  "scorer": scorer,
  "entropy": entropy,
  "align": align,
}


def weights(loss_cfg: OnePassLoss) -> dict[str, float]:
  """Of the objectives that there are, in their order."""
  played = {
    "generator": loss_cfg.adversarial,
    "critic": float(loss_cfg.adversarial > 0),
    "anchors": float(loss_cfg.lecam > 0),
  }
  all_of_them = {name: played[name] if name in played else getattr(loss_cfg, name) for name in OBJECTIVES}
  return {name: weight for name, weight in all_of_them.items() if weight}


def over_kept(value_BxN, kept_BxN) -> jax.Array:
  """float32 [B]: sums over kept tokens, whose mean over the batch is the mean over all that the batch keeps."""
  sums = lambda x: x.reshape(len(x), -1).sum(1)
  return sums(jnp.where(kept_BxN, value_BxN, 0.0)) / jnp.maximum(sums(kept_BxN).mean(), 1e-6)


def soft_targets(loss_cfg: OnePassLoss, keys_B) -> dict[str, jax.Array]:
  """{"real", "fake"}: float32 [B, 1], how far targets are off 1 and 0: |n| times `soften`, at most `soften_most`."""
  n_Bx2 = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys_B)
  off = jnp.minimum(loss_cfg.soften * jnp.abs(n_Bx2), loss_cfg.soften_most)
  return {"real": off[:, :1], "fake": off[:, 1:]}


def soft_error(logits, target) -> jax.Array:
  """Cross-entropy of a yes or no with a probability."""
  return target * jax.nn.softplus(-logits) + (1 - target) * jax.nn.softplus(logits)


def frame_lpips(params: Any, made_BxFxHxWx3, video_BxFxHxWx3) -> jax.Array:
  """float32 [B, F]."""
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  return vgg.lpips(params, flat(made_BxFxHxWx3), flat(video_BxFxHxWx3)).reshape(video_BxFxHxWx3.shape[:2])
