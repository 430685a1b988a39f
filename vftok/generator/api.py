"""The Generator: class, text or first frames -> ordered video tokens at any budget. Pure functions of parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.frozen.features.dino_inputs import check_dino
from vftok.generator import families, generate, generate_adaptive
from vftok.generator.conditions import condition
from vftok.generator.given import given_tokens
from vftok.generator.request import Adaptive, Fixed, check_ids, check_mean, request
from vftok.models import lengths, order
from vftok.models.ar import AR, ARConfig
from vftok.models.ar_inputs import Places
from vftok.models.config import GeneratorConfig
from vftok.models.init import init_generator
from vftok.models.layers import applied
from vftok.runtime.words import brief, cut, is_whole
from vftok.tokenizer import programs
from vftok.tokenizer.checks import check_dtype, check_key, check_video
from vftok.tokenizer.geometry import check_whole_latents
from vftok.tokens import VideoTokens, is_concrete

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Generator:
  """A generator's configuration and its functions; it owns no arrays.

  `logits` may be traced (`jit`, `vmap`, `grad`); `generate`, `stream` and `calibrate` drive jitted programs of their
  own from Python and are called from there.

  Letters: B videos, T time steps, K slots per step, L positions, V vocabulary, S text features of width C.
  """

  cfg: GeneratorConfig

  @property
  def remakes(self) -> bool:
    """Whether given frames are read and made again with the rest of the clip; else their tokens are kept."""
    return bool(self.cfg.condition)

  load = staticmethod(families.load)  # any family

  def save(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes vftok's own layout: config.json and model.safetensors, whole or not at all."""
    from vftok.convert.load_generator import save

    save(self.cfg, params, directory)

  def export(self, params: Params, directory: str | os.PathLike) -> None:
    """Writes SemanTok's layout, for models that have it: flat positions, width 64 * depth."""
    from vftok.convert.load_generator import export

    export(self.cfg, params, directory)

  def init(self, key: jax.Array, *, boxed: bool = False) -> Params:
    """Fresh parameters. boxed=True leaves them in boxes that carry their logical axis names, for sharding."""
    params = init_generator(self.cfg, key)
    return params if boxed else nn.unbox(params)

  # ---- likelihood

  def logits(self, params: Params, ids, cond=None, *, keep=None) -> jax.Array:
    """float32 [B, L, V']: position i given the ids before it; -inf for ids that cannot stand there.

    Pure in params and ids: under `jit`, `vmap` or `grad` these may be traced (their values are then not checked), and
    so may "label", "text_emb" and "text_mask"; `keep` decides shapes and stays an array of NumPy.

    Args:
      ids: int [B, L] as `order.py` writes them, at most T * K': with `keep` None, a prefix of the whole sequence.
        Of a model that says lengths, those of the extended grid (`lengths.extend`).
      cond: as in `generate`.
      keep: [B, T] counts of content, where the sequence is shorter than that prefix would be (see `order.sequence`).
    """
    cfg = self.cfg.ar
    ids = check_ids(ids, cfg.length, cfg.total_vocab)
    b, length = ids.shape
    if not is_concrete(keep):
      raise ValueError("keep is traced, expected counts that are known: they decide shapes, so close over them.")
    keep = np.full((1, cfg.steps), cfg.slots) if keep is None else np.asarray(keep)
    if cfg.lengths != "none":
      lengths.check_counts(cfg, keep)
    seq = order.sequence(lengths.extended_counts(cfg, keep), order=cfg.order)
    places = Places.of(seq.time_BxL[:, :length], seq.slot_BxL[:, :length])
    cond = condition(self.cfg, cond, b)
    with self._explained(params):
      return _logits(cfg, params, ids, places, cond)

  @contextlib.contextmanager
  def _explained(self, params):
    """Parameters that are another model's become one sentence where a program fails."""
    try:
      yield
    except Exception:
      from vftok.convert.load_generator import abstract_params
      from vftok.io.leaves import check_params

      check_params(lambda: abstract_params(self.cfg), params)
      raise  # of something else

  # ---- sampling

  def generate(self, params: Params, key: jax.Array, cond=None, **options) -> VideoTokens:
    """Tokens of new videos.

    Args:
      key: row b draws from fold_in(key, b), so a row does not depend on the others.
      cond: None, {"label": int [B] or class names}, {"text": [str]}, or {"text_emb": [B, S, C], "text_mask": [B, S]}.
      batch: how many videos where `cond` is None; default 1.
      keep: tokens per time step: an int, [T], [B, 1] (a budget per video) or [B, T]. Default all K; a model that says
        lengths decides itself, and may be forced to counts that it knows.
      mean_length: tokens per time step on average, 1..K, of a model that says lengths first: its lengths are tilted by
        one price per token, so that each video has that total on average. Models that stop by END take `end_bias`.
      end_bias: added to the logit of END; `calibrate` finds the one for a mean length.
      guide_lengths: False leaves what says lengths without guidance.
      steps: time steps T; default the model's.
      guidance: w in u + w (c - u), a number or {largest budget: w}; None uses the model's own. 1 costs no second pass.
      temperature: 0 is greedy. top_k, top_p: 0 and 1 are off.
      given: VideoTokens [B, t, K] that the video starts with, t < T; their own `keep` counts. Models that go on from
        given frames need these frames' own (`vftok.generator.given`), which are no part of what they make.
      given_first: given tokens come before all others (models trained to continue); False: each at its turn.
      forced: int [B, T, K], tokens to keep where it is 0 or more (editing); -1 elsewhere. A model that decides lengths
        makes a step long enough for them.

    Returns:
      VideoTokens: ids [B, T, K], keep [B, T].

    Raises:
      ValueError: budgets, classes, prompts or given tokens that this model cannot take.
    """
    asked = request(self.cfg, cond, **options)
    loop, memo, state, length = self._start(params, key, asked)
    state = loop.advancing(state)(self.cfg.ar, params, memo, asked.plan, state, length, **asked.static["advance"])
    return self._tokens(asked, state)

  def stream(self, params: Params, key: jax.Array, cond=None, *, every: int = 0, **options) -> Iterator[VideoTokens]:
    """Like `generate`, showing the tokens made so far after each `every` positions (default: one slot of all steps).

    Yielded `keep` counts what is there; in time-first order each is a coarse version of the whole video.
    """
    asked = request(self.cfg, cond, **options)
    loop, memo, state, length = self._start(params, key, asked)
    if not is_whole(every) or every < 0:
      raise ValueError(f"every is {brief(every)}, expected a number of positions, or 0 for one slot of all steps.")
    stop, every = int(state.position), every or asked.steps
    while stop < length and not (isinstance(asked, Adaptive) and state.done.all()):
      stop = min(stop + every, length)
      state = loop.advancing(state)(self.cfg.ar, params, memo, asked.plan, state, stop, **asked.static["advance"])
      yield self._tokens(asked, state)

  def calibrate(self, params: Params, key: jax.Array, cond=None, *, mean_length: float, **options) -> float:
    """The `end_bias` under which samples of a model that stops by END have `mean_length` tokens per step on average.

    By bisection over ten batches of samples with the same noise, of 64 rows at least: rows are repeated. As exact as
    the mean of one batch is. Steps that `given` holds do not count.

    Args:
      cond: and other options, as in `generate`; it holds for requests like these.

    Raises:
      ValueError: a model that says no END, or a mean outside 1..K.
    """
    cfg, given, forced = self.cfg.ar, options.get("given"), options.pop("forced", None)
    if cfg.lengths != "end_of_step":
      raise ValueError(f"lengths are {cfg.lengths!r}, expected 'end_of_step': there is no END to calibrate.")
    check_mean(cfg, options.get("keep"), mean_length)
    cond = condition(self.cfg, cond, options.pop("batch", None))
    more = -(-64 // len(cond.null_BxG))
    cond, options["given"] = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), more, axis=0), (cond, given))
    options["forced"] = None if forced is None else np.repeat(forced, more, axis=0)
    low, high = -30.0, 30.0
    for _ in range(10):
      end_bias = (low + high) / 2
      made = self.generate(params, key, cond, end_bias=end_bias, **options).keep
      longer = made[:, 0 if given is None else given.keep.shape[1] :].mean() > mean_length
      low, high = (end_bias, high) if longer else (low, end_bias)
    return (low + high) / 2

  def aimed(self, params: Params, key: jax.Array, cond=None, *, mean_length: float, **options) -> dict[str, float]:
    """What to pass to `generate` for a mean length, whatever way this model says lengths."""
    if self.cfg.ar.lengths == "end_of_step":
      return {"end_bias": self.calibrate(params, key, cond, mean_length=mean_length, **options)}
    check_mean(self.cfg.ar, options.get("keep"), mean_length)
    return {"mean_length": mean_length}

  def first_tokens(self, tok, tok_params, frames, keep: int | None = None) -> VideoTokens:
    """Tokens [B, t, K] to go on from, of first frames [B, 1 + 4j, H, W, 3] of a tokenizer; of each step `keep` at most.

    Of a model with a condition: of the frames that it reads before a clip, under its own counts.

    Raises:
      ValueError: frames that do not fit, or a tokenizer whose tokens are of whole clips.
    """
    if self.remakes:
      return given_tokens(tok, tok_params, frames, self.cfg.condition)
    if tok.one_pass:
      raise ValueError(f"this tokenizer decodes {tok.chunk_frames} frames in one pass: leave out first frames.")
    check_dino(tok.cfg, tok.dino)
    frames = check_video(frames, tok.frame_size)
    check_whole_latents(frames.shape[1])
    ids, slots = programs.encode_chunk(tok.cfg, tok_params, frames, tok.dino), self.cfg.ar.slots
    return VideoTokens.full(ids[:, :, :slots], nested=tok.nested).truncate(min(slots, keep or slots))

  def _start(self, params, key, asked: Fixed | Adaptive):
    """(module of the loop, memo, state, positions at most)."""
    keys_B = _keys(key, len(asked.plan.guidance_B))
    loop, more = (generate_adaptive, (asked.prefix,)) if isinstance(asked, Adaptive) else (generate, ())
    with self._explained(params):
      memo, state = loop.start(self.cfg.ar, params, asked.plan, *more, asked.cond, keys_B, **asked.static["start"])
    return loop, memo, state, state.cache[0][0].shape[2]

  def _tokens(self, asked: Fixed | Adaptive, state) -> VideoTokens:
    """What is made so far."""
    cfg = self.cfg.ar
    if np.min(state.ids) < 0:
      raise ValueError("the generator's logits are not finite, so they make no tokens: use other weights, or float32.")
    if isinstance(asked, Adaptive):
      ids, keep = np.asarray(state.ids)[:, :, lengths.first_slot(cfg) :], np.asarray(state.made)
      ids = ids * (np.arange(cfg.slots) < keep[:, :, None])
    else:
      seq, keep = asked.seq, np.zeros_like(asked.keep)
      rows, columns = np.nonzero(seq.valid_BxL & (np.arange(seq.valid_BxL.shape[1]) < int(state.position)))
      np.add.at(keep, (rows, seq.time_BxL[rows, columns]), 1)
      ids = order.read(np.asarray(state.ids), seq, asked.steps, cfg.slots)
    made = VideoTokens(jnp.asarray(ids), jnp.asarray(keep, jnp.int32), nested=self.cfg.nested)
    return made.split(len(self.cfg.condition))[1]

  # ---- identity

  def check_tokenizer(self, fingerprint: str) -> None:
    """Raises ValueError where a tokenizer of that fingerprint is not the one these tokens belong to."""
    if self.cfg.fingerprint and fingerprint != self.cfg.fingerprint:
      raise ValueError(
        f"the tokenizer's fingerprint is {cut(fingerprint)}, this generator makes tokens of {self.cfg.fingerprint}"
        + (f" ({self.cfg.tokenizer}): load that one." if self.cfg.tokenizer else ": load the one it was trained with.")
      )


def load(name: str | os.PathLike, *, dtype: str | None = None) -> tuple[Generator, Params]:
  """(generator, params) of vftok's own layout or SemanTok's, as `families.load` opens them.

  Args:
    dtype: compute dtype, "float32" or "bfloat16".

  Raises:
    FileNotFoundError, ValueError: one sentence that names the file and what is wrong with it.
  """
  from vftok.convert.load_generator import load

  check_dtype(dtype)
  cfg, params = load(name)
  if dtype is not None:
    cfg = dataclasses.replace(cfg, ar=dataclasses.replace(cfg.ar, dtype=dtype))
  return Generator(cfg), params


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg: ARConfig, params, ids, places: Places, cond):
  logits = applied(AR(cfg), params, ids, places, cond)
  return jnp.where(lengths.allowed(cfg, places.slot_BxL, jnp), logits, -jnp.inf)


def _keys(key, b: int):
  check_key(key, "generate")
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
