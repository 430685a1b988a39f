"""Meshes of the `sim` scenes: made here, or read from pybullet_data; all of one size, upright, standing on z = 0."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Mesh(NamedTuple):
  """vertices_Vx3 float, triangles_Tx3 int (counter-clockwise seen from outside), normals_Vx3 of unit length."""

  vertices: np.ndarray
  triangles: np.ndarray
  normals: np.ndarray


def revolved(radius_height) -> tuple[np.ndarray, np.ndarray]:
  """(vertices, triangles) of an outline of (radius, height) points, going up its outer side, turned about z."""
  outline_Px2 = np.asarray(radius_height, float)
  points, sides = len(outline_Px2), 32
  angle_S = np.arange(sides) * 2 * math.pi / sides
  circle_Sx2 = np.stack([np.cos(angle_S), np.sin(angle_S)], 1)
  vertices = np.concatenate(
    [outline_Px2[:, None, :1] * circle_Sx2, np.broadcast_to(outline_Px2[:, None, 1:], (points, sides, 1))], 2
  ).reshape(-1, 3)
  row, side = np.meshgrid(np.arange(points - 1), np.arange(sides), indexing="ij")
  a, b = row * sides + side, row * sides + (side + 1) % sides
  quads = np.stack([a, b, b + sides, a + sides], -1).reshape(-1, 4)
  return vertices, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _cube():
  corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
  quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
  return corners, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _ball():
  angle = np.linspace(-math.pi / 2, math.pi / 2, 17)
  return revolved(np.stack([np.cos(angle), np.sin(angle)], 1))


def _ring():
  angle = np.linspace(-math.pi, math.pi, 17)
  vertices, triangles = revolved(np.stack([1 + 0.38 * np.cos(angle), 0.38 * np.sin(angle)], 1))
  return vertices[:, [0, 2, 1]] * [1, -1, 1], triangles  # stands upright, its hole towards the camera


def _package_mesh(name: str, upright: tuple[int, int, int], turn: tuple[int, int, int]):
  """A .obj of pybullet_data; axes permuted by `upright` and mirrored by `turn` so that z is up."""
  import pybullet_data

  vertices, triangles = [], []
  for line in (Path(pybullet_data.getDataPath()) / name).read_text().splitlines():
    kind, *fields = line.split() or [""]
    if kind == "v":
      vertices.append([float(x) for x in fields[:3]])
    elif kind == "f":
      corners = [int(field.partition("/")[0]) for field in fields]
      corners = [i - 1 if i > 0 else len(vertices) + i for i in corners]
      triangles += [(corners[0], *corners[i : i + 2]) for i in range(1, len(corners) - 1)]
  return np.array(vertices)[:, list(upright)] * turn, np.array(triangles)


SHADOW = "shadow"
# name: (how to make it, its longest side, whether neighbouring faces are one smooth skin)
_MAKERS = {
  "cube": (_cube, 0.85, False),
  "ball": (_ball, 1.0, True),
  "cone": (lambda: revolved([(0, 0), (1, 0), (0, 2)]), 1.1, False),
  "cylinder": (lambda: revolved([(0, 0), (1, 0), (1, 2.4), (0, 2.4)]), 1.0, False),
  "ring": (_ring, 1.1, True),
  "duck": (lambda: _package_mesh("duck.obj", (0, 2, 1), (1, -1, 1)), 1.1, True),  # faces -x
  "teddy": (lambda: _package_mesh("teddy2_VHACD_CHs.obj", (0, 2, 1), (1, -1, 1)), 1.15, False),
  "mug": (lambda: _package_mesh("objects/mug.obj", (1, 0, 2), (-1, 1, 1)), 1.0, False),  # handle at -x
  SHADOW: (lambda: revolved([(1, 0), (0, 0)]), 1.04, False),
}
OBJECTS = tuple(name for name in _MAKERS if name != SHADOW)
ROUND = ("ball", "cone", "cylinder")  # turning about z leaves them as they are


@functools.cache
def mesh(name: str) -> Mesh:
  """The mesh of one of OBJECTS, or of SHADOW: centred in x and y, standing on z = 0, about one unit tall."""
  make, size, smooth = _MAKERS[name]
  vertices, triangles = make()
  low, high = vertices.min(0), vertices.max(0)
  vertices = (vertices - [*(low + high)[:2] / 2, low[2]]) * size / (high - low).max()
  if not smooth:  # every face its own corners, so that edges stay sharp
    vertices, triangles = vertices[triangles].reshape(-1, 3), np.arange(triangles.size).reshape(-1, 3)
  a, b, c = (vertices[triangles[:, i]] for i in range(3))
  face_Tx3 = np.cross(b - a, c - a)
  _, same_V = np.unique(vertices.round(6), axis=0, return_inverse=True)
  same_V = same_V.reshape(-1) if smooth else np.arange(len(vertices))  # seams share their normals
  normals = np.zeros((same_V.max() + 1, 3))
  for corner in range(3):
    np.add.at(normals, same_V[triangles[:, corner]], face_Tx3)
  normals = normals[same_V]
  return Mesh(vertices, triangles, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))
