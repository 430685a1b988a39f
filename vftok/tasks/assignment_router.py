"""Training EVATok's router: the best of all assignments of tokens to a clip's time steps, from its pixels.

Every clip has been decoded under every assignment (`vftok.tools.label_budgets`), so the reward of whatever a router
chooses is known, under any preference (arXiv 2603.12267, section 3.3; section 5 of our notes on it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vftok.budget.reward import Reward, check_weight, percentile
from vftok.budget.router import Router
from vftok.budget.search import all_assignments
from vftok.data.curves import read_meta
from vftok.models.config_json import from_dict
from vftok.models.flops import stack_flops
from vftok.models.router import RouterConfig, net
from vftok.models.transformer import StackConfig
from vftok.runtime.words import brief
from vftok.tasks import Metrics
from vftok.tasks.router import SAMPLE, RouterTask
from vftok.tokenizer.programs import to_float


class AssignmentRouterTask(RouterTask):
  """A router of classes over pixels; what it learns from is known of every assignment."""

  def __init__(self, cfg: ConfigDict):
    self.cfg, self.loss_cfg = cfg, cfg.loss
    check_weight(self.loss_cfg.preference)
    sources = list(cfg.data.sources.to_dict().values())
    metas = [read_meta(source["directory"]) for source in sources]
    meta = metas[0]
    for key in ("every", "fingerprint", "levels", "steps", "latents_shape"):
      if any(other.get(key) != meta.get(key) for other in metas[1:]):
        raise ValueError(f"two sets of curves differ in {key}, expected one tokenizer's: label them alike.")
    if not meta.get("every"):
      raise ValueError("the curves are not of all assignments, expected those of a model whose ids depend on counts.")
    self.keep_AxT = all_assignments(meta["levels"], meta["steps"])
    loss_NxA = self._stored(sources)
    self.reward = Reward.fitted(loss_NxA, meta["levels"], meta["steps"])
    known = dict(latents=meta["latents_shape"], levels=meta["levels"], measure="lpips", head="classes")
    known |= dict(loss_mean=self.reward.loss_mean, loss_std=self.reward.loss_std, preference=self.loss_cfg.preference)
    # It is asked before a clip is encoded, so it serves every tokenizer of these counts: the final one is no proxy.
    known |= dict(tokenizer=meta["tokenizer"], fingerprint="", codebook_size=meta["codebook_size"])
    self.router = Router(from_dict(RouterConfig, {**cfg.model.to_dict(), **known}))

  def _stored(self, sources) -> np.ndarray:
    from vftok.data.sources import source_of

    found = []
    for source in sources:
      records = source_of(source)
      found += [records[i]["losses"][:, 0, 0] for i in range(min(SAMPLE, len(records)))]
    return np.stack(found)

  def start(self, params, batches) -> Any:
    if not self.cfg.init_from:
      return params
    source, loaded = Router.load(self.cfg.init_from)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if jax.tree.structure(loaded) != jax.tree.structure(params) or shapes(loaded) != shapes(params):
      raise ValueError(f"init_from holds another router ({brief(source.cfg, 250)}): use the model it was made with.")
    return loaded

  def rewards(self, losses_BxAx1xn) -> jax.Array:
    """float32 [B, A] of every assignment, by LPIPS."""
    return self.reward(losses_BxAx1xn[:, :, 0, 0], self.keep_AxT, self.loss_cfg.preference, xp=jnp)

  def loss(self, params, frozen, batch, keys_B, step) -> tuple[jax.Array, Metrics]:
    """`chosen`, of clips that are mirrored where the config asks for it."""
    video = to_float(batch["latents"])
    if self.loss_cfg.flip:
      turned_B = jax.vmap(jax.random.bernoulli)(keys_B)
      video = jnp.where(turned_B[:, None, None, None, None], video[:, :, :, ::-1], video)
    logits_BxA = net(self.router.cfg).apply({"params": params}, video)
    return self.chosen(logits_BxA, self.rewards(batch["losses"]))

  def flops(self) -> float:
    cfg = self.router.cfg
    return 3 * stack_flops(StackConfig(cfg.dim, cfg.depth, cfg.head_dim), cfg.steps * cfg.patches + 1)

  def evaluate(self, params, frozen, batches: Iterable[dict], total: int, split: str, out) -> dict[str, float]:
    """Table 8: how often the best is found, and how much of the reward; writes router.json into `out`."""
    rewards, logits = [], []
    for batch in batches:
      good = batch["_mask"]
      rewards.append(np.asarray(self.rewards(jnp.asarray(batch["losses"][good])), np.float64))
      logits.append(np.asarray(self.router.predict(params, to_float(batch["latents"]))[good]))
    reward_NxA, logits_NxA = np.concatenate(rewards), np.concatenate(logits)
    return self.written(self._values(reward_NxA, logits_NxA), split, out, preference=self.loss_cfg.preference)

  def _values(self, reward_NxA, logits_NxA) -> dict[str, float]:
    best, worst, order = reward_NxA.max(1), reward_NxA.min(1), np.argsort(-logits_NxA, axis=1)
    at = lambda index_N: np.take_along_axis(reward_NxA, index_N[:, None], 1)[:, 0]
    uniform = np.flatnonzero((self.keep_AxT == self.keep_AxT[:, :1]).all(1))
    chosen = {
      "router": at(order[:, 0]),
      "best uniform per clip": reward_NxA[:, uniform].max(1),
      "one for all": reward_NxA[:, reward_NxA.mean(0).argmax()],
    }
    found = {f"percentile/{name}": percentile(of, best, worst) for name, of in chosen.items()}
    hit = order == reward_NxA.argmax(1)[:, None]
    found |= {"clips": len(best), "top1": hit[:, 0].mean(), "top5": hit[:, :5].any(1).mean()}
    return found | {"tokens": self.keep_AxT[order[:, 0]].sum(1).mean()}
