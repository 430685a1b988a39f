"""Models on the Hugging Face Hub: safetensors and config alone are fetched, whole, of a revision that can be named."""

from __future__ import annotations

import pathlib
import re

from vftok.runtime.words import brief, cut

FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "config.json")
_ID = re.compile(r"([\w-][\w.-]*/[\w.-]+)(?:@([\w][\w./-]*))?")


def is_id(name: str) -> bool:
  """Whether a name may be one of the Hub's: org/model, or org/model@revision (a branch, tag or commit)."""
  return _ID.fullmatch(name) is not None


def download(name: str) -> pathlib.Path:
  """The folder of a model's files in the Hub client's cache; what is there already is not fetched again.

  Raises:
    FileNotFoundError: no client is installed, or no such model or revision, or it cannot be reached or entered.
  """
  match = _ID.fullmatch(name)
  assert match, name  # callers ask `is_id` first
  repository, revision = match.groups()
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError:
    raise FileNotFoundError(
      f"{cut(name)} is not on this disk: to fetch it from the Hub, pip install 'vftok[hub]'."
    ) from None
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
  except Exception as error:  # the client has its own error for every kind of failure; all mean "not here"
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ").replace(". ", ", ")
    if isinstance(error, errors.GatedRepoError):  # is a RepositoryNotFoundError too
      why = "is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
      why = f"has no revision {brief(revision)}: look at the branches and tags on its page"
    elif isinstance(error, errors.RepositoryNotFoundError):
      why = "is not there, or private: check the name, or log in with `hf auth login`"
    else:
      why = f"could not be fetched ({cut(reason, 120)}): check the network, then run the same command again"
    raise FileNotFoundError(f"{cut(name, 100)} is not on this disk, and on the Hub it {why}.") from None
