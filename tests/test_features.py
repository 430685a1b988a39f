"""Frozen feature nets: against plain NumPy, strict conversion, frame groups, sizes."""

import functools
import math
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from vftok import features
from vftok.evals.nets import vgg
from vftok.evals.nets import weights as weights_of_nets
from vftok.features import convert, frames
from vftok.features.dinov2 import DINOv2, cubic_matrix
from vftok.features.vit import ViTConfig
from vftok.features.vjepa2 import VJEPA2

# Each program runs once on a handful of numbers: compiling it is all the cost.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DIM, DEPTH, HEADS, HIDDEN = 28, 2, 2, 40
PATCH, TABLE, REGISTERS = 4, 5, 2
GRID = (3, 4)  # of the images and clips below
SPLIT = {"dinov2": "attention.attention.", "vjepa2": "attention."}


def layer_tensors(rng, layer, qkv, proj, scales):
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  tensors = {}
  for name in ("norm1", "norm2"):
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = 1 + normal(DIM), normal(DIM)
  for name in qkv:
    rows = DIM * 3 // len(qkv)
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = normal(rows, DIM), normal(rows)
  for name, out, inputs in ((proj, DIM, DIM), ("mlp.fc1", HIDDEN, DIM), ("mlp.fc2", DIM, HIDDEN)):
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = normal(out, inputs), normal(out)
  return tensors | {f"{layer}.{name}": 1 + normal(DIM) for name in scales}


def dinov2_tensors(registers=0, seed=0):
  """The layout of transformers, with the mask token that we do not need."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  tensors = {
    "embeddings.cls_token": normal(1, 1, DIM),
    "embeddings.mask_token": normal(1, DIM),
    "embeddings.position_embeddings": normal(1, 1 + TABLE**2, DIM),
    "embeddings.patch_embeddings.projection.weight": normal(DIM, 3, PATCH, PATCH),
    "embeddings.patch_embeddings.projection.bias": normal(DIM),
    "layernorm.weight": 1 + normal(DIM),
    "layernorm.bias": normal(DIM),
  }
  if registers:
    tensors["embeddings.register_tokens"] = normal(1, registers, DIM)
  for i in range(DEPTH):
    qkv = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    scales = ("layer_scale1.lambda1", "layer_scale2.lambda1")
    tensors |= layer_tensors(rng, f"encoder.layer.{i}", qkv, "attention.output.dense", scales)
  return tensors


def hub_layout(tensors):
  """The same DINOv2 under the keys of torch.hub, query, key and value in one tensor."""
  renames = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer", "blocks"),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm", "norm"),
  )
  out = {}
  for key, value in tensors.items():
    for old, new in renames:
      key = key.replace(old, new)
    if ".query." in key:
      parts = [value] + [tensors[old] for old in (swap(key, "key"), swap(key, "value"))]
      out[key.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    elif ".key." not in key and ".value." not in key:
      out[key] = value
  return out


def swap(key, name):
  return key.replace("blocks", "encoder.layer").replace("query", name)


def vjepa2_tensors(seed=0):
  """The layout of transformers, with a predictor and, as in a classifier, a pooler; neither is needed."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  qkv = [f"attention.{name}" for name in ("query", "key", "value")]
  tensors = {
    "encoder.embeddings.patch_embeddings.proj.weight": normal(DIM, 3, 2, PATCH, PATCH),
    "encoder.embeddings.patch_embeddings.proj.bias": normal(DIM),
    "encoder.layernorm.weight": 1 + normal(DIM),
    "encoder.layernorm.bias": normal(DIM),
    "predictor.embeddings.mask_tokens": normal(10, 1, 1, 8),
    "predictor.embeddings.predictor_embeddings.weight": normal(8, DIM),
    "predictor.proj.bias": normal(DIM),
  }
  for i in range(DEPTH):
    tensors |= layer_tensors(rng, f"encoder.layer.{i}", qkv, "attention.proj", ())
  tensors |= layer_tensors(rng, "predictor.layer.0", qkv, "attention.proj", ())
  return tensors


def write(tensors, path):
  save_file(tensors, path)
  return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  directory = tmp_path_factory.mktemp("features")
  return {
    "dinov2": write(dinov2_tensors(), directory / "dinov2.safetensors"),
    "registers": write(dinov2_tensors(REGISTERS), directory / "registers.safetensors"),
    "vjepa2": write(vjepa2_tensors(), directory / "vjepa2.safetensors"),
  }


@functools.partial(fast_jit, static_argnums=0)
def apply(net, params, inputs):
  return net.apply(params, inputs)


@functools.partial(fast_jit, static_argnums=(0, 3, 4))
def targets(net, params, video, grid, reduce="mean"):
  return net.targets(params, video, grid, reduce)


# ---- the nets against plain NumPy in float64


def layer_norm(x, tensors, key):
  centered = x - x.mean(-1, keepdims=True)
  scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
  return scaled * tensors[f"{key}.weight"] + tensors[f"{key}.bias"]


def oracle_layers(x_NxD, tensors, kind, turn):
  """All layers of one sample, head by head; `turn` is applied to queries and keys [N, head_dim]."""
  linear = lambda x, key: x @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"]
  e = DIM // HEADS
  for i in range(DEPTH):
    at = f"encoder.layer.{i}"
    y = layer_norm(x_NxD, tensors, f"{at}.norm1")
    q, k, v = (linear(y, f"{at}.{SPLIT[kind]}{name}") for name in ("query", "key", "value"))
    heads = []
    for n in range(HEADS):
      part = slice(n * e, (n + 1) * e)
      logits = turn(q[:, part]) @ turn(k[:, part]).T / math.sqrt(e)
      p = np.exp(logits - logits.max(-1, keepdims=True))
      heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
    proj = "attention.output.dense" if kind == "dinov2" else "attention.proj"
    y = linear(np.concatenate(heads, -1), f"{at}.{proj}")
    x_NxD = x_NxD + y * tensors.get(f"{at}.layer_scale1.lambda1", 1.0)
    y = linear(layer_norm(x_NxD, tensors, f"{at}.norm2"), f"{at}.mlp.fc1")
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    x_NxD = x_NxD + linear(y, f"{at}.mlp.fc2") * tensors.get(f"{at}.layer_scale2.lambda1", 1.0)
  return x_NxD


def cubic(x, a):
  x = abs(x)
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resample(values, n, offset=0.0):
  """PyTorch's bicubic along axis 0, entry by entry: a = -0.75, indices clamped."""
  size, out = len(values), []
  for i in range(n):
    at = (i + 0.5) * size / (n + offset) - 0.5
    taps = [math.floor(at) + j for j in (-1, 0, 1, 2)]
    out.append(sum(cubic(at - tap, -0.75) * values[min(max(tap, 0), size - 1)] for tap in taps))
  return np.stack(out)


def resample_antialiased(values, n):
  """Pillow's bicubic along axis 0: a = -0.5, widened where it shrinks, weights divided by their sum."""
  size, out = len(values), []
  wide = max(size / n, 1.0)
  for i in range(n):
    at = (i + 0.5) * size / n - 0.5
    w = np.array([cubic((at - j) / wide, -0.5) for j in range(size)])
    out.append(np.tensordot(w / w.sum(), values, 1))
  return np.stack(out)


def oracle_dinov2(image_HxWx3, tensors, registers, offset=0.0):
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  h, w = image_HxWx3.shape[0] // PATCH, image_HxWx3.shape[1] // PATCH
  patches = np.zeros((h, w, DIM))
  for i in range(h):
    for j in range(w):
      window = image_HxWx3[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH].transpose(2, 0, 1)
      patches[i, j] = (tensors["embeddings.patch_embeddings.projection.weight"] * window).sum((1, 2, 3))
  patches += tensors["embeddings.patch_embeddings.projection.bias"]
  positions = tensors["embeddings.position_embeddings"][0]
  table = positions[1:].reshape(TABLE, TABLE, DIM)
  fn = resample_antialiased if registers else functools.partial(resample, offset=offset)
  if (h, w) != (TABLE, TABLE):
    table = fn(fn(table, h).swapaxes(0, 1), w).swapaxes(0, 1)
  first = [tensors["embeddings.cls_token"][0, 0] + positions[0]]
  first += list(tensors["embeddings.register_tokens"][0]) if registers else []
  x = np.concatenate([np.stack(first), (patches + table).reshape(h * w, DIM)])
  x = layer_norm(oracle_layers(x, tensors, "dinov2", lambda x: x), tensors, "layernorm")
  return x[len(first) :].reshape(h, w, DIM), x[0]


@pytest.mark.parametrize(
  "size,registers,offset",
  [(GRID, 0, 0.0), ((TABLE, TABLE), 0, 0.1), ((7, 6), 0, 0.1), (GRID, REGISTERS, 0.0), ((7, 6), REGISTERS, 0.0)],
)
def test_dinov2_equals_the_oracle(weights, size, registers, offset):
  path = weights["registers" if registers else "dinov2"]
  net, params = features.load("dinov2", path, heads=HEADS, position_offset=offset)
  assert net == DINOv2(ViTConfig(DIM, DEPTH, HEADS, HIDDEN, True), PATCH, TABLE, registers, offset)
  images = np.random.default_rng(1).normal(size=(2, size[0] * PATCH, size[1] * PATCH, 3))
  patches, classes = apply(net, params, jnp.asarray(images, jnp.float32))
  assert patches.shape == (2, *size, DIM) and classes.shape == (2, DIM)
  for n in range(2):
    expected_patches, expected_class = oracle_dinov2(images[n], load_file(path), registers, offset)
    np.testing.assert_allclose(patches[n], expected_patches, atol=1e-4)
    np.testing.assert_allclose(classes[n], expected_class, atol=1e-4)


def oracle_turn(x_NxE, grid):
  """V-JEPA 2's RoPE, channel by channel: its two channels of a pair take different frequencies."""
  size = 2 * (x_NxE.shape[1] // 3 // 2)
  frequency = [10000 ** (-k / (size / 2)) for k in range(size // 2)]
  out = x_NxE.copy()
  for token, position in enumerate(np.ndindex(*grid)):
    for axis in range(3):
      for c in range(size):
        at, angle = axis * size + c, position[axis] * frequency[c % (size // 2)]
        partner = -x_NxE[token, at + 1] if c % 2 == 0 else x_NxE[token, at - 1]
        out[token, at] = x_NxE[token, at] * math.cos(angle) + partner * math.sin(angle)
  return out


def oracle_vjepa2(video_FxHxWx3, tensors):
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  grid = (len(video_FxHxWx3) // 2, video_FxHxWx3.shape[1] // PATCH, video_FxHxWx3.shape[2] // PATCH)
  x = np.zeros((*grid, DIM))
  for t, i, j in np.ndindex(*grid):
    window = video_FxHxWx3[2 * t : 2 * t + 2, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
    x[t, i, j] = (tensors["encoder.embeddings.patch_embeddings.proj.weight"] * window.transpose(3, 0, 1, 2)).sum(
      (1, 2, 3, 4)
    )
  x = (x + tensors["encoder.embeddings.patch_embeddings.proj.bias"]).reshape(-1, DIM)
  x = oracle_layers(x, tensors, "vjepa2", lambda x: oracle_turn(x, grid))
  return layer_norm(x, tensors, "encoder.layernorm").reshape(*grid, DIM)


def test_vjepa2_equals_the_oracle(weights):
  net, params = features.load("vjepa2", weights["vjepa2"], heads=HEADS)
  assert net == VJEPA2(ViTConfig(DIM, DEPTH, HEADS, HIDDEN), PATCH, 2)
  video = np.random.default_rng(1).normal(size=(2, 6, GRID[0] * PATCH, GRID[1] * PATCH, 3))
  out = apply(net, params, jnp.asarray(video, jnp.float32))
  for n in range(2):
    np.testing.assert_allclose(out[n], oracle_vjepa2(video[n], load_file(weights["vjepa2"])), atol=1e-4)


def test_bfloat16_is_close_and_returns_float32(weights):
  images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 12, 16, 3)), jnp.float32)
  outputs = []
  for dtype in ("float32", "bfloat16"):
    net, params = features.load("dinov2", weights["dinov2"], heads=HEADS, dtype=dtype)
    outputs.append(np.asarray(apply(net, params, images)[0]))
  assert outputs[1].dtype == np.float32 and np.any(outputs[0] != outputs[1])
  np.testing.assert_allclose(outputs[1], outputs[0], atol=0.1 * np.abs(outputs[0]).max())


def test_position_interpolation():
  np.testing.assert_allclose(cubic_matrix(37, 37), np.eye(37), atol=1e-12)
  for n in (16, 40):
    matrix = cubic_matrix(37, n)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix, resample(np.eye(37), n), atol=1e-12)
  # PyTorch samples 37 -> 16 at every 2.3125; the first output sits 0.65625 beyond entry 0.
  row = cubic_matrix(37, 16)[0]
  x = 0.65625
  np.testing.assert_allclose(
    row[:4], [cubic(1 + x, -0.75) + cubic(x, -0.75), cubic(1 - x, -0.75), cubic(2 - x, -0.75), 0], atol=1e-12
  )


# ---- sizes


@pytest.mark.parametrize("dim,heads,published", [(384, 6, 22_056_576), (768, 12, 86_580_480), (1024, 16, 304_368_640)])
def test_dinov2_has_the_published_number_of_parameters(dim, heads, published):
  net = DINOv2(ViTConfig(dim, 24 if dim == 1024 else 12, heads, 4 * dim, True))
  count = sum(math.prod(leaf.shape) for leaf in convert.abstract_params(net).values())
  assert count + dim == published  # the mask token is theirs alone


def test_vjepa2_large_has_303_9_million_parameters():
  d = 1024
  layer = 4 * (d * d + d) + 2 * 4 * d * d + 5 * d + 4 * d
  assert sum(math.prod(leaf.shape) for leaf in convert.abstract_params(VJEPA2()).values()) == (
    24 * layer + 2 * d + 2 * 16 * 16 * 3 * d + d
  )


# ---- conversion


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
  with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
    features.load("dinov2", tmp_path)


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


# ---- targets


def normalised(video):
  return np.float32(((np.asarray(video) + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])


def clip(size, frames=9):
  return jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, frames, *size, 3)), jnp.float32)


@pytest.mark.parametrize("reduce", ["mean", "first"])
def test_dinov2_targets_group_frames_and_average_cells(weights, reduce):
  """Frames 0 | 1-4 | 5-8, and 2 x 2 cells a patch where the patch grid is below min_patches."""
  net, params = features.load("dinov2", weights["dinov2"], heads=HEADS, min_patches=4)
  video = clip((4 * PATCH, 6 * PATCH))  # just the input size: no resampling in this test
  out = targets(net, params, video, (3, 2, 3), reduce)
  cells, per_frame = zip(*(apply(net, params, normalised(video[:, f])) for f in range(9)), strict=True)
  groups = {"mean": [[0], [1, 2, 3, 4], [5, 6, 7, 8]], "first": [[0], [1], [5]]}[reduce]
  assert out.shape == (2, 3, 2, 3, DIM) and out.dtype == jnp.float32
  for t, group in enumerate(groups):
    expected = np.mean([np.asarray(cells[f]) for f in group], axis=0)
    for i, j in np.ndindex(2, 3):
      patch = expected[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
      np.testing.assert_allclose(out[:, t, i, j], patch, atol=2e-5)
  patches, classes = fast_jit(lambda p, v: net.targets_with_class(p, v, (3, 2, 3), reduce))(params, video)
  np.testing.assert_allclose(patches, out, atol=2e-5)
  expected = np.stack([np.mean([np.asarray(per_frame[f]) for f in group], axis=0) for group in groups], axis=1)
  np.testing.assert_allclose(classes, expected, atol=2e-5)


@pytest.mark.parametrize("reduce", ["mean", "first"])
def test_vjepa2_targets_take_one_tubelet_then_two(weights, reduce):
  net, params = features.load("vjepa2", weights["vjepa2"], heads=HEADS, min_patches=1)
  video = clip((2 * PATCH, 3 * PATCH))
  out = targets(net, params, video, (3, 2, 3), reduce)
  order = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
  tubelets = np.asarray(apply(net, params, normalised(video[:, np.asarray(order)])))
  groups = {"mean": [[0], [1, 2], [3, 4]], "first": [[0], [1], [3]]}[reduce]
  expected = np.stack([tubelets[:, group].mean(1) for group in groups], axis=1)
  np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("size,grid,side", [((32, 32), (8, 8), 32), ((16, 16), (16, 16), 32), ((24, 48), (6, 12), 24)])
def test_vgg16_targets(monkeypatch, size, grid, side):
  """Frames are enlarged where the patch grid needs it; otherwise cells of their own size are averaged."""
  trunk = nn.unbox(jax.eval_shape(lambda: vgg.VGG16(vgg.VGG_LAYERS).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))
  trunk = {name: value for name, value in trunk["params"].items() if name < "conv3"}
  rng = np.random.default_rng(3)
  trunk = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), trunk)
  monkeypatch.setattr(weights_of_nets, "load_lpips", lambda net: {"trunk": trunk, "heads": {}})
  net, params = features.load("vgg16", layer="relu2_2")
  assert (net.dim, net.stride, features.FEATURES.keys()) == (128, 2, {"vgg16", "dinov2", "vjepa2"})
  video = clip(size, frames=5)
  out = targets(net, params, video, (2, *grid))
  enlarged = frames.resize(video, (side, side * size[1] // size[0]), "cubic")
  relu = fast_jit(lambda x: vgg.vgg_features(params, x, ("relu2_2",))["relu2_2"])
  cells = np.stack([relu(enlarged[:, f]) for f in range(5)], axis=1)
  n = cells.shape[2] // grid[0]
  cells = cells.reshape(2, 5, grid[0], n, grid[1], n, 128).mean((3, 5))
  np.testing.assert_allclose(out, np.stack([cells[:, 0], cells[:, 1:].mean(1)], axis=1), rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="layer is 'relu6_1'"):
    features.load("vgg16", layer="relu6_1")


def test_a_single_frame_is_one_step(weights):
  for kind in ("dinov2", "vjepa2"):
    net, params = features.load(kind, weights[kind], heads=HEADS, min_patches=1)
    assert targets(net, params, clip((8, 8), frames=1), (1, 2, 2)).shape == (2, 1, 2, 2, DIM)


def test_targets_carry_no_gradient(weights):
  net, params = features.load("dinov2", weights["dinov2"], heads=HEADS, min_patches=1)
  loss = lambda p, v: jnp.sum(net.targets(p, v, (1, 2, 2)) ** 2)
  gradients = fast_jit(jax.grad(loss, argnums=(0, 1)))(params, clip((8, 8), frames=1))
  assert all(not np.any(g) for g in jax.tree.leaves(gradients))


def test_grid_and_input_sizes():
  dino, jepa = DINOv2(), VJEPA2()
  assert dino.grid((2, 5, 32, 32, 16)) == (5, 16, 16) and jepa.grid((5, 8, 12, 16), (1, 1, 1)) == (5, 8, 12)
  assert [dino.multiple(grid, (0, 0)) for grid in ((16, 16), (32, 32), (8, 8), (4, 4), (5, 9))] == [1, 1, 2, 4, 4]
  assert (dino.dim, dino.stride, jepa.dim, jepa.stride) == (1024, 14, 1024, 16)
  assert hash(dino) == hash(DINOv2())


@pytest.mark.parametrize("method,pil", [("cubic", Image.Resampling.BICUBIC), ("linear", Image.Resampling.BILINEAR)])
@pytest.mark.parametrize("size", [(28, 42), (11, 9)])
def test_frames_are_resized_as_pillow_does(method, pil, size):
  frame = np.random.default_rng(0).uniform(-1, 1, (20, 18, 3)).astype(np.float32)
  out = frames.resize(jnp.asarray(frame)[None, None], size, method)[0, 0]
  for c in range(3):
    expected = np.asarray(Image.fromarray(frame[..., c]).resize(size[::-1], pil))
    np.testing.assert_allclose(out[..., c], np.clip(expected, -1, 1), atol=2e-5)
