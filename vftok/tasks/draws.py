"""The random numbers of one example in tokenizer training, and counts that a router chooses in place of drawn ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vftok.budget import allocate
from vftok.budget.reward import Reward
from vftok.models import flow
from vftok.models.nested import sample_keep
from vftok.models.router import RouterConfig, net
from vftok.tasks.losses import TokenizerLoss

ROUTED = 7  # folded into an example's key: the router's draws are beside those of `draw`


def draw(loss: TokenizerLoss, tok, latent_shape, key) -> dict[str, jax.Array]:
  """All random numbers of one example, by the laws of `config.loss`."""
  names = ("noise", "t", "keep", "null", "given", "given_t", "given_zero")
  keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
  given = jax.random.choice(keys["given"], len(loss.given_probs), p=jnp.array(loss.given_probs))
  given_t = jax.random.uniform(keys["given_t"], maxval=loss.given_noise)
  return {
    "noise": flow.gaussian(keys["noise"], latent_shape),
    "t": flow.sample_time(keys["t"], law=loss.time, mode_scale=loss.mode_scale, high=loss.high, low_end=loss.high_from),
    "keep": sample_keep(keys["keep"], tok.chunk_steps, tok.registers, law=loss.nested, share=loss.share)
    if tok.nested
    else jnp.full(tok.chunk_steps, tok.registers),
    "null": jax.random.bernoulli(keys["null"], loss.null),
    "given_BxL": jnp.arange(latent_shape[0]) < given,
    "given_t": jnp.where(jax.random.bernoulli(keys["given_zero"], loss.given_clean), 0.0, given_t),
  }


@dataclasses.dataclass(frozen=True)
class RoutedKeep:
  """Counts as a router of curves gives them under random preferences, so that a decoder sees what it will be asked for.

  Attributes:
    cfg: of the router. reward: what it weighs by.
    share: of examples that get them. preferences: (low, high) of w_q, drawn uniformly.
  """

  cfg: RouterConfig
  reward: Reward
  share: float
  preferences: tuple[float, float]

  @classmethod
  def load(cls, loss: TokenizerLoss, tok) -> tuple[RoutedKeep, Any]:
    """(itself, the router's parameters) of `loss.router`.

    Raises:
      ValueError: no router of curves for these registers and latents.
    """
    from vftok.budget.router import Router

    router, params = Router.load(loss.router)
    cfg, shape = router.cfg, tok.latent_shape(1, tok.chunk_steps)[1:]
    if cfg.head != "curves" or cfg.levels[-1] != tok.registers or tuple(cfg.latents) != shape:
      raise ValueError(
        f"loss.router has head {cfg.head!r}, levels {cfg.levels} and latents {cfg.latents}, expected curves up to "
        f"{tok.registers} tokens of latents {shape}: train one for this tokenizer."
      )
    return cls(cfg, router.reward(), loss.router_share, tuple(loss.router_preferences)), params

  def __call__(self, params, latents_BxTxhxwxC, keep_BxT, keys_B) -> jax.Array:
    """int32 [B, T]: the router's counts for a share of the examples, those given for the others."""
    choose, weigh = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, ROUTED)))(keys_B).T
    low, high = self.preferences
    weight_B = jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(weigh)
    curves = net(self.cfg).apply({"params": params}, latents_BxTxhxwxC) * self.cfg.drop_scale
    routed = allocate.by_preference(curves, self.cfg.levels, self.reward, weight_B)
    chosen_B = jax.vmap(lambda key: jax.random.bernoulli(key, self.share))(choose)
    return jnp.where(chosen_B[:, None], routed, keep_BxT)
