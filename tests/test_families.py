"""A family of tokenizers is a file and a row: files, commands, stored tokens, generators and evaluations take it."""

import json

import grey_family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from query_models import random_model, small_config
from starts import started

import vftok
from configs import c2v, common
from vftok.cli import commands
from vftok.data import ClipSpec, make_loader
from vftok.evals import generation, reconstruction, report
from vftok.generator.api import Generator
from vftok.generator.sample import sample
from vftok.io.video import read_video
from vftok.io.video_writer import write_video
from vftok.tokenizer import families
from vftok.tools import tokenize_dataset
from vftok.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model of the toy family, which the table knows in this module."""
  kept, families.FAMILIES = families.FAMILIES, (grey_family.ROW, *families.FAMILIES)
  tok = grey_family.Grey()
  directory = tmp_path_factory.mktemp("models") / "grey"
  tok.save({"table": {"shades": jnp.linspace(-1, 1, 16)}}, directory)
  yield directory
  families.FAMILIES = kept


@pytest.fixture(scope="module")
def model(folder):
  return vftok.load(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """21 frames of 16 x 16, dark above and bright below, fading."""
  level = np.linspace(20, 120, 21)[:, None] + np.repeat([0, 110], 8)
  path = tmp_path_factory.mktemp("clip") / "clip.mp4"
  write_video(path, np.broadcast_to(level[:, :, None, None], (21, 16, 16, 3)).astype(np.uint8), 8)
  return path


def test_the_row_decides(folder, model, small_dir):
  assert type(model[0]) is grey_family.Grey and type(vftok.Tokenizer.load(folder)[0]) is grey_family.Grey
  assert type(vftok.load(small_dir)[0]) is vftok.Tokenizer
  with pytest.raises(ValueError, match="'vae' is no option of loading a model of the family grey"):
    vftok.load(folder, vae="x")


def test_video_goes_through(model, clip):
  tok, params = model
  video = read_video(clip, tok.frame_size)[0][None]
  tokens = tok.encode(params, video, fit="pad")
  assert tokens.ids.shape == (1, 6, 4) and tokens.frames == 21 and not tokens.nested
  out = tok.decode(params, tokens)
  assert out.shape == video.shape and np.abs(out[:, ::4] - (video[:, ::4] / 127.5 - 1)).max() < 0.1
  pieces = tok.decode_stream(params, tok.encode_stream(params, [video], fit="pad"))
  assert np.array_equal(out, np.concatenate(list(pieces), 1))
  other = {"table": {"shades": params["table"]["shades"] * 0.9}}
  assert tok.fingerprint(params) != tok.fingerprint(other)


@pytest.mark.parametrize(
  ("ask", "sentence"),
  [
    (lambda tok, p, t: tok.decode(p, t, steps=4), "steps is 4, expected None: this model decodes in one pass"),
    (lambda tok, p, t: tok.decode(p, t, guidance=vftok.CFG(2.0)), "decodes in one pass"),
    (lambda tok, p, t: tok.decode(p, t, temper=1), "'temper' is no option of decoding"),
    (lambda tok, p, t: t.truncate(1), "these tokens have no order"),
    (lambda tok, p, t: tok.encode(p, np.zeros((1, 8, 16, 16, 3), np.uint8), budget=2), "these tokens have no order"),
    (lambda tok, p, t: tok.encode(p, np.zeros((1, 8, 16, 16, 3), np.uint8), budget=vftok.Auto(mean=2)), "no order"),
    (lambda tok, p, t: tok.encode(p, np.zeros((1, 9, 16, 16, 3), np.uint8)), "the video has 9 frames"),
    (lambda tok, p, t: tok.encode(p, np.zeros((1, 8, 8, 16, 3), np.uint8)), "frames are 8x16, expected 16x16"),
    (lambda tok, p, t: tok.encode(p, np.zeros((1, 8, 16, 16, 3), np.uint8), fit="crop"), "expected 'error' or 'pad'"),
    (lambda tok, p, t: tok.decode(p, t.replace(ids=t.ids + 16)), "expected 0..15"),
    (lambda tok, p, t: tok.decode({"table": {"shades": jnp.full(16, jnp.nan)}}, t), "are not finite"),
  ],
)
def test_what_it_cannot_do_is_a_sentence(model, ask, sentence):
  tok, params = model
  tokens = vftok.VideoTokens.full(np.zeros((1, 2, 4), np.int32), nested=False)
  with pytest.raises(ValueError, match=sentence) as error:
    ask(tok, params, tokens)
  assert len(str(error.value)) < 400 and str(error.value).endswith(".")


def test_commands(folder, clip, tmp_path, capsys):
  def run(*words, code=0):
    assert commands.main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out

  vft, out = tmp_path / "clip.vft", tmp_path / "out.mp4"
  assert "6 time steps, 24 tokens" in run("encode", folder, clip, vft)
  facts = json.loads(run("info", vft, "--json"))
  assert facts["nested"] is False and facts["tokens"] == 24 and facts["codebook_size"] == 16
  run("decode", folder, vft, out)
  assert read_video(out)[0].shape == (21, 16, 16, 3)
  rows = json.loads(run("reconstruct", folder, clip, tmp_path / "both.mp4", "--json"))["rows"]
  assert [row["keep"] for row in rows] == [4] and rows[0]["psnr"] > 18
  info = json.loads(run("info", folder, "--json"))
  assert info["one_pass"] and not info["nested"] and info["tokens_per_step"] == 4
  for words, sentence in (
    (("truncate", vft, tmp_path / "less.vft", "--keep", 1), "these tokens have no order"),
    (("encode", folder, clip, vft, "--keep", 1), "these tokens have no order"),
    (("decode", folder, vft, out, "--steps", 4), "decodes in one pass: leave it out"),
    (("decode", folder, vft, out, "--guidance", "cfg"), "decodes in one pass: leave it out"),
    (("decode", folder, vft, out, "--first-frames", clip), "first_frames"),
  ):
    assert sentence in run(*words, code=2)


@pytest.fixture(scope="module")
def tokens(folder, tmp_path_factory):
  cfg = c2v.get_config("smoke")
  cfg.tokenize.update(dict(tokenizer=str(folder), frames=8))
  out = tmp_path_factory.mktemp("tokens") / "set"
  tokenize_dataset.tokenize(cfg, out)
  return out


def test_a_generator_is_trained_on_its_tokens(tokens, model, tmp_path):
  cfg = c2v.get_config("smoke")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(tokens)
  cfg.steps = cfg.media_every = 1
  loop.run(cfg, tmp_path / "run")
  assert (tmp_path / "run" / "media").exists()
  gen, params = Generator.load(tmp_path / "run" / "model")
  assert gen.cfg.ar.order == "depth_first" and not gen.cfg.nested and gen.cfg.ar.slots == 4
  piece = next(sample(gen, params, *model, jax.random.key(0), {"label": [1]}))
  assert piece.video.shape == (1, 8, 16, 16, 3) and not piece.tokens.nested
  with pytest.raises(ValueError, match="keep is 2, expected all 4"):
    gen.generate(params, jax.random.key(0), {"label": [1]}, keep=2)
  for wrong in ({"frames": 9}, {"first_frames": np.zeros((1, 1, 16, 16, 3), np.uint8)}):
    with pytest.raises(ValueError, match="decodes 8 frames at once"):
      next(sample(gen, params, *model, jax.random.key(0), {"label": [1]}, **wrong))
  cfg.model.ar.slots = 2
  with pytest.raises(ValueError, match="expected 0 for all 4: the stored tokens have no order"):
    loop.run(cfg, tmp_path / "other")


@pytest.mark.slow
def test_a_generator_is_trained_on_adaptoks_tokens(tmp_path):
  """Blocks of time whose tokens have an order, decoded in one pass: any budget is a prefix of one sequence."""
  tok, params = random_model(small_config(True))
  tok.save(params, tmp_path / "adaptok")
  cfg = c2v.get_config("smoke")
  cfg.tokenize.update(dict(tokenizer=str(tmp_path / "adaptok"), frames=8))
  tokenize_dataset.tokenize(cfg, tmp_path / "set")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(tmp_path / "set")
  cfg.steps = 1
  loop.run(cfg, tmp_path / "run")
  gen, own = Generator.load(tmp_path / "run" / "model")
  ar = gen.cfg.ar
  assert gen.cfg.nested and (ar.order, ar.steps, ar.slots, ar.vocab) == ("time_first", 2, 4, 24)
  make = lambda **options: next(sample(gen, own, tok, params, jax.random.key(0), {"label": [1]}, **options))
  whole, half = make(guidance=1), make(guidance=1, keep=2)
  assert whole.video.shape == (1, 8, 16, 16, 3) and whole.made == 8 and half.made == 4
  assert np.array_equal(half.tokens.ids[:, :, :2], whole.tokens.ids[:, :, :2]) and np.all(half.tokens.keep == 2)
  assert not np.array_equal(half.video, whole.video)
  with pytest.raises(ValueError, match="decodes 8 frames at once"):
    make(first_frames=np.zeros((1, 4, 16, 16, 3), np.uint8))


@pytest.mark.slow
def test_evaluations_know_one_budget_and_no_vae(model, tokens, tmp_path):
  spec = ClipSpec(frames=8, size=(16, 16))
  load = lambda: make_loader(common.shapes(4), spec, 2, train=False, process_index=0, process_count=1)
  with load() as loader:
    evaluation = reconstruction.evaluate(*model, loader, split="val", seeds=(0, 1), lpips_net=None, rfvd=False, media=1)
  names = [row["name"] for row in evaluation.rows]
  assert "keep 4" in names and reconstruction.VAE not in names
  assert evaluation.rows[0]["solver"] == "one pass" and evaluation.rows[0]["seeds"] == []
  assert len(next(row for row in evaluation.rows if row["name"] == "keep 4")["per_seed"]["psnr"]) == 1
  report.write_report(tmp_path / "report", [evaluation], title="grey", fps=8.0)
  cfg = c2v.get_config("smoke")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(tokens)
  task = loop.make_task(cfg)
  with load() as loader:
    made = generation.evaluate(
      task.gen, started(task.gen.init), *model, loader, split="val", keeps=(4,), fvd=False, media=0
    )
  assert {row["name"] for row in made.rows} == {"real", "generated keep 4", "reconstructed keep 4"}
