"""Captions -> token ids: cleaned, split into subwords by `tokenizers` or `sentencepiece`, cut and padded."""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

MAX_CHARS = 20_000  # more than any max_tokens needs: a book passed as a caption costs no more than a page
DROPPED = ("Cc", "Cf", "Cs")  # control characters, invisible format marks, halves of surrogate pairs
JOINERS = "\u200c\u200d"  # invisible too, but they change what Persian, Hindi or an emoji says


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Attributes:
  split: text -> ids of its subwords, without special tokens.
  size: one more than the largest id.
  prefix, suffix: ids of the special tokens put around every text.
  """

  split: Callable[[str], list[int]]
  size: int
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()


def clean(text: str) -> str:
  """HTML unescaped, control and format characters dropped, Unicode NFC, white space collapsed and stripped.

  Only the first `MAX_CHARS` characters are looked at.
  """
  text = html.unescape(html.unescape(text[:MAX_CHARS]))  # captions off the web are often escaped twice
  keep = lambda c: c.isspace() or c in JOINERS or unicodedata.category(c) not in DROPPED
  return " ".join(unicodedata.normalize("NFC", "".join(filter(keep, text))).split())


def tokenize(vocabulary: Vocabulary, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [B, max_tokens], mask bool of the same shape, True at tokens, special ones included).

  Texts are cleaned; long ones lose their end, not their special tokens. A special token's name in a text is plain text
  or dropped. A text without anything in it has no token at all, so the caller sees by `mask.any(1)` where its null
  condition belongs. Padding has id 0.

  Raises:
    ValueError: not a list or tuple of str.
  """
  if not isinstance(texts, (list, tuple)):
    raise ValueError(f"texts is a {type(texts).__name__}, expected a list of str: put a single text into a list.")
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(f"texts[{i}] is a {type(text).__name__}, expected a str.")
  ids = np.zeros((len(texts), max_tokens), np.int32)
  mask = np.zeros(ids.shape, bool)
  room = max_tokens - len(vocabulary.prefix) - len(vocabulary.suffix)
  for row, text in enumerate(map(clean, texts)):
    if subwords := vocabulary.split(text)[:room] if text else []:
      tokens = (*vocabulary.prefix, *subwords, *vocabulary.suffix)
      ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
  return ids, mask


def from_json(path: str | os.PathLike, prefix: Sequence[str], suffix: Sequence[str]) -> Vocabulary:
  """The vocabulary in a tokenizer.json; prefix and suffix by their names in it.

  Raises:
    FileNotFoundError: no such file. ValueError: it is damaged or has no such special token.
  """
  _check_file(path)
  try:
    import tokenizers
  except ImportError:
    raise ModuleNotFoundError("reading tokenizer.json needs tokenizers: pip install 'vftok[text]'.") from None
  try:
    model = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises nothing more special
    raise ValueError(f"{path} is no tokenizer.json ({_reason(error)}): fetch it again.") from None
  model.no_truncation()
  model.no_padding()
  model.encode_special_tokens = True
  special = {name: model.token_to_id(name) for name in (*prefix, *suffix)}
  for name, number in special.items():
    if number is None:
      raise ValueError(f"{path} has no token {name}, expected the tokenizer of the encoder: fetch it again.")

  def split(text: str) -> list[int]:
    # One text at a time: a batch would start threads, which do not survive the fork of a data worker.
    ids = model.encode(text, add_special_tokens=False).ids
    return [number for number in ids if number not in special.values()]  # "</s>" typed by somebody ends nothing

  size = 1 + max(model.get_vocab(with_added_tokens=True).values())
  return Vocabulary(split, size, tuple(special[name] for name in prefix), tuple(special[name] for name in suffix))


def from_sentencepiece(path: str | os.PathLike) -> Vocabulary:
  """The vocabulary in a spiece.model, with the end of a sentence as suffix.

  Raises:
    FileNotFoundError: no such file. ValueError: it is damaged or has no end of a sentence.
  """
  _check_file(path)
  try:
    import sentencepiece
  except ImportError:
    raise ModuleNotFoundError("reading spiece.model needs sentencepiece: pip install 'vftok[text]'.") from None
  model = sentencepiece.SentencePieceProcessor()
  try:
    model.LoadFromSerializedProto(pathlib.Path(path).read_bytes())
  except RuntimeError as error:
    raise ValueError(f"{path} is no sentencepiece model ({_reason(error)}): fetch it again.") from None
  if model.eos_id() < 0:
    raise ValueError(f"{path} has no end of a sentence (</s>), expected the vocabulary of a T5: fetch it again.")
  return Vocabulary(model.EncodeAsIds, model.GetPieceSize(), (), (model.eos_id(),))


def _check_file(path) -> None:
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"{path} does not exist: put the tokenizer beside the weights.")


def _reason(error) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")[:200]
