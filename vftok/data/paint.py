"""Frames of a scene, by rays that walk along distance fields: plain JAX, one program for CPU, GPU and TPU.

Axes: x to the right, y away from the camera, z up; the floor is z = 0, one unit is about the height of an object.
Every object is met on its own: its bounding sphere says where on the ray it can be, sphere tracing finds where it is,
and how near a ray that misses came by, in pixels, softens its edge. So one ray a pixel is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

REACH = 0.78  # radius of a sphere around any shape
WALK, SHADOW_WALK = 20, 9  # steps along a ray, and from the floor towards the light
LENS = 0.38  # tangent of half the field of view
GRAVITY = 6.0
HAZE = 0.035


class Scene(NamedTuple):
  """All numbers of a scene; i counts objects, the main one first. Places in the tables of `vftok/data/world.py`.

  place [3, 2]: x and y; size, turn (radians), start and speed of the motion (in [0, 1)) [3]; shade [5]: brightness of
  the objects, floor and sky; light: azimuth and height above the floor in radians; eye: azimuth, distance, height;
  phase: where the texture begins, and its size.
  """

  count: jax.Array
  shape: jax.Array
  colour: jax.Array
  motion: jax.Array
  floor: jax.Array
  texture: jax.Array
  sky: jax.Array
  camera: jax.Array
  place: jax.Array
  size: jax.Array
  turn: jax.Array
  start: jax.Array
  speed: jax.Array
  shade: jax.Array
  light: jax.Array
  eye: jax.Array
  phase: jax.Array


# ---- shapes: distance to the surface (or less) of points [..., 3] around the middle of a shape


def _length(*xs):
  return jnp.sqrt(sum(x * x for x in xs) + 1e-12)


def _box(x, y, z, a, b, c):
  dx, dy, dz = abs(x) - a, abs(y) - b, abs(z) - c
  outside = _length(jnp.maximum(dx, 0), jnp.maximum(dy, 0), jnp.maximum(dz, 0))
  return outside + jnp.minimum(jnp.maximum(dx, jnp.maximum(dy, dz)), 0)


def _ball(x, y, z):
  return _length(x, y, z) - 0.52


def _cylinder(x, y, z):
  dr, dz = _length(x, y) - 0.40, abs(z) - 0.52
  return _length(jnp.maximum(dr, 0), jnp.maximum(dz, 0)) + jnp.minimum(jnp.maximum(dr, dz), 0)


def _cone(x, y, z):
  return jnp.maximum(0.8944 * _length(x, y) + 0.4472 * (z - 0.62), -z - 0.5)


def _cube(x, y, z):
  return _box(x, y, z, 0.42, 0.42, 0.42) - 0.02


def _ring(x, y, z):
  return _length(_length(x, z) - 0.38, y) - 0.16


def _cross(x, y, z):
  return jnp.minimum(_box(x, y, z, 0.54, 0.17, 0.17), _box(x, y, z, 0.17, 0.17, 0.54))


def _star(x, y, z):
  """Five points, upright: the plane folded onto one of ten equal sectors, then one edge."""
  angle = jnp.arctan2(x, z)
  sector = 2 * np.pi / 5
  angle = abs(angle - sector * jnp.round(angle / sector))
  radius = _length(x, z)
  px, pz = radius * jnp.sin(angle), radius * jnp.cos(angle)
  inner = (0.27 * np.sin(np.pi / 5), 0.27 * np.cos(np.pi / 5))  # from the tip (0, 0.64) to here runs the edge
  ex, ez = inner[0], inner[1] - 0.64
  norm = np.hypot(ex, ez)
  return jnp.maximum((px * -ez + (pz - 0.64) * ex) / norm, abs(y) - 0.15)


def _diamond(x, y, z):
  return (abs(x) + abs(y) + 0.8 * abs(z) - 0.52) * 0.61


# Those of which nobody sees a spin come first. (distance, height of the middle above the floor)
OBJECTS = {
  "ball": (_ball, 0.52),
  "cylinder": (_cylinder, 0.52),
  "cone": (_cone, 0.50),
  "cube": (_cube, 0.44),
  "ring": (_ring, 0.54),
  "cross": (_cross, 0.54),
  "star": (_star, 0.52),
  "diamond": (_diamond, 0.65),
}


def _distance(shape, p):
  """`shape` is a scalar: alone, one function runs; under vmap all do, in one loop, and one is selected."""
  return jax.lax.switch(shape, [fn for fn, _ in OBJECTS.values()], *p)


# ---- where things are


def _poses(scene: Scene, time):
  """(x, y, z of the middle [3], turn [3]) of all objects at `time` in seconds; a clip takes about two."""
  begin, speed = 0.5 * scene.start, 0.8 + 0.5 * scene.speed
  t = jnp.maximum(time - begin, 0.0) * speed  # it waits, then goes
  way = 1.6 * jnp.minimum(t, 1.7) - 1.05  # from -1.05 on
  high = 0.7 + 0.4 * scene.speed
  period = 2 * jnp.sqrt(2 * high / GRAVITY)
  flight = jnp.mod(t, period)
  bounce = jnp.maximum(flight * (period - flight) * GRAVITY / 2, 0.0)
  drop = jnp.maximum(1.7 - GRAVITY / 2 * t**2, 0.0)
  rebound = jnp.maximum(t - jnp.sqrt(2 * 1.7 / GRAVITY), 0.0)
  drop = drop + jnp.maximum(rebound * (0.7 - rebound) * GRAVITY / 2, 0.0)  # one low bounce, then it lies
  x, y = scene.place[:, 0], scene.place[:, 1]
  # still, left, right, towards, away, bounce, fall, spin
  each = lambda *choices: jax.lax.select_n(scene.motion, *(jnp.broadcast_to(c, (3,)) for c in choices))
  zero = jnp.zeros(3)
  x = each(x, -way, way, x, x, x, x, x)
  y = each(y, y, y, 0.4 - way, 0.4 + way, y, y, y)
  above = each(zero, zero, zero, zero, zero, bounce, drop, zero)
  turn = scene.turn + each(zero, zero, zero, zero, zero, zero, zero, 2 * np.pi * 0.6 * t)
  middle = jnp.array([height for _, height in OBJECTS.values()])[scene.shape]
  return x, y, above + middle * scene.size, turn


def _camera(scene: Scene, time):
  """(eye [3], the rotation [3, 3] whose rows are right, up and forward)."""
  gone = jnp.minimum(time / 2.0, 1.0)
  way = jax.lax.select_n(scene.camera, *(jnp.array(v) for v in (0.0, -1.0, 1.0, 0.0)))
  azimuth = scene.eye[0] + 0.55 * way * (gone - 0.5)
  distance = scene.eye[1] - jnp.where(scene.camera == 3, 1.5 * gone, 0.0)
  eye = jnp.stack([distance * jnp.sin(azimuth), -distance * jnp.cos(azimuth), scene.eye[2]])
  forward = jnp.array([0.0, 0.25, 0.5]) - eye
  forward = forward / jnp.linalg.norm(forward)
  right = jnp.stack([forward[1], -forward[0], 0.0])
  right = right / jnp.linalg.norm(right)
  return eye, jnp.stack([right, jnp.cross(right, forward), forward])


# ---- light


def _walk(shape, origin, way, steps: int, pixel=None):
  """Along rays origin + t * way in an object's own frame: (met the sphere, nearest t, distance there).

  With `pixel` (its width at distance 1) nearness is counted in pixels, else in units.
  """
  along = sum(o * w for o, w in zip(origin, way, strict=True))
  inside = along * along - sum(o * o for o in origin) + REACH**2
  met, half = inside > 0, jnp.sqrt(jnp.maximum(inside, 0.0))
  first, last = jnp.maximum(-along - half, 1e-3), -along + half

  def step(_, carry):
    t, near, where = carry
    d = _distance(shape, [o + t * w for o, w in zip(origin, way, strict=True)])
    gap = d if pixel is None else d / (pixel * t)
    where = jnp.where(gap < near, t, where)
    return jnp.minimum(t + d, last), jnp.minimum(gap, near), where

  _, near, where = jax.lax.fori_loop(0, steps, step, (first, jnp.full_like(first, 1e3), first))
  return met & (last > 0), where, near


def _into(pose, size, point):
  """Points of the world (three arrays) in an object's own frame."""
  x, y, z, turn = pose
  px, py, pz = point[0] - x, point[1] - y, point[2] - z
  c, s = jnp.cos(turn), jnp.sin(turn)
  return (c * px + s * py) / size, (-s * px + c * py) / size, pz / size


def _turned(turn, way):
  """Directions of the world in an object's own frame."""
  c, s = jnp.cos(turn), jnp.sin(turn)
  return c * way[0] + s * way[1], -s * way[0] + c * way[1], way[2]


def _texture(scene: Scene, x, y, blur):
  """Brightness in [-1, 1] of the floor's pattern, softened where a pixel covers much of it."""
  x, y = (x + scene.phase[0]) / scene.phase[2], (y + scene.phase[1]) / scene.phase[2]
  wave = lambda v: (abs(jnp.mod(v, 2.0) - 1.0) - 0.5) / jnp.maximum(blur / scene.phase[2], 0.02)  # +-0.5 over the blur
  soft = lambda v: jnp.clip(v, -1.0, 1.0)
  dots = 0.33 - _length(jnp.mod(x, 1.0) - 0.5, jnp.mod(y, 1.0) - 0.5)
  dots = soft(dots / jnp.maximum(blur / scene.phase[2], 0.02))
  checks = soft(wave(x)) * soft(wave(y))
  return jax.lax.select_n(scene.texture, jnp.zeros_like(x), checks, soft(wave(x)), dots)


class _View(NamedTuple):
  """One frame's camera: eye [3], ways of the rays (three of [H, W]), where they meet the floor, and how far away."""

  eye: jax.Array
  way: tuple
  floor: tuple
  far: jax.Array


def _view(scene: Scene, time, size: int) -> _View:
  eye, rows = _camera(scene, time)
  grid = (jnp.arange(size) + 0.5) / size * 2 - 1
  across, up = LENS * grid[None, :], -LENS * grid[:, None]
  norm = jax.lax.rsqrt(across**2 + up**2 + 1)
  way = tuple((across * rows[0, i] + up * rows[1, i] + rows[2, i]) * norm for i in range(3))
  far = -eye[2] / jnp.minimum(way[2], -1e-3)
  return _View(eye, way, (eye[0] + far * way[0], eye[1] + far * way[1], jnp.zeros_like(far)), far)


def _light(scene: Scene):
  azimuth, height = scene.light
  return jnp.cos(height) * jnp.sin(azimuth), -jnp.cos(height) * jnp.cos(azimuth), jnp.sin(height)


def _object(scene: Scene, i, time, size: int):
  """What object i does to every pixel, float32 [H, W] each: cover, distance, brightness, light it leaves the floor."""
  view, light, pixel = _view(scene, time, size), _light(scene), 2 * LENS / size
  pose, shape, scale = tuple(x[i] for x in _poses(scene, time)), scene.shape[i], scene.size[i]
  full = lambda values: [jnp.broadcast_to(v, view.far.shape) for v in values]

  own_light = full(_turned(pose[3], light))
  met, _, near = _walk(shape, _into(pose, scale, view.floor), own_light, SHADOW_WALK)
  left = jnp.where(met, jnp.clip(near * scale / 0.06, 0, 1), 1.0)

  origin, along = full(_into(pose, scale, view.eye)), _turned(pose[3], view.way)
  met, where, near = _walk(shape, origin, along, WALK, pixel)
  cover = jnp.where(met, jnp.clip(1.1 - near, 0, 1), 0.0)
  at, n = [o + where * w for o, w in zip(origin, along, strict=True)], [jnp.zeros_like(where)] * 3
  for corner in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)):  # the gradient, from a tetrahedron of points
    d = _distance(shape, [a + 0.006 * c for a, c in zip(at, corner, strict=True)])
    n = [m + d * c for m, c in zip(n, corner, strict=True)]
  norm = 1 / _length(*n)
  facing = sum(m * w for m, w in zip(n, own_light, strict=True)) * norm
  bright = 0.52 + 0.52 * jnp.maximum(facing, 0) + 0.08 * n[2] * norm
  return cover, where * scale, bright, left


def _ground(scene: Scene, time, lit_HxW, size: int, tables: Mapping[str, jax.Array]):
  """float32 [H, W, 3]: floor, haze and sky behind all objects."""
  view, pixel = _view(scene, time, size), 2 * LENS / size
  x, y, _ = view.floor
  blur = pixel * view.far / jnp.sqrt(jnp.maximum(-view.way[2], 1e-3))
  bright = (1 + 0.18 * _texture(scene, x, y, blur)) * (0.5 + 0.55 * _light(scene)[2] * lit_HxW)
  sky = tables["sky"][scene.sky] * scene.shade[4]
  floor = tables["floor"][scene.floor] * scene.shade[3] * bright[..., None]
  haze = jnp.exp(-HAZE * view.far)[..., None]
  horizon = jnp.clip(0.5 + view.way[2] / pixel, 0, 1)[..., None]
  above = 1 - 0.35 * jnp.clip(view.way[2], 0, 1)[..., None]
  return (floor * haze + sky * (1 - haze)) * (1 - horizon) + horizon * sky * above


def paint(scene: Scene, *, objects: int, size: int, times: np.ndarray, tables: Mapping[str, jax.Array]) -> jax.Array:
  """uint8 [F, size, size, 3] of one scene.

  Args:
    objects: how many of the three there can be; static.
    times: seconds [F].
    tables: "colour" [n, 3], "floor" and "sky": colours in [0, 1].
  """
  times = jnp.asarray(times, jnp.float32)
  nothing = [jnp.full((len(times), size, size), value, jnp.float32) for value in (0.0, 1e3, 0.0, 1.0)]

  def layer(i):  # those that are not there cost nothing, where no vmap turns the condition into a select
    seen = lambda: list(jax.vmap(lambda t: _object(scene, i, t, size))(times))
    return jax.lax.cond(i < scene.count, seen, lambda: nothing)

  cover, far, bright, left = jax.lax.map(layer, jnp.arange(objects))
  picture = jax.vmap(lambda t, lit: _ground(scene, t, lit, size, tables))(times, left.prod(0))
  colours = tables["colour"][scene.colour[:objects]] * scene.shade[:objects, None]
  order = jnp.argsort(-far, axis=0)  # the farthest first
  sort = lambda x: jnp.take_along_axis(x, order, 0)
  cover, bright, colours = sort(cover), sort(bright), colours[order]
  for i in range(objects):
    picture = picture + cover[i, ..., None] * (colours[i] * bright[i, ..., None] - picture)
  return jnp.round(255 * jnp.clip(picture, 0, 1)).astype(jnp.uint8)
