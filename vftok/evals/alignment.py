"""Does a generated clip show what its caption says? A small classifier of `sim`'s attributes, trained on real clips.

Captions of `sim` follow one grammar, so they can be read back into attributes. The classifier learns object, colour,
motion, floor, sky and camera from rendered training clips, is checked on held-out ones, and then judges generated
clips. Chance and its accuracy on real clips stand beside every number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vftok.data.sim import CAMERAS, COLOURS, FLOORS, MOTIONS, SKIES
from vftok.data.sim_meshes import OBJECTS
from vftok.show.progress import progress

ATTRIBUTES = {
  "object": tuple(OBJECTS),
  "colour": tuple(COLOURS),
  "motion": tuple(MOTIONS),
  "floor": tuple(FLOORS),
  "sky": tuple(SKIES),
  "camera": tuple(CAMERAS),
}
SHOWN = (0, 4, 8, 12, 16)  # frames that it looks at, of 17
_GRAMMAR = re.compile(r"^an? (\w+) (\w+) ([\w ]+?) on an? (\w+) floor under an? (\w+) sky(?:, a small [\w ]+)?, (.+)$")


def read_caption(caption: str) -> dict[str, str] | None:
  """{attribute: name} of a caption as `SimSource.caption` writes it; None for any other text."""
  match = _GRAMMAR.match(caption)
  if not match:
    return None
  colour, thing, motion, floor, sky, camera = match.groups()
  motions, cameras = {v: k for k, v in MOTIONS.items()}, {v: k for k, v in CAMERAS.items()}
  found = dict(
    object=thing, colour=colour, motion=motions.get(motion), floor=floor, sky=sky, camera=cameras.get(camera)
  )
  return found if all(found[name] in names for name, names in ATTRIBUTES.items()) else None


def labels(captions: Iterable[str]) -> dict[str, np.ndarray]:
  """{attribute: int32 [B]}, -1 where a caption is no scene's."""
  read = [read_caption(caption) for caption in captions]
  return {
    name: np.array([-1 if r is None else names.index(r[name]) for r in read], np.int32)
    for name, names in ATTRIBUTES.items()
  }


class Classifier(nn.Module):
  """uint8 [B, 17, H, W, 3] -> {attribute: logits [B, n]}: frames as channels, four strided convolutions."""

  width: int = 32

  @nn.compact
  def __call__(self, video_BxFxHxWx3):
    b, _, h, w, _ = video_BxFxHxWx3.shape
    x = video_BxFxHxWx3[:, jnp.array(SHOWN)].astype(jnp.float32) / 127.5 - 1
    x = jnp.moveaxis(x, 1, 3).reshape(b, h, w, -1)
    x = jnp.concatenate([x, jnp.broadcast_to(jnp.linspace(-1, 1, w)[:, None], (b, h, w, 1))], axis=-1)
    for scale in (1, 2, 4, 4):
      x = nn.Conv(self.width * scale, (3, 3), strides=2)(x)
      x = nn.silu(nn.LayerNorm()(x))
    x = nn.silu(nn.Dense(128)(x.reshape(b, -1)))
    return {name: nn.Dense(len(names), name=name)(x) for name, names in ATTRIBUTES.items()}


def train(batches: Iterable[dict], shape: tuple[int, ...], steps: int = 1500, seed: int = 0):
  """Parameters of a Classifier after so many batches of "video" uint8 and "caption"; clips of other texts are left out.

  Args:
    shape: (F, H, W, 3) of the clips.
  """
  model = Classifier()
  params = model.init(jax.random.key(seed), jnp.zeros((1, *shape), jnp.uint8))
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
      params, opt_state = step(params, opt_state, batch["video"], labels(batch["caption"]))
      done(1)
  return params


class Agreement:
  """Counts, batch by batch, how often the classifier sees in a clip what its caption says."""

  def __init__(self, params):
    model = Classifier()
    self._predict = jax.jit(lambda video: {n: x.argmax(-1) for n, x in model.apply(params, video).items()})
    self.right = dict.fromkeys(ATTRIBUTES, 0)
    self.clips = 0
    self.said = {name: np.zeros(len(names), np.int64) for name, names in ATTRIBUTES.items()}

  def update(self, video, captions) -> None:
    """Counts clips uint8 [B, 17, H, W, 3]; those whose caption is no scene's are left out."""
    seen = self._predict(video)
    for name, said_B in labels(captions).items():
      known = said_B >= 0
      self.right[name] += int((np.asarray(seen[name]) == said_B)[known].sum())
      self.said[name] += np.bincount(said_B[known], minlength=len(ATTRIBUTES[name]))
    self.clips += int(known.sum())  # all attributes of a scene are known, or none

  def summary(self) -> dict[str, float]:
    """{attribute: accuracy, attribute/chance: that of always naming the most frequent one}; "all": their mean.

    Attributes that never differ in these captions are left out.
    """
    if not self.clips:
      raise ValueError("no caption is a scene's, expected those of the `sim` source: alignment needs known attributes.")
    vary = [name for name, counts in self.said.items() if (counts > 0).sum() > 1]
    out = {name: self.right[name] / self.clips for name in vary}
    out |= {f"{name}/chance": float(self.said[name].max() / self.clips) for name in vary}
    mean = lambda kind: float(np.mean([out[name + kind] for name in vary]))
    return out | {"all": mean(""), "all/chance": mean("/chance")}
