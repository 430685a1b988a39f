"""Encoders that read DINOv2 features beside the latents (SemanTok): against NumPy, and from files to ids."""

import dataclasses

import feature_files as nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from starts import started

from vftok import Tokenizer
from vftok.frozen.features.dino_inputs import load_dino
from vftok.tokenizer import programs

DIM = 64  # one head: what the converter takes where nobody says how many
STARTS = (0, 1, 5, 9, 13)
GROUPS = ((0,), (1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
  """(file, its tensors) of a tiny DINOv2; the oracle of feature_files is told its sizes."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nets, "DIM", DIM)
    patch.setattr(nets, "HEADS", 1)
    tensors = nets.dinov2_tensors()
    path = tmp_path_factory.mktemp("dino") / "model.safetensors"
    save_file(tensors, path)
    yield path, tensors


def reading(tok, frames="avg", klass="per_frame", patches=True, vector=True):
  """The small tokenizer's config with an encoder that reads features, and random parameters."""
  encoder = dataclasses.replace(tok.cfg.encoder, channels=16 + DIM * patches, global_token=DIM * vector)
  cfg = dataclasses.replace(tok.cfg, encoder=encoder, dino_frames=frames if patches else "", dino_class=klass)
  return Tokenizer(cfg)


@pytest.fixture(scope="module")
def clip(small):
  height, width = small[0].frame_size
  return np.random.default_rng(3).integers(0, 256, (1, 17, height, width, 3), np.uint8)


def oracle(clip, tensors, grid):
  """(patches [F, h, w, D], class [F, D]) of every frame."""
  patches, classes = [], []
  for image in clip[0] / 255.0:
    size = [n * nets.PATCH for n in grid]
    image = nets.resample(nets.resample(image, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)
    image = (np.clip(image, 0, 1) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    out = nets.oracle_dinov2(image, tensors, 0)
    patches.append(out[0])
    classes.append(out[1])
  return np.stack(patches), np.stack(classes)


@pytest.mark.parametrize(
  "frames,klass,patches", [("avg", "per_frame", True), ("first", "frame0", True), ("", "per_frame", False)]
)
def test_inputs_equal_the_oracle(frames, klass, patches, small, clip, dino):
  tok = reading(small[0], frames, klass, patches)
  net, params = load_dino(tok.cfg, dino[0])
  latents = np.random.default_rng(4).standard_normal((1, 5, *tok.cfg.latent_size, 16)).astype(np.float32)
  grid, vector = programs.with_dino(tok.cfg, net, {"dino": params}, clip, jnp.asarray(latents))
  all_patches, classes = oracle(clip, dino[1], tok.cfg.latent_size)
  expected = [classes[0]] * 5 if klass == "frame0" else classes[list(STARTS)]
  np.testing.assert_allclose(vector[0], expected, atol=2e-4)
  np.testing.assert_array_equal(grid[..., -16:], latents.astype(np.float16))
  if patches:
    expected = all_patches[list(STARTS)] if frames == "first" else [all_patches[list(g)].mean(0) for g in GROUPS]
    np.testing.assert_allclose(grid[0, ..., :DIM], np.stack(expected), atol=2e-4)
  assert grid.shape[-1] == 16 + DIM * patches


@pytest.mark.slow
def test_from_files_to_ids_and_what_is_refused(small, clip, dino, tmp_path):
  tok = reading(small[0])
  params = started(tok.init)
  noise = jax.random.normal(jax.random.key(1), params["encoder"]["head"]["kernel"].shape)
  params["encoder"]["head"]["kernel"] = 3 * noise  # it starts at zero
  tok.save(params, tmp_path / "model")

  plain, plain_params = Tokenizer.load(tmp_path / "model")
  for run in (plain.encode, plain.encode_stream):
    with pytest.raises(ValueError, match=r"pass dino='facebook/dinov2-large'.* to Tokenizer.load .--dino"):
      run(plain_params, clip)
  reader, all_params = Tokenizer.load(tmp_path / "model", dino=dino[0])
  ids = reader.encode(all_params, clip).ids
  latents = reader.encode_latents(all_params, clip)
  inputs = programs.with_dino(reader.cfg, reader.dino, all_params, clip, latents)
  np.testing.assert_array_equal(ids, programs.ids_of(reader.cfg, programs.features(reader.cfg, all_params, *inputs)))
  without = (jnp.zeros_like(inputs[0]).at[..., DIM:].set(inputs[0][..., DIM:]), jnp.zeros_like(inputs[1]))
  assert (ids != programs.ids_of(reader.cfg, programs.features(reader.cfg, all_params, *without))).any()
  assert reader.fingerprint(all_params) == plain.fingerprint(plain_params)
  other = Tokenizer(dataclasses.replace(plain.cfg, dino_class="frame0"))
  assert other.fingerprint(plain_params) != plain.fingerprint(plain_params)

  reader.save(all_params, tmp_path / "again")
  assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()
  with pytest.raises(ValueError, match="reads no DINOv2 features: leave it out"):
    load_dino(small[0].cfg, dino[0])
  narrow = dataclasses.replace(tok.cfg, encoder=dataclasses.replace(tok.cfg.encoder, channels=16 + 32))
  with pytest.raises(ValueError, match="features of width 64, expected 32"):
    load_dino(narrow, dino[0])
