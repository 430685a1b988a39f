"""Options nobody knows, wrong types and endless values: one short sentence each, before any program runs."""

import decimal
import fractions
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_files import sentence

import vftok
from vftok.generator import request
from vftok.generator.api import Generator
from vftok.generator.sample import sample
from vftok.io import leaves
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.runtime.words import brief, cut, is_number, is_whole
from vftok.tokens import VideoTokens

LONG = "x" * 100_000
GEN = Generator(GeneratorConfig(ARConfig(vocab=30, steps=5, slots=8, depth=1, n_classes=3, ctx_dim=4, n_ctx_null=1)))
ADAPTIVE = ARConfig(vocab=30, steps=5, slots=8, depth=1, lengths="length_first", levels=(1, 4, 8))
STRANGE = ("2", LONG, None, True, 2.7, -3, float("nan"), float("inf"), [1], [[1], [1, 2]], {}, b"2", object(), 10**400)


def message(call) -> str:
  """What a call says; it must be one short sentence."""
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    call()
  assert len(str(caught.value)) < 400
  return sentence(caught.value)


def ask(cond=None, cfg=None, **options):
  return lambda: request.request(cfg or GEN.cfg, cond, **options)


REQUESTS = {
  "unknown": (ask(tempature=1.0), "'tempature' is no option of generate, expected some of batch, keep"),
  "unknown and long": (ask(**{LONG: 1}), "is no option of generate"),
  "top_k": (ask(top_k=2.7), "top_k is 2.7"),
  "top_k text": (ask(top_k="2"), "top_k is '2'"),
  "top_k bool": (ask(top_k=True), "top_k is True"),
  "top_p": (ask(top_p="0.5"), "top_p '0.5'"),
  "temperature": (ask(temperature="1"), "temperature is '1'"),
  "temperature nan": (ask(temperature=float("nan")), "temperature is nan"),
  "guidance text": (ask(guidance="2"), "guidance is '2'"),
  "guidance of text": (ask(guidance={4: "2"}), "guidance is {4: '2'}"),
  "guidance budgets": (ask(guidance={"4": 2.0}), "guidance is {'4': 2.0}"),
  "guidance nothing": (ask(guidance={}), "guidance is {}"),
  "guidance bool": (ask(guidance=True), "guidance is True"),
  "batch": (ask(batch=2.5), "batch is 2.5"),
  "batch 0": (ask(batch=0), "batch is 0"),
  "batch below": (ask(batch=-3), "batch is -3"),
  "keep ragged": (ask(keep=[[1], [1, 2]]), "keep is [[1], [1, 2]]"),
  "keep text": (ask(keep="4"), "keep is '4'"),
  "keep long": (ask(keep=[0.5] * 9999), "keep is [0.5"),
  "steps": (ask(steps="5"), "steps is '5'"),
  "given": (ask(given=np.zeros((1, 2, 8), int)), "given is an array (1, 2, 8) of int64"),
  "given_first": (ask(given_first="no"), "given_first is 'no'"),
  "guide_lengths": (ask(guide_lengths=0), "guide_lengths is 0"),
  "forced": (ask(forced=[[1], [1, 2]]), "forced has shape ()"),
  "end_bias": (ask(end_bias="1"), "end_bias is '1'"),
  "mean_length": (ask(cfg=GeneratorConfig(ADAPTIVE), mean_length="4"), "mean_length is '4'"),
  "mean_length nan": (ask(cfg=GeneratorConfig(ADAPTIVE), mean_length=float("nan")), "mean_length is nan"),
  "class": (ask({"label": [LONG]}), "is unknown"),
  "classes": (ask({"label": [[1], [1, 2]]}), "label is [[1], [1, 2]]"),
  "cond": (ask({LONG: 1}), "cond is {'xxx"),
  "text_emb": (ask({"text_emb": "a", "text_mask": [1]}), "text_emb is 'a'"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(name):
  call, named = REQUESTS[name]
  assert named in message(call)


def test_no_strange_value_of_any_option_ends_in_a_traceback():
  """Either it is taken, or a sentence says why not."""
  assert set(request.OPTIONS) == set(inspect.signature(request.request).parameters) - {"cfg", "cond", "unknown"}
  for cfg in (GEN.cfg, GeneratorConfig(ADAPTIVE)):
    for option in request.OPTIONS:
      for value in STRANGE:
        try:
          request.request(cfg, None, **{option: value})
        except ValueError as error:
          assert len(sentence(error)) < 400


AUTOS = {
  "nan": (dict(mean=float("nan")), "budget.mean is nan"),
  "infinite": (dict(mean=float("inf")), "budget.mean is inf"),
  "text": (dict(mean="8"), "budget.mean is '8'"),
  "below one": (dict(mean=-3), "budget.mean is -3"),
  "total": (dict(total=2.5), "budget.total is 2.5"),
  "total 0": (dict(total=0), "budget.total is 0"),
  "preference": (dict(preference="1"), "weight of quality is '1'"),
  "preference nan": (dict(preference=float("nan")), "weight of quality is nan"),
  "router": (dict(mean=8, router=3), "budget.router is 3"),
  "first": (dict(mean=8, first=3), "budget.first is 3"),
  "first long": (dict(mean=8, first=(0.5,) * 9999), "budget.first is (0.5"),
  "tries": (dict(mean=8, tries=2.5), "budget.tries is 2.5"),
  "tries bool": (dict(mean=8, tries=True), "budget.tries is True"),
  "nothing": (dict(), "a budget got None"),
}


@pytest.mark.parametrize("name", AUTOS)
def test_budgets(name):
  options, named = AUTOS[name]
  assert named in message(lambda: vftok.Auto(**options))


def test_budgets_of_the_command_line():
  for text in (
    "auto:nan",
    "auto:inf",
    "auto:-3",
    "auto:total=-1",
    "auto:preference=nan",
    LONG,
    f"auto:{LONG}",
    "auto:",
  ):
    message(lambda text=text: vftok.Auto.parse(text))


VIDEO = np.zeros((1, 17, 32, 32, 3), np.uint8)
FULL = VideoTokens.full(np.zeros((1, 5, 8), np.int32))
KEY = jax.random.key(0)
DECODING = {
  "unknown option": (dict(step=3), "'step' is no option of decoding, expected some of steps, guidance"),
  "solver": (dict(solver=LONG), "solver is 'xxx"),
  "solver list": (dict(solver=["euler"]), "solver is ['euler']"),
  "guidance": (dict(guidance="2"), "guidance is '2'"),
  "scale": (dict(guidance=vftok.CFG(scale=LONG)), "guidance.scale is 'xxx"),
  "scale nan": (dict(guidance=vftok.APG(scale=float("nan"))), "guidance.scale is nan"),
  "scale ragged": (dict(guidance=vftok.CFG(scale=[[1], [1, 2]])), "guidance.scale is [[1]"),
  "momentum": (dict(guidance=vftok.APG(scale=2.0, momentum=float("inf"))), "guidance.momentum is inf"),
  "steps": (dict(steps="3"), "steps is '3'"),
  "noise": (dict(noise=["a"]), "noise[0] is 'a'"),
}


@pytest.mark.parametrize("name", DECODING)
def test_options_of_decoding(small, name):
  tok, params, _ = small
  options, named = DECODING[name]
  assert named in message(lambda: tok.decode(params, FULL, KEY, **options))


def test_tokens(small):
  tok, params, _ = small
  for frames in (-3, 0, 2.5, "17", True):
    bad = FULL.replace(frames=frames)
    assert "tokens.frames is" in message(lambda bad=bad: tok.decode(params, bad, KEY, steps=1))
  for bad in (None, LONG, np.zeros((1, 5, 8), int), {"ids": 1}):
    assert "expected VideoTokens" in message(lambda bad=bad: tok.decode(params, bad, KEY, steps=1))
  assert "fit is 'xxx" in message(lambda: tok.encode(params, VIDEO[:, :3], fit=LONG))


def test_parameters_of_another_model(small):
  """Also without a part, of another depth, or none at all; and an error of something else stays what it is."""
  tok, params, _ = small
  wider = jax.tree.map(lambda x: jnp.concatenate([x, x], -1), params)
  for bad, named in (
    (wider, "params are of another model: vae/"),
    ({"encoder": params["encoder"]}, "params have the parts ['encoder'], expected a dict with 'vae'"),
    (None, "params are None"),
    ({**params, "encoder": jax.tree.map(lambda x: x[:0], params["encoder"])}, "another model: encoder/"),
  ):
    assert named in message(lambda bad=bad: tok.encode(bad, VIDEO))
  gen = Generator(GeneratorConfig(ARConfig(vocab=30, steps=2, slots=2, depth=1)))
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(gen.init, KEY))
  other = Generator(GeneratorConfig(ARConfig(vocab=31, steps=2, slots=2, depth=1)))
  assert "params are of another model: " in message(lambda: other.generate(params, KEY))
  assert "params are of another model: " in message(lambda: other.logits(params, np.zeros((1, 4), int)))
  leaves.check_params(lambda: {("a",): jax.ShapeDtypeStruct((2,), float)}, {"a": np.zeros(2)})


def test_models(small_dir):
  for dtype in ("float16", LONG, 16, ["float32"]):
    assert "dtype is" in message(lambda dtype=dtype: vftok.Tokenizer.load(small_dir, dtype=dtype))
    assert "dtype is" in message(lambda dtype=dtype: Generator.load("anything", dtype=dtype))
  for name in (LONG, "a/" + LONG, LONG + "/b@c"):
    message(lambda name=name: vftok.Tokenizer.load(name)) if "/" not in name else None


def test_frames_to_sample(small, monkeypatch):
  tok, params, _ = small
  monkeypatch.setattr("vftok.generator.sample.check_pair", lambda *_: None)
  run = lambda **options: lambda: next(sample(GEN, None, tok, params, KEY, **options))
  for options, named in (
    (dict(frames=-3), "frames is -3"),
    (dict(frames="17"), "frames is '17'"),
    (dict(frames=17.0), "frames is 17.0"),
    (dict(frames=float("nan")), "frames is nan"),
    (dict(context=5.0), "context has 5.0 frames"),
    (dict(first_frames=[[1]]), "first_frames have shape (1, 1)"),
  ):
    assert named in message(run(**options))


def test_words():
  assert brief(3) == "3" and brief("a") == "'a'" and brief("a\nb") == r"'a\nb'"
  for value in (LONG, [LONG], {LONG: LONG}, "\n" * 10**6, 10**400, np.zeros(10**5)):
    assert len(brief(value)) <= 60 and "\n" not in brief(value)
  assert cut("a" * 100, 11) == "aaaa...aaaa" and cut("a" * 11, 11) == "a" * 11

  class Broken:
    def __repr__(self):
      raise RuntimeError

  assert brief(Broken()) == "a Broken"


def test_what_is_a_number():
  numbers = (
    0,
    -1,
    2.5,
    np.float32(1),
    np.int8(3),
    jnp.float32(2),
    jnp.asarray(1, jnp.bfloat16),
    fractions.Fraction(1, 2),
  )
  assert all(map(is_number, numbers)) and not any(
    map(is_number, (*STRANGE[:4], *STRANGE[6:], np.ones(1), np.bool_(True)))
  )
  assert not is_number(decimal.Decimal(1)) and not is_number(1j)
  assert all(map(is_whole, (0, -1, np.int8(3), jnp.int32(2))))
  assert not any(map(is_whole, (2.0, np.float32(2), True, np.bool_(True), "2", None, np.ones(1, int))))
