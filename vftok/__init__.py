"""vftok: flexible-length video tokens in JAX.

Public names load on first use, so that ``import vftok`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vftok.runtime import lazy

if TYPE_CHECKING:  # for type checkers and editors
  from vftok.budget.auto import Auto as Auto
  from vftok.budget.router import Router as Router
  from vftok.generator.api import Generator as Generator
  from vftok.io.video import read_video as read_video
  from vftok.io.video_writer import write_video as write_video
  from vftok.models.flow import APG as APG
  from vftok.models.flow import CFG as CFG
  from vftok.tokenizer.api import Tokenizer as Tokenizer
  from vftok.tokenizer.families import load as load
  from vftok.tokens import VideoTokens as VideoTokens

__version__ = "0.1.0"

_PUBLIC = {
  "load": "vftok.tokenizer.families",
  "Tokenizer": "vftok.tokenizer.api",
  "Generator": "vftok.generator.api",
  "VideoTokens": "vftok.tokens",
  "Auto": "vftok.budget.auto",
  "Router": "vftok.budget.router",
  "read_video": "vftok.io.video",
  "write_video": "vftok.io.video_writer",
  "CFG": "vftok.models.flow",
  "APG": "vftok.models.flow",
}

__all__ = ["__version__", *_PUBLIC]

__getattr__, _ = lazy.names(__name__, _PUBLIC)


def __dir__() -> list[str]:
  return sorted(__all__)
