"""Captions of scenes whose content is known, read back into attributes: `sim`, `world` and `shapes` each write by one
grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from vftok.data import shapes, sim, world
from vftok.data.sim_meshes import OBJECTS


class Scenes(NamedTuple):
  """A kind of scene.

  Attributes:
    attributes: {attribute: its names}.
    read: a caption's {attribute: name}; None for any other text.
  """

  attributes: dict[str, tuple[str, ...]]
  read: Callable[[str], dict[str, str] | None]

  def labels(self, captions: Iterable[str]) -> dict[str, np.ndarray]:
    """{attribute: int32 [B]}, places in its names, -1 where a caption is no scene's."""
    found = [self.read(caption) for caption in captions]
    place = lambda names, scene, name: -1 if scene is None else names.index(scene[name])
    return {
      name: np.array([place(names, scene, name) for scene in found], np.int32)
      for name, names in self.attributes.items()
    }


_SIM = {
  "object": tuple(OBJECTS),
  "colour": tuple(sim.COLOURS),
  "motion": tuple(sim.MOTIONS),
  "floor": tuple(sim.FLOORS),
  "sky": tuple(sim.SKIES),
  "camera": tuple(sim.CAMERAS),
}
_SIM_GRAMMAR = re.compile(
  r"^an? (?P<colour>\w+) (?P<object>\w+) (?P<motion>[\w ]+?) on an? (?P<floor>\w+) floor "
  r"under an? (?P<sky>\w+) sky(?:, a small [\w ]+)?, (?P<camera>.+)$"
)
_WORLD_GRAMMAR = re.compile(
  r"^an? (?P<colour>\w+) (?P<object>\w+) (?P<motion>[\w ]+?)(?P<beside> beside .+)? on an? (?P<floor>\w+)"
  r"(?P<texture> \w+)? floor under an? (?P<sky>\w+) sky, (?P<camera>.+)$"
)
_SHAPES = {name: names for name, names in shapes.ShapesSource.attribute_names.items() if name != "count"}
_SHAPES_GRAMMAR = re.compile(r"^a (?P<colour>\w+) (?P<object>\w+) moves (?P<motion>\w+)$")


def _known(found: dict[str, str | None], attributes) -> dict[str, str] | None:
  return found if all(found[name] in names for name, names in attributes.items()) else None


def _read_sim(caption: str) -> dict[str, str] | None:
  if not (match := _SIM_GRAMMAR.match(caption)):
    return None
  found = match.groupdict()
  for name, phrases in (("motion", sim.MOTIONS), ("camera", sim.CAMERAS)):
    found[name] = {v: k for k, v in phrases.items()}.get(found[name])
  return _known(found, _SIM)


def _read_world(caption: str) -> dict[str, str] | None:
  if not (match := _WORLD_GRAMMAR.match(caption)):
    return None
  found = match.groupdict()
  beside = found.pop("beside") or ""
  count = beside.count(" a small ")
  found["count"] = world.NAMES["count"][count] if count < len(world.NAMES["count"]) else None
  found["texture"] = (found["texture"] or f" {world.TEXTURES[0]}").strip()
  for name, phrases in (("motion", world.MOTIONS), ("camera", world.CAMERAS)):
    found[name] = {v: k for k, v in phrases.items()}.get(found[name])
  return _known(found, world.NAMES)


def _read_shapes(caption: str) -> dict[str, str] | None:
  match = _SHAPES_GRAMMAR.match(caption)
  return _known(match.groupdict(), _SHAPES) if match else None


SIM = Scenes(_SIM, _read_sim)
WORLD = Scenes(dict(world.NAMES), _read_world)
SHAPES = Scenes(_SHAPES, _read_shapes)
SCENES = {"sim": SIM, "world": WORLD, "shapes": SHAPES}  # by the name that a config gives its source
