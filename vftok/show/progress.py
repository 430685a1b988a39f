"""One look for every progress bar: done of total, speed, time left. On stderr; in a log a line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

COMPILING = "compiling, the first chunk takes longer"
LINE_EVERY = 60.0  # seconds, where there is no terminal


@contextlib.contextmanager
def progress(
  what: str, total: float | None, unit: str = "frames", *, first: str = ""
) -> Iterator[Callable[[int], None]]:
  """Gives a function that counts `n` more units as done.

  Args:
    total: None where unknown: no time left is shown.
    first: what to show beside `what` until the first unit is done.
  """
  if not sys.stderr.isatty():
    yield _lines(what, total, unit)
    return
  from rich.console import Console
  from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
  )
  from rich.text import Text

  class Speed(ProgressColumn):
    def render(self, task):
      return Text(f"{task.speed:.3g} {unit}/s" if task.speed else f"- {unit}/s")

  def count(task):
    return f"{task.completed:.0f}/{task.total:.0f}" if task.total else f"{task.completed:.0f}"

  class Count(ProgressColumn):
    def render(self, task):
      return Text(f"{count(task)} {unit}")

  columns = [
    TextColumn("{task.description}"),
    BarColumn(),
    Count(),
    Speed(),
    TextColumn("elapsed"),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
  ]
  with Progress(*columns, console=Console(stderr=True), speed_estimate_period=120) as bar:
    task = bar.add_task(f"{what} ({first})" if first else what, total=total)
    yield lambda n: bar.update(task, advance=n, description=what)


def _lines(what: str, total: float | None, unit: str) -> Callable[[int], None]:
  """For logs: what is done, and how long the rest takes at the rate so far. Short work says nothing."""
  began = shown = time.monotonic()
  done = 0

  def advance(n: int) -> None:
    nonlocal done, shown
    done += n
    now = time.monotonic()
    if now - shown < LINE_EVERY or not done:
      return
    shown = now
    rest = f"/{total:.0f} {unit}, {(now - began) * (total - done) / done / 60:.1f} min left" if total else f" {unit}"
    print(f"{what}: {done}{rest}", file=sys.stderr, flush=True)

  return advance
