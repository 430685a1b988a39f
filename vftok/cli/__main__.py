"""`python -m vftok.cli`: as the command `vftok`."""

import sys

from vftok.cli.commands import main

if __name__ == "__main__":
  sys.exit(main())
