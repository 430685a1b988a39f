"""Evaluation of generators: captions read back, agreement counted, copies found, a table and a page written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

import vftok
from configs import tokenizer as tokenizer_configs
from vftok.data.clip import ClipSpec
from vftok.data.shapes import ShapesSource
from vftok.data.sim import SimSource
from vftok.data.world import SPLITS, WorldSource
from vftok.evals import alignment, generation, generation_report, generation_run
from vftok.evals.captions import SHAPES, SIM, WORLD
from vftok.generator.api import Generator
from vftok.models import config_json
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig, TokenizerConfig


def test_captions_are_read_back_exactly():
  pytest.importorskip("pybullet", reason="these clips are drawn by the extra: vftok[sim]")
  source = SimSource("train", 200, cameras=("still", "rise", "sink"), second_object=0.3)
  for i in range(200):
    scene = source.attributes(i)
    read = SIM.read(source.caption(i))
    assert read == {name: scene[name] for name in SIM.attributes}
  for text in ("", "a dog runs", "a red cube flies on a grey floor under a blue sky, still camera"):
    assert SIM.read(text) is None


def test_captions_of_shapes_are_read_back_exactly():
  source, index = ShapesSource("test", size=16, frames=3, count=40, objects=3), np.arange(40)
  read, said = SHAPES.labels(source.describe(index)[0]), source.attributes(index)
  assert set(read) == {"object", "colour", "motion"}
  for name in read:
    np.testing.assert_array_equal(read[name], said[name], name)
  assert (SHAPES.labels(["a red disc moves", "a pink disc moves up", CAPTIONS[0]])["motion"] < 0).all()


@pytest.mark.parametrize("split", SPLITS)
def test_captions_of_the_world_are_read_back_exactly(split):
  source, index = WorldSource(split, 300, size=8), np.arange(300)
  captions, _ = source.describe(index)
  read, said = WORLD.labels(captions), source.attributes(index)
  assert {len(np.unique(said[name])) > 1 for name in WORLD.attributes} == {True}
  for name in WORLD.attributes:
    np.testing.assert_array_equal(read[name], said[name], name)
  assert (WORLD.labels(["a dog runs", CAPTIONS[0]])["object"] < 0).all()  # the other kind's: nothing jumps here


CAPTIONS = [
  f"a {c} cube {m} on a grey floor under a blue sky, still camera"
  for c in ("red", "green")
  for m in ("jumps", "stands still")
]


def test_agreement_counts_what_the_classifier_sees(monkeypatch):
  agreement = alignment.Agreement(alignment.Judge(SIM, {}))
  want = SIM.labels(CAPTIONS)
  seen = {name: value.copy() for name, value in want.items()}
  seen["colour"][0] = 3
  agreement._predict = lambda video: seen
  agreement.update(np.zeros((4, 17, 8, 8, 3), np.uint8), CAPTIONS)
  summary = agreement.summary()
  assert summary["colour"] == 0.75 and summary["motion"] == 1 and summary["colour/chance"] == 0.5
  assert "object" not in summary and summary["all"] == 0.875  # all are cubes: nothing to tell
  with pytest.raises(ValueError, match="no caption is a scene's"):
    alignment.Agreement(alignment.Judge(SIM, {})).summary()


@pytest.mark.slow
def test_the_classifier_learns_colours():
  rng = np.random.default_rng(0)

  def batches():
    while True:
      colour = rng.integers(0, 2, 16)
      video = np.zeros((16, 17, 16, 16, 3), np.uint8)
      video[np.arange(16), :, 4:12, 4:12, colour] = 200  # red or green square
      captions = np.array([CAPTIONS[2 * c] for c in colour], object)
      yield {"video": video, "caption": captions}

  judge = alignment.train(batches(), (17, 16, 16, 3), steps=30)
  agreement, batch = alignment.Agreement(judge), next(batches())
  agreement.update(batch["video"], batch["caption"])
  assert agreement.summary()["colour"] == 1


def test_a_classifier_is_trained_once_for_generators_over_the_same_clips(monkeypatch):
  shapes_seen = []
  train = lambda batches, shape, steps, *, scenes: shapes_seen.append((shape, steps, scenes is SHAPES)) or object()
  monkeypatch.setattr(alignment, "train", train)
  source = json.dumps({"shapes": dict(kind="shapes", size=16, frames=5, count=8)})
  ask = lambda frames=5, seed=0: generation_run._classifier(source, ClipSpec(frames, (16, 16)), 3, seed)
  assert ask() is ask() and shapes_seen == [((5, 16, 16, 3), 3, True)]
  ask(seed=1)
  assert len(shapes_seen) == 2
  generation_run._classifier.cache_clear()


def test_neighbours_find_copies():
  clips = np.random.default_rng(0).integers(0, 255, (6, 17, 16, 24, 3)).astype(np.uint8)
  distance, index = generation.Neighbours(clips).nearest(clips[[4, 1]])
  np.testing.assert_allclose(distance, 0, atol=1e-3)
  assert index.tolist() == [4, 1]
  grey = np.full((1, 17, 16, 24, 3), 128, np.uint8)
  assert generation.Neighbours(clips).nearest(grey)[0][0] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("form", ["length_first", "end_of_step"])
def test_a_generator_that_says_lengths_is_scored_at_means_and_its_own(form, tmp_path):
  tok = vftok.Tokenizer(config_json.from_dict(TokenizerConfig, tokenizer_configs.get_config("smoke").model.to_dict()))
  params = started(tok.init)
  levels = (1, 2, 4) if form == "length_first" else ()
  gen = Generator(GeneratorConfig(ARConfig(vocab=25, steps=5, slots=4, depth=1, lengths=form, levels=levels)))
  clips = np.random.default_rng(0).integers(0, 255, (8, 17, 16, 16, 3)).astype(np.uint8)
  batch = {"video": clips, "caption": np.array(["a"] * 8, object), "label": np.zeros(8, int), "_mask": np.ones(8, bool)}
  evaluation = generation.evaluate(
    gen,
    started(gen.init, 1),
    tok,
    params,
    [batch] * 2,
    split="val",
    keeps=(1, 2),
    decode={"steps": 1},
    neighbours=generation.Neighbours(clips),
    fvd=False,
  )
  rows = {row["name"]: row for row in evaluation.rows}
  assert list(rows)[-1] == "generated own lengths" and rows["real"]["tokens"] is None
  assert rows["generated keep 1"]["tokens"] == 5 and abs(rows["generated keep 2"]["tokens"] / 10 - 1) < 0.3
  assert rows["generated keep 2"]["tokens"] < rows["generated own lengths"]["tokens"] < 20
  assert rows["generated keep 2"]["keep"] == rows["generated keep 2"]["tokens"] / 5
  assert evaluation.scalars()["tokens/reconstructed keep 2"] == 10
  generation_report.write(tmp_path / "report", evaluation, [], title="t", fps=8.0)
  assert "| generated own lengths |" in (tmp_path / "report" / "table.md").read_text()


@pytest.mark.slow
def test_a_generator_is_scored_at_every_budget(tmp_path):
  tok = vftok.Tokenizer(config_json.from_dict(TokenizerConfig, tokenizer_configs.get_config("smoke").model.to_dict()))
  params = started(tok.init)
  gen = Generator(GeneratorConfig(ARConfig(vocab=25, steps=5, slots=4, depth=1, n_classes=3)))
  gen_params = started(gen.init, 1)
  clips = np.random.default_rng(0).integers(0, 255, (4, 17, 16, 16, 3)).astype(np.uint8)
  mask = np.array([True, True, True, False])
  batches = [
    {"video": clips, "caption": np.array(CAPTIONS, object), "label": np.array([0, 1, -1, 0]), "_mask": mask}
  ] * 2
  params_of = alignment.classifier_of(SIM).init(jax.random.key(0), jnp.zeros((1, 17, 16, 16, 3), jnp.uint8))
  classifier = alignment.Judge(SIM, params_of)
  evaluation = generation.evaluate(
    gen,
    gen_params,
    tok,
    params,
    batches,
    split="val",
    keeps=(1, 4),
    decode={"steps": 1},
    classifier=classifier,
    clip=lambda video, captions: np.arange(len(video), dtype=np.float32),
    neighbours=generation.Neighbours(clips),
    fvd=False,
    media=2,
  )
  rows = {row["name"]: row for row in evaluation.rows}
  assert list(rows) == ["real", "VAE alone"] + [f"{k} keep {n}" for n in (1, 4) for k in ("generated", "reconstructed")]
  assert all(row["clips"] == 6 and row["indicative"] for row in evaluation.rows)
  assert rows["real"]["distance"] < 1e-3 < rows["generated keep 4"]["distance"]
  assert rows["real"]["clip"] == 1.0 and evaluation.scalars()["clip/generated keep 4"] == 1.0  # of 0, 1 and 2
  assert evaluation.media[0]["nearest training clip"].shape == (17, 16, 16, 3) and len(evaluation.media) == 2
  generation_report.write(
    tmp_path / "report", evaluation, [("t", {"a": clips[:2]}), ("t", {"a": clips[2:]})], title="t", fps=8.0
  )
  names = {p.name for p in (tmp_path / "report").iterdir()}
  assert {
    "generation.json",
    "generation.html",
    "table.md",
    "samples.mp4",
    "prompts.mp4",
    "prompts-2.mp4",
    "curves.png",
  } <= names
  page = (tmp_path / "report" / "generation.html").read_text()
  assert (
    page.count("<video") == 3 and "in t</h2>" in page and "indicative" not in page
  )  # no FVD, so nothing is indicative
  assert len(json.loads((tmp_path / "report" / "generation.json").read_text())["rows"]) == 6
  assert "generated keep 4/chance" not in evaluation.scalars() and "distance/real" in evaluation.scalars()

  asked = []  # each budget by itself, so that each has the guidance of its own (SemanTok)

  class Recorded:
    cfg = gen.cfg

    def generate(self, params, key, cond, keep, **options):
      asked.append((keep, options["guidance"]))
      return vftok.VideoTokens.full(np.zeros((4, 5, 4), int)).truncate(keep)

  options = dict(split="val", keeps=(1, 4), decode={"steps": 1}, fvd=False, media=0)
  anew = generation.evaluate(Recorded(), gen_params, tok, params, batches[:1], anew=True, **options)
  assert asked == [(1, None), (4, None)] and all(row["anew"] and row["decoder"] == "none" for row in anew.rows)
  with pytest.raises(ValueError, match="has no clips"):
    generation.evaluate(gen, gen_params, tok, params, [], split="val", keeps=(1,), fvd=False)
