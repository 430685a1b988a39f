"""What tests of routers share: an experiment over the tiny tokenizer of conftest.py."""

import numpy as np

from configs import router as experiment


def config(model, out):
  cfg = experiment.get_config("smoke")
  cfg.label.tokenizer = str(model[0])
  for source in (cfg.data.sources.curves, cfg.eval.sets.val.curves):
    source.directory = str(out)
  return cfg


def clip(frames=17, seed=0):
  return np.random.default_rng(seed).integers(0, 255, (2, frames, 16, 16, 3), np.uint8)
