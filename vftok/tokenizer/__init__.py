"""Video <-> tokens."""


def __getattr__(name: str):  # loads on first use, so that the files of this room cost nothing more
  if name != "Tokenizer":
    raise AttributeError(f"module 'vftok.tokenizer' has no attribute {name!r}")
  from vftok.tokenizer.api import Tokenizer

  return Tokenizer
