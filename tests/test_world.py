"""Painted scenes: pure functions of their number, and captions that are true."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.data import paint, world
from vftok.data.clip import ClipSpec
from vftok.data.sources import make_source
from vftok.data.world import COLOURS, MOTIONS, NAMES, WorldSource, held_out, subjects

COUNT = 48
TIMES = jnp.arange(17) / world.FPS


@pytest.fixture(scope="module")
def source():
  return WorldSource("train", COUNT, size=32)


@pytest.fixture(scope="module")
def scenes(source):
  return source._scenes(range(COUNT))


@pytest.fixture(scope="module")
def seen(scenes):
  """bool [COUNT, F, 48, 48]: where the main object covers a pixel whole."""
  cover = lambda scene: jax.vmap(lambda t: paint._object(scene, 0, t, 48)[0])(TIMES) > 0.99
  return np.asarray(jax.jit(lambda s: jax.lax.map(cover, s))(scenes))


@functools.cache
def _spec(size=32):
  return ClipSpec(size=(size, size))


def test_a_clip_depends_on_its_number_alone(source):
  whole = np.asarray(source.take([3, 1, 7], _spec())["video"])
  longer = WorldSource("train", 10 * COUNT, size=32)
  np.testing.assert_array_equal(whole[2], np.asarray(longer.take([7, 7, 7], _spec())["video"])[0])
  np.testing.assert_array_equal(whole[1], source[1]["frames"])
  others = [WorldSource("val", COUNT, size=32), WorldSource("train", COUNT, size=32, seed=1)]
  for other in others:
    assert (np.asarray(other.take([3, 1, 7], _spec())["video"]) != whole).mean() > 0.5


def test_held_out_combinations_are_in_no_other_split():
  names = [(NAMES["object"][o], NAMES["colour"][c], NAMES["motion"][m]) for o, c, m in subjects(True)]
  assert 0.05 * len(subjects(False)) < len(names) < 0.2 * len(subjects(False))
  assert all(held_out(*name) for name in names)
  for split, novel in (("train", False), ("val", False), ("test", False), ("novel", True)):
    a = WorldSource(split, 512).attributes(range(512))
    rows = zip(*(a[n] for n in ("object", "colour", "motion")), strict=True)
    assert {held_out(*(NAMES[n][i] for n, i in zip(("object", "colour", "motion"), r, strict=True))) for r in rows} == {
      novel
    }


def test_every_value_of_every_attribute_occurs():
  found = WorldSource("train", 2000).attributes(range(2000))
  for name, values in NAMES.items():
    share = np.bincount(found[name], minlength=len(values)) / 2000
    assert share.min() > 0.4 / len(values), name


def test_captions_say_the_attributes(source):
  captions, labels = source.describe(range(COUNT))
  attributes = source.attributes(range(COUNT))
  for i, text in enumerate(captions):
    name = {key: NAMES[key][attributes[key][i]] for key in NAMES}
    assert text.split(" ")[1:3] == [name["colour"], name["object"]]
    assert f" {MOTIONS[name['motion']]} " in text and f" a {name['sky']} sky, " in text
    assert text.count("a small ") == attributes["count"][i]
    assert (name["texture"] == "plain") != (f" {name['texture']} floor " in text)
    assert text.endswith(world.CAMERAS[name["camera"]])
    assert labels[i] == attributes["object"][i]


def test_kept_clips_are_painted_once(source, monkeypatch):
  kept, asked = WorldSource("train", COUNT, size=32, keep=True), []
  paint_all = kept._video
  monkeypatch.setattr(kept, "_video", lambda numbers, *size: asked.append(list(numbers)) or paint_all(numbers, *size))
  for indices in ([3, 1, 1], [1, 3, 7], [7, 3, 3]):
    want = np.asarray(source.take(indices, _spec())["video"])
    np.testing.assert_array_equal(np.asarray(kept.take(indices, _spec())["video"]), want)
  assert asked == [[3, 1, 1], [1, 3, 7]]


@pytest.mark.slow
def test_the_object_has_its_colour(source, scenes, seen):
  video = np.asarray(WorldSource("train", COUNT, size=48).take(range(COUNT), _spec(48))["video"]) / 255.0
  table = np.array(list(COLOURS.values()))
  right = total = 0
  for i in np.flatnonzero(np.asarray(scenes.count) == 1):
    pixels = video[i][seen[i]].mean(0)  # lit and shaded: only the hue counts
    hue = lambda c: c / c.max(-1, keepdims=True)
    right += np.abs(hue(table) - hue(pixels)).sum(1).argmin() == scenes.colour[i, 0]
    total += 1
  assert total > 8 and right == total


@pytest.mark.slow
def test_the_object_moves_as_said(scenes, seen):
  """Where the camera stands still: the middle of the object's pixels, and how many there are."""
  rows, columns = np.mgrid[:48, :48]
  middle = lambda mask, axis: (axis * mask).sum() / mask.sum()
  shown = set()
  for i in np.flatnonzero(np.asarray(scenes.camera) == 0):
    motion, first, last = NAMES["motion"][int(scenes.motion[i, 0])], seen[i, 0], seen[i, -1]
    if not first.any() or not last.any():
      continue
    across = middle(last, columns) - middle(first, columns)
    down, grown = middle(last, rows) - middle(first, rows), last.sum() / first.sum()
    true = {
      "left": across < -5,
      "right": across > 5,
      "towards": grown > 1.3,
      "away": grown < 0.8,
      "fall": down > 4,
      "still": (seen[i] == first).all(),
      "spin": abs(across) < 1.5,
      "bounce": max(abs(middle(m, rows) - middle(first, rows)) for m in seen[i]) > 3,
    }[motion]
    assert true, (i, motion, across, down, grown)
    shown.add(motion)
  assert len(shown) >= 6


def test_nobody_is_asked_to_see_a_ball_spin():
  round_ones = [list(NAMES["object"]).index(name) for name in world.ROUND]
  spin = list(MOTIONS).index("spin")
  scenes = WorldSource("train", 2000)._scenes(range(2000))
  assert not np.isin(np.asarray(scenes.shape), round_ones)[np.asarray(scenes.motion) == spin].any()


@pytest.mark.parametrize(
  "options, words",
  [(dict(split="all"), "split is 'all'"), (dict(count=0), "count is 0"), (dict(size=4), "size is 4"),
   (dict(objects=4), "objects is 4"), (dict(scale=3.0), "scale is 3.0")],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, words):
  with pytest.raises(ValueError, match=words):
    make_source("world", options.pop("split", "train"), options)


def test_a_loader_of_another_size_is_told(source):
  with pytest.raises(ValueError, match="give the source the same size"):
    source.take([0], ClipSpec(size=(16, 16)))
  with pytest.raises(IndexError, match="the source has so many clips"):
    source.take([COUNT], _spec())


def test_plain_scenes_are_the_same_but_for_floor_and_camera():
  rich, plain = (WorldSource("val", 64, size=16, frames=2, plain=plain) for plain in (False, True))
  of, here = rich.attributes(range(64)), plain.attributes(range(64))
  assert of["texture"].any() and of["camera"].any() and not here["texture"].any() and not here["camera"].any()
  for name in ("object", "colour", "motion", "count", "floor", "sky"):
    np.testing.assert_array_equal(of[name], here[name])
  assert (rich[5]["frames"] != plain[5]["frames"]).any() and "still camera" in plain[5]["caption"]


def test_scale_makes_objects_larger_and_changes_no_scene():
  usual, large = (WorldSource("val", 16, size=16, frames=2, objects=1, plain=True, scale=scale) for scale in (1.0, 1.6))
  of, here = usual.attributes(range(16)), large.attributes(range(16))
  for name in of:
    np.testing.assert_array_equal(of[name], here[name])
  sizes = [np.asarray(source._scenes(range(16)).size) for source in (usual, large)]
  np.testing.assert_allclose(sizes[1], np.float32(1.6) * sizes[0], rtol=1e-6)
  pictures = [source[2]["frames"].astype(int) for source in (usual, large)]
  assert (pictures[0] != pictures[1]).any(-1).mean() > 0.05
