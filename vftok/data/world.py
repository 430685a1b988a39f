"""`world`: scenes whose every attribute is known, drawn and painted by JAX on whatever device there is.

A scene is a pure function of (seed, split, index): one to three objects of eight shapes and eight colours, a textured
floor, a sky, a light, a camera that may move. Millions of them cost no disk, no download and no worker process; on an
accelerator a batch is painted there and never leaves it. Nothing may make a caption lie: what cannot be seen (a ball
that spins) does not occur.

`draw` turns uniform numbers into a Scene, `vftok/data/paint.py` turns a Scene into frames.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from vftok.data.paint import OBJECTS, Scene, paint
from vftok.io.sides import NoSuchSplit

FPS = 8.0
COLOURS = {
  "red": (0.86, 0.10, 0.10),
  "orange": (1.00, 0.50, 0.05),
  "yellow": (0.98, 0.88, 0.12),
  "green": (0.10, 0.65, 0.18),
  "cyan": (0.15, 0.80, 0.85),
  "blue": (0.12, 0.22, 0.90),
  "purple": (0.58, 0.16, 0.76),
  "white": (0.97, 0.97, 0.97),
}
MOTIONS = {
  "still": "stands still",
  "left": "slides to the left",
  "right": "slides to the right",
  "towards": "comes closer",
  "away": "goes away",
  "bounce": "bounces",
  "fall": "falls down",
  "spin": "spins around",
}
FLOORS = {
  "grey": (0.50, 0.50, 0.52),
  "brown": (0.45, 0.30, 0.20),
  "sand": (0.80, 0.70, 0.52),
  "olive": (0.42, 0.48, 0.28),
  "slate": (0.30, 0.36, 0.48),
}
TEXTURES = ("plain", "checkered", "striped", "dotted")
SKIES = {
  "blue": (0.55, 0.76, 0.97),
  "pink": (0.97, 0.70, 0.76),
  "dark": (0.10, 0.11, 0.17),
  "white": (0.92, 0.93, 0.95),
}
CAMERAS = {
  "still": "still camera",
  "left": "the camera moves left",
  "right": "the camera moves right",
  "closer": "the camera moves closer",
}
SPLITS = ("train", "val", "test", "novel")
ROUND = ("ball", "cylinder", "cone")  # nobody sees them spin
NAMES = {
  "object": tuple(OBJECTS),
  "colour": tuple(COLOURS),
  "motion": tuple(MOTIONS),
  "count": ("one", "two", "three"),
  "floor": tuple(FLOORS),
  "texture": TEXTURES,
  "sky": tuple(SKIES),
  "camera": tuple(CAMERAS),
}
_NUMBERS = 64  # uniform numbers that a scene is made of
_LIMIT = 2**31 - 1


def held_out(object: str, colour: str, motion: str) -> bool:
  """True for the tenth of the combinations that only the split "novel" shows: by a hash of the names."""
  return hashlib.sha256(f"{object} {colour} {motion}".encode()).digest()[0] < 26


@functools.cache
def subjects(novel: bool) -> np.ndarray:
  """int32 [n, 3]: (object, colour, motion) of the main object that may occur."""
  rows = [
    (i, j, k)
    for (i, o), (j, c), (k, m) in itertools.product(enumerate(OBJECTS), enumerate(COLOURS), enumerate(MOTIONS))
    if held_out(o, c, m) == novel and not (o in ROUND and m == "spin")
  ]
  return np.array(rows, np.int32)


class WorldSource:
  """Random access to `count` painted clips of one split.

  Args:
    split: "train", "val", "test", or "novel": the (object, colour, motion) that `held_out` names, which none of the
      others shows. No scene occurs in two splits.
    count: how many clips there are; clip i is the same for any count.
    size: height and width in pixels.
    frames: of every clip, 8 per second.
    seed: another world of scenes.
    objects: the most of them in a scene, 1 to 3.
    plain: floors without a texture and cameras that stand still; scenes are the same otherwise.
    scale: how much larger objects are than usual, 0.5 to 2; scenes are the same otherwise.
    keep: clips stay on the device once they are painted, so that all but the first pass over them costs nothing; all
      `count` of them must fit there (17 frames of 64x64 are 204 KiB).

  Raises:
    ValueError: an argument out of range.
  """

  label_names = tuple(OBJECTS)
  attribute_names = NAMES

  def __init__(
    self,
    split: str = "train",
    count: int = 1_000_000,
    *,
    size: int = 64,
    frames: int = 17,
    seed: int = 0,
    objects: int = 3,
    plain: bool = False,
    scale: float = 1.0,
    keep: bool = False,
  ):
    if split not in SPLITS:
      raise NoSuchSplit(f"split is {split!r}, expected one of {', '.join(SPLITS)}: choose one of these.")
    limits = (
      ("count", count, 1, _LIMIT),
      ("size", size, 8, 512),
      ("frames", frames, 1, 1000),
      ("objects", objects, 1, 3),
      ("scale", scale, 0.5, 2.0),
    )
    for option, value, low, high in limits:
      if not low <= value <= high:
        raise ValueError(f"{option} is {value}, expected {low} to {high}: pass a number in that range.")
    self.split, self.count, self.size, self.frames, self.seed = split, count, size, frames, seed
    self.objects, self.plain, self.scale = objects, plain, scale
    self._kept = _Kept(count, (frames, size, size, 3)) if keep else None

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    """dict of frames uint8 [F, size, size, 3], caption, label (place of the object in OBJECTS), name, fps."""
    (caption,), (label,) = self.describe([index])
    frames = np.asarray(self._video(self._numbers([index]), self.size, self.frames))[0]
    return {
      "frames": frames,
      "caption": caption,
      "label": int(label),
      "name": f"world/{self.split}/{index}",
      "fps": FPS,
    }

  def take(self, indices, spec, seeds=None) -> dict[str, jax.Array]:
    """{"video": uint8 [n, F, H, W, 3]} on the default device. `spec` is a ClipSpec; scenes are mirrored nowhere,
    since captions say left and right.

    Raises:
      ValueError: the spec asks for other frames, size or rate than this source paints.
    """
    asked = (spec.frames, tuple(spec.size), spec.fps or FPS)
    if asked != (self.frames, (self.size, self.size), FPS):
      raise ValueError(
        f"the loader asks for {asked} (frames, size, fps), expected {(self.frames, (self.size,) * 2, FPS)}: give the "
        "source the same size and frames."
      )
    paint_all = lambda numbers: self._video(numbers, self.size, self.frames)
    numbers = self._numbers(indices)
    return {"video": paint_all(numbers) if self._kept is None else self._kept(numbers, paint_all)}

  def describe(self, indices) -> tuple[list[str], np.ndarray]:
    """(captions, labels int32 [n])."""
    scenes = jax.tree.map(np.asarray, self._scenes(indices))
    captions = [caption(Scene(*row)) for row in zip(*(x.tolist() for x in scenes), strict=True)]
    return captions, scenes.shape[:, 0].astype(np.int32)

  def attributes(self, indices) -> dict[str, np.ndarray]:
    """{attribute: int32 [n]}, places in `attribute_names`."""
    s = jax.tree.map(np.asarray, self._scenes(indices))
    columns = dict(
      object=s.shape[:, 0], colour=s.colour[:, 0], motion=s.motion[:, 0], count=s.count - 1, floor=s.floor,
      texture=s.texture, sky=s.sky, camera=s.camera,
    )  # fmt: skip
    return {name: column.astype(np.int32) for name, column in columns.items()}

  def _numbers(self, indices) -> np.ndarray:
    indices = np.asarray(indices, np.int64)
    if indices.size and not (indices.min() >= 0 and indices.max() < self.count):
      raise IndexError(f"indices reach {indices.max()}, expected 0 to {self.count - 1}: the source has so many clips.")
    return indices.astype(np.uint32)

  def _scenes(self, indices) -> Scene:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # captions wait for no accelerator
      return _draw_all(self._numbers(indices), *self._key)

  def _video(self, numbers, size: int, frames: int) -> jax.Array:
    return _paint_all(numbers, *self._key, size=size, frames=frames)

  @property
  def _key(self):
    stream = np.uint32(zlib.crc32(f"{self.seed}/{self.split}".encode()))
    return stream, subjects(self.split == "novel"), np.float32(self.scale), self.objects, self.plain


class _Kept:
  """Clips on the device, painted when they are first asked for."""

  def __init__(self, count: int, shape: tuple[int, ...]):
    self._shape, self._painted, self._videos = (count, *shape), np.zeros(count, bool), None

  def __call__(self, numbers: np.ndarray, paint_all) -> jax.Array:
    if self._videos is None:
      self._videos = jnp.zeros(self._shape, jnp.uint8)
    if not self._painted[numbers].all():  # with those that are there already: one shape, one program
      self._videos = _put(self._videos, numbers, paint_all(numbers))
      self._painted[numbers] = True
    return _rows(self._videos, numbers)


@functools.partial(jax.jit, donate_argnums=0)
def _put(videos, numbers_N, rows):
  return videos.at[numbers_N].set(rows)


@jax.jit
def _rows(videos, numbers_N):
  return videos[numbers_N]


@functools.partial(jax.jit, static_argnums=(4, 5))
def _draw_all(index_N, stream, subjects_Mx3, scale, objects: int, plain: bool) -> Scene:
  key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), stream)
  numbers = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (_NUMBERS,)))(index_N)
  return jax.vmap(lambda u: draw(u, subjects_Mx3, objects, plain, scale))(numbers)


@functools.partial(jax.jit, static_argnums=(4, 5), static_argnames=("size", "frames"))
def _paint_all(index_N, stream, subjects_Mx3, scale, objects: int, plain: bool, *, size: int, frames: int) -> jax.Array:
  scenes = _draw_all(index_N, stream, subjects_Mx3, scale, objects, plain)
  tables = {"colour": COLOURS, "floor": FLOORS, "sky": SKIES}
  tables = {name: jnp.array(list(table.values()), jnp.float32) for name, table in tables.items()}
  one = functools.partial(paint, objects=objects, size=size, times=np.arange(frames) / FPS, tables=tables)
  if jax.default_backend() == "cpu":  # one after the other: a scene's rays fit the cache
    return jax.lax.map(one, scenes)
  return jax.lax.map(one, scenes, batch_size=64)  # rays of 64 clips: a few hundred MB


def draw(u_P: jax.Array, subjects_Mx3: np.ndarray, objects: int, plain: bool = False, scale: float = 1.0) -> Scene:
  """A Scene from uniform numbers in [0, 1): all attributes, then everything that no caption says."""
  numbers = iter(range(_NUMBERS))
  u = lambda: u_P[next(numbers)]
  pick = lambda n: jnp.minimum((u() * n).astype(jnp.int32), n - 1)
  between = lambda low, high: low + (high - low) * u()
  other = lambda first, n: (first + 1 + pick(n - 1)) % n

  main = jnp.asarray(subjects_Mx3)[pick(len(subjects_Mx3))]
  count = 1 + jnp.minimum(pick(3), objects - 1)
  shapes, colours, motions = [main[0]], [main[1]], [main[2]]
  for i in range(2):
    shape = pick(len(OBJECTS))
    shapes.append(shape)
    colour = other(colours[0], len(COLOURS))
    if i:  # three colours in three objects
      colour = jnp.where(colour == colours[1], (colour + 1) % len(COLOURS), colour)
      colour = jnp.where(colour == colours[0], (colour + 1) % len(COLOURS), colour)
      colour = jnp.where(colour == colours[1], (colour + 1) % len(COLOURS), colour)
    colours.append(colour)
    wants = u()  # three in five stand still
    spins = (wants > 0.8) & (shape >= len(ROUND))
    motions.append(
      jnp.where(
        spins, list(MOTIONS).index("spin"), jnp.where((wants > 0.6) & (wants <= 0.8), list(MOTIONS).index("bounce"), 0)
      )
    )
  camera = jnp.where(u() < 0.55, 0, 1 + pick(3))
  place = [(between(-0.45, 0.45), between(-0.3, 0.5))]
  side = jnp.where(u() < 0.5, -1.0, 1.0)
  place.append((side * between(1.15, 1.75), between(0.7, 1.7)))
  place.append((-side * between(1.1, 1.6), between(-0.7, 1.2)))
  return Scene(
    count=count,
    shape=jnp.stack(shapes),
    colour=jnp.stack(colours),
    motion=jnp.stack(motions),
    floor=pick(len(FLOORS)),
    texture=pick(len(TEXTURES)) * (not plain),
    sky=pick(len(SKIES)),
    camera=camera * (not plain),
    place=jnp.array(place),
    size=scale * jnp.stack([between(1.1, 1.3), between(0.6, 0.8), between(0.6, 0.8)]),
    turn=jnp.stack([between(-0.6, 0.6) for _ in range(3)]),
    start=jnp.stack([u() for _ in range(3)]),
    speed=jnp.stack([u() for _ in range(3)]),
    shade=jnp.stack([between(0.88, 1.08) for _ in range(5)]),
    light=jnp.stack([between(-1.2, 1.2), between(0.6, 1.1)]),
    eye=jnp.stack([between(-0.25, 0.25), between(4.7, 5.6), between(1.3, 2.5)]),
    phase=jnp.stack([2 * u(), 2 * u(), between(1.2, 2.0)]),
  )


def caption(scene: Scene) -> str:
  """One sentence by a fixed grammar, from the attributes (numbers of one scene)."""

  def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

  name = lambda attribute, i: NAMES[attribute][int(i)]
  things = [f"{name('colour', scene.colour[i])} {name('object', scene.shape[i])}" for i in range(int(scene.count))]
  does = [name("motion", scene.motion[i]) for i in range(int(scene.count))]
  beside = [
    f"a small {thing}" + ("" if motion == "still" else f" that {MOTIONS[motion]}")
    for thing, motion in zip(things[1:], does[1:], strict=True)
  ]
  floor, sky = name("floor", scene.floor), name("sky", scene.sky)
  texture = "" if not int(scene.texture) else f" {TEXTURES[int(scene.texture)]}"
  return (
    f"{a(things[0])} {MOTIONS[does[0]]}{' beside ' if beside else ''}{' and '.join(beside)} on {a(floor + texture)} "
    f"floor under {a(sky)} sky, {CAMERAS[name('camera', scene.camera)]}"
  )
