"""A direct path from tokens to latents, for nets too small to find one by attention.

The registers of a step reach its patches through attention, which takes very many steps of training to learn which
patch reads what from where. A model with a draft reads them at once: an MLP turns the kept codes of a step and of the
steps before it into an estimate of the latents. The flow starts there: for latents that are Gaussian around the draft
with variance s^2, the best velocity is known in closed form, and the decoder's network learns what it misses (the
preconditioning of EDM, arXiv 2206.00364, around an estimate instead of around zero). The paper has no such path.
"""

from __future__ import annotations

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vftok.models.layers import Linear, layer_norm, partitioned
from vftok.tokens import kept_slots

VARIANCE_START = 0.3  # of what a draft misses, in units of the latents' own variance


@dataclasses.dataclass(frozen=True)
class DraftConfig:
  """Attributes:
  grid: (h, w) patches of a time step: a draft is for one picture size.
  hidden: width of the MLP.
  context: earlier steps whose codes it reads beside the step's own.
  """

  grid: tuple[int, int]
  hidden: int = 384
  context: int = 4


class Draft(nn.Module):
  """(codes, keep) -> an estimate of patches float32 [B, T, h, w, F], and the variance [B, T, 1, 1, F] it leaves.

  Step t sees codes of steps <= t. A step that keeps nothing is estimated by zero with variance one.
  """

  cfg: DraftConfig
  registers: int
  features: int

  @nn.compact
  def __call__(self, codes_BxTxkxc, keep_BxT) -> tuple[jax.Array, jax.Array]:
    """codes: of the first k registers, k <= registers. keep: int, 0..k; codes at and beyond it have no influence."""
    cfg, (h, w) = self.cfg, self.cfg.grid
    b, steps, k, _ = codes_BxTxkxc.shape
    kept_BxTxk = kept_slots(keep_BxT, k).astype(jnp.float32)
    seen = jnp.concatenate([codes_BxTxkxc * kept_BxTxk[..., None], kept_BxTxk[..., None]], axis=-1)
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, self.registers - k), (0, 0))).reshape(b, steps, -1)
    earlier = jnp.pad(seen, ((0, 0), (cfg.context, 0), (0, 0)))
    window = jnp.concatenate([earlier[:, i : i + steps] for i in range(cfg.context + 1)], axis=-1)

    y = Linear(cfg.hidden, (None, "embed"), name="codes_in")(window)
    y = y + Linear(cfg.hidden, ("embed", "embed_out"), name="mlp_out")(
      nn.silu(Linear(cfg.hidden, ("embed", "embed_out"), name="mlp_in")(layer_norm(y)))
    )
    draft = Linear(h * w * self.features, ("embed", None), zero_init=True, name="patches_out")(y)
    draft = einops.rearrange(draft, "b t (h w d) -> b t h w d", h=h, w=w)

    start = np.log(np.where(np.arange(self.registers + 1) > 0, VARIANCE_START, 1.0))
    init = partitioned(lambda _, shape: jnp.broadcast_to(start[:, None], shape).astype(jnp.float32), None, None)
    log_variance = self.param("log_variance", init, (self.registers + 1, self.features)).astype(jnp.float32)
    some_BxT = keep_BxT > 0
    draft = jnp.where(some_BxT[:, :, None, None, None], draft, 0.0)
    variance = jnp.where(some_BxT[..., None], jnp.exp(log_variance[keep_BxT]), 1.0)
    return draft, variance[:, :, None, None]


def draft_velocity(draft, variance, noisy, t) -> jax.Array:
  """E[noise - clean | noisy] for clean ~ N(draft, variance) and noisy = t * noise + (1 - t) * clean.

  With r = noisy - (1 - t) draft, whose variance is D = t^2 + (1 - t)^2 s^2: E[noise] = t r / D and
  E[clean] = draft + (1 - t) s^2 r / D. Arrays broadcast; t in [0, 1].
  """
  rest = noisy - (1 - t) * draft
  return rest * (t - (1 - t) * variance) / (t**2 + (1 - t) ** 2 * variance) - draft
