"""The sim source: pure, splits apart, and captions that say what the pixels show."""

import pickle
import re

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="the sim source needs the extra: pip install 'vftok[sim]'")

from vftok.data import sim
from vftok.data.sim import COLOURS, FLOORS, MOTIONS, SKIES, SimSource, held_out
from vftok.data.sim_meshes import OBJECTS, ROUND, mesh


def scene_of(**wanted):
  """(attributes, frames uint8 [F, 32, 32, 3]) of the first clip with these attributes."""
  source = SimSource("train", 100_000, size=32, frames=wanted.pop("frames", 9), **wanted.pop("options", {}))
  for i in range(len(source)):
    scene = source.attributes(i)
    if all(scene[key] == value for key, value in wanted.items()):
      return scene, source[i]["frames"]
  raise AssertionError(f"no clip has {wanted}")


def where(frames, colour):
  """(x, y, area) per frame of the pixels nearest in hue to `colour`: fractions of the picture."""
  rgb = frames.astype(float) / 255
  chroma = rgb / (np.linalg.norm(rgb, axis=-1, keepdims=True) + 1e-6)
  wanted = np.array(COLOURS[colour]) / np.linalg.norm(COLOURS[colour])
  out = []
  for picture in chroma @ wanted > 0.97:
    y, x = np.nonzero(picture)
    out.append((x.mean() / picture.shape[1], y.mean() / picture.shape[0], picture.mean()))
  return np.array(out).T


def test_example():
  source = SimSource("train", 50, size=32, frames=5)
  example, scene = source[7], source.attributes(7)
  assert example["frames"].shape == (5, 32, 32, 3) and example["frames"].dtype == np.uint8
  assert source.label_names[example["label"]] == scene["object"]
  assert example["name"] == "sim/train/7" and example["fps"] == 8.0
  article = "an" if scene["colour"] == "orange" else "a"
  assert example["caption"] == (
    f"{article} {scene['colour']} {scene['object']} {MOTIONS[scene['motion']]} on a {scene['floor']} floor "
    f"under a {scene['sky']} sky, still camera"
  )


def test_pure_in_any_order_and_after_pickling():
  source = SimSource("val", 50, size=32, frames=3, second_object=0.5, cameras=("still", "rise"))
  copy = pickle.loads(pickle.dumps(source))
  assert len(pickle.dumps(source)) < 20_000
  forward = [source[i]["frames"] for i in (0, 1, 2, 3)]
  backward = [copy[i]["frames"] for i in (3, 2, 1, 0)][::-1]
  np.testing.assert_array_equal(forward, backward)
  longer = SimSource("val", 5000, size=32, frames=3, second_object=0.5, cameras=("still", "rise"))
  np.testing.assert_array_equal(longer[2]["frames"], forward[2])


def test_threads_do_not_mix_scenes():
  from concurrent.futures import ThreadPoolExecutor

  source = SimSource("train", 50, size=16, frames=3)
  alone = [source[i]["frames"] for i in range(8)]
  with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda i: source[i]["frames"], range(8)))
  np.testing.assert_array_equal(alone, together)


def test_splits_are_apart():
  subjects, scenes = {}, {}
  for split in sim.SPLITS:
    source = SimSource(split, 3000)
    drawn = [source.attributes(i) for i in range(3000)]
    subjects[split] = {(s["object"], s["colour"], s["motion"]) for s in drawn}
    # The random state after drawing the names places the object: equal states would be equal scenes.
    scenes[split] = {source._scene(i)[1].random() for i in range(3000)}
  assert not subjects["test"] & (subjects["train"] | subjects["val"])
  assert all(held_out(*s) for s in subjects["test"]) and len(subjects["test"]) >= 10
  assert not scenes["train"] & scenes["val"] and not scenes["train"] & scenes["test"]
  for place, names in enumerate((("cube", "ball", "cone", "ring", "duck"), COLOURS, MOTIONS)):
    for split in ("train", "val"):
      assert {s[place] for s in subjects[split]} == set(names), "every word of a test caption occurs in training"


def test_what_cannot_be_seen_does_not_occur():
  source = SimSource("train", 2000, objects=OBJECTS)
  drawn = [source.attributes(i) for i in range(2000)]
  assert not [s for s in drawn if s["object"] in ROUND and s["motion"] == "spin"]
  assert [s for s in drawn if s["motion"] == "spin"]


@pytest.mark.parametrize("colour", COLOURS)
def test_colour_of_every_object_is_the_caption_s(colour):
  for name in OBJECTS:
    scene = {"object": name, "colour": colour, "motion": "still", "camera": "still", "floor": "grey", "sky": "dark"}
    frames = sim._render(scene | {"second": None}, np.random.default_rng(0), 32, 1)
    _, _, area = where(frames, colour)
    assert 0.03 < area[0] < 0.4, f"{name}: {area[0]:.3f} of the picture is {colour}"


def test_motions_move_as_they_say():
  options = {"objects": ("ball", "cube"), "colours": ("red", "blue"), "floors": ("grey",)}
  for motion in MOTIONS:
    scene, frames = scene_of(motion=motion, options=options)
    x, y, area = where(frames, scene["colour"])
    if motion in ("left", "right"):
      assert (x[-1] - x[0]) * (1 if motion == "right" else -1) > 0.4
    elif motion in ("towards", "away"):
      growth = area[-1] / area[0]
      assert (growth if motion == "towards" else 1 / growth) > 2.5
    elif motion == "jump":
      assert y[0] - y.min() > 0.15 and abs(y[-1] - y[0]) < 0.03
    elif motion == "spin":
      assert np.ptp(x) < 0.05 and np.ptp(y) < 0.05 and np.abs(np.diff(frames.astype(int), axis=0)).max() > 40
    else:
      np.testing.assert_array_equal(frames, np.broadcast_to(frames[:1], frames.shape))
    assert area.min() > 0.02, "the object is in sight all the time"


def test_object_is_large_enough():
  scene, frames = scene_of(motion="still", object="cube", frames=1)
  rows = np.abs(frames[0].astype(int) - frames[0, :, :1].astype(int)).sum(-1).max(1) > 60
  assert 0.3 < rows.mean() < 0.55, scene


def test_floor_and_sky():
  for floor in FLOORS:
    for sky in SKIES:
      scene = {"object": "cube", "colour": "red", "motion": "still", "camera": "still", "second": None}
      picture = sim._render(scene | {"floor": floor, "sky": sky}, np.random.default_rng(0), 32, 1)[0]
      np.testing.assert_allclose(picture[0] / 255, np.broadcast_to(SKIES[sky], (32, 3)), atol=0.01)
      shade = picture[-1].astype(float) / 255 - FLOORS[floor]
      assert np.abs(shade).max() < 0.12


def test_camera_moves_the_horizon():
  options = {"cameras": ("rise", "sink"), "skies": ("dark",), "floors": ("white",)}
  for camera, sign in (("rise", 1), ("sink", -1)):
    _, frames = scene_of(camera=camera, motion="still", options=options)
    horizon = (frames[:, :, 0].mean(-1) < 100).mean(1)  # the share of dark rows at the left edge
    assert sign * (horizon[0] - horizon[-1]) > 0.1


def test_second_object_has_another_colour():
  source = SimSource("train", 300, second_object=1.0, size=32, frames=1)
  for i in range(300):
    scene = source.attributes(i)
    assert scene["second"][1] != scene["colour"]
  scene, example = source.attributes(3), source[3]
  thing, colour = scene["second"]
  assert f"a small {colour} {thing} beside it" in example["caption"]
  assert where(example["frames"], colour)[2][0] > 0.005


def test_meshes_are_upright_and_closed():
  for name in OBJECTS:
    m = mesh(name)
    size = np.ptp(m.vertices, axis=0)
    assert m.vertices[:, 2].min() == pytest.approx(0, abs=1e-9) and 0.8 < size.max() < 1.2
    np.testing.assert_allclose((m.vertices.min(0) + m.vertices.max(0))[:2], 0, atol=1e-9)
    a, b, c = (m.vertices[m.triangles[:, i]] for i in range(3))
    assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0, f"{name} is inside out"


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"objects": ("sofa",)}, "objects is ('sofa',), expected one or more of cube"),
    ({"colours": ()}, "colours is (), expected one or more of red"),
    ({"split": "eval"}, "split is 'eval', expected one of train, val, test"),
    ({"size": 4}, "size is 4, expected 8 to 512"),
    ({"frames": 0}, "frames is 0, expected 1"),
    ({"second_object": 2}, "second_object is 2, expected a probability"),
    ({"second_object": 0.5, "colours": ("red",)}, "expected two or more"),
    ({"objects": ("ball",), "motions": ("spin",)}, "leave nothing for train"),
  ],
)
def test_bad_options(options, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    SimSource(**({"split": "train"} | options))


def test_index_out_of_range():
  with pytest.raises(IndexError, match="index is 5, expected 0 to 4"):
    SimSource("train", 5)[5]


def test_prepared_set_equals_the_source(tmp_path, monkeypatch, capsys):
  """Killed in the middle, run again: nothing is there, then everything, and what was rendered is not again."""
  from vftok.data.tfds_source import TfdsSource, open_tfds
  from vftok.tools import prepare_sim

  monkeypatch.setattr(prepare_sim, "CHUNK", 2)
  out, render, rendered = tmp_path / "set", sim._render, []

  def interrupted(*args):
    if len(rendered) == 5:
      raise KeyboardInterrupt
    return rendered.append(args) or render(*args)

  command = ["--out", str(out), "--count", "6", "--val", "2", "--test", "2", "--size", "16", "--frames", "3"]
  monkeypatch.setattr(sim, "_render", interrupted)
  assert prepare_sim.main(command) == 130 and "the same command goes on" in capsys.readouterr().err
  assert not out.exists()
  rendered.clear()
  monkeypatch.setattr(sim, "_render", lambda *args: rendered.append(args) or render(*args))
  monkeypatch.setattr(prepare_sim, "_sheet", lambda *args: None)
  prepare_sim.main(command)
  assert len(rendered) == 6, "4 of the 10 clips were whole chunks before"
  assert sorted(path.name for path in out.iterdir()) == ["recipe.json", "vftok_sim"]
  assert [path.name for path in tmp_path.iterdir()] == ["set"]
  for split, count in (("train", 6), ("val", 2), ("test", 2)):
    source = SimSource(split, count, size=16, frames=3)
    read = TfdsSource(open_tfds(out), split, video="frames")
    assert len(read) == count and read.label_names == OBJECTS
    for i in range(count):
      one, other = read[i], source[i]
      np.testing.assert_array_equal(one["frames"], other["frames"])
      assert all(one[key] == other[key] for key in ("caption", "label", "fps"))
  rendered.clear()
  prepare_sim.main(command)
  assert "already there" in capsys.readouterr().out and not rendered
