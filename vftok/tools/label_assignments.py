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
    ValueError: a model that is not causal, clips that are not one chunk of it, or more assignments than can be tried.
  """
  if not tok.causal:
    raise ValueError("this tokenizer's steps see later ones, expected a causal one: its labels cannot be shared.")
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
    losses = losses_of(self.tok, self.params, self.net, video, tuple(self.tok.budgets))
    where = zip(batch["source"], batch["index"], strict=True)
    return {
      "latents": video,
      "losses": np.asarray(losses, np.float32)[:, :, None],
      "label": batch["label"].astype(np.int64),
      "caption": batch["caption"].astype(str),
      "name": np.array([f"{names[s]}:{i}" for s, i in where]),
    }


@functools.partial(jax.jit, static_argnums=(0, 4))
def losses_of(tok, params, net, video_BxFxHxWx3, levels: tuple[int, ...]) -> jax.Array:
  """float32 [B, m^T, 2]: LPIPS, a mean over frames, and squared error of pixels in [0, 1], after rounding to 8 bits.

  Frames of a step follow from counts up to it, so assignments that begin alike share what their first steps lose:
  each clip is decoded m^T times, but a step's frames are judged once for each beginning.

  Args:
    tok: causal from step to step. net: of `load_lpips`. video_BxFxHxWx3: one chunk, uint8 or float in [-1, 1].
    levels: m counts; assignments are in the order of `all_assignments`.
  """
  video, steps = to_float(video_BxFxHxWx3), tok.chunk_steps
  batch, each = len(video), video.shape[1] // steps
  block = lambda frames, t: frames[..., t * each : (t + 1) * each, :, :, :]

  def decoded(keep_mxT):
    """[m, B, F, H, W, 3]: of every clip under every one of these assignments."""
    keep = jnp.repeat(keep_mxT, batch, axis=0)
    clips = jnp.tile(video, (len(keep_mxT), 1, 1, 1, 1))
    made = tok.frames_of(params, tok.ids_of(params, clips, keep), keep)
    made = jnp.round((jnp.clip(made, -1.0, 1.0) + 1) * 127.5) / 127.5 - 1
    return made.reshape(len(keep_mxT), *video.shape)

  def judged(made_mxBxfxHxWx3, t):
    """[m, B, 2] of frames of step t."""
    real, flat = block(video, t), lambda x: x.reshape(*x.shape[:-5], -1, *x.shape[-3:])
    lost = lpips(net, flat(real), flat(made_mxBxfxHxWx3)).reshape(*made_mxBxfxHxWx3.shape[:3]).mean(2)
    return jnp.stack([lost, jnp.square((made_mxBxfxHxWx3 - real) / 2).mean((2, 3, 4, 5))], axis=-1)

  def after(keep_T, t):
    """(losses [m^(T-t), B, 2] summed over steps t.., frames of the steps before), of what begins with keep_T[:t]."""
    keep_mxT = jnp.tile(keep_T, (len(levels), 1)).at[:, t].set(jnp.asarray(levels, jnp.int32))
    if t == steps - 1:
      made = decoded(keep_mxT)
      return judged(block(made, t), t), made[0, :, : t * each]
    later, made = jax.lax.map(lambda keep: after(keep, t + 1), keep_mxT)
    losses = judged(block(made, t), t)[:, None] + later
    return losses.reshape(-1, *losses.shape[2:]), made[0, :, : t * each]

  return jnp.moveaxis(after(jnp.zeros(steps, jnp.int32), 0)[0], 0, 1) / steps


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
