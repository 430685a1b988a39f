"""Does a generated clip show what its caption says? A small classifier of scenes' attributes, trained on real clips.

Captions of `sim` and `world` follow one grammar each, so they can be read back into attributes. The classifier learns
object, colour, motion, floor, sky, camera and what else there is from training clips, is checked on held-out ones, and
then judges generated clips. Chance and its accuracy on real clips stand beside every number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vftok.evals.captions import SIM, Scenes
from vftok.show.progress import progress

SHOWN = 5  # frames that it looks at, the first and the last among them


class Classifier(nn.Module):
  """uint8 [B, F, H, W, 3] -> {attribute: logits [B, n]}: frames as channels, four strided convolutions."""

  sizes: tuple[tuple[str, int], ...]  # (attribute, how many names it has), ...
  width: int = 32

  @nn.compact
  def __call__(self, video_BxFxHxWx3):
    b, f, h, w, _ = video_BxFxHxWx3.shape
    x = video_BxFxHxWx3[:, np.linspace(0, f - 1, SHOWN).round().astype(int)].astype(jnp.float32) / 127.5 - 1
    x = jnp.moveaxis(x, 1, 3).reshape(b, h, w, -1)
    x = jnp.concatenate([x, jnp.broadcast_to(jnp.linspace(-1, 1, w)[:, None], (b, h, w, 1))], axis=-1)
    for scale in (1, 2, 4, 4):
      x = nn.Conv(self.width * scale, (3, 3), strides=2)(x)
      x = nn.silu(nn.LayerNorm()(x))
    x = nn.silu(nn.Dense(128)(x.reshape(b, -1)))
    return {name: nn.Dense(n, name=name)(x) for name, n in self.sizes}


class Judge(NamedTuple):
  """A classifier of a kind of scene: what it knows and its parameters."""

  scenes: Scenes
  params: Any

  @property
  def model(self) -> Classifier:
    return classifier_of(self.scenes)


def classifier_of(scenes: Scenes) -> Classifier:
  return Classifier(tuple((name, len(names)) for name, names in scenes.attributes.items()))


def train(batches: Iterable[dict], shape: tuple[int, ...], steps: int = 1500, scenes: Scenes = SIM) -> Judge:
  """A classifier after so many batches of "video" uint8 and "caption"; clips of other texts are left out.

  Args:
    shape: (F, H, W, 3) of the clips.
  """
  model = classifier_of(scenes)
  params = model.init(jax.random.key(0), jnp.zeros((1, *shape), jnp.uint8))
  tx = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=0.01)

  @jax.jit
  def step(params, opt_state, video, targets):
    def loss(params):
      logits = model.apply(params, video)
      each = [
        optax.softmax_cross_entropy_with_integer_labels(logits[n], jnp.maximum(t, 0)) * (t >= 0)
        for n, t in targets.items()
      ]
      return sum(each).mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  with progress("training the attribute classifier", steps, "steps") as done:
    for batch, _ in zip(batches, range(steps), strict=False):
      params, opt_state = step(params, opt_state, batch["video"], scenes.labels(batch["caption"]))
      done(1)
  return Judge(scenes, params)


class Agreement:
  """Counts, batch by batch, how often the classifier sees in a clip what its caption says."""

  def __init__(self, judge: Judge):
    self.scenes, model = judge.scenes, judge.model
    self._predict = jax.jit(lambda video: {n: x.argmax(-1) for n, x in model.apply(judge.params, video).items()})
    self.right = dict.fromkeys(self.scenes.attributes, 0)
    self.clips = 0
    self.said = {name: np.zeros(len(names), np.int64) for name, names in self.scenes.attributes.items()}

  def update(self, video, captions) -> None:
    """Counts clips uint8 [B, F, H, W, 3]; those whose caption is no scene's are left out."""
    seen = self._predict(video)
    for name, said_B in self.scenes.labels(captions).items():
      known = said_B >= 0
      self.right[name] += int((np.asarray(seen[name]) == said_B)[known].sum())
      self.said[name] += np.bincount(said_B[known], minlength=len(self.said[name]))
    self.clips += int(known.sum())  # all attributes of a scene are known, or none

  def summary(self) -> dict[str, float]:
    """{attribute: accuracy, attribute/chance: that of always naming the most frequent one}; "all": their mean.

    Attributes that never differ in these captions are left out.
    """
    if not self.clips:
      raise ValueError(
        "no caption is a scene's, expected those of a `sim`, `world` or `shapes` source: alignment needs known "
        "attributes."
      )
    vary = [name for name, counts in self.said.items() if (counts > 0).sum() > 1]
    out = {name: self.right[name] / self.clips for name in vary}
    out |= {f"{name}/chance": float(self.said[name].max() / self.clips) for name in vary}
    mean = lambda kind: float(np.mean([out[name + kind] for name in vary]))
    return out | {"all": mean(""), "all/chance": mean("/chance")}
