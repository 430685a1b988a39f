"""The loader of sources that give many clips at once, on the host and on a device."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vftok.data import ClipSpec, make_loader
from vftok.data.clip import load_clip
from vftok.data.memory_loader import LISTED, Mix, seeds_of, shuffled
from vftok.data.shapes import ShapesSource
from vftok.data.sources import DATASETS
from vftok.runtime import sharding

SPEC = ClipSpec(frames=3, size=(4, 6), flip=True)
ONE = dict(process_index=0, process_count=1)


class OnDevice:
  """Clips that say who they are: red is the index, green the seed's last 8 bits (0 in evaluation), blue the source."""

  def __init__(self, split, *, count=10, blue=0, fail_at=None, host=False):
    self.count, self.blue, self.fail_at, self.host, self.asked = count, blue, fail_at, host, []
    self.make = jax.jit(self._make)
    self.compiled = 0

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return {"caption": f"{self.blue}:{index}", "label": index}

  def _make(self, indices, seeds):
    self.compiled += 1
    colour = jnp.stack([indices, seeds & 255, jnp.full_like(indices, self.blue)], -1).astype(jnp.uint8)
    return jnp.broadcast_to(colour[:, None, None, None], (len(indices), SPEC.frames, *SPEC.size, 3))

  def take(self, indices, spec, seeds=None):
    if self.fail_at is not None and len(self.asked) == self.fail_at:
      raise ValueError("the world ended")
    self.asked.append(len(indices))
    seeds = np.zeros(len(indices), np.uint64) if seeds is None else seeds
    video = self.make(indices.astype(np.int32), (seeds & np.uint64(255)).astype(np.int32))
    return {"video": np.asarray(video) if self.host else video}


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
  monkeypatch.setitem(DATASETS, "device", OnDevice)


def three(**own):
  return {
    "a": dict(kind="device", count=10, blue=1, weight=0.5),
    "b": dict(kind="device", count=7, blue=2, weight=0.3, host=True),
    "c": dict(kind="device", count=200, blue=3, weight=0.2),
  }


def test_a_batch_on_the_device_is_the_examples_in_their_order():
  with make_loader(three(), SPEC, 19, **ONE) as loader:  # 9.5, 5.7 and 3.8 of each
    for n, batch in zip(range(8), loader, strict=False):
      assert isinstance(batch["video"], jax.Array) and batch["video"].shape == (19, 3, 4, 6, 3)
      pixel = np.asarray(batch["video"])[:, 1, 2, 3]
      seeds = seeds_of(0, np.arange(19 * n, 19 * n + 19)) & np.uint64(255)
      assert pixel[:, 0].tolist() == batch["index"].tolist() == batch["label"].tolist()
      assert pixel[:, 1].tolist() == seeds.tolist()
      assert pixel[:, 2].tolist() == (batch["source"] + 1).tolist()
      assert batch["caption"].tolist() == [f"{s + 1}:{i}" for s, i in zip(batch["source"], batch["index"], strict=True)]
    sources = loader._sources
  assert all(len(set(source.asked)) == 1 and source.compiled == 1 for source in sources), "one shape, one program"
  assert sum(source.asked[0] for source in sources) <= 22, "hardly a clip is made for nothing"


def test_evaluation_pads_and_takes_the_middle():
  with make_loader(three(), SPEC, 20, train=False, **ONE) as loader:
    batches = list(loader)
    assert len(batches) == len(loader) == 11
  video = np.concatenate([np.asarray(batch["video"]) for batch in batches])
  mask = np.concatenate([batch["_mask"] for batch in batches])
  assert mask.sum() == 217 and not video[~mask].any() and not video[..., 1].any()
  assert video[:217, 0, 0, 0, 0].tolist() == [*range(10), *range(7), *range(200)]


def test_numpy_and_device_give_the_same():
  host = {name: {**entry, "host": True} for name, entry in three().items()}
  with make_loader(three(), SPEC, 20, **ONE) as one, make_loader(host, SPEC, 20, **ONE) as other:
    for _, a, b in zip(range(3), one, other, strict=False):
      assert isinstance(b["video"], np.ndarray) and np.array_equal(a["video"], b["video"])


def test_shares_hold_in_every_window():
  weights = [0.62, 0.3, 0.07, 0.01]
  source, _ = Mix([5, 100, 3, 40], weights, 0)(np.arange(100_000, 120_000))
  for i, weight in enumerate(weights):
    before = np.concatenate([[0], np.cumsum(source == i)])
    for window in (16, 100, 1000, 5000):
      counts = before[window:] - before[:-window]
      assert abs(counts - weight * window).max() <= 3 + window / 4096, (i, window)


def test_the_most_that_a_window_holds():
  mix = Mix([50, 60, 70], [0.5, 0.37, 0.13], 0)
  for size in (1, 7, 64, 4096, 5000):
    source, _ = mix(np.arange(4096 + size))
    for i, most in enumerate(mix.most(size)):
      before = np.concatenate([[0], np.cumsum(source == i)])
      assert most == (before[size:] - before[:-size]).max()


def test_every_epoch_shows_each_clip_once_in_an_order_of_its_own():
  source, index = Mix([6, 11], [0.5, 0.5], 3)(np.arange(400))
  for i, length in ((0, 6), (1, 11)):
    drawn = index[source == i]
    epochs = [drawn[k : k + length].tolist() for k in range(0, len(drawn) - length + 1, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10
  far, _ = Mix([6, 11], [0.5, 0.5], 3)(np.array([2**50]))
  assert far.shape == (1,)


def test_long_sources_are_permuted_without_a_list():
  length = LISTED + 3
  found = shuffled(length, (1, 2, 3), np.arange(length))
  assert np.array_equal(np.sort(found), np.arange(length))
  assert not np.array_equal(found, shuffled(length, (1, 2, 4), np.arange(length)))
  assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01


def test_seeds_are_of_the_example_and_of_the_run():
  numbers = np.arange(10_000)
  assert len({*seeds_of(0, numbers).tolist(), *seeds_of(1, numbers).tolist()}) == 20_000


def test_shapes_at_once_are_the_shapes_one_by_one():
  spec = ClipSpec(frames=4, size=(12, 12), flip=True, scale=(0.6, 1.0))
  shapes = ShapesSource(size=(20, 30), count=9)
  indices, seeds = np.array([4, 0, 8]), np.array([7, 8, 2**64 - 1], np.uint64)
  for own in (seeds, None):
    video = shapes.take(indices, spec, own)["video"]
    for k, i in enumerate(indices):
      rng = None if own is None else np.random.default_rng(int(own[k]))
      assert np.array_equal(video[k], load_clip(shapes[i], spec, rng))
  captions, labels = shapes.describe(indices)
  assert captions == [shapes[i]["caption"] for i in indices] and labels == [shapes[i]["label"] for i in indices]


def test_resizing_all_frames_at_once_changes_no_pixel():
  frames = np.random.default_rng(0).integers(0, 256, (5, 21, 30, 3), np.uint8)
  for size, scale in (((16, 16), 1.0), ((9, 20), 0.7), ((30, 30), 1.0), ((21, 16), 0.99)):
    spec = ClipSpec(frames=5, size=size, fps=8.0, scale=(scale, scale))
    clip = load_clip({"frames": frames, "fps": 8.0, "name": "a"}, spec)
    step = min(21 / size[0], 30 / size[1])
    rows, columns = max(size[0], round(21 / step)), max(size[1], round(30 / step))
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    for frame, found in zip(frames, clip, strict=True):
      whole = np.asarray(Image.fromarray(frame).resize((columns, rows), Image.Resampling.BICUBIC))
      assert np.array_equal(found, whole[top : top + size[0], left : left + size[1]])


def test_what_the_source_raises_reaches_the_consumer():
  with make_loader({"a": dict(kind="device", fail_at=2)}, SPEC, 4, **ONE) as loader:
    batches = iter(loader)
    next(batches), next(batches)
    with pytest.raises(ValueError, match="the world ended"):
      next(batches)


def test_a_source_that_gives_the_wrong_shape_is_named():
  other = ClipSpec(frames=5, size=(4, 6))
  with (
    make_loader({"a": dict(kind="device")}, other, 4, **ONE) as loader,
    pytest.raises(ValueError, match=r"source 'a' gave video uint8 \(4, 3, 4, 6, 3\), expected uint8 \(4, 5, 4, 6, 3\)"),
  ):
    next(iter(loader))


def test_two_batches_are_ready_and_close_stops_the_thread():
  before = threading.active_count()
  loader = make_loader({"a": dict(kind="device")}, SPEC, 4, start=400, **ONE)
  assert loader._sources[0].asked == []
  batches = iter(loader)
  end = time.monotonic() + 20
  while len(loader._sources[0].asked) < 3 and time.monotonic() < end:
    time.sleep(0.01)
  time.sleep(0.3)
  assert len(loader._sources[0].asked) == 3  # two ready, one in hand; what was skipped was not made
  assert len(next(batches)["_mask"]) == 4
  loader.close()
  assert threading.active_count() == before and next(batches, None) is None


def test_device_batches_stay_where_they_are(monkeypatch):
  mesh = sharding.make_mesh({"data": -1})
  monkeypatch.setattr(jax, "make_array_from_process_local_data", None)
  video = jnp.ones((2, 3), jnp.uint8)
  assert np.array_equal(sharding.to_devices({"video": video}, mesh)["video"], video)
