"""A condition -> tokens, and tokens -> video by a tokenizer."""


def __getattr__(name: str):  # loads on first use, so that the files of this room cost nothing more
  if name != "Generator":
    raise AttributeError(f"module 'vftok.generator' has no attribute {name!r}")
  from vftok.generator.api import Generator

  return Generator
