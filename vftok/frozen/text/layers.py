"""What text encoders (BERT, T5, CLIP) share."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vftok.models.layers import Linear, partitioned


class Attention(nn.Module):
  """Every token sees every token of its text that the mask leaves. x [B, S, D] -> [B, S, D] in `dtype`.

  Attributes:
    scale: of the logits.
  """

  heads: int
  head_dim: int
  scale: float
  use_bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x_BxSxD, mask_BxS, bias_nxSxS=None):
    b, s, d = x_BxSxD.shape
    linear = lambda name: Linear(
      self.heads * self.head_dim, ("embed", "heads"), self.use_bias, dtype=self.dtype, name=name
    )
    q, k, v = (linear(name)(x_BxSxD).reshape(b, s, self.heads, self.head_dim) for name in ("q", "k", "v"))
    bias = None if bias_nxSxS is None else bias_nxSxS[None]
    out = jax.nn.dot_product_attention(q, k, v, bias, mask_BxS[:, None, None, :], scale=self.scale)
    return Linear(d, ("heads", "embed"), self.use_bias, dtype=self.dtype, name="out")(
      out.reshape(b, s, self.heads * self.head_dim)
    )


def layer_norm(eps: float, name: str) -> nn.Module:
  """LayerNorm with scale and bias, in float32."""
  ones, zeros = (partitioned(init, "embed") for init in (nn.initializers.ones, nn.initializers.zeros))
  return nn.LayerNorm(eps, jnp.float32, scale_init=ones, bias_init=zeros, use_fast_variance=False, name=name)
