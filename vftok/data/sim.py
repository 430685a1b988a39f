"""`sim`: scenes whose object, colour, motion, camera, floor and sky are known exactly, by PyBullet's CPU renderer.

Poses are scripted, so there is no physics to step and a scene is a pure function of (options, seed, split, index).
Nothing here may make a caption lie: meshes have no texture of their own, sky and floor are attributes, and what
cannot be seen (a ball that spins) does not occur.

Axes: x to the right, y away from the camera, z up; the floor is z = 0 and one unit is about the height of the object.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import math
import os
import threading

import numpy as np

from vftok.data.sim_meshes import OBJECTS, ROUND, SHADOW, mesh
from vftok.io.sides import NoSuchSplit

FPS = 8.0
COLOURS = {
  "red": (0.90, 0.05, 0.05),
  "green": (0.05, 0.70, 0.15),
  "blue": (0.08, 0.20, 0.95),
  "yellow": (1.00, 0.85, 0.05),
  "purple": (0.60, 0.10, 0.80),
  "orange": (1.00, 0.45, 0.02),
}
FLOORS = {"grey": (0.50, 0.50, 0.50), "brown": (0.42, 0.28, 0.18), "white": (0.95, 0.95, 0.95)}
SKIES = {"blue": (0.60, 0.80, 0.98), "pink": (0.98, 0.72, 0.76), "dark": (0.10, 0.11, 0.16)}
MOTIONS = {
  "left": "slides to the left",
  "right": "slides to the right",
  "towards": "comes closer",
  "away": "goes away",
  "jump": "jumps",
  "spin": "spins around",
  "still": "stands still",
}
CAMERAS = {"still": "still camera", "rise": "the camera rises", "sink": "the camera sinks"}
SPLITS = ("train", "val", "test")
SIMPLE_OBJECTS = ("cube", "ball", "cone", "ring", "duck")  # told apart at 32 x 32 pixels
_LOCK = threading.Lock()  # one PyBullet client per process, and a loader reads with threads


def held_out(object: str, colour: str, motion: str) -> bool:
  """True for the tenth of the combinations that only `test` shows: by a hash of the names, whatever the options."""
  return hashlib.sha256(f"{object} {colour} {motion}".encode()).digest()[0] < 26


class SimSource:
  """Random access to `count` rendered clips of one split; every option chooses how hard the scenes are.

  Args:
    split: "train", "val" or "test". No scene occurs in two of them, and `test` consists of the (object, colour,
      motion) combinations that `held_out` names, which train and val never show.
    count: how many clips there are; clip i is the same for any count.
    size: height and width in pixels; rendered at twice that and averaged.
    frames: frames per clip, at 8 per second nominally. Motions always take the whole clip.
    seed: another world of scenes.
    objects, colours, motions, cameras, floors, skies: what may occur, each a choice of the names in this module.
    second_object: probability of a smaller object of another colour that stands to one side.

  Raises:
    ValueError: a name that does not exist, or options that leave nothing to show.
    ModuleNotFoundError: PyBullet is not installed.
  """

  label_names = OBJECTS

  def __init__(
    self,
    split: str,
    count: int = 10_000,
    *,
    size: int = 64,
    frames: int = 17,
    seed: int = 0,
    objects=SIMPLE_OBJECTS,
    colours=tuple(COLOURS),
    motions=tuple(MOTIONS),
    cameras=("still",),
    floors=tuple(FLOORS),
    skies=tuple(SKIES),
    second_object: float = 0.0,
  ):
    if importlib.util.find_spec("pybullet") is None:
      raise ModuleNotFoundError("the sim source renders with PyBullet, which is missing: pip install 'vftok[sim]'.")
    choices = {
      "objects": (objects, OBJECTS),
      "colours": (colours, COLOURS),
      "motions": (motions, MOTIONS),
      "cameras": (cameras, CAMERAS),
      "floors": (floors, FLOORS),
      "skies": (skies, SKIES),
    }
    for option, (names, known) in choices.items():
      unknown = [name for name in names if name not in known]
      if unknown or not names:
        raise ValueError(f"{option} is {tuple(names)}, expected one or more of {', '.join(known)}: choose from these.")
    if split not in SPLITS:
      raise NoSuchSplit(f"split is {split!r}, expected one of {', '.join(SPLITS)}: choose one of these.")
    for option, value, low, high in (("count", count, 1, 2**40), ("size", size, 8, 512), ("frames", frames, 1, 1000)):
      if not low <= value <= high:
        raise ValueError(f"{option} is {value}, expected {low} to {high}: pass a number in that range.")
    if not 0 <= second_object <= 1:
      raise ValueError(f"second_object is {second_object}, expected a probability: pass 0 to 1.")
    if second_object and len(colours) < 2:
      raise ValueError(f"colours is {tuple(colours)}, expected two or more with second_object: add one.")
    self.split, self.count, self.size, self.frames, self.seed = split, count, size, frames, seed
    self.second_object = second_object
    self._backgrounds = list(itertools.product(cameras, floors, skies))
    self._objects, self._colours = tuple(objects), tuple(colours)
    self._subjects = [
      subject
      for subject in itertools.product(objects, colours, motions)
      if held_out(*subject) == (split == "test") and not (subject[0] in ROUND and subject[2] == "spin")
    ]
    if not self._subjects:
      raise ValueError(f"these objects, colours and motions leave nothing for {split}: allow more of them.")

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    """dict of frames uint8 [F, size, size, 3], caption, label (place of the object in OBJECTS), name, fps."""
    scene, rng = self._scene(index)
    return {
      "frames": _render(scene, rng, self.size, self.frames),
      "caption": self.caption(index),
      "label": OBJECTS.index(scene["object"]),
      "name": f"sim/{self.split}/{index}",
      "fps": FPS,
    }

  def attributes(self, index: int) -> dict:
    """dict of object, colour, motion, camera, floor, sky (names), and second: None or (object, colour)."""
    return self._scene(index)[0]

  def caption(self, index: int) -> str:
    """One sentence by a fixed grammar, from the attributes; nothing is rendered."""

    def a(words: str) -> str:
      return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    scene = self.attributes(index)
    beside = "" if scene["second"] is None else ", a small {1} {0} beside it".format(*scene["second"])
    return (
      f"{a(scene['colour'])} {scene['object']} {MOTIONS[scene['motion']]} on {a(scene['floor'])} floor "
      f"under {a(scene['sky'])} sky{beside}, {CAMERAS[scene['camera']]}"
    )

  def _scene(self, index: int):
    if not 0 <= index < self.count:
      raise IndexError(f"index is {index}, expected 0 to {self.count - 1}: the source has {self.count} clips.")
    digest = hashlib.sha256(f"{self.seed}/{self.split}/{index}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    name, colour, motion = self._subjects[rng.integers(len(self._subjects))]
    camera, floor, sky = self._backgrounds[rng.integers(len(self._backgrounds))]
    scene = {"object": name, "colour": colour, "motion": motion, "camera": camera, "floor": floor, "sky": sky}
    others = [other for other in self._colours if other != colour]
    second = None
    if rng.random() < self.second_object:
      second = (self._objects[rng.integers(len(self._objects))], others[rng.integers(len(others))])
    return scene | {"second": second}, rng


def _path(motion: str, time: float) -> tuple[float, float, float, float]:
  """(x, y, z, turn) of the object at `time` in [0, 1], before jitter."""
  across, along = 1.35 * (time - 0.5), 3.2 * time - 0.6
  return {
    "left": (-across, 0, 0, 0),
    "right": (across, 0, 0, 0),
    "towards": (0, 2 - along, 0, 0),
    "away": (0, along, 0, 0),
    "jump": (0, 0, 0.65 * abs(math.sin(2 * math.pi * time)), 0),
    "spin": (0, 0, 0, 2 * math.pi * time),
    "still": (0, 0, 0, 0),
  }[motion]


def _render(scene: dict, rng: np.random.Generator, size: int, frames: int) -> np.ndarray:
  """uint8 [frames, size, size, 3]."""
  name, motion = scene["object"], scene["motion"]
  scale = rng.uniform(0.95, 1.05)
  aside = 0.0 if motion in ("left", "right") else rng.uniform(-0.25, 0.25)
  depth = 0.0 if motion in ("towards", "away") else rng.uniform(-0.1, 0.3)
  heading = {"right": math.pi, "towards": math.pi / 2, "away": -math.pi / 2}.get(motion, 0) if name == "duck" else 0
  turned = heading + rng.uniform(-0.5, 0.5)
  times = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
  with _LOCK:
    import pybullet

    client, bodies = _client(os.getpid()), []
    try:
      bodies.append(_floor(client, FLOORS[scene["floor"]]))
      if scene["second"]:
        thing, colour = scene["second"]
        where = (rng.choice([-1, 1]) * rng.uniform(1.0, 1.3), rng.uniform(1.5, 1.9))
        bodies += _body(client, thing, COLOURS[colour], FLOORS[scene["floor"]], 0.7)
        _place(client, bodies[-2:], (*where, 0), rng.uniform(-0.5, 0.5))
      thing = _body(client, name, COLOURS[scene["colour"]], FLOORS[scene["floor"]], scale)
      bodies += thing
      pictures = []
      for time in times if motion != "still" or scene["camera"] != "still" else times[:1]:
        x, y, z, turn = _path(motion, time)
        _place(client, thing, (x + aside, y + depth, z), turned + turn)
        raised = {"still": 0.5, "rise": time, "sink": 1 - time}[scene["camera"]]
        pictures.append(_picture(client, size, raised, SKIES[scene["sky"]]))
    finally:
      for body in bodies:
        pybullet.removeBody(body, physicsClientId=client)
  return np.stack(pictures * (frames // len(pictures)))


@functools.cache
def _client(pid: int) -> int:
  """This process's renderer; a forked child makes its own."""
  import pybullet

  return pybullet.connect(pybullet.DIRECT)


@functools.cache
def _geometry(name: str) -> dict:
  vertices, triangles, normals = mesh(name)
  return {
    "vertices": vertices.tolist(),
    "indices": triangles.reshape(-1).tolist(),
    "normals": normals.tolist(),
    "uvs": np.zeros((len(vertices), 2)).tolist(),
  }


def _shape(client, kind, colour, **geometry) -> int:
  import pybullet as p

  shape = p.createVisualShape(kind, rgbaColor=[*colour, 1], specularColor=[0, 0, 0], physicsClientId=client, **geometry)
  return p.createMultiBody(0, -1, shape, physicsClientId=client)


def _floor(client, colour) -> int:
  import pybullet as p

  body = _shape(client, p.GEOM_BOX, colour, halfExtents=[60, 60, 0.05])
  p.resetBasePositionAndOrientation(body, [0, 40, -0.05], [0, 0, 0, 1], physicsClientId=client)
  return body


def _body(client, name: str, colour, floor, scale: float) -> list[int]:
  """[object, its shadow]: the renderer's own shadows miss the floor, and a disc says where the object stands."""
  import pybullet as p

  return [
    _shape(client, p.GEOM_MESH, colour, meshScale=[scale] * 3, **_geometry(name)),
    _shape(client, p.GEOM_MESH, np.multiply(floor, 0.55), meshScale=[scale] * 3, **_geometry(SHADOW)),
  ]


def _place(client, bodies, position, yaw: float) -> None:
  import pybullet as p

  x, y, z = position
  turned = p.getQuaternionFromEuler([0, 0, yaw])
  p.resetBasePositionAndOrientation(bodies[0], [x, y, z + 0.01], turned, physicsClientId=client)
  p.resetBasePositionAndOrientation(bodies[1], [x, y, 0.004], [0, 0, 0, 1], physicsClientId=client)


def _picture(client, size: int, raised: float, sky) -> np.ndarray:
  """uint8 [size, size, 3] from a camera 1.0 (raised 0) to 2.0 (raised 1) above the floor."""
  import pybullet as p

  big = 2 * size
  view = p.computeViewMatrix([0, -3.4, 1.0 + raised], [0, 0, 0.6], [0, 0, 1])
  lens = p.computeProjectionMatrixFOV(40, 1, 0.1, 200)
  light = {"lightDirection": [-2, -3, 5], "lightColor": [1, 1, 1], "shadow": 0}
  light |= {"lightAmbientCoeff": 0.6, "lightDiffuseCoeff": 0.55, "lightSpecularCoeff": 0.0}
  _, _, rgba, _, seen = p.getCameraImage(
    big, big, view, lens, renderer=p.ER_TINY_RENDERER, physicsClientId=client, **light
  )
  rgb = np.reshape(rgba, (big, big, 4))[..., :3].astype(np.float32)
  rgb[np.reshape(seen, (big, big)) < 0] = np.multiply(sky, 255)
  return np.rint(rgb.reshape(size, 2, size, 2, 3).mean((1, 3))).astype(np.uint8)
