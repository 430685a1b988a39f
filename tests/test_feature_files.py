"""Weights of frozen feature nets: strict conversion, one sentence where a file is wrong."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_files import DIM, HEADS, HIDDEN, REGISTERS, dinov2_tensors, hub_layout, vjepa2_tensors, write
from safetensors.numpy import load_file

from vftok.frozen import features
from vftok.frozen.features import convert


def test_hub_layout_gives_the_same_parameters(weights, tmp_path):
  for name, registers in (("dinov2", 0), ("registers", REGISTERS)):
    path = write(hub_layout(dinov2_tensors(registers)), tmp_path / f"{name}.safetensors")
    net, params = features.load("dinov2", path, heads=HEADS)
    expected_net, expected = features.load("dinov2", weights[name], heads=HEADS)
    assert net == expected_net
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("name", ["dinov2", "registers", "vjepa2"])
def test_round_trip_is_exact(weights, tmp_path, name):
  kind = "vjepa2" if name == "vjepa2" else "dinov2"
  net, params = features.load(kind, weights[name], heads=HEADS)
  convert.save(net, params, tmp_path / "copy")
  copy, original = load_file(tmp_path / "copy" / "model.safetensors"), load_file(weights[name])
  assert original.keys() - copy.keys() == {key for key in original if "mask_token" in key or "predictor" in key}
  for key, value in copy.items():
    np.testing.assert_array_equal(value, original[key])
  again, reloaded = features.load(kind, tmp_path / "copy", heads=HEADS)
  assert again == net
  jax.tree.map(np.testing.assert_array_equal, reloaded, params)


def test_prefix_of_a_classifier_and_its_head_are_known(weights, tmp_path):
  tensors = {f"vjepa2.{key}": value for key, value in vjepa2_tensors().items()}
  pooler = "pooler.cross_attention_layer.cross_attn.q_proj.weight"
  tensors |= {"classifier.bias": np.ones(3, np.float32), pooler: np.ones((2, 2), np.float32)}
  _, params = features.load("vjepa2", write(tensors, tmp_path / "classifier.safetensors"), heads=HEADS)
  _, expected = features.load("vjepa2", weights["vjepa2"], heads=HEADS)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def without(key):
  return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def with_(key, value):
  return lambda tensors: tensors | {key: value}


ONES = np.ones((3, 3), np.float32)
BAD = {
  "missing": ("dinov2", without("encoder.layer.1.mlp.fc2.bias"), "lacks encoder.layer.1.mlp.fc2.bias"),
  "missing norm": ("dinov2", without("layernorm.weight"), "lacks layernorm.weight"),
  "missing patch": ("vjepa2", without("encoder.embeddings.patch_embeddings.proj.weight"), "lacks .*proj.weight"),
  "extra": ("dinov2", with_("head.weight", ONES), "has the unknown head.weight"),
  "extra below predictor": ("vjepa2", with_("predictor.extra", ONES), "has the unknown predictor.extra"),
  "extra layer part": ("vjepa2", with_("encoder.layer.0.layer_scale1.lambda1", ONES), "unknown .*lambda1"),
  "misshapen": ("dinov2", with_("encoder.layer.0.mlp.fc1.weight", ONES), r"fc1.weight with shape \(3, 3\), expected"),
  "turned": ("vjepa2", with_("encoder.layer.1.mlp.fc1.weight", np.ones((DIM, HIDDEN), np.float32)), "fc1.weight with"),
  "positions": ("dinov2", with_("embeddings.position_embeddings", np.ones((1, 24, DIM), np.float32)), r"\(1, 24, 28\)"),
  "no numbers": (
    "dinov2",
    with_("embeddings.position_embeddings", np.ones((0, 2**40, 2), np.float32)),
    r"shape \(0, 1099511627776, 2\), expected sizes of 1\.\.65536",
  ),
  "rank": ("dinov2", with_("embeddings.position_embeddings", ONES), "position_embeddings .* expected 3 axes"),
  "whole numbers": ("dinov2", with_("layernorm.bias", np.ones(DIM, np.int32)), "layernorm.bias as int32"),
  "far layer": ("vjepa2", with_("encoder.layer.99999.norm1.bias", ONES), "has a layer 99999"),
  "other net": ("vjepa2", lambda _: dinov2_tensors(), "lacks .* has the unknown|lacks encoder.layernorm.weight"),
  "both prefixes": ("vjepa2", with_("vjepa2.encoder.layernorm.bias", ONES), "with and without the prefix"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_one_sentence(tmp_path, name):
  kind, change, message = BAD[name]
  tensors = change(dinov2_tensors() if kind == "dinov2" else vjepa2_tensors())
  with pytest.raises(ValueError, match=message) as error:
    features.load(kind, write(tensors, tmp_path / "bad.safetensors"), heads=HEADS)
  assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_files_that_are_no_safetensors_are_one_sentence(weights, tmp_path):
  whole = weights["dinov2"].read_bytes()
  (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "weights.pth").write_bytes(pickle.dumps({"cls_token": [1.0]}))
  with pytest.raises(ValueError, match="is no whole safetensors file"):
    features.load("dinov2", tmp_path / "cut.safetensors")
  with pytest.raises(ValueError, match="is a pickle"):
    features.load("dinov2", tmp_path / "weights.pth")
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
    features.load("dinov2", tmp_path / "empty")


def test_bad_arguments_are_one_sentence(weights):
  with pytest.raises(ValueError, match="features are 'clip', expected one of vgg16, dinov2, vjepa2"):
    features.load("clip")
  with pytest.raises(ValueError, match="path of the dinov2 weights is None"):
    features.load("dinov2")
  with pytest.raises(ValueError, match="path of the vgg16 weights is 'x'"):
    features.load("vgg16", "x")
  with pytest.raises(ValueError, match="vjepa2 has no option 'position_offset'"):
    features.load("vjepa2", weights["vjepa2"], heads=HEADS, position_offset=0.1)
  with pytest.raises(ValueError, match="pass heads="):
    features.load("dinov2", weights["dinov2"])
  with pytest.raises(ValueError, match="min_patches is 0"):
    features.load("dinov2", weights["dinov2"], heads=HEADS, min_patches=0)
  net, params = features.load("dinov2", weights["dinov2"], heads=HEADS)
  video = jnp.zeros((1, 9, 8, 8, 3))
  for args, message in (
    ((video[:, :8], (3, 2, 2)), "video has 8 frames, expected 9 for 3 latent steps"),
    ((video[0], (3, 2, 2)), r"expected floats \[B, F, H, W, 3\]"),
    ((video.astype(jnp.uint8), (3, 2, 2)), "video is uint8"),
    ((video, (3, 2, 2), "last"), "reduce is 'last', expected one of mean, first"),
  ):
    with pytest.raises(ValueError, match=message):
      net.targets(params, *args)
