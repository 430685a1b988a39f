"""Training a one-pass tokenizer: LARP, AdapTok and what else is in LEARNERS, with a critic of whole clips."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vftok.frozen.features import videomae
from vftok.io.video_writer import to_uint8
from vftok.models.clip_critic import ClipCritic
from vftok.models.flops import vit_flops
from vftok.models.semantic_critic import Heads
from vftok.tasks import Metrics, mean
from vftok.tasks.one_pass_loss import OnePassLoss
from vftok.tasks.one_pass_objectives import OBJECTIVES, Judged, Shown, frame_lpips, weights
from vftok.tokenizer.learner import Learner
from vftok.tokenizer.programs import to_float

LEARNERS = {  # config.family -> what makes its `vftok.tokenizer.learner.Learner`
  "larp": "vftok.families.query.learn:larp",
  "adaptok": "vftok.families.query.learn:adaptok",
  "evatok": "vftok.families.evatok.learn:evatok",
}
CRITIC = "critic"  # its parameters {"net"} and, for LeCam, {"anchors"}; `optim.every` says how often it has its turn
MOST_SHOWN = 4  # clips in a picture


class OnePassTask:
  """Parameters {"tokenizer"} and, with an adversarial term, {"critic"}; frozen {"lpips"} and what the learner needs."""

  def __init__(self, cfg: ConfigDict):
    self.cfg, self.loss_cfg = cfg, OnePassLoss.of(cfg)
    if cfg.family not in LEARNERS:
      raise ValueError(f"config.family is {cfg.family!r}, expected one of {', '.join(LEARNERS)}.")
    module, name = LEARNERS[cfg.family].split(":")
    self.learner: Learner = getattr(importlib.import_module(module), name)(cfg.model.to_dict(), self.loss_cfg)
    self.tok = self.learner.tok
    if self.loss_cfg.scorer and not hasattr(self.learner, "scores"):
      raise ValueError(
        f"loss.scorer is {self.loss_cfg.scorer}, expected 0: models of the family {cfg.family} have none."
      )
    wanted, found = (self.tok.chunk_frames, *self.tok.frame_size), (cfg.data.frames, cfg.data.size, cfg.data.size)
    if wanted != found:
      raise ValueError(f"data has frames and size {found}, expected the model's {wanted}: set data.frames, data.size.")
    self.weights = weights(self.loss_cfg)
    self.critic = ClipCritic(self.loss_cfg.critic) if self.loss_cfg.adversarial else None
    self.watched: tuple[videomae.VideoMAE, Any] | None = None  # the frozen net through which the critic sees
    if self.critic and self.loss_cfg.critic_path:
      self.critic, self.watched = Heads(), videomae.load(self.loss_cfg.critic_path)
    elif self.critic:
      self.loss_cfg.critic.grid(*wanted)
    self.critic_every = cfg.optim.every.get(CRITIC, 1)

  def init(self, key: jax.Array) -> Any:
    first, second = jax.random.split(key)
    params = {"tokenizer": self.tok.init(first, boxed=True)}
    if heads := self.learner.heads(jax.random.fold_in(key, 1)):
      params["heads"] = heads
    if self.critic:
      clip = jnp.zeros((1, self.tok.chunk_frames, *self.tok.frame_size, 3))
      frozen = {"videomae": self.watched[1]} if self.watched else {}
      params[CRITIC] = {"net": self.critic.init(second, self._seen(frozen, clip))["params"]}
    if self.loss_cfg.lecam:
      anchor = lambda: nn.LogicallyPartitioned(jnp.zeros(()), ())
      params[CRITIC]["anchors"] = {"real": anchor(), "fake": anchor()}
    return params

  def frozen(self) -> Any:
    own = {**self.learner.frozen(), **({"videomae": self.watched[1]} if self.watched else {})}
    if not (self.loss_cfg.lpips or self.loss_cfg.scorer):
      return own
    from vftok.frozen.metrics.weights import load_lpips

    return {**own, "lpips": load_lpips(self.loss_cfg.lpips_net)}

  def start(self, params, batches: Iterable[dict]) -> Any:
    if not self.cfg.init_from:
      return params
    from vftok.tokenizer.families import load

    _, loaded = load(self.cfg.init_from)
    mine, shapes = params["tokenizer"], lambda tree: jax.tree.map(jnp.shape, tree)
    taken = {part: loaded[part] for part in mine if part in loaded}  # a prior or a scorer may be new
    if any(shapes(taken[part]) != shapes(mine[part]) for part in taken) or "encoder" not in taken:
      raise ValueError("init_from holds another tokenizer, expected one of this config's sizes: use its model.")
    return {**params, "tokenizer": {**mine, **taken}}

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    loss_cfg, video, tokenizer = self.loss_cfg, to_float(batch["video"]), params["tokenizer"]
    learned = {**tokenizer, **({"heads": params["heads"]} if "heads" in params else {})}
    count_B, step_B, frame_B, own_B = jax.vmap(lambda key: jax.random.split(key, 4))(keys_B).T
    keep = self.learner.counts(frozen, video, count_B)
    made = self.learner.step(learned, frozen, video, keep, step_B, step / self.cfg.steps)
    shown = Shown(loss_cfg, video, made, keep, own_B)
    if "lpips" in frozen:
      shown = shown._replace(lpips=frame_lpips(frozen["lpips"], *self._some_frames(made.frames, video, frame_B)))
    if self.critic:
      shown = shown._replace(judged=self._judge(params[CRITIC], frozen, made.frames, video, step))
    if loss_cfg.scorer:
      shown = shown._replace(scores=self.learner.scores(tokenizer, made, keep))
    terms = {name: weight * OBJECTIVES[name](shown) for name, weight in self.weights.items()}
    chex.assert_shape(list(terms.values()), (len(video),))
    return sum(terms.values()).mean(), self._metrics(shown, terms)

  def _some_frames(self, made, video, keys_B) -> tuple[jax.Array, jax.Array]:
    """The same `loss.lpips_frames` of both, drawn for each clip; or all of them."""
    count, frames = self.loss_cfg.lpips_frames, video.shape[1]
    if not count or count >= frames:
      return made, video
    pick = jax.vmap(lambda key: jax.random.choice(key, frames, (count,), replace=False))(keys_B)
    return tuple(jnp.take_along_axis(v, pick[:, :, None, None, None], 1) for v in (made, video))

  def _seen(self, frozen, video):
    """What the critic sees of clips in [-1, 1]: pixels in [0, 1], or a frozen net's features."""
    return self.watched[0].apply(frozen["videomae"], video) if self.watched else (video + 1) / 2

  def _judge(self, params, frozen, made, video, step) -> Judged:
    """One backward pass for both players: each sees the other through a stopped gradient."""
    stop = jax.lax.stop_gradient
    run = lambda net, clips: self.critic.apply({"params": net}, self._seen(frozen, clips))
    passed = run(stop(params["net"]), made)
    turn = step % self.critic_every == 0
    both = lambda net: (run(net, video), run(net, stop(made)))
    none = lambda net: (jnp.zeros_like(passed),) * 2  # not its turn: nothing is computed
    real, fake = both(params["net"]) if self.critic_every == 1 else jax.lax.cond(turn, both, none, params["net"])
    as_float = lambda x: jnp.asarray(x, jnp.float32)
    anchors = params.get("anchors", {})
    return Judged(real, fake, passed, as_float(turn), as_float(step >= self.loss_cfg.adversarial_from), anchors)

  def _metrics(self, shown: Shown, terms) -> Metrics:
    made, rows = shown.made, len(shown.video)
    turn = jnp.broadcast_to(1.0 if shown.judged is None else shown.judged.turn, rows)
    of_turns = ("critic", "lecam")  # means over the critic's turns alone
    metrics = {
      name: mean(value, turn if name in of_turns else None) for name, value in terms.items() if name != "anchors"
    }
    if shown.judged is not None:
      metrics |= {f"critic/{kind}": mean(getattr(shown.judged, kind).mean(1), turn) for kind in ("real", "fake")}
    error_B = jnp.square((made.frames - shown.video) / 2).mean((1, 2, 3, 4))
    metrics["psnr"] = mean(-10 * jnp.log10(error_B + 1e-10))
    used_V = jnp.zeros(self.tok.codebook_size, bool).at[jnp.where(made.kept, made.ids, made.ids[:1, :1, :1])].set(True)
    metrics["codes/used"] = (used_V.sum().astype(jnp.float32), jnp.ones(()))
    if self.loss_cfg.counts != "all":
      metrics["tokens"] = mean(shown.keep.sum(1).astype(jnp.float32))
    return metrics

  @property
  def dtype(self) -> str:
    return self.learner.dtype

  def flops(self) -> float:
    total, frames, (h, w) = 3 * self.learner.flops(), self.tok.chunk_frames, self.tok.frame_size
    if self.critic and self.watched:
      net, each = self.watched[0].vit, self.watched[0]
      length = frames // each.tubelet * (each.size // each.patch) ** 2
      total += 5 * vit_flops(net.dim, net.depth, net.hidden, length)  # three looks, one of them with a gradient
    elif self.critic:
      c = self.loss_cfg.critic
      one = vit_flops(c.dim, c.depth, 4 * c.dim, np.prod(c.grid(frames, h, w)) + (not c.per_patch))
      total += 2 * one + 6 * one / self.critic_every  # of decoded clips without its weights' gradient; of both with it
    return total

  def coding_flops(self, evaluations: int = 1) -> tuple[float, float]:
    """Forward FLOPs of (encoding, decoding) one clip with all tokens; a one-pass decoder is evaluated once."""
    return self.learner.coding_flops()

  # ---- looking

  def media(self, params, frozen, batch) -> dict[str, np.ndarray]:
    from vftok.show.picture import video_rows

    video, tok, columns = batch["video"][:MOST_SHOWN], self.tok, {}
    columns["original"] = video
    budgets = tok.budgets if len(tok.budgets) < 4 else [tok.budgets[0], tok.budgets[len(tok.budgets) // 2]]
    for keep in sorted({*budgets, tok.registers}):
      tokens = tok.encode(params["tokenizer"], video, budget=keep if len(tok.budgets) > 1 else None)
      columns[f"k = {keep}"] = to_uint8(tok.decode(params["tokenizer"], tokens))
    return {"reconstruction": video_rows(columns)}

  def evaluate(self, params, frozen, batches, total, split, out) -> dict[str, float]:
    from vftok.evals import reconstruction, report

    cfg = self.cfg.eval
    options = dict(split=split, keeps=cfg.keeps or None, lpips_net=cfg.lpips_net or None, rfvd=cfg.rfvd)
    made = reconstruction.evaluate(self.tok, params["tokenizer"], batches, **options, media=cfg.media, total=total)
    report.write_report(out, [made], title=self.cfg.title, fps=self.cfg.data.fps)
    return made.scalars()

  def save(self, params, frozen, directory) -> None:
    self.tok.save(params["tokenizer"], directory)
