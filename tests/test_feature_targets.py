"""Targets from frozen feature nets: frame groups, cells, sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_files import DIM, HEADS, PATCH, apply, fast_jit, targets
from PIL import Image

from vftok.frozen import features
from vftok.frozen.features import frames
from vftok.frozen.features.dinov2 import DINOv2
from vftok.frozen.features.vjepa2 import VJEPA2
from vftok.frozen.metrics import vgg
from vftok.frozen.metrics import weights as weights_of_nets


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
