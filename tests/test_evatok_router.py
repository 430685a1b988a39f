"""EVATok's router as one of `vftok.budget`: classes over a clip's pixels, asked before the clip is encoded."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from evatok_files import random_model, random_video
from model_files import sentence

import vftok
from vftok.budget.router import Router
from vftok.budget.search import all_assignments
from vftok.cli import commands
from vftok.families.evatok.config import EvatokConfig, router_config
from vftok.frozen.metrics.vgg import lpips
from vftok.frozen.metrics.weights import load_lpips
from vftok.io.vft import read_vft
from vftok.io.video_writer import write_video
from vftok.models.router import RouterConfig
from vftok.tokens import VideoTokens
from vftok.tools.label_assignments import losses_of, recipe


def test_the_papers_router_is_a_config():
  """Section 5.3 of the spec: 625 classes, 6 x 512, 19.9 M."""
  cfg = router_config(EvatokConfig())
  assert (cfg.steps, cfg.patches, cfg.preference) == (4, 256, 1.2)
  shapes = jax.eval_shape(Router(cfg).init, jax.random.key(0))
  assert shapes["head"]["bias"].value.shape == (625,)
  assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == pytest.approx(19.9e6, rel=0.012)
  assert all_assignments(cfg.levels, cfg.steps)[[0, 1, -1]].tolist() == [[32] * 4, [32, 32, 32, 64], [512] * 4]


@pytest.fixture(scope="module")
def routed():
  """(tokenizer, params, router, its parameters, which prefer another class for every clip)."""
  tok, params = random_model()
  cfg = router_config(tok.cfg, fingerprint=tok.fingerprint(params))
  router = Router(dataclasses.replace(cfg, dim=32, depth=1, head_dim=16))
  shapes = nn.unbox(jax.eval_shape(router.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  return tok, params, router, jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def test_its_class_decides_before_encoding(routed):
  tok, params, *router = routed
  video = random_video(tok, batch=4, chunks=2)
  tokens = tok.encode(params, video, budget=vftok.Auto(preference=1.2, router=tuple(router)))
  logits = [router[0].predict(router[1], clip) for clip in np.split(video, 2, axis=1)]
  classes = all_assignments(tok.counts, tok.chunk_steps)
  expected = np.concatenate([classes[np.argmax(x, axis=1)] for x in logits], axis=1)
  assert np.array_equal(tokens.keep, expected) and len(np.unique(expected, axis=0)) > 1
  assert np.array_equal(tokens.ids, tok.encode(params, video, budget=expected).ids)
  streamed = tok.encode_stream(params, [video], budget=vftok.Auto(preference=1.2, router=tuple(router)))
  assert np.array_equal(VideoTokens.concat(list(streamed)).keep, expected)
  first = vftok.Auto(preference=1.2, router=tuple(router), first=(8,))  # as for frame prediction
  keep = first.counts(tok, params, video[:, :4])
  allowed = np.where(classes[:, 0] == 8, logits[0], -np.inf)
  assert np.array_equal(keep, classes[allowed.argmax(1)])


def test_labels_shared_between_assignments_are_those_of_each_alone():
  tok, params = random_model(frames=6, frame_size=(16, 32), patch=(2, 8, 8), counts=(2, 8))
  video = random_video(tok, batch=2)
  net = load_lpips("vgg")
  found = losses_of(tok, params, net, video, tok.counts)
  assert found.shape == (2, 8, 2)
  keeps, distance = all_assignments(tok.counts, 3), jax.jit(lpips)
  for index in (1, 4, 6):
    made = np.asarray(tok.decode(params, tok.encode(params, video, budget=keeps[index])))
    made = np.round((made + 1) * 127.5) / 127.5 - 1
    squared = np.square((made - video) / 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(found[:, index, 1], squared, rtol=1e-4, err_msg=f"{keeps[index]}")
    lost = [distance(net, a, b).mean() for a, b in zip(made, video, strict=True)]
    np.testing.assert_allclose(found[:, index, 0], lost, rtol=1e-3)


def test_labels_are_shared_by_causal_models_alone(routed, monkeypatch):
  tok, params = routed[:2]
  monkeypatch.setattr(type(tok), "causal", False)
  with pytest.raises(ValueError, match="expected a causal one"):
    recipe(None, tok, params)


def test_other_routers_are_refused(routed):
  tok, params, router, weights = routed
  other = lambda **fields: (Router(dataclasses.replace(router.cfg, **fields)), weights)
  cases = [
    (vftok.Auto(mean=4, router=(router, weights)), "knows preference=1.2 only"),
    (vftok.Auto(preference=1.2, router=(router, weights), tries=4), "budget.tries is 4, expected 0"),
    (vftok.Auto(preference=1.2, router=(router, weights), first=(5,)), "budget.first is (5,)"),
    (vftok.Auto(preference=1.2, router=other(levels=(2, 4))), "levels (2, 4)"),
    (vftok.Auto(preference=1.2, router=other(latents=(4, 8, 8, 3))), "reads (4, 8, 8, 3)"),
    (vftok.Auto(preference=1.2, router=other(head="curves", levels=(1, 16))), "head 'curves'"),
    (vftok.Auto(preference=1.2, router=other(fingerprint="0" * 16)), "is for the tokenizer 0000000000000000"),
    (vftok.Auto(preference=1.2), "no router that comes with vftok is for the tokenizer"),
  ]
  for budget, names in cases:
    with pytest.raises(ValueError) as caught:
      tok.encode(params, random_video(tok), budget=budget)
    assert names in sentence(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("levels", [(), (4,), (4, 2), (0, 4), (-1, 4)])
def test_classes_are_of_rising_counts(levels):
  with pytest.raises(ValueError, match="rise from 1"):
    RouterConfig(head="classes", levels=levels, latents=(1, 2, 2, 3), patch=(1, 2, 2))


def test_curves_still_rise_from_one():
  with pytest.raises(ValueError, match="rise from 1"):
    RouterConfig(levels=(2, 4))


def test_the_command_line_takes_it(routed, tmp_path, monkeypatch, capsys):
  tok, params, router, weights = routed
  monkeypatch.chdir(tmp_path)
  tok.save(params, "model")
  router.save(weights, "router")
  write_video("clip.mp4", np.random.default_rng(0).integers(0, 255, (4, 8, 16, 3), np.uint8), 8)
  assert commands.main("encode model clip.mp4 a.vft --budget auto:preference=1.2 --router router".split()) == 0
  keep = read_vft("a.vft").keep.tolist()
  assert set(keep) <= set(tok.counts) and len(keep) == 2
  assert commands.main("encode model clip.mp4 b.vft --budget auto:4 --router router".split()) == 2
  assert "knows preference=1.2 only" in capsys.readouterr().err
