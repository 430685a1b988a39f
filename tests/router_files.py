"""What tests of routers share: an experiment over the tiny tokenizer of conftest.py."""

import flax.linen as nn
import numpy as np
from starts import started

from configs import router as experiment
from vftok import Router
from vftok.models.router import RouterConfig

LEVELS = (1, 2, 4)


def config(model, out):
  cfg = experiment.get_config("smoke")
  cfg.label.tokenizer = str(model[0])
  for source in (cfg.data.sources.curves, cfg.eval.sets.val.curves):
    source.directory = str(out)
  return cfg


def clip(frames=17, seed=0):
  return np.random.default_rng(seed).integers(0, 255, (2, frames, 16, 16, 3), np.uint8)


def untrained(model, root):
  """{head: directory} of routers for the tiny tokenizer that have learned nothing."""
  _, tok, params = model
  shape, made = tok.encode_latents(params, clip()).shape[1:], {}
  whose = dict(latents=shape, levels=LEVELS, fingerprint=tok.fingerprint(params))
  for head in ("curves", "classes"):
    router = Router(RouterConfig(dim=64, depth=1, head=head, preference=1.2, **whose))
    made[head] = root / head
    router.save(nn.unbox(started(router.init)), made[head])
  return made
