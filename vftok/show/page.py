"""What all reports are made of: a directory that appears whole, tables, and films that a page carries inside."""

from __future__ import annotations

import base64
import contextlib
import html
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vftok.io.video_writer import film_ending, video_writer
from vftok.runtime.files import part_of, whole_file

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img,video{max-width:100%;border-radius:4px}.facts{color:#555}
.no{color:#b3261e;font-weight:600}"""


@contextlib.contextmanager
def whole_report(directory, marker: str) -> Iterator[Path]:
  """Gives a folder that takes the place of `directory` when the block succeeds, and is removed when not.

  An earlier report, known by its file `marker`, is replaced.

  Raises:
    ValueError: `directory` is a file or holds anything that is no report.
  """
  target = Path(directory)
  if target.exists() and not (target / marker).is_file() and not (target.is_dir() and not any(target.iterdir())):
    raise ValueError(f"{target} exists and is no earlier report: choose another directory.")
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = part_of(target)
  try:
    partial.mkdir()
    yield partial
    if target.exists():
      old = partial.with_suffix(".old")
      target.rename(old)
      partial.rename(target)
      shutil.rmtree(old)
    else:
      partial.rename(target)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def head(title: str) -> str:
  """The start of a page, up to its heading."""
  title = html.escape(title)
  start = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
  return f"{start}\n<h1>{title}</h1>"


def add(path, name: str, section: str) -> None:
  """Adds a section to the end of a page, in place of an earlier one of that name; whole or not at all.

  Raises:
    ValueError: there is no page at `path`.
  """
  text = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
  if not text.rstrip().endswith("</html>"):
    raise ValueError(f"{path} is no page, expected a report.html made before: make that first.")
  begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
  if begin in text and end in text:
    text = text[: text.index(begin)] + text[text.index(end) + len(end) :]
  text = text.rstrip().removesuffix("</html>").rstrip()
  with whole_file(path) as partial:
    partial.write_text("\n".join([text, begin, section, end, "</html>", ""]), encoding="utf-8")


def table(cells: Sequence[Sequence[str]]) -> str:
  """Rows of cells as HTML, the first one the head."""
  rows = []
  for i, line in enumerate(cells):
    tag = "td" if i else "th"
    rows.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>")
  return "\n".join(["<table>", *rows, "</table>"])


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
  """The same in Markdown, columns without a word to the right."""
  lines = ["| " + " | ".join(line) + " |" for line in cells]
  worded = [any(cell[:1].isalpha() for cell in column) for column in zip(*cells[1:], strict=True)]
  ends = [" ---: |" if i and not (worded and worded[i]) else " --- |" for i in range(len(cells[0]))]
  return "\n".join([lines[0], "|" + "".join(ends), *lines[1:]]) + "\n"


def write_film(directory: Path, name: str, frames: np.ndarray, fps: float) -> None:
  """NAME.mp4 (.webp without PyAV) of uint8 [F, H, W, 3], and NAME.png, the middle frame of it."""
  with video_writer(directory / f"{name}{film_ending()}", fps) as writer:
    writer.write(frames)
  Image.fromarray(frames[len(frames) // 2]).save(directory / f"{name}.png")


def film(directory: Path, name: str) -> str:
  """What `write_film` wrote, inside the page; nothing where it wrote nothing."""
  if (directory / f"{name}.webp").is_file():
    return f'<p><img alt="{html.escape(name)}" src="{data(directory / f"{name}.webp", "image/webp")}"></p>'
  if not (directory / f"{name}.mp4").is_file():
    return ""
  poster, source = data(directory / f"{name}.png", "image/png"), data(directory / f"{name}.mp4", "video/mp4")
  return f'<p><video autoplay loop muted controls playsinline poster="{poster}" src="{source}"></video></p>'


def data(path: Path, kind: str) -> str:
  """A file as a data: address."""
  return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
