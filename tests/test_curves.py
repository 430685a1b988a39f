"""What clips lose at each budget: measured, drawn, fitted, and refused where it cannot be."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from router_files import clip, config

from configs import router as experiment
from configs import tokenizer as tokenizer_experiment
from vftok.budget.curves import assignments, curve_table, drawn, flow_losses, sampled_losses, spearman
from vftok.budget.label import Label
from vftok.evals.scores import clip_scores
from vftok.frozen.metrics.weights import load_lpips
from vftok.tasks.curve_fits import expected, explained, one_for_all
from vftok.tools import label_budgets
from vftok.tools.chunks import directory_of
from vftok.train import loop


def test_assignments_and_tables():
  keep = assignments((1, 2, 8), 3, random=4)
  assert keep.shape == (9 + 3 + 4, 3)
  assert keep[:3].tolist() == [[1, 2, 2], [2, 2, 2], [8, 2, 2]] and keep[9:12].tolist() == [[k] * 3 for k in (1, 2, 8)]
  assert set(keep[12:].ravel()) <= {1, 2, 8}
  table = curve_table(np.arange(48.0).reshape(16, 3), 3, 3)
  assert table.tolist() == [[1, 4, 7], [10, 13, 16], [19, 22, 25]]


def test_spearman():
  assert spearman([1, 2, 3, 4], [10, 20, 30, 5]) == pytest.approx(-0.2)
  assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1)
  with pytest.raises(ValueError, match="all the same"):
    spearman([1, 1, 1], [1, 2, 3])


def test_flow_losses_are_the_velocity_error_under_the_same_noise(random_model):
  _, tok, params = random_model
  latents, ids = tok.encode_latents(params, clip()), tok.encode(params, clip()).ids
  keep = np.array([[4] * 5, [1] * 5, [4, 1, 1, 1, 1]], np.int32)
  losses = flow_losses(tok.cfg, params, latents, ids, keep, (0.3, 0.7), jax.random.key(0))
  assert losses.shape == (2, 3, 5, 2)
  noise = jax.random.normal(jax.random.key(0), latents.shape[1:])[None]
  from vftok.tokens import VideoTokens

  tokens = VideoTokens.full(ids).truncate(keep[2])
  v = tok.velocity(params, tokens, 0.7 * noise + 0.3 * latents, 0.7, collapse=False)
  expected = jnp.square(v - (noise - latents)).mean((2, 3, 4))
  np.testing.assert_allclose(losses[:, 2, :, 1], expected, rtol=1e-4)


@pytest.mark.slow
def test_sampled_losses_are_the_evaluations_own(random_model):
  """LPIPS of an assignment, as the tables have it; a step's share comes from its own frames."""
  _, tok, params = random_model
  video, net = clip(), load_lpips("vgg")
  tokens, keep = tok.encode(params, video), np.array([[[4, 1, 2, 4, 1]], [[1, 1, 1, 1, 2]]], np.int32)
  noise = jax.random.normal(jax.random.key(0), tok.latent_shape(1, 5))
  losses = sampled_losses(tok, params, net, video, tokens, keep, noise, steps=2)
  assert losses.shape == (2, 1, 5, 2)
  decoded = tok.decode(params, tokens.truncate(keep[:, 0]), noise=[np.repeat(noise, 2, 0)], steps=2)
  from vftok.io.video_writer import to_uint8

  expected = clip_scores(net, video, to_uint8(decoded)[None])[2][0]
  np.testing.assert_allclose(losses[:, 0, :, 0].mean(1), expected, rtol=1e-3)
  first = np.asarray(to_uint8(decoded))[:, :1]
  alone = clip_scores(net, video[:, :1], first[None])[2][0]
  np.testing.assert_allclose(losses[:, 0, 0, 0], alone * 5 / 17, rtol=1e-3)
  cosine = losses[..., 1]
  assert (cosine > 0).all() and (cosine.sum(2) < 5).all()


def test_drawn_assignments_are_a_clips_own():
  levels = (1, 2, 4, 8)
  first, again, other = (drawn(levels, 5, 40, 0, n) for n in (3, 3, 4))
  assert (first == again).all() and (first != other).any() and set(first.ravel()) == set(levels)
  near = np.log2(first[1::2])
  assert (near.max(1) - near.min(1) <= 2).all() and (np.ptp(np.log2(first[::2]), axis=1) == 3).any()


def test_one_table_for_all_and_what_is_left():
  rng = np.random.default_rng(0)
  table = np.array([[3.0, 1, 0], [2, 0.5, 0]])
  level = rng.integers(3, size=(50, 8, 2))
  loss = table[np.arange(2), level].sum(-1) + rng.normal(size=(50, 1))
  found, size = one_for_all(level, loss, (1, 2, 4), with_size=False)
  np.testing.assert_allclose(found[0], table, atol=1e-3)
  assert size == ()
  fit = lambda tables: explained(tables, level, loss, (1, 2, 4), ())
  exact = fit(table[None])
  assert exact["explained/router"] == pytest.approx(1) and exact["explained/one for all"] == pytest.approx(1)
  own = table * rng.uniform(0.2, 2, (50, 1, 1))
  loss = np.stack([t[np.arange(2), n].sum(-1) for t, n in zip(own, level, strict=True)])
  found = fit(own)
  assert found["r2"] == pytest.approx(1) and found["explained/one for all"] < 0.95
  assert fit(own.mean(0)[None])["r2"] < 0.05


def test_what_the_total_decides_is_kept_apart():
  """Losses that saturate in the total: without that part in the fit the first step's worth is misread."""
  rng, table = np.random.default_rng(0), np.array([[0.3, 0.1, 0], [0.2, 0.1, 0], [0.1, 0.05, 0]])
  level = rng.integers(3, size=(200, 8, 3))
  mean = np.array([1, 2, 4])[level].mean(2)
  loss = table[np.arange(3), level].sum(-1) + 1 / mean**2
  found, size = one_for_all(level, loss, (1, 2, 4), with_size=True)
  left = lambda *fitted: np.var(expected(*fitted, level, (1, 2, 4)) - loss)
  alone = one_for_all(level, loss, (1, 2, 4), with_size=False)
  assert len(size) == 3 and size[0] > size[1] > size[2] == 0
  assert left(found, size) < 0.3 * left(*alone)
  worth = lambda t: t[0] - t.mean(0)  # of steps beside each other: what spreads a total
  assert np.abs(worth(found[0]) - worth(table)).max() < 0.05


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(levels=(2, 4)), "levels are [2, 4], expected numbers of tokens that rise from 1 to the tokenizer's 4"),
    (dict(frames=33), "label.frames is 33, expected 17: one chunk"),
  ],
)
def test_bad_labels(changes, sentence, random_model, tmp_path):
  cfg = config(random_model, tmp_path / "set")
  cfg.label.update(changes)
  with pytest.raises(ValueError, match=re.escape(sentence)):
    label_budgets.label(cfg, tmp_path / "set")


@pytest.mark.parametrize(
  "size, measured", [("mini", "lpips"), ("mini_flow", "flow"), ("d12", "lpips"), ("d18", "lpips")]
)
def test_what_is_labelled_is_what_a_router_learns(size, measured):
  cfg = experiment.get_config(size)
  assert directory_of(cfg, "curves", "") == cfg.eval.sets.val.curves.directory
  Label.of(cfg).check_levels(16 if "mini" in size else 256)
  assert cfg.loss.measure == measured and (measured == "flow") == (not cfg.label.sampled.train)


def test_nothing_labelled_yet(random_model, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no curves .*: run `python -m vftok.tools.label_budgets` first"):
    loop.run(config(random_model, tmp_path / "nothing"), tmp_path / "run")


def test_command_line_refuses_with_a_sentence(monkeypatch, capsys):
  cfg = tokenizer_experiment.get_config("smoke")
  monkeypatch.setattr(label_budgets, "begin", lambda *a, **k: None)
  monkeypatch.setattr(
    label_budgets.flags, "FLAGS", type("F", (), dict(config=cfg, out="x", distributed=False, workers=0))
  )
  with pytest.raises(SystemExit, match="this config has no `label` part"):
    label_budgets.main([sys.argv[0]])
