"""Nested dropout: how many registers each time step keeps in training (spec section 3.5), one key per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LAWS = ("pow2", "uniform", "uniform_pow2", "zipf", "halving")
SHARES = ("shared", "per_step", "mix")


def sample_keep(key, steps: int, registers: int, *, law: str = "pow2", share: str = "mix") -> jax.Array:
  """int32 [T]: registers kept of each time step of one example, 1..K.

  Args:
    law: "pow2" uniform over 1, 2, 4, ... K (the released models'); "uniform" over 1..K; "uniform_pow2" uniform, then
      rounded up to a power of two; "zipf" with weight 1/k; "halving" K, K/2, K/4, ... with weights 1/2, 1/4, ...
    share: "shared" one count for all steps (the released models'); "per_step" drawn for each step by itself; "mix"
      one or the other with equal chance per example. Only with the last two are counts that differ between steps,
      which an adaptive budget asks for, ever seen in training.
  """
  if share not in SHARES:
    raise ValueError(f"nested share is {share!r}, expected one of {', '.join(SHARES)}.")
  draw_key, share_key = jax.random.split(key)
  keep_T = _draw(draw_key, (steps,), registers, law)
  if share == "per_step":
    return keep_T
  one = jnp.broadcast_to(keep_T[0], (steps,))
  return one if share == "shared" else jnp.where(jax.random.bernoulli(share_key), one, keep_T)


def _draw(key, shape, registers: int, law: str) -> jax.Array:
  powers = powers_of_two(registers)
  if law == "pow2":
    return jnp.array(powers)[jax.random.randint(key, shape, 0, len(powers))]
  if law in ("uniform", "uniform_pow2"):
    k = jax.random.randint(key, shape, 1, registers + 1)
    return k if law == "uniform" else jnp.minimum(next_power(k), registers)
  if law == "zipf":
    return 1 + jax.random.categorical(key, -jnp.log(jnp.arange(1.0, registers + 1)), shape=shape)
  if law == "halving":
    n = jax.random.categorical(key, -jnp.log(2.0) * jnp.arange(len(powers)), shape=shape)
    return jnp.maximum(registers // 2**n, 1)
  raise ValueError(f"nested law is {law!r}, expected one of {', '.join(LAWS)}.")


def powers_of_two(registers: int) -> list[int]:
  """1, 2, 4, ... up to all registers, the last one cut to them."""
  return [min(2**i, registers) for i in range((registers - 1).bit_length() + 1)]


def next_power(k) -> jax.Array:
  """The smallest power of two at or above k >= 1."""
  powers = 2 ** jnp.arange(31)
  return powers[jnp.searchsorted(powers, k)]
