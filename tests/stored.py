"""Stored tokens that a test makes up."""

from vftok.data import shards
from vftok.data.tokens import features, finish_tokens, stored


def write_tokens(directory, examples, meta) -> None:
  """The same `examples()` as both splits of a set."""
  splits = dict.fromkeys(("train", "val"), lambda: map(stored, examples()))
  shards.write_set(directory, splits, features(meta), lambda parts: finish_tokens(directory, parts, meta))
