"""Video <-> tokens."""

from vftok.runtime import lazy

__getattr__, __dir__ = lazy.names(__name__, {"Tokenizer": "vftok.tokenizer.api"})
