"""Who sees whom in a sequence of patches and tokens of T blocks of time, as groups of rows that see the same keys."""

from __future__ import annotations

import functools

import numpy as np

from vftok.models.vit import Group

ENCODER_MODES = ("full_causal_type1", "full_causal_type3", "full_bi_attn", "none")
DECODER_MODES = ("full_causal_type2", "full_causal_type1", "full_bi_attn", "none")


@functools.cache
def groups(mode: str, steps: int, patches: int, tokens: int, *, patches_first: bool) -> tuple[Group, ...]:
  """Groups that cover the sequence in order, AdapTok's modes by their names.

  Args:
    mode: "full_causal_type1": keys of own and earlier blocks, patches and tokens alike. "full_causal_type2": tokens of
      own and earlier blocks, and for patches those of their own block too. "full_causal_type3": patches see their own
      block's patches, tokens see these and the tokens of own and earlier blocks. "full_bi_attn", "none": everything.
    steps, patches, tokens: T blocks of P patches and K tokens, kind after kind.
    patches_first: the order of the two kinds.
  """
  all_patches, all_tokens = steps * patches, steps * tokens
  patch_at, token_at = (0, all_patches) if patches_first else (all_tokens, 0)
  if mode in ("full_bi_attn", "none"):
    return (Group(0, all_patches + all_tokens, ((0, all_patches + all_tokens),)),)
  span = lambda start, size, first, last: (start + first * size, start + last * size)
  of_patches = lambda first, last: span(patch_at, patches, first, last)
  of_tokens = lambda first, last: span(token_at, tokens, first, last)
  found = []
  for t in range(steps):
    past, own = of_tokens(0, t + 1), of_patches(t, t + 1)
    seen = {
      "full_causal_type1": ((of_patches(0, t + 1), past), (of_patches(0, t + 1), past)),
      "full_causal_type2": ((past, own), (past,)),
      "full_causal_type3": ((own,), (own, past)),
    }[mode]
    found.append(Group(*of_patches(t, t + 1), tuple(sorted(seen[0]))))
    found.append(Group(*of_tokens(t, t + 1), tuple(sorted(seen[1]))))
  return tuple(sorted(found))


def dense(found: tuple[Group, ...]) -> np.ndarray:
  """bool [N, N], query by key."""
  size = found[-1].last
  mask = np.zeros((size, size), bool)
  for group in found:
    for first, last in group.spans:
      mask[group.first : group.last, first:last] = True
  return mask
