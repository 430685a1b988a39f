"""`config.loss` and `config.label` are read once, by name and type."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import c2v, router, t2v, tokenizer, vae
from vftok.budget.label import Label
from vftok.tasks.losses import ARLoss, RouterLoss, TokenizerLoss, VAELoss

LOSSES = {
  "tokenizer": (tokenizer, TokenizerLoss),
  "vae": (vae, VAELoss),
  "class": (c2v, ARLoss),
  "text": (t2v, ARLoss),
  "router": (router, RouterLoss),
}


@pytest.mark.parametrize("task", LOSSES)
def test_an_experiment_says_every_field_and_comes_back_as_it_was(task):
  experiment, kind = LOSSES[task]
  for size in ("smoke", "mini"):
    cfg = experiment.get_config(size)
    assert dataclasses.asdict(kind.of(cfg)) == cfg.loss.to_dict()


def test_what_a_config_leaves_out_has_its_default():
  cfg = vae.get_config("smoke")
  del cfg.loss["unit"], cfg.loss["adversarial"]
  assert VAELoss.of(cfg) == VAELoss(lpips=0.0, critic_width=8, fit_batches=2)


WRONG = {
  "unknown": (
    "tokenizer",
    {"flows": 1.0},
    "config.loss has the unknown key 'flows', expected one of draft, features, ",
  ),
  "of another type": ("vae", {"frames": "two"}, "config.loss.frames is 'two', expected int"),
  "no law": ("tokenizer", {"repa": 1.0, "flow": 0.0}, "without loss.flow no decoder runs: set repa to 0"),
  "a preference that is none": (
    "text",
    {"preference": (1.4, 2.0)},
    r"preference is \(1.4, 2.0\), expected 0 < low",
  ),
  "no number": ("tokenizer", {"usage": float("nan")}, "config.loss.usage is nan, expected a finite number"),
  "no measure": ("router", {"measure": "beauty"}, "loss.measure is 'beauty', expected one of flow, lpips, features"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_one_sentence(case):
  task, fields, sentence = WRONG[case]
  experiment, kind = LOSSES[task]
  cfg = experiment.get_config("smoke")
  cfg.loss = ConfigDict({**cfg.loss.to_dict(), **fields})
  with pytest.raises(ValueError, match=sentence) as error:
    kind.of(cfg)
  assert len(str(error.value)) < 400 and str(error.value).endswith(".")


def test_a_missing_field_is_one_sentence():
  cfg = router.get_config("smoke")
  del cfg.loss["measure"]
  with pytest.raises(ValueError, match=r"config.loss lacks the key 'measure': add it\."):
    RouterLoss.of(cfg)
  del cfg.label["tokenizer"]
  with pytest.raises(ValueError, match=r"config\.label lacks the key 'tokenizer'"):
    Label.of(cfg)
  with pytest.raises(ValueError, match="this config has no `label` part"):
    Label.of(vae.get_config("smoke"))


def test_a_label_is_what_the_experiment_says():
  cfg = router.get_config("mini")
  cfg.label.splits = ConfigDict(dict(train=dict(zebras=dict(kind="clips"), apes=dict(kind="sim")), val={}))
  label = Label.of(cfg)
  assert label.levels == (1, 2, 4, 8, 16) and label.clips == {"train": 512, "val": 64}
  assert list(label.splits["train"]) == ["zebras", "apes"]  # in this order, up to the number of clips
  label.check_levels(16)
  with pytest.raises(ValueError, match="rise from 1 to the tokenizer's 8"):
    label.check_levels(8)
