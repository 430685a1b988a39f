"""LARP's released generators through `vftok.Generator.load`, `sample` and the command line; AdapTok's are refused."""

import json

import jax
import numpy as np
import pytest
from query_models import golden, write_golden
from safetensors.numpy import load_file, save_file

import vftok
from vftok.cli import commands
from vftok.generator.larp import Larp
from vftok.generator.sample import sample
from vftok.io.video import read_video
from vftok.io.video_writer import write_video

KINDS = {"class": "ar_config", "frames": "fp_config"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with the golden tokenizer, both generators and a clip."""
  place = tmp_path_factory.mktemp("larp")
  write_golden(place / "tok", "larp_small")
  for name, config in KINDS.items():
    write_golden(place / name, "larp_small", config)
  write_video(place / "clip.mp4", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8), 8)
  return place


@pytest.fixture(scope="module")
def models(place):
  """{name: (model, params)}, golden arrays."""
  found = {name: vftok.Generator.load(place / name) for name in KINDS}
  return found | {"tok": vftok.load(place / "tok")}, golden("larp_small")[0]


def test_greedy_ids_of_classes(models):
  (gen, params), g = models[0]["class"], models[1]
  guidance = json.loads(golden("larp_small")[1]["guidance"])
  assert type(gen) is Larp and not gen.remakes and not gen.cfg.nested
  cond = {"label": [str(label) for label in g["ar.labels"]]}
  ids = lambda **options: gen.generate(params, None, cond, temperature=0.0, **options).ids[:, 0]
  assert np.array_equal(ids(guidance=1), g["ar.greedy_ids"])
  assert np.array_equal(ids(guidance=guidance), g["ar.greedy_guided_ids"])
  assert np.array_equal(ids(), ids(guidance=1.25))  # as published, unless asked otherwise
  piece = next(sample(gen, params, *models[0]["tok"], jax.random.key(0), cond, temperature=0.0, guidance=1))
  assert np.array_equal(piece.tokens.ids[:, 0], g["ar.greedy_ids"]) and piece.made == g["ar.greedy_ids"].size
  assert piece.video.shape == (2, 8, 32, 32, 3) and not piece.tokens.nested
  logits = gen.logits(params, g["tok.ids"], cond)
  np.testing.assert_allclose(logits, g["ar.logits"], atol=1e-4)
  none = gen.logits(params, g["tok.ids"])
  np.testing.assert_allclose(none, g["ar.logits_null"], atol=1e-4)


def test_greedy_ids_of_given_frames(models):
  (gen, params), g = models[0]["frames"], models[1]
  first = np.moveaxis(g["fp.cond_video"], 1, -1)[:, :4] * 2 - 1  # half of a clip; the rest repeats its last frame
  piece = next(sample(gen, params, *models[0]["tok"], jax.random.key(0), first_frames=first, temperature=0.0))
  assert gen.remakes and np.array_equal(piece.tokens.ids[:, 0], g["fp.greedy_ids"])
  assert piece.made == g["fp.greedy_ids"].size and piece.video.shape == (2, 8, 32, 32, 3)
  given = gen.first_tokens(*models[0]["tok"], first)
  assert np.array_equal(given.ids[:, 0], g["fp.cond_ids"][:, :-1])
  made = next(gen.stream(params, None, given=given, temperature=0.0))
  assert np.array_equal(made.ids[:, 0], g["fp.greedy_ids"])
  np.testing.assert_allclose(gen.logits(params, g["tok.ids"], given=given), g["fp.logits"], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_saved_as_it_was_released(name, place, models, tmp_path):
  gen, params = models[0][name]
  gen.export(params, tmp_path / "out")
  ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "out", place / name))
  assert ours.keys() == theirs.keys() and all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs)
  configs = [json.loads((d / "config.json").read_text()) for d in (tmp_path / "out", place / name)]
  assert configs[0] == configs[1] and vftok.Generator.load(tmp_path / "out")[0] == gen


@pytest.fixture
def run(place, monkeypatch, capsys):
  monkeypatch.chdir(place)

  def run(words, code=0):
    assert commands.main(["sample", *words.split()]) == code, capsys.readouterr()
    captured = capsys.readouterr()
    return captured.err if code else captured.out

  return run


def test_sample_command(run):
  said = run("class --tokenizer tok --classes 3,1 out.mp4 --temperature 0")
  assert said.startswith("out.mp4: 2 x 8 frames of 'class 3, 1', 24 tokens made per clip")
  assert len(read_video("out.mp4")[0]) == 8
  assert "2 x 8 frames of 'clip.mp4'" in run(
    "frames --tokenizer tok --first-frames clip.mp4 --first-count 4 -n 2 two.gif --temperature 0"
  )


REFUSED = [
  ("class out.mp4 --class 3", "names no tokenizer: pass --tokenizer"),
  ("class a_dog out.mp4", "knows no text, expected a class: pass one, or None"),
  ("class out.mp4", "expected PROMPT OUT, or OUT alone with --class NAME or --first-frames VIDEO"),
  ("class out.mp4 --class 3 --text-encoder t5", "--text-encoder is 't5', but this generator names no text encoder"),
  ("frames out.mp4 --first-frames clip.mp4 --text-encoder t5", "this generator names no text encoder: leave it out"),
  ("class out.mp4 --class 7", "label is 7, expected 0..6"),
  ("class out.mp4 --class dog", "class 'dog' is unknown, expected a number: this generator has no class names"),
  ("class out.mp4 --class 3,dog", "class 'dog' is unknown"),
  ("class out.mp4 --class 3 --keep 4", "keep is 4, expected all 24: the tokens of this model have no order"),
  ("class out.mp4 --class 3 --mean-length 4", "this model makes as many tokens as `keep` says"),
  ("class out.mp4 --class 3 --frames 16", "this tokenizer decodes 8 frames at once"),
  ("class out.mp4 --class 3 --long 0", "this tokenizer decodes 8 frames at once"),
  ("class out.mp4 --class 3 --top-k 5", "top_k is 5, expected 0"),
  ("class out.mp4 --class 3 --top-p 0.5", "top_p is 0.5, expected 1"),
  ("class out.mp4 --class 3 --steps 4", "--steps is 4, but this tokenizer decodes in one pass"),
  ("class out.mp4 --class 3 --guidance cfg", "--guidance is cfg, but this tokenizer decodes in one pass"),
  ("class out.mp4 --first-frames clip.mp4", "leave out frames and first frames"),
  ("frames out.mp4 --class 3", "knows no classes, expected no condition: pass None, and first frames where it goes on"),
  ("frames a_dog out.mp4 --first-frames clip.mp4", "knows no text"),
  ("frames out.mp4 --first-frames clip.mp4 --first-count 8", "first_frames has 8 frames, expected 1..7"),
  ("frames out.mp4 --first-frames clip.mp4 --gen-guidance 2", "neither labels nor guidance"),
  ("frames out.mp4 --first-frames clip.mp4 --temperature -1", "temperature is -1"),
  ("tok out.mp4 --class 3", "is no generator"),
  ("class out.mp4 --class 3 --tokenizer frames", "is a generator, expected a tokenizer"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_it_cannot_do_is_a_sentence(words, sentence, run):
  said = run(words if "names no" in sentence or "--tokenizer" in words else f"{words} --tokenizer tok", code=2)
  assert sentence in said and len(said) < 420 and said.count("\n") == 1


def test_options_of_python_that_it_has_not(models):
  (gen, params), (frames, own) = models[0]["class"], models[0]["frames"]
  ids = np.zeros((1, 1, 24), np.int32)
  for call, sentence in (
    (lambda: gen.generate(params, None, {"label": [1]}, forced=ids, temperature=0), "make whole clips"),
    (lambda: gen.generate(params, None, {"label": [1]}, given=ids, temperature=0), "goes on from no frames"),
    (lambda: gen.generate(params, None, {"label": [1]}), "neither key nor noise"),
    (lambda: gen.generate(params, None, {"label": [1]}, colour=1), "'colour' is no option of generate"),
    (lambda: gen.first_tokens(*models[0]["tok"], np.zeros((1, 4, 32, 32, 3))), "goes on from no frames"),
    (lambda: next(gen.stream(params, None, {"label": [1]}, every=4)), "every is 4, expected 0"),
    (lambda: gen.calibrate(params, None, {"label": [1]}, mean_length=3), "no END to calibrate"),
    (lambda: frames.generate(own, None, temperature=0), "expected some to go on from"),
    (lambda: frames.generate(own, None, {"label": [1]}, given=ids, temperature=0), "knows no classes"),
    (lambda: frames.first_tokens(*models[0]["tok"], np.zeros((1, 4, 16, 32, 3))), "expected 32x32"),
  ):
    with pytest.raises(ValueError) as caught:
      call()
    assert sentence in str(caught.value) and len(str(caught.value)) < 400, sentence


def test_adaptoks_generators_are_refused(place, tmp_path):
  tensors = load_file(place / "class" / "model.safetensors")
  config = json.loads((place / "class" / "config.json").read_text())
  table = tensors["tok_embeddings.weight"]
  for change, more in (({"tot_groups": 4}, {}), ({}, {"tok_embeddings.weight": np.concatenate([table, table[:1]])})):
    directory = tmp_path / str(len(change))
    directory.mkdir()
    save_file(tensors | more, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="AdapTok's generator, whose order of tokens and separators") as caught:
      vftok.Generator.load(directory)
    assert len(str(caught.value)) < 400
