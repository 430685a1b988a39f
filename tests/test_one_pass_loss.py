"""Every term of one-pass training against its formula in NumPy, and the sentences of its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.models.config_json import build
from vftok.tasks.one_pass_loss import OnePassLoss
from vftok.tasks.one_pass_objectives import OBJECTIVES, Judged, Shown, soft_targets, weights
from vftok.tokenizer.learner import Made, Predicted

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(3), 2)
KEPT = np.arange(3) < np.array([[3, 1], [2, 2]])[..., None]  # [B, T, K]


def numbers(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def shown(**cfg):
  made = Made(numbers(2, 4, 2, 2, 3), numbers(2, 2, 3, 4), numbers(2, 2, 3, 4), RNG.integers(0, 7, (2, 2, 3)), KEPT)
  ids, counts = RNG.integers(0, 7, (2, 5)), np.arange(5) < np.array([[3], [5]])
  made = made._replace(predicted=Predicted((numbers(2, 5, 7), numbers(2, 5, 7)), ids, counts))
  anchors = {"real": jnp.float32(0.3), "fake": jnp.float32(-0.2)}
  judged = Judged(*(numbers(2, 6) for _ in range(3)), turn=1.0, on=1.0, anchors=anchors)
  keep, lost, scores = KEPT.sum(2), np.abs(numbers(2, 4)), numbers(2, 2)
  return Shown(OnePassLoss(**cfg), numbers(2, 4, 2, 2, 3), made, keep, KEYS, lost, judged, scores)


def term(name, of):
  return np.asarray(OBJECTIVES[name](of))


def softplus(x):
  return np.log1p(np.exp(x.astype(np.float64)))


def over_kept(value, kept):
  return (value * kept).reshape(2, -1).sum(1) * 2 / kept.sum()


def cross_entropy(logits, ids):
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(log_p, ids[..., None], -1)[..., 0]


def soft(of, half):
  target = {k: np.asarray(v) for k, v in soft_targets(of.loss_cfg, of.keys_B).items()}
  real, fake = 1 - target["real"], target["fake"]
  error = lambda x, t: t * softplus(-x) + (1 - t) * softplus(x)
  return half * (error(of.judged.real, real) + error(of.judged.fake, fake)).mean(1)


def lecam(of):
  far = np.maximum(of.judged.real + 0.2, 0) ** 2 + np.maximum(0.3 - of.judged.fake, 0) ** 2
  return far.mean(1)


FORMULAS = {
  "l1": lambda of: np.abs((of.made.frames + 1) / 2 - (of.video + 1) / 2).mean((1, 2, 3, 4)),
  "l2": lambda of: (((of.made.frames + 1) / 2 - (of.video + 1) / 2) ** 2).mean((1, 2, 3, 4)),
  "lpips": lambda of: of.lpips.mean(1),
  "codebook": lambda of: over_kept(((of.made.codes - of.made.z) ** 2).mean(-1), KEPT),
  "commit": lambda of: over_kept(((of.made.codes - of.made.z) ** 2).mean(-1), KEPT),
  "prior": lambda of: over_kept(
    sum(cross_entropy(x, of.made.predicted.ids) for x in of.made.predicted.logits) / 2, of.made.predicted.counts
  ),
  "generator": lambda of: softplus(-of.judged.passed).mean(1),
  "critic": lambda of: soft(of, 0.5),
  "lecam": lecam,
  "anchors": lambda of: np.zeros(2),
  "scorer": lambda of: ((of.scores - (of.lpips.reshape(2, 2, 2).mean(2) - 0.1) / 0.5) ** 2).mean(1),
}


def test_every_term_has_a_formula():
  assert set(OBJECTIVES) == {*FORMULAS, "entropy", "align"}  # those two: tests/test_evatok_learn.py


@pytest.mark.parametrize("name", FORMULAS)
def test_terms_are_their_formulas(name):
  of = shown(scorer_mean=0.1, scorer_std=0.5)
  np.testing.assert_allclose(term(name, of), FORMULAS[name](of), rtol=2e-6, atol=1e-7)


def test_hinge():
  of = shown(form="hinge")
  both = np.maximum(1 - of.judged.real, 0) + np.maximum(1 + of.judged.fake, 0)
  np.testing.assert_allclose(term("critic", of), 0.5 * both.mean(1), rtol=1e-6)
  np.testing.assert_allclose(term("generator", of), -of.judged.passed.mean(1), rtol=1e-6)


def test_means_over_the_batch_are_means_over_what_it_keeps():
  of = shown()
  error = ((of.made.codes - of.made.z) ** 2).mean(-1)
  assert term("commit", of).mean() == pytest.approx(error[KEPT].mean(), rel=1e-6)


def test_soft_targets_are_of_each_clip_and_bounded():
  keys = jax.random.split(jax.random.key(0), 4000)
  off = np.asarray(soft_targets(OnePassLoss(), keys)["fake"])
  assert off.min() >= 0 and off.max() == np.float32(0.3) and 0.03 < (off == off.max()).mean() < 0.06  # P(|n| > 2)
  assert off[off < 0.3].mean() == pytest.approx(0.15 * 0.72, rel=0.05)  # E(|n|, |n| < 2)
  again = soft_targets(OnePassLoss(), keys[::-1])["fake"]
  np.testing.assert_array_equal(again[::-1], off)


@pytest.mark.parametrize("change", [dict(turn=0.0), dict(on=0.0)], ids=["another turn", "before its first step"])
def test_the_critic_learns_in_its_turn_alone(change):
  of = shown()
  of = of._replace(judged=of.judged._replace(**change))
  grad = jax.grad(lambda j: sum(OBJECTIVES[n](of._replace(judged=j)).sum() for n in ("critic", "lecam", "anchors")))
  assert not any(np.asarray(x).any() for x in jax.tree.leaves(grad(of.judged)._replace(turn=0.0, on=0.0)))


def test_running_means_are_drawn_to_the_batch():
  of = shown()
  grad = jax.grad(lambda anchors: OBJECTIVES["anchors"](of._replace(judged=of.judged._replace(anchors=anchors))).mean())
  found = grad(of.judged.anchors)
  assert found["real"] == pytest.approx(0.3 - of.judged.real.mean(), rel=1e-5)
  assert found["fake"] == pytest.approx(-0.2 - of.judged.fake.mean(), rel=1e-5)


def test_who_learns_from_vq():
  of = shown()
  grad = lambda name: jax.grad(lambda made: OBJECTIVES[name](of._replace(made=made)).sum(), allow_int=True)(of.made)
  commit, codebook = grad("commit"), grad("codebook")
  assert np.any(commit.z) and not np.any(commit.codes)
  assert np.any(codebook.codes) and not np.any(codebook.z)
  assert not np.any(np.asarray(commit.z)[~KEPT])


def test_weights_name_what_there_is():
  assert list(weights(OnePassLoss(adversarial=0.3, lecam=1e-6, lpips=0.0))) == [
    *("l1", "codebook", "commit", "generator", "critic", "lecam", "anchors")
  ]
  assert "critic" not in weights(OnePassLoss())


@pytest.mark.parametrize(
  "values, words",
  [
    (dict(l1=-1.0), "loss.l1 is -1.0, expected 0 or more"),
    (dict(form="wasserstein"), "loss.form is 'wasserstein', expected soft or hinge"),
    (dict(lpips_net=""), "loss.lpips is 1.0, expected 0 where lpips_net is ''"),
    (dict(lecam=0.1), "loss.lecam is 0.1, expected 0 where adversarial is 0"),
    (dict(counts="some"), "loss.counts is 'some', expected all or normal or grid"),
    (dict(mixed=1.5), "loss.mixed is 1.5, expected a share"),
    (dict(mixed_until=0.0), "loss.mixed_until is 0.0, expected a number above 0"),
    (dict(l1=0.0, lpips=0.0, codebook=0.0, commit=0.0), "loss.l1 is 0.0, expected a weight above 0"),
    (dict(temperature=1.0), "loss has the unknown key 'temperature'"),
    (dict(critic=dict(dim=30)), "critic.dim is 30, expected a multiple of its 8 heads"),
  ],
)
def test_bad_values_are_one_sentence(values, words):
  with pytest.raises(ValueError, match=words) as error:
    build(OnePassLoss, dataclasses.asdict(OnePassLoss()) | values, "loss")
  assert len(str(error.value)) < 400 and "\n" not in str(error.value)
