"""A condition -> tokens, and tokens -> video by a tokenizer."""

from vftok.runtime import lazy

__getattr__, __dir__ = lazy.names(__name__, {"Generator": "vftok.generator.api"})
