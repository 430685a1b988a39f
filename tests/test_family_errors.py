"""What no family takes, or one does not: a table of bad input by family, each one sentence before any program runs."""

import json
import shutil

import jax
import numpy as np
import pytest
from flextok_files import golden_parts, written
from query_models import write_golden
from safetensors.numpy import load_file, save_file

import vftok
from vftok.budget.scored import Scored
from vftok.tokens import VideoTokens

pytestmark = pytest.mark.filterwarnings("ignore:released FlexTok weights")
FAMILIES = ("larp", "adaptok", "evatok", "flextok")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with each family's golden model as it is released."""
  place = tmp_path_factory.mktemp("families")
  for name in FAMILIES[:3]:
    write_golden(place / name, f"{name}_small")
  written(place / "flextok", *golden_parts()[:2])
  return place


@pytest.fixture(scope="module")
def models(place):
  return {name: vftok.load(place / name) for name in FAMILIES}


def clip(tok, **changes):
  """A clip of zeros that fits; frames, height, width or channels more."""
  h, w = tok.frame_size
  more = {"frames": 0, "height": 0, "width": 0, "channels": 0} | changes
  return np.zeros(
    (1, tok.chunk_frames + more["frames"], h + more["height"], w + more["width"], 3 + more["channels"]), np.uint8
  )


def tokens(tok, value=0, slots=0, steps=0, keep=None):
  ids = np.full((1, tok.chunk_steps + steps, tok.registers + slots), value)
  found = VideoTokens.full(ids, nested=tok.nested)
  return found if keep is None else found.replace(keep=np.full((1, tok.chunk_steps), keep, np.int32))


def nan(params):
  return jax.tree.map(lambda x: np.asarray(x) * np.float32(np.nan), params)


KEY = jax.random.key(0)
FITS = "fits"  # no bad input of that family
PASS = "this model decodes in one pass"
ORDER = "these tokens have no order, so none can be left out"
KNOWN = "expected one of 2, 4, 8, 16, 32"
ROUTER = "no router that comes with vftok"
# name: (call, words of the sentence: of all families, or by family with "*" for the rest)
CALLS = {
  "height": (lambda t, p: t.encode(p, clip(t, height=4)), "resize and crop them first"),
  "frames": (
    lambda t, p: t.encode(p, clip(t, frames=1)),
    {
      "flextok": FITS,
      "larp": "the video has 9 frames, expected a count that fits chunks such as 8 or 16",
      "*": "fits chunks",
    },
  ),
  "no frames": (lambda t, p: t.encode(p, clip(t)[:, :0]), "expected at least one frame"),
  "channels": (lambda t, p: t.encode(p, clip(t, channels=1)), "channels last"),
  "axes": (lambda t, p: t.encode(p, clip(t)[0]), "expected [B, F,"),
  "range": (lambda t, p: t.encode(p, clip(t) + 200.0), "this looks like 0..255"),
  "video NaN": (lambda t, p: t.encode(p, clip(t) * np.nan), "video holds NaN or infinite values"),
  "text": (lambda t, p: t.encode(p, "clip.mp4"), "expected [B, F,"),
  "fit": (lambda t, p: t.encode(p, clip(t), fit="crop"), "fit is 'crop', expected 'error' or 'pad'"),
  "budget 0": (lambda t, p: t.encode(p, clip(t), budget=0), {"larp": ORDER, "evatok": KNOWN, "*": FITS}),
  "budget 3": (lambda t, p: t.encode(p, clip(t), budget=3), {"larp": ORDER, "evatok": KNOWN, "*": FITS}),
  "budget -1": (lambda t, p: t.encode(p, clip(t), budget=-1), {"evatok": KNOWN, "*": "keep is -1, expected 0.."}),
  "budget above": (
    lambda t, p: t.encode(p, clip(t), budget=t.registers + 1),
    {"evatok": "asks for 33 tokens in a time step", "larp": "keep is 25, expected 0..24", "*": "expected 0.."},
  ),
  "budget text": (
    lambda t, p: t.encode(p, clip(t), budget="many"),
    {"evatok": "'many', expected one of", "*": "keep is 'many'"},
  ),
  "budget 2.5": (lambda t, p: t.encode(p, clip(t), budget=2.5), {"evatok": "2.5, expected one of", "*": "keep is 2.5"}),
  "budget of steps": (
    lambda t, p: t.encode(p, clip(t), budget=[t.registers] * 7),
    "has shape (7,), expected an int, [",
  ),
  "router": (
    lambda t, p: t.encode(p, clip(t), budget=vftok.Auto(mean=2)),
    {"larp": "no order to cut them by", "adaptok": "which this model lacks", "*": ROUTER},
  ),
  "scorer": (
    lambda t, p: t.encode(p, clip(t), budget=Scored(1)),
    {"larp": "no order", "adaptok": "expected 2 to 8", "evatok": KNOWN, "flextok": "of an AdapTok model with a scorer"},
  ),
  "truncate": (lambda t, p: tokens(t).truncate(1), {"larp": ORDER, "evatok": ORDER, "*": FITS}),
  "keep": (
    lambda t, p: t.decode(p, tokens(t, keep=1), KEY),
    {"larp": "tokens.keep is 1, expected 24 everywhere", "evatok": KNOWN, "*": FITS},
  ),
  "keep above": (lambda t, p: t.decode(p, tokens(t, keep=t.registers + 1), KEY), "expected 0.."),
  "ids above": (lambda t, p: t.decode(p, tokens(t, t.codebook_size), KEY), "these ids are another model's"),
  "ids below": (lambda t, p: t.decode(p, tokens(t, -1), KEY), "tokens.ids holds -1"),
  "slots": (lambda t, p: t.decode(p, tokens(t, slots=1), KEY), "slots and shorten with truncate()"),
  "steps of time": (
    lambda t, p: t.decode(p, tokens(t, steps=1), KEY),
    {"adaptok": "expected 4 or 4 + a multiple of 4", "evatok": "expected 3 or 3 + a multiple of 3", "*": FITS},
  ),
  "no tokens": (lambda t, p: t.decode(p, np.zeros((1, 1, 1), int), KEY), "expected VideoTokens"),
  "solver steps": (
    lambda t, p: t.decode(p, tokens(t), KEY, steps=0),
    {"flextok": "expected a whole number of solver steps", "*": f"steps is 0, expected None: {PASS}"},
  ),
  "guidance": (
    lambda t, p: t.decode(p, tokens(t), KEY, guidance="cfg"),
    {"flextok": "expected None, vftok.CFG(scale)", "*": f"guidance is 'cfg', expected None: {PASS}"},
  ),
  "solver": (
    lambda t, p: t.decode(p, tokens(t), KEY, solver="rk4"),
    {"flextok": "expected one of euler", "*": PASS},
  ),
  "first frames": (
    lambda t, p: t.decode(p, tokens(t), KEY, first_frames=clip(t)),
    {"flextok": "this model makes pictures", "*": PASS},
  ),
  "option": (lambda t, p: t.decode(p, tokens(t), KEY, colour=1), "'colour' is no option of decoding"),
  "NaN encoder": (lambda t, p: t.encode(nan(p), clip(t)), "features of this video are not finite"),
  "NaN decoder": (lambda t, p: t.decode(nan(p), tokens(t), KEY), "the decoded frames are not finite"),
  "no params": (lambda t, p: t.encode({}, clip(t)), "params "),
}


def words_of(expected, family):
  return expected if isinstance(expected, str) else expected.get(family, expected.get("*"))


BAD_CALLS = [
  (family, name) for name, (_, words) in CALLS.items() for family in FAMILIES if words_of(words, family) != FITS
]


@pytest.mark.parametrize(("family", "name"), BAD_CALLS)
def test_a_bad_call_is_one_sentence(family, name, models):
  call, expected = CALLS[name]
  with pytest.raises(ValueError) as caught:
    call(*models[family])
  check(caught.value, words_of(expected, family))


def check(error, words):
  text = str(error)
  assert words in text and len(text) < 400 and text.endswith(".") and "\n" not in text


# ---- files


def weights(change):
  def harm(directory):
    tensors = dict(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    change(tensors, sorted(tensors)[-1])
    save_file(tensors, directory / "model.safetensors")

  return harm


def config(change):
  def harm(directory):
    found = json.loads((directory / "config.json").read_text())
    (directory / "config.json").unlink()
    change(found)
    (directory / "config.json").write_text(json.dumps(found))

  return harm


def cut(directory):
  data = (directory / "model.safetensors").read_bytes()
  (directory / "model.safetensors").unlink()
  (directory / "model.safetensors").write_bytes(data[:-10])


FILES = {
  "a tensor missing": (weights(lambda w, last: w.pop(last)), "lacks"),
  "a tensor too many": (weights(lambda w, last: w.update(spare=w[last])), "has unused spare"),
  "a tensor of another shape": (weights(lambda w, last: w.update({last: w[last][..., None]})), "expected ("),
  "a tensor of NaN": (
    weights(lambda w, last: w.update({last: w[last] * np.float32(np.nan)})),
    "NaN or infinite values",
  ),
  "a tensor of infinity": (
    weights(lambda w, last: w.update({last: w[last] + np.float32(np.inf)})),
    "NaN or infinite values",
  ),
  "a tensor of integers": (weights(lambda w, last: w.update({last: w[last].astype(np.int32)})), "as int32"),
  "weights cut": (cut, "no whole safetensors file"),
  "a key unknown": (
    config(lambda c: c.update(use_mystery=True)),
    {"flextok": FITS, "*": "'use_mystery'"},  # FlexTok's reader follows the modules, and other keys are notes
  ),
  "a depth of text": (
    config(lambda c: _module(c).update({_depth(c): "two"})),
    {"flextok": "depth = 'two', expected a whole number", "*": "encoder_depth = 'two', expected a whole number"},
  ),
  "another depth": (config(lambda c: _module(c).update({_depth(c): 4})), {"*": "lacks"}),
  "a depth beyond all": (
    config(lambda c: _module(c).update({_depth(c): 10**9})),
    {"evatok": "1000000000", "flextok": "1000000000", "*": "encoder_depth = 1000000000"},
  ),
  "no depth": (config(lambda c: _module(c).pop(_depth(c))), "depth"),
}


def _module(c):
  return c["encoder"]["module_dict"]["enc_transformer"] if "encoder" in c else c


def _depth(c):
  return "depth" if "encoder" in c else "encoder_depth"


BAD_FILES = [
  (family, name) for name, (_, words) in FILES.items() for family in FAMILIES if words_of(words, family) != FITS
]


@pytest.mark.parametrize(("family", "name"), BAD_FILES)
def test_a_bad_file_is_one_sentence(family, name, place, tmp_path):
  harm, expected = FILES[name]
  shutil.copytree(place / family, tmp_path / family, copy_function=shutil.copyfile)
  harm(tmp_path / family)
  with pytest.raises(ValueError) as caught:
    vftok.load(tmp_path / family)
  check(caught.value, words_of(expected, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_loading(family, place):
  for options, words in (
    ({"dino": "x"}, "'dino' is no option"),
    ({"dtype": "float8"}, "float8"),
    ({"dtype": 3}, "dtype is 3"),
  ):
    with pytest.raises(ValueError) as caught:
      vftok.load(place / family, **options)
    check(caught.value, words)
