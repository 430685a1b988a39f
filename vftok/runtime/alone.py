"""What one process of a job does by itself, on its own devices, while the others wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from vftok.runtime import sharding
from vftok.runtime.process import together, whole


@contextlib.contextmanager
def alone(init: Callable, model: Any, frozen: Any) -> Iterator[tuple[Any, Any] | None]:
  """(model, frozen) for code of one process: in the first on a mesh of its own devices, None in the others.

  So what needs every array at hand, videos and scores during a run, works as it does on one machine. All processes
  must enter, and leave together. The devices of the first hold the model once more meanwhile, cut over them, and each
  host's memory holds it whole for a moment.
  """
  if jax.process_count() == 1:
    yield nn.unbox(model), frozen
    return
  model, frozen = whole(nn.unbox(model)), whole(frozen)
  if jax.process_index():
    yield None
  else:
    mesh = sharding.make_mesh({"fsdp": -1}, jax.local_devices())
    boxed = jax.eval_shape(init, jax.random.key(0))
    places = sharding.param_shardings(sharding.logical_axes(boxed), nn.unbox(boxed), mesh)
    with jax.set_mesh(mesh):
      yield jax.device_put(model, places), jax.device_put(frozen, sharding.frozen_shardings(frozen, mesh))
  together("after what one did alone")
