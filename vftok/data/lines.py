"""Text files of strangers line by line, with places to come back to: errors name the line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence


class Lines:
  """Lines of a binary file as text, with the offsets where the last one begins and ends and its number."""

  def __init__(self, path, file):
    self.path, self.file, self.number, self.begin, self.end = path, file, 0, file.tell(), file.tell()

  def __iter__(self):
    return self

  def __next__(self) -> str:
    line = self.file.readline()
    if not line:
      raise StopIteration
    self.begin, self.end = self.end, self.end + len(line)
    self.number += 1
    try:
      return line.decode("utf-8-sig" if self.begin == 0 else "utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{self.path} line {self.number} is not UTF-8 at byte {error.start}: save it as UTF-8."
      ) from error


def table_rows(
  lines: Lines,
  check_header: Callable[[list[str], int], None],
  header: Sequence[str] | None = None,
  delimiter: str = ",",
) -> Iterator[tuple[int, int, dict[str, str]]]:
  """Yields (offset in the file, line number, row) of a CSV; blank lines are none.

  Args:
    check_header: is given the names in the first line and its number.
    header: these names, where `lines` begin at a later one.

  Raises:
    ValueError: what is no CSV, or a row of another length; the sentence names the line.
  """
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  while True:
    begin, number = lines.end, lines.number + 1
    try:
      cells = next(reader, None)
    except csv.Error as error:
      raise ValueError(f"{lines.path} line {number}: {error}; expected comma-separated values.") from error
    if cells is None:
      return
    if not cells:
      continue
    if header is None:
      header = [name.strip() for name in cells]
      check_header(header, number)
    elif len(cells) != len(header):
      raise ValueError(
        f"{lines.path} line {number} has {len(cells)} columns, expected {len(header)} as in line 1: fix it."
      )
    else:
      yield begin, number, dict(zip(header, cells, strict=True))
