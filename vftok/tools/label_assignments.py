"""What clips lose under every assignment of tokens: of models whose ids depend on how many there are (EVATok).

A part of `vftok.tools.label_budgets`. Each clip is encoded and decoded under all m^T of them by one program; LPIPS and
the squared error are stored with the clip, on the classes' order of `vftok.budget.search.all_assignments`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vftok.budget.label import Label
from vftok.budget.reward import Reward
from vftok.budget.search import all_assignments
from vftok.data.curves import NAME, VERSION
from vftok.data.curves import curves as read_curves
from vftok.frozen.metrics.vgg import lpips
from vftok.frozen.metrics.weights import load_lpips
from vftok.tokenizer.programs import to_float

MOST = 4096  # assignments that are tried one by one
WEIGHT = 1.2  # w_q that a summary is of


def recipe(asked: Label, tok, params) -> dict[str, Any]:
  """What such a set is made from.

  Raises:
    ValueError: clips that are not one chunk of the model, or more assignments than can be tried.
  """
  wanted, found = (tok.chunk_frames, *tok.frame_size), (asked.frames, asked.size, asked.size)
  if wanted != found:
    raise ValueError(f"label has frames and size {found}, expected the model's {wanted}: set label.frames, label.size.")
  levels, steps = list(tok.budgets), tok.chunk_steps
  if len(levels) ** steps > MOST:
    raise ValueError(f"the model has {len(levels)} counts in {steps} time steps, expected at most {MOST} assignments.")
  return {
    "set": NAME,
    "version": VERSION,
    "every": True,
    "tokenizer": asked.tokenizer,
    "fingerprint": tok.fingerprint(params),
    "codebook_size": tok.codebook_size,
    "levels": levels,
    "steps": steps,
    "latents_shape": [*wanted, 3],
    "losses_shape": [len(levels) ** steps, 1, 2],
    "drawn_shape": [0, steps],
    "frames": asked.frames,
    "size": asked.size,
    "fps": asked.fps,
    "clips": asked.clips,
    "splits": asked.splits,
  }


class MeasureAll:
  """Rows of a set out of batches of clips."""

  def __init__(self, tok, params):
    self.tok, self.params, self.net = tok, params, load_lpips("vgg")
    self.keep = all_assignments(tok.budgets, tok.chunk_steps)

  def __call__(self, batch, names) -> dict[str, np.ndarray]:
    video = np.asarray(batch["video"])
    losses = losses_of(self.tok, self.params, self.net, video, self.keep)
    where = zip(batch["source"], batch["index"], strict=True)
    return {
      "latents": video,
      "losses": np.asarray(losses, np.float32)[:, :, None],
      "label": batch["label"].astype(np.int64),
      "caption": batch["caption"].astype(str),
      "name": np.array([f"{names[s]}:{i}" for s, i in where]),
    }


@functools.partial(jax.jit, static_argnums=0)
def losses_of(tok, params, net, video_BxFxHxWx3, keep_AxT) -> jax.Array:
  """float32 [B, A, 2]: LPIPS, a mean over frames, and squared error of pixels in [0, 1], after rounding to 8 bits.

  Args:
    net: of `load_lpips`. video_BxFxHxWx3: one chunk, uint8 or float in [-1, 1]. keep_AxT: int32, assignments.
  """
  video = to_float(video_BxFxHxWx3)
  flat = lambda x: x.reshape(-1, *x.shape[2:])

  def under(keep_T):
    keep = jnp.broadcast_to(keep_T, (len(video), len(keep_T)))
    made = tok.frames_of(params, tok.ids_of(params, video, keep), keep)
    made = jnp.round((jnp.clip(made, -1.0, 1.0) + 1) * 127.5) / 127.5 - 1
    lost = lpips(net, flat(made), flat(video)).reshape(video.shape[:2]).mean(1)
    return jnp.stack([lost, jnp.square((made - video) / 2).mean((1, 2, 3, 4))], axis=-1)

  return jnp.moveaxis(jax.lax.map(under, jnp.asarray(keep_AxT)), 0, 1)


def summary(directory, meta) -> str:
  """What the best assignments of "val" are like, beside the best uniform one of each clip."""
  source = read_curves("val", directory=directory)
  loss_NxA = np.stack([source[i]["losses"][:, 0, 0] for i in range(len(source))])
  keep = all_assignments(meta["levels"], meta["steps"])
  if not loss_NxA.std() > 0:
    return "all assignments lose the same: is the tokenizer trained?"
  rewards = Reward.fitted(loss_NxA, meta["levels"], meta["steps"])(loss_NxA, keep, WEIGHT)
  tokens = keep[rewards.argmax(1)].sum(1).mean()
  lost = loss_NxA[np.arange(len(loss_NxA)), rewards.argmax(1)].mean()
  return f"w_q {WEIGHT:g}: the best assignments have {tokens:.1f} tokens and LPIPS {lost:.4f}, {len(loss_NxA)} clips"
