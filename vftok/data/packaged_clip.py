"""What is said about a packaged clip: where its file is, whose it is, and what is to be seen in it when."""

from __future__ import annotations

from typing import NamedTuple


class Shot(NamedTuple):
  """Seconds from the first frame, one of LABELS, and a true sentence about all of it."""

  start: float
  end: float
  label: str
  caption: str


class Clip(NamedTuple):
  """One video file of a package.

  Attributes:
    package: "name==version" on PyPI, or the name of a Debian package.
    kind: "filmed", or "cg" for computer-made film.
    held_out: never trained on (split val_source).
  """

  name: str
  package: str
  member: str
  sha256: str
  kind: str
  held_out: bool
  licence: str
  credit: str
  shots: tuple[Shot, ...]
  sdist: bool = False
  debian: bool = False


# A label's place is its class: new ones go to the end.
LABELS = (
  "animal",
  "animation",
  "buildings",
  "earth",
  "hand with object",
  "landscape",
  "people walking",
  "riders",
  "ship",
  "street",
  "talking",
  "exercise",
  "face",
  "object",
)
