"""--config and its values: sources, splits and sets given whole; whatever is wrong with a flag is one sentence."""

import json
from pathlib import Path

import pytest
from absl import flags

from vftok.train import experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config():
  """(words of the command line) -> the config that a program sees."""

  def parsed(name, *words):
    values = flags.FlagValues()
    experiment.define_config("An experiment.", values)
    experiment.parse(["program", f"--config={ROOT}/configs/{name}", *words], values)
    return values.config

  return parsed


SHAPES = dict(kind="shapes", count=3)


def test_sources_given_whole(config):
  both = {"a": {**SHAPES, "weight": 0.5}, "b": {"kind": "clips"}}
  assert config("vae.py:smoke", f"--config.data.sources={json.dumps(both)}").data.sources.to_dict() == both
  short = config("vae.py:smoke", "--config.data.sources=video_folder:path=/a,b/c.csv,holdout=0.1,split=train")
  video = dict(kind="video_folder", path="/a,b/c.csv", holdout=0.1, split="train")
  assert short.data.sources.to_dict() == {"video_folder": video}
  mapped = config("vae.py:smoke", '--config.data.sources=video_folder:path=x,columns={"path": "f", "caption": "t"}')
  assert mapped.data.sources.video_folder.columns.to_dict() == {"path": "f", "caption": "t"}


def test_one_source_beside_others_and_one_option_of_it(config):
  cfg = config(
    "vae.py:smoke",
    "--config.data.sources.more=shapes:count=5",
    "--config.data.sources.shapes.count",
    "7",
    "--config.steps=9",
  )
  assert cfg.data.sources.to_dict() == {"shapes": dict(kind="shapes", count=7), "more": dict(kind="shapes", count=5)}
  assert cfg.steps == 9


def test_splits_and_sets(config):
  cfg = config(
    "t2v.py:smoke", "--config.tokenize.splits=prepared:directory=/set", "--config.eval.sets=tokens:directory=/t"
  )
  whole = {"prepared": dict(kind="prepared", directory="/set")}
  assert cfg.tokenize.splits.to_dict() == dict(train=whole, val=whole)  # each is asked for its own split
  assert cfg.eval.sets.to_dict() == {"val": {"tokens": dict(kind="tokens", directory="/t", split="val")}}
  more = config(
    "vae.py:smoke", "--config.eval.sets.late=shapes:count=2,split=test", '--config.optim.lr_groups={"c": 2}'
  )
  assert more.eval.sets.late.to_dict() == {"shapes": dict(kind="shapes", count=2, split="test")}
  assert "shapes" in more.eval.sets and more.optim.lr_groups.to_dict() == {"c": 2}


def test_another_kind_starts_without_the_old_ones_options(config):
  """The flag that ended in an AttributeError: a path below a source that the config has with another kind."""
  base = "--config.tokenize.splits.train.videos"
  cfg = config("t2v.py:66m", f"{base}.kind=prepared", f"{base}.directory=/set")
  assert cfg.tokenize.splits.train.videos.to_dict() == dict(kind="prepared", directory="/set")


BAD = {
  "unknown key": (["--config.stepz=3"], "config has no stepz: did you mean steps?"),
  "below a value": (["--config.steps.x=3"], "config has no steps.x: steps is one value."),
  "no number": (["--config.steps=many"], "--config.steps is many, expected a value like 4 (int)."),
  "a group": (["--config.optim=3"], "--config.optim is a group, expected one of its values"),
  "no option of the tool": (["--stepz=3"], "--stepz is no option"),
  "no JSON": (["--config.data.sources={x"], "is no JSON"),
  "no object": (['--config.data.sources={"a": 3}'], "--config.data.sources.a is 3, expected a source."),
  "no pair": (["--config.data.sources=shapes:7"], "has 7, expected OPTION=VALUE after shapes"),
  "no such kind": (["--config.data.sources=films:path=x"], "has kind films, expected one of clips, video_folder"),
  "no such option": (
    ["--config.data.sources=shapes:sice=3"],
    "has sice, expected an option of shapes: size, frames, count",
  ),
  "no such part": (["--config.label.splits=shapes:count=3"], "this config has no label.splits"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence(name, config):
  words, sentence = BAD[name]
  with pytest.raises(ValueError) as error:
    config("vae.py:smoke", *words)
  said = str(error.value)
  assert sentence in said and len(said) < 392 and "\n" not in said


@pytest.mark.parametrize(
  "name, sentence",
  [("t2v.py:huge", "knows no size 'huge': Text-to-video"), ("none.py:smoke", "there is no such file")],
)
def test_a_file_or_size_that_there_is_not(name, sentence, config):
  with pytest.raises(ValueError, match=sentence):
    config(name)


def test_a_file_whose_imports_are_not_found(tmp_path):
  """From another folder than the repository's, and of a package that is not there."""
  (tmp_path / "recipes").mkdir()
  for name, text in (("own.py", "from recipes import common\n"), ("other.py", "import no_such_package.part\n")):
    (tmp_path / "recipes" / name).write_text(text)
  for name, sentence in (
    ("own.py", "imports 'recipes', which is not found from here: run from the folder that holds recipes/."),
    ("other.py", "imports 'no_such_package', which is not found from here: install it."),
  ):
    values = flags.FlagValues()
    experiment.define_config("An experiment.", values)
    with pytest.raises(ValueError) as error:
      experiment.parse(["program", f"--config={tmp_path}/recipes/{name}"], values)
    assert str(error.value).endswith(sentence)
