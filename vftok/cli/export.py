"""`vftok export`: a tokenizer or a generator of any family in the layout that its authors' code reads."""

from __future__ import annotations

from pathlib import Path

from vftok.generator.api import Generator
from vftok.generator.families import is_generator
from vftok.io import hub
from vftok.io.hub import CONFIG, WEIGHTS
from vftok.tokenizer.families import load


def run(args) -> None:
  """Writes the directory that the parsed arguments ask for and prints what is in it.

  Raises:
    ValueError: a model whose family has no such layout, or an output that is a file.
  """
  hub.check_directory(args.out)
  checkpoint = hub.open_checkpoint(args.model)
  model, params = (Generator.load if is_generator(checkpoint.config) else load)(checkpoint)
  if not hasattr(model, "export"):
    raise ValueError(f"{args.model} is a {type(model).__name__}, which knows no layout but vftok's own: copy it.")
  model.export(params, args.out)
  written = hub.open_checkpoint(args.out)
  print(f"{args.out}: {len(written.shapes)} tensors in {WEIGHTS}, and {Path(args.out) / CONFIG}")
