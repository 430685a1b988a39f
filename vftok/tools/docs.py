"""The API as HTML, from the docstrings: `python -m vftok.tools.docs --out DIR`, then open DIR/index.html.

Needs the extra `docs`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from vftok.runtime.ending import exit_code
from vftok.runtime.optional import required

PACKAGE = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.docs", description=__doc__.split("\n\n")[0])
  parser.add_argument("--out", type=Path, default=Path("runs/docs"), help="folder to write (default runs/docs)")
  args = parser.parse_args(argv)
  return exit_code("docs", write, args)


def write(args: argparse.Namespace) -> None:
  pdoc = required("pdoc", "pdoc", "the API reference")
  files = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ("__main__", "main"))
  names = (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # annotations that only type checkers resolve
    pdoc.pdoc(*(name.removesuffix(".__init__") for name in names), output_directory=args.out)
  print(args.out / "index.html")


if __name__ == "__main__":
  sys.exit(main())
