"""From clips to stored tokens to a trained generator: tokenize, train, stop, resume, evaluate, sample."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from starts import started
from stored import write_tokens

from configs import c2v, t2v
from configs import tokenizer as tokenizer_configs
from vftok.data.dataset_writer import whole_directory
from vftok.data.shapes import SHAPES
from vftok.generator import sample
from vftok.generator.api import Generator
from vftok.runtime import target
from vftok.tasks import make_task
from vftok.tools import tokenize_dataset
from vftok.train import evaluate, loop, sample_run
from vftok.train.writer import read_metrics

S, C = 6, 12


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory):
  """A class config whose tokens exist."""
  cfg = c2v.get_config("smoke")
  cfg.tokenize.tokenizer = tokenizer[2]
  out = tmp_path_factory.mktemp("tokens") / "set"
  print(tokenize_dataset.tokenize(cfg, out))
  return out


def class_config(tokens, **changes):
  cfg = c2v.get_config("smoke")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(tokens)
  for key, value in changes.items():
    cfg.update_from_flattened_dict({key: value})
  return cfg


def test_a_split_to_generate_that_was_not_tokenized_is_said_first(tmp_path):
  cfg = c2v.get_config("mini")
  del cfg.tokenize.splits["test"]
  with pytest.raises(
    ValueError, match=r"generation.split is 'test', expected one of config.tokenize.splits: train, val;"
  ):
    evaluate.run(cfg, tmp_path / "no run")


@pytest.fixture(scope="module")
def text_tokens(tmp_path_factory):
  """Stored tokens with texts: the first slot of every step is the text's number."""
  rng = np.random.default_rng(0)
  emb = rng.normal(size=(4, S, C)).astype(np.float16)

  def examples():
    for i in range(16):
      ids = rng.integers(0, 25, (5, 4)).astype(np.uint16)
      ids[:, 0] = i % 4
      mask = np.arange(S) < 3 + i % 4
      yield dict(ids=ids, caption=f"thing {i % 4}", label=-1, name=str(i), text_emb=emb[i % 4], text_mask=mask)

  meta = dict(shape=[5, 4], fingerprint="f" * 16, tokenizer="", codebook_size=25, text="minilm", text_shape=[S, C])
  out = tmp_path_factory.mktemp("text") / "set"
  with whole_directory(out, meta) as directory:
    write_tokens(directory, examples, meta)
  return out


def trace(workdir):
  rows = read_metrics(workdir / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_tokens_are_those_of_the_tokenizer(tokenizer, tokens):
  from vftok.data import ClipSpec, make_loader

  tok, params, _ = tokenizer
  stored = make_loader(
    dict(t=dict(kind="tokens", directory=str(tokens))), ClipSpec(), 4, train=False, process_count=1, process_index=0
  )
  clips = make_loader(
    dict(c=dict(kind="shapes", count=8)),
    ClipSpec(frames=17, size=(16, 16)),
    4,
    train=False,
    process_count=1,
    process_index=0,
  )
  with stored, clips:
    assert stored.examples == 8
    for have, want in zip(stored, clips, strict=True):
      np.testing.assert_array_equal(have["ids"], tok.encode(params, want["video"]).ids)
      assert have["ids"].dtype == np.uint16 and list(have["caption"]) == list(want["caption"])
      np.testing.assert_array_equal(have["label"], want["label"])


def test_an_interrupted_tokenization_goes_on_and_a_whole_one_stays(tokenizer, tokens, tmp_path, monkeypatch):
  cfg = c2v.get_config("smoke")
  cfg.tokenize.tokenizer = tokenizer[2]
  monkeypatch.setattr(tokenize_dataset, "CHUNK", 4)
  calls, encode = [], tokenize_dataset._encode

  def breaks(*args):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return encode(*args)

  monkeypatch.setattr(tokenize_dataset, "_encode", breaks)
  with pytest.raises(KeyboardInterrupt):
    tokenize_dataset.tokenize(cfg, tmp_path / "set")
  assert not (tmp_path / "set").exists()
  tokenize_dataset.tokenize(cfg, tmp_path / "set")
  assert len(calls) == 4  # 1 done, 1 broken, 1 again, 1 of val
  assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
  assert "already there" in tokenize_dataset.tokenize(cfg, tmp_path / "set") and len(calls) == 4
  same = lambda path: json.loads((path / "recipe.json").read_text())
  assert same(tmp_path / "set") == same(tokens)


@pytest.fixture(scope="module")
def whole_run(tokens, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "c2v"
  loop.run(class_config(tokens), workdir)
  return workdir


@pytest.mark.slow
def test_stop_and_resume_leave_the_trace_of_one_run(tokens, whole_run, tmp_path):
  loop.run(class_config(tokens, minutes=1e-9), tmp_path)
  assert [row["step"] for row in trace(tmp_path)] == [1]
  loop.run(class_config(tokens), tmp_path)
  assert trace(tmp_path) == trace(whole_run)
  for part in ("model.safetensors", "config.json"):
    assert (tmp_path / "model" / part).read_bytes() == (whole_run / "model" / part).read_bytes()


@pytest.mark.slow
def test_the_trained_model_knows_its_tokenizer_and_samples(tokens, tokenizer, whole_run):
  tok, params, path = tokenizer
  gen, gen_params = Generator.load(whole_run / "model")
  assert (gen.cfg.tokenizer, gen.cfg.fingerprint) == (path, tok.fingerprint(params))
  assert (gen.cfg.ar.vocab, gen.cfg.ar.steps, gen.cfg.ar.slots) == (25, 5, 4)
  assert gen.cfg.classes == tuple(SHAPES) and gen.cfg.ar.n_classes == len(SHAPES)
  run = lambda **options: list(
    sample.sample(gen, gen_params, tok, params, jax.random.key(0), decode=dict(steps=1, guidance=None), **options)
  )
  (piece,) = run(cond={"label": [0, 2]}, keep=2)
  assert piece.video.shape == (2, 17, 16, 16, 3) and piece.video.dtype == np.uint8 and piece.made == 2 * 5 * 2
  long = run(frames=41, keep=1)
  assert [p.video.shape[1] for p in long] == [17, 12, 12]
  first = np.random.default_rng(0).integers(0, 255, (1, 5, 16, 16, 3)).astype(np.uint8)
  (given,) = run(first_frames=first, batch=2)
  np.testing.assert_allclose(given.video[:1, 0].astype(int), given.video[1:, 0].astype(int), atol=1)
  assert given.made == 2 * 3 * 4  # two of five steps are given


def test_evaluation_counts_bits(tokens, whole_run):
  values = evaluate.run(class_config(tokens), whole_run)
  assert 0 < values["val/bits_per_token"] < 8 and "val/null/bits_per_token" in values
  slots = [values[f"val/bits/slot{n}"] for n in ("0", "1", "2-3")]
  np.testing.assert_allclose((slots[0] + slots[1] + 2 * slots[2]) / 4, values["val/bits_per_token"], rtol=1e-5)
  bits = [values[f"val/nll_per_clip/keep {k}"] / np.log(2) for k in (1, 2, 4)]
  np.testing.assert_allclose(bits, 5 * np.cumsum(slots * np.array([1, 1, 2])), rtol=1e-5)


@pytest.mark.slow
def test_a_generation_is_evaluated_again_by_its_protocol(tokens, whole_run, tmp_path, capsys):
  cfg = class_config(tokens, **{"eval.generation.clips": 3, "eval.generation.keeps": (2, 4), "eval.generation.seed": 1})
  cfg.tokenize.tokenizer = Generator.load(whole_run / "model")[0].cfg.tokenizer
  cfg.eval.generation.update(dict(split="val", fvd=False, classifier_steps=0, pool=4, steps=1))
  values = evaluate.run(cfg, whole_run)
  path = tmp_path / "protocol.json"
  path.write_text((whole_run / "eval" / "generation" / "protocol.json").read_text())
  found = json.loads(path.read_text())
  assert found["kind"] == "generation" and found["clips"]["indices"] == {"shapes": [0, 1, 2]}
  assert found["settings"]["eval.generation.seed"] == 1 and found["settings"]["eval.generation.anew"] is False
  cfg.eval.generation.update(dict(clips=0, keeps=(1,), seed=3))
  again = evaluate.run(cfg, whole_run, path)
  assert "numbers are the protocol's" in capsys.readouterr().out
  assert again == {name: value for name, value in values.items() if name.startswith("generation/")} and again
  path.write_text(json.dumps({**found, "model": "0" * 16}))
  with pytest.raises(ValueError, match="fingerprint is 0000000000000000"):
    evaluate.run(cfg, whole_run, path)


@pytest.mark.slow
def test_a_text_model_learns_what_the_text_says(text_tokens, tmp_path):
  cfg = t2v.get_config("smoke")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(text_tokens)
  cfg.steps, cfg.batch_size, cfg.log_every, cfg.save_every, cfg.optim.lr = 60, 16, 60, 0, 1e-2
  cfg.loss.slot_weights = (1.0, 0.0)
  loop.run(cfg, tmp_path)
  gen, _ = Generator.load(tmp_path / "model")
  assert gen.cfg.text == "minilm" and gen.cfg.text_tokens == S
  values = evaluate.run(cfg, tmp_path)
  # Without the text only the first of five steps is a guess, of 2 bits: 0.4 on average.
  assert values["val/bits/slot0"] < 0.1 < 0.35 < values["val/null/bits/slot0"]


@pytest.mark.slow
def test_media_show_samples_of_every_budget(tokens):
  task = make_task(class_config(tokens))
  params = started(Generator(task.gen.cfg).init)
  batch = {
    "ids": np.zeros((2, 5, 4), np.uint16),
    "label": np.array([0, 1], np.int32),
    "caption": np.array(["a", "b"], object),
  }
  grid = task.media(params, {}, batch)["samples"]
  assert grid.ndim == 4 and grid.shape[0] == 17 and grid.dtype == np.uint8


def test_errors_are_one_sentence(tokens, text_tokens, tokenizer, whole_run, tmp_path):
  with pytest.raises(FileNotFoundError, match="tokenize_dataset"):
    make_task(class_config(tmp_path / "nothing"))
  cfg = class_config(tokens)
  cfg.data.sources.other = dict(kind="tokens", directory=str(text_tokens))
  with pytest.raises(ValueError, match="tokens of different tokenizers"):
    make_task(cfg)
  cfg = class_config(tokens)
  cfg.data.sources.tokens.fingerprint = "0" * 16
  with pytest.raises(ValueError, match="was made by the tokenizer"):
    loop.run(cfg, tmp_path / "run")
  with pytest.raises(ValueError, match="only names 'nothing'"):
    evaluate.run(class_config(tokens, **{"eval.only": ("nothing",)}), whole_run)
  gen, gen_params = Generator.load(whole_run / "model")
  tok, params, _ = tokenizer
  other = jax.tree.map(lambda x: x + 1, params)
  with pytest.raises(ValueError, match="fingerprint is"):
    next(sample.sample(gen, gen_params, tok, other, jax.random.key(0)))
  for options, message in ((dict(frames=16), "frames is 16"), (dict(context=4), "context has 4")):
    with pytest.raises(ValueError, match=message):
      next(sample.sample(gen, gen_params, tok, params, jax.random.key(0), **options))


def test_the_command_line_samples(whole_run, tmp_path, capsys, monkeypatch):
  from vftok.cli import commands

  model = str(whole_run / "model")
  out = str(tmp_path / "out.mp4")
  assert commands.main(["sample", model, "--class", "square", "--keep", "1,4", "--steps", "1", "-n", "2", out]) == 0
  assert Path(out).stat().st_size and "tokens/s" in capsys.readouterr().out
  for words, message in (
    (["", out], "the prompt is empty"),
    ([out], "expected PROMPT OUT, or OUT alone with --class"),
    (["a duck", out], "knows no text"),
    ([out, "--class", "9"], "label is 9"),
    ([out, "--class", "0", "--keep", "5"], "--keep is"),
    ([out, "--class", "0", "--frames", "18"], "frames is 18"),
  ):
    assert commands.main(["sample", model, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_video_without_end_is_whole_when_stopped(whole_run, tmp_path, capsys, monkeypatch):
  from vftok.cli import commands
  from vftok.cli import sample as sample_cli
  from vftok.io.video import read_video

  def stopped(*args, pieces=2, **options):
    for number, piece in enumerate(sample.sample(*args, **options)):
      if number == pieces:
        raise KeyboardInterrupt
      yield piece

  monkeypatch.setattr(sample_cli, "sample", stopped)
  out, words = tmp_path / "out.mp4", ["sample", str(whole_run / "model"), "--class", "1", "--long", "0", "--steps", "1"]
  assert commands.main([*words, "--keep", "1", str(out)]) == 0
  assert "29 frames" in capsys.readouterr().out and len(read_video(out, (64, 64))[0]) == 29
  monkeypatch.setattr(sample_cli, "sample", lambda *args, **options: stopped(*args, pieces=0, **options))
  assert (
    commands.main([*words, "--keep", "1", str(tmp_path / "none.mp4")]) == 130 and not (tmp_path / "none.mp4").exists()
  )
  capsys.readouterr()
  assert commands.main([*words, "--keep", "1,2", str(out)]) == 2
  assert "expected one budget" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_of_prompts_becomes_films_and_a_page(tokens, whole_run, tmp_path):
  (tmp_path / "prompts.jsonl").write_text('{"label": 1}\n\n{"label": 0}\n{"label": 2}\n{"label": 1}\n')
  options = {"sample.prompts": str(tmp_path / "prompts.jsonl"), "sample.keeps": (1, 4), "sample.steps": 1}
  cfg = class_config(tokens, **options, **{"sample.batch_size": 2})
  workdir = tmp_path / "run"
  with pytest.raises(ValueError, match="has no checkpoint"):
    sample_run.run(cfg, workdir)
  assert sample_run.run(cfg, whole_run) == {"videos": 4}
  written = json.loads((whole_run / "samples" / "samples.json").read_text())
  assert [video["label"] for video in written["videos"]] == [1, 0, 2, 1]
  assert all((whole_run / "samples" / video["file"]).stat().st_size for video in written["videos"])
  assert (whole_run / "samples" / "samples.html").read_text().count("<video") == 4


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("a.txt", "\n \n", "has no prompt"),
    ("a.jsonl", '{"text": "a"}\n{"txt": 1}', r"a\.jsonl:2 is '\{\"txt\": 1\}', expected"),
    ("a.jsonl", "a duck", r"a\.jsonl:1 is 'a duck', expected"),
    ("a.jsonl", '{"text": " "}', "expected"),
    ("a.jsonl", '{"label": true}', r"a\.jsonl:1 is '\{\"label\": true\}', expected"),
  ],
)
def test_prompts_that_are_none_are_named(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    sample_run.read_prompts(str(tmp_path / name))


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
  (tmp_path / "a.txt").write_text("a duck\n\n a red cube \n")
  assert sample_run.read_prompts(str(tmp_path / "a.txt")) == [{"text": "a duck"}, {"text": "a red cube"}]
  with pytest.raises(FileNotFoundError, match=r"correct config\.sample\.prompts"):
    sample_run.read_prompts(str(tmp_path / "b.txt"))
  with pytest.raises(ValueError, match=r"config\.sample\.prompts is empty"):
    sample_run.read_prompts("")
  with pytest.raises(ValueError, match="'tokenizer', which samples nothing"):
    sample_run.run(tokenizer_configs.get_config("smoke"), tmp_path)


def test_a_cpu_trains_few_layers_unrolled(text_tokens, monkeypatch):
  """No loop over layers is in the program of a loss; saved models keep the form that their config names."""
  cfg = t2v.get_config("smoke")
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(text_tokens)
  cfg.model.ar.depth = 3

  def loops(platform) -> int:
    monkeypatch.setattr(target, "COMPILE_FOR", platform)
    task = make_task(cfg)
    assert task.gen.cfg.ar.scan
    shape = jax.ShapeDtypeStruct
    batch = {"ids": shape((2, 5, 4), np.uint16), "text_emb": shape((2, S, C), np.float16)}
    batch |= {"text_mask": shape((2, S), bool), "_mask": shape((2,), bool)}
    params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    loss = jax.grad(lambda params, batch, keys: task.loss(params, {}, batch, keys, 0)[0])
    return jax.jit(loss).lower(params, batch, keys).as_text().count("stablehlo.while")

  assert loops("gpu") == loops("cpu") + 2  # forward and backward
