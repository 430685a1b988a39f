"""Golden files: what the reference gave for random weights, and how far from it we are."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Mapping

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from vftok.convert import reference_config, reference_weights
from vftok.tasks.one_pass_loss import OnePassLoss
from vftok.tasks.one_pass_objectives import OBJECTIVES, Shown
from vftok.tokenizer.api import Tokenizer
from vftok.tokenizer.learner import Made


class Errors:
  """Relative L2 error per tensor of one golden file; equality counts as 0, a mismatch of integers as infinite."""

  def __init__(self, golden: Mapping[str, np.ndarray]):
    self.golden, self.found = golden, {}

  def close(self, key: str, value, name: str | None = None) -> None:
    expected = self.golden[key].astype(np.float64)
    value = np.asarray(value, np.float64).reshape(expected.shape)
    norm = np.linalg.norm(expected)
    self.found[name or key] = float(np.linalg.norm(value - expected) / max(norm, 1e-12))

  def equal(self, key: str, value) -> None:
    same = np.array_equal(np.asarray(value), self.golden[key])
    self.found[key] = 0.0 if same else float("inf")

  def not_compared(self, *given: str) -> list[str]:
    """Tensors of the file that are neither compared nor inputs."""
    skip = ("w.", "in.", *given)
    return [k for k in self.golden if k not in self.found and not k.startswith(skip) and not k.endswith("_with_bug")]


def last(x):
  """torch's channels first [B, C, ...] -> ours [B, ..., C]."""
  return np.moveaxis(x, 1, -1)


def first(x):
  return np.moveaxis(np.asarray(x), -1, 1)


def open_golden(path: pathlib.Path):
  """(tokenizer, params, metadata) of the weights under `w.` and the config in the metadata, of any family."""
  with safe_open(path, framework="np") as file:
    metadata = file.metadata()
    weights = {key.removeprefix("w."): file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
  with tempfile.TemporaryDirectory() as directory:
    save_file(weights, pathlib.Path(directory) / "model.safetensors")
    (pathlib.Path(directory) / "config.json").write_text(metadata["config"])
    return *Tokenizer.load(directory), metadata


def load_golden_model(path: pathlib.Path):
  """(tokenizer, params, rules, metadata) of a video model."""
  tok, params, metadata = open_golden(path)
  _, names = reference_config.parse(json.loads(metadata["config"]), tok.cfg.vae)
  return tok, params, reference_weights.rules(tok.cfg, names), metadata


def vq_losses(z_BxTxKxc, codes_BxTxKxc, kept_BxTxK) -> dict[str, jax.Array]:
  """Training's terms "codebook" and "commit" of features and codes as they are compared, means over kept tokens."""
  shown = Shown(OnePassLoss(), None, Made(None, z_BxTxKxc, codes_BxTxKxc, None, kept_BxTxK), None, None)
  return {name: OBJECTIVES[name](shown).mean() for name in ("codebook", "commit")}
