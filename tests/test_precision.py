"""Ids must not depend on what a platform does to float32 products by default, a GPU to TF32, convolutions too."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from vftok.runtime import target
from vftok.tokenizer import programs

PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\b.*")


def products(fn, *args, **options) -> list[str]:
  return PRODUCT.findall(fn.trace(*args, **options).lower(lowering_platforms=("cuda",)).as_text())


@pytest.fixture
def parts(small, monkeypatch):
  """The programs that ids go through, with what they are called with."""
  monkeypatch.setattr(target, "COMPILE_FOR", "gpu")
  tok, params, _ = small
  video = jnp.zeros((1, tok.chunk_frames, *tok.frame_size, 3))
  return tok.cfg, {"vae_encode": (params, video), "features": (params, jnp.zeros(tok.latent_shape(1, tok.chunk_steps)))}


@pytest.mark.parametrize("name", ["vae_encode", "features"])
def test_float32_products_of_encoding_are_float32(name, parts):
  cfg, arguments = parts
  found = products(getattr(programs, name), cfg, *arguments[name])
  assert len(found) > 5 and (name != "vae_encode" or any("convolution" in line for line in found))
  assert not [line for line in found if line.count("HIGHEST") != 2]


def test_training_and_half_precision_stay_quick(parts, monkeypatch):
  cfg, arguments = parts
  assert not [
    line for line in products(programs.vae_encode, cfg, *arguments["vae_encode"], quick=True) if "HIGH" in line
  ]
  monkeypatch.setenv("VFTOK_ATTENTION", "xla")  # lowering for cuDNN wants a card
  half = dataclasses.replace(cfg.encoder, stack=dataclasses.replace(cfg.encoder.stack, dtype="bfloat16"))
  cfg = dataclasses.replace(cfg, encoder=half)
  assert not [line for line in products(programs.features, cfg, *arguments["features"]) if "HIGH" in line]


def test_exact_is_of_float32():
  with programs.exact("float32"):
    assert jax.config.jax_default_matmul_precision == "highest"
  with programs.exact("bfloat16"):
    assert jax.config.jax_default_matmul_precision is None
