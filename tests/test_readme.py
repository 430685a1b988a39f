"""Python blocks of the README and of the rooms' own run as they stand, in an empty folder with what they presuppose.

A block is known by its file's folder and its number there. Blocks that need the Hub's weights say so by a comment
`# needs the Hub` in their first line and are left out; all others must be in CASES.
"""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from starts import started

import vftok
from vftok.generator import conditions
from vftok.generator.api import Generator
from vftok.io.video_writer import write_video
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.tokens import VideoTokens

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *sorted(ROOT.glob("vftok/*/README.md")))
NEEDS_THE_HUB = "# needs the Hub"
T, S, C = 5, 3, 12


def blocks() -> dict[tuple[str, int], str]:
  """{(folder, number): code}."""
  found = {}
  for page in PAGES:
    codes = re.findall(r"^```python\n((?:.*\n)*?)```$", page.read_text(), flags=re.MULTILINE)
    name = "README" if page.parent == ROOT else page.parent.name
    found |= {(name, i): code for i, code in enumerate(codes, start=1)}
  return found


def generator(**own):
  """A tiny one in the folder "dir", and what the README's names stand for beside it."""
  ar = ARConfig(vocab=25, steps=T, depth=1, **own)
  gen = Generator(GeneratorConfig(ar, text="minilm" if ar.ctx_dim else ""))
  params = started(gen.init)
  gen.save(params, "dir")
  ids, first = np.zeros((2, 10), int), VideoTokens.full(np.zeros((2, 2, ar.slots), int))
  forced = np.where(np.arange(ar.slots) < 1, 3, -1)[None, None].repeat(T, 1)
  return dict(jax=jax, vftok=vftok, gen=gen, params=params, key=jax.random.key(0), ids=ids, first=first, forced=forced)


def tokenizer():
  video = np.random.default_rng(0).integers(0, 255, (1, 17, 32, 32, 3), np.uint8)
  tok, params = vftok.Tokenizer.load("vftok-mini")
  return dict(vftok=vftok, tok=tok, params=params, key=jax.random.key(0), clip=video, video=video, pieces=[video])


def written_clip():
  write_video("clip.mp4", np.random.default_rng(0).integers(0, 255, (17, 32, 32, 3), np.uint8), 8.0)
  return {}


def encoded():
  names = tokenizer()
  return names | {"tokens": names["tok"].encode(names["params"], names["video"])}


TEXTED = dict(n_classes=6, slots=16, ctx_dim=C, n_ctx_null=2)
LENGTHS = dict(slots=8, lengths="length_first", levels=(1, 2, 4, 8))
CASES = {
  ("README", 1): written_clip,
  (".github", 1): dict,
  ("tokenizer", 1): encoded,
  ("generator", 1): lambda: generator(**TEXTED) | {"cond": {"label": [1, 2]}},
  ("budget", 1): tokenizer,
  ("generator", 2): lambda: generator(**LENGTHS) | {"cond": None},
}
SLOW = set(CASES)  # 10 to 60 s of compiling each; what they call is looked at in the fast suite, see below


def test_every_block_is_run_or_says_why_not():
  assert {at for at, code in blocks().items() if NEEDS_THE_HUB not in code.splitlines()[0]} == set(CASES)


class Encoder:
  def embed(self, params, texts):
    return np.ones((len(texts), S, C), np.float32), np.ones((len(texts), S), bool)


@pytest.mark.parametrize("at", [pytest.param(at, marks=[pytest.mark.slow] * (at in SLOW)) for at in CASES], ids=str)
def test_a_block_runs(at, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(conditions, "text_encoder", lambda *_: (Encoder(), None))
  exec(compile(blocks()[at], f"README, {at}", "exec"), CASES[at]())


OWNERS = {"tok": vftok.Tokenizer, "gen": vftok.Generator, "tokens": VideoTokens, "vftok": vftok}


def test_what_blocks_call_exists_and_takes_what_it_is_given():
  """By signatures alone, of all blocks: names that went, and options that nothing knows."""
  seen = 0
  for at, code in blocks().items():
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OWNERS:
        owner = OWNERS[node.value.id]
        known = hasattr(owner, node.attr) or node.attr in getattr(owner, "__dataclass_fields__", ())
        assert known, f"{at}: {ast.unparse(node)} is not there"
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        called = getattr(OWNERS.get(node.func.value.id), node.func.attr, None)
        if called is not None:
          bound = [None] * (inspect.isfunction(called) and node.func.value.id != "vftok")  # self
          inspect.signature(called).bind(*bound, *node.args, **{k.arg: k.value for k in node.keywords})
          seen += 1
  assert seen > 20


def test_the_first_page_is_short_and_what_pages_point_to_is_there():
  assert len(PAGES[0].read_bytes()) <= 10_000 and len(PAGES) > 8
  seen = 0
  for page in PAGES:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
      assert (page.parent / target).exists(), f"{page}: {target}"
      seen += 1
  assert seen > 20


def test_the_picture_of_the_flow_is_its_scripts():
  code = importlib.util.spec_from_file_location("flow", ROOT / "launch" / "flow.py")
  flow = importlib.util.module_from_spec(code)
  code.loader.exec_module(flow)
  assert (ROOT / "launch" / "flow.svg").read_text() == flow.svg()
