"""Whether numbers can be computed with: what is not finite becomes neither weights, nor tokens, nor a picture."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from vftok.tokens import is_concrete


def is_finite(x: Any) -> bool:
  """Whether all numbers of an array are finite to a model, which computes in float32: 1e300 is not.

  True where they cannot be looked at (while JAX traces, or on other hosts).
  """
  if not is_concrete(x) or not getattr(x, "is_fully_addressable", True):
    return True
  value = np.asarray(x)
  if value.dtype == ml_dtypes.bfloat16:  # by its exponent: ml_dtypes takes ten times as long
    return not ((value.view(np.uint16) & 0x7F80) == 0x7F80).any()
  with np.errstate(over="ignore"):
    return bool(np.isfinite(value if value.dtype == np.float16 else np.asarray(value, np.float32)).all())
