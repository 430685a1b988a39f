"""EVATok from nothing to a sample: proxy, labels, router, final tokenizer, tokens, generator."""

import contextlib
import io

import jax
import numpy as np
import pytest

import vftok
from configs import evatok
from vftok.generator import sample
from vftok.generator.api import Generator
from vftok.tools import label_budgets, tokenize_dataset
from vftok.train import evaluate, loop
from vftok.train.writer import read_metrics

pytestmark = pytest.mark.slow


def trained(cfg, out):
  """The directory of a run's model."""
  with contextlib.redirect_stdout(io.StringIO()):
    loop.run(cfg, out)
  losses = [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
  assert losses and np.isfinite(losses).all()
  return str(out / "model")


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
  """(directory of it all, the router's config, directories of the proxy and of the router)."""
  root = tmp_path_factory.mktemp("evatok")
  proxy = trained(evatok.get_config("smoke"), root / "proxy")
  cfg = evatok.get_config("smoke_router")
  cfg.label.tokenizer, curves = proxy, root / "curves"
  cfg.data.sources.curves.directory = cfg.eval.sets.val.curves.directory = str(curves)
  assert "train 8, val 4 clips under all 16 assignments" in label_budgets.label(cfg, curves)
  assert "already there" in label_budgets.label(cfg, curves)
  return root, cfg, proxy, trained(cfg, root / "router")


def test_labels_are_what_the_proxy_loses(routed):
  from vftok.data.curves import curves, read_meta
  from vftok.tools.label_assignments import summary

  root, _, proxy, _ = routed
  source, (tok, params) = curves("train", directory=root / "curves"), vftok.load(proxy)
  record = source[3]
  for index, keep in ((0, [2, 2]), (6, [4, 8]), (15, [16, 16])):
    video = record["latents"][None]
    made = np.asarray(tok.decode(params, tok.encode(params, video, budget=keep)))
    made = np.round((made + 1) * 127.5) / 255
    np.testing.assert_allclose(np.square(made - video / 255).mean(), record["losses"][index, 0, 1], rtol=2e-3)
  assert summary(root / "curves", read_meta(root / "curves")).endswith("4 clips")


def test_the_router_is_judged_by_the_rewards_it_gets(routed):
  root, cfg, _, _ = routed
  values = evaluate.run(cfg, root / "router")
  assert values["val/clips"] == 4 and 4 <= values["val/tokens"] <= 32
  assert 0 <= values["val/top1"] <= values["val/top5"] <= 1
  assert values["val/percentile/router"] <= 100 and values["val/percentile/best uniform per clip"] <= 100


def test_the_whole_way(routed):
  root, _, proxy, router = routed
  cfg = evatok.get_config("smoke_final")
  cfg.loss.router = router
  final = trained(cfg, root / "final")
  assert vftok.load(final)[0].cfg == vftok.load(proxy)[0].cfg
  cfg = evatok.get_config("smoke_c2v")
  cfg.tokenize.tokenizer, cfg.tokenize.router = final, router
  cfg.data.sources.tokens.directory = cfg.eval.sets.val.tokens.directory = str(root / "tokens")
  assert "train 8, val 4 clips" in tokenize_dataset.tokenize(cfg, root / "tokens")
  generator = trained(cfg, root / "generator")
  assert np.isfinite(list(evaluate.run(cfg, root / "generator").values())).all()
  (gen, weights), (tok, params) = Generator.load(generator), vftok.load(final)
  (piece,) = sample.sample(gen, weights, tok, params, jax.random.key(0), {"label": [0, 1]})
  assert piece.video.shape == (2, 4, 16, 16, 3) and set(np.unique(piece.tokens.keep)) <= set(tok.counts)
