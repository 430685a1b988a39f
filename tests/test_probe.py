"""The semantic probe: right on planted attributes, exact in its fits, and in the report of an evaluation."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from vftok.data.shapes import ShapesSource
from vftok.evals import probe_run
from vftok.evals.probe import _fit, _rotated, _weights, probe
from vftok.models import fsq
from vftok.tasks import make_task
from vftok.tasks.high_noise import HighNoise, high_noise_errors
from vftok.tasks.tokenizer import _codes_used
from vftok.tokens import VideoTokens

sys.path.insert(0, str(Path(__file__).parents[1]))


def planted(n: int, seed: int):
  """(codes [n, 3, 4, 4], attributes): "early" is written into register 0 and "late" into register 2, in noise."""
  rng, table = np.random.default_rng(seed), np.random.default_rng(9).normal(size=(2, 4, 4))
  attributes = {name: rng.integers(4, size=n) for name in ("early", "late", "nowhere")} | {"one": np.zeros(n, int)}
  codes = rng.uniform(-1, 1, (n, 3, 4, 4))
  codes[:, :, 0] = 0.3 * codes[:, :, 0] + table[0, attributes["early"]][:, None]
  codes[:, :, 2] = 0.3 * codes[:, :, 2] + table[1, attributes["late"]][:, None]
  return codes, attributes


def test_an_attribute_appears_with_the_register_that_carries_it():
  codes, attributes = planted(300, 0)
  unknown = attributes["early"].copy()
  unknown[::3] = -1
  ceiling = np.eye(4)[attributes["nowhere"]][:, None] + np.zeros((300, 2, 4))
  found = probe(codes, attributes | {"some": unknown}, (4, 1, 2), (0, 1), {"pixels": ceiling})
  assert found.keeps == (1, 2, 4) and (found.trained, found.tested) == (150, 150)
  rows = found.rows
  assert set(rows) == {"early", "late", "nowhere", "some"}, "what never differs is left out"
  assert min(rows["early"][f"k{k}"] for k in (1, 2, 4)) > 0.95 and rows["some"]["k1"] > 0.95
  assert rows["late"]["k4"] > 0.95 and max(rows["late"][name] for name in ("k1", "k2", "pixels")) < 0.45
  assert rows["nowhere"]["pixels"] == 1 and max(rows["nowhere"][f"k{k}"] for k in (1, 2, 4)) < 0.45
  assert all(0.25 <= chance < 0.4 for chance in found.chance.values())
  assert found.spread["late"]["k1"] > 0 and found.scalars()["probe/late/k1"] == rows["late"]["k1"]
  again = probe(codes, attributes, (1,), (1,))
  assert again.spread["early"]["k1"] is None
  np.testing.assert_allclose(
    (rows["early"]["k1"] - again.rows["early"]["k1"]) * np.sqrt(2), found.spread["early"]["k1"], atol=2e-2
  )


def test_another_set_can_teach():
  codes, attributes = planted(150, 1)
  others = planted(240, 2)
  found = probe(codes, attributes, (4,), train=(*others, {}), train_set="train")
  assert (found.trained, found.tested, found.train_set) == (192, 150, "train") and "192 clips of train" in found.facts()
  assert found.rows["late"]["k4"] > 0.95
  wrong = {name: np.roll(x, 1) for name, x in others[1].items()}
  assert probe(codes, attributes, (4,), train=(others[0], wrong, {})).rows["late"]["k4"] < 0.5


@pytest.mark.parametrize("shape", [(60, 7), (30, 50)], ids=("few inputs", "more inputs than clips"))
def test_a_fit_is_the_minimum(shape):
  """Against L-BFGS of SciPy in float64, in the original basis."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=shape) * rng.uniform(0.1, 5, shape[1]), rng.integers(3, size=shape[0])
  test, penalties = rng.normal(size=(20, shape[1])), np.float32([[1e-2, 1.0]])
  rotated, test_rotated = _rotated(np.float32(x), np.float32(test), None)
  scale = np.square(rotated).mean(0)
  weights = _weights(np.arange(shape[0])[None] % 4 > 0)  # some do not count
  w, b = _fit(rotated, scale, y[None], weights, penalties_AxL=penalties, off_AxC=np.float32([[0, 0, 0, -1e9]]))
  mean, deviation = x.mean(0), x.std(0)
  x, test = (x - mean) / deviation, (test - mean) / deviation
  for i in range(2):

    def loss(flat, penalty=penalties[0, i]):
      kernel, bias = flat[: 3 * shape[1]].reshape(-1, 3), flat[3 * shape[1] :]
      logits = x @ kernel + bias
      log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
      error = (np.exp(log_p) - np.eye(3)[y]) * weights[0][:, None]
      value = -(log_p[np.arange(len(y)), y] * weights[0]).sum() + penalty / 2 * np.square(kernel).sum()
      return value, np.concatenate([(x.T @ error + penalty * kernel).ravel(), error.sum(0)])

    best = minimize(loss, np.zeros(3 * shape[1] + 3), jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).x
    expected = test @ best[: 3 * shape[1]].reshape(-1, 3) + best[3 * shape[1] :]
    found = test_rotated @ np.asarray(w)[0, i, :, :3] + np.asarray(b)[0, i, :3]
    centred = lambda z: z - z.mean(1, keepdims=True)
    np.testing.assert_allclose(centred(found), centred(expected), atol=0.1)  # of up to 9


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(codes=np.zeros((15, 1, 2, 2))), "at least 16 clips"),
    (dict(attributes={"a": np.zeros(19)}), "a has 19 clips, expected 20"),
    (dict(keeps=(3,)), r"keeps are \(3,\).*keeps of 1..2"),
    (dict(attributes={"a": np.zeros(20, int)}), "attributes are a, expected one of two known classes"),
  ],
)
def test_bad_input_is_one_sentence(change, words):
  given = dict(codes=np.zeros((20, 1, 2, 2)), attributes={"a": np.arange(20) % 2}, keeps=(1,)) | change
  with pytest.raises(ValueError, match=words):
    probe(given["codes"], given["attributes"], given["keeps"])


# ---- in an evaluation


def test_attributes_come_from_the_source_the_caption_or_the_label():
  class Sim:
    def attributes(self, index):
      raise AssertionError("this is another method of the same name")

  caption = "a red cube jumps on a grey floor under a blue sky, still camera"
  known = ShapesSource("train", size=8, frames=5, count=9)
  batch = {
    "_mask": np.array([True, True, False, True, True]),
    "source": np.array([0, 1, -1, 2, 0], np.int32),
    "index": np.array([4, 0, -1, 0, 7]),
    "label": np.array([1, 2, -1, 5, 2], np.int32),
    "caption": np.array(["", caption, "", "a street", ""], object),
  }
  found = probe_run.attributes_of([known, Sim(), Sim()], batch)
  expected = known.attributes(np.array([4, 7]))
  for name in ("colour", "motion"):
    np.testing.assert_array_equal(found[name][[0, 3]], expected[name])
  assert found["colour"][1:3].tolist() == [0, -1] and found["motion"][1] == 4 and found["object"][1] >= 0
  assert found["label"].tolist() == [-1, -1, 5, -1]
  pieces = probe_run._joined([found, {"label": np.array([3])}], "motion")
  assert pieces.tolist() == [*found["motion"].tolist(), -1]


@pytest.fixture
def cfg():
  from configs import tokenizer as experiment

  cfg = experiment.get_config("smoke")
  with cfg.unlocked():
    cfg.eval.sets.val = dict(known=dict(kind="shapes", count=42, split="val"))
    cfg.data.sources = dict(known=dict(kind="shapes", count=40))
  return cfg


def test_clips_are_those_of_the_set(cfg, tokenizer):
  tok, params, _ = tokenizer
  codes, attributes, extra = probe_run.gather(cfg, tok, params, cfg.eval.sets.val.to_dict(), 0, "val")
  source = ShapesSource("val", count=42)
  assert codes.shape == (42, 5, 4, 2) and {k: len(x) for k, x in extra.items()} == {"vae latents": 42, "pixels": 42}
  for name, values in source.attributes(np.arange(42)).items():
    np.testing.assert_array_equal(attributes[name], values)
  from vftok.data.clip import ClipSpec, load_clip

  clip = load_clip(source[41], ClipSpec(frames=17, size=(16, 16), fps=8.0), None)[None]
  np.testing.assert_allclose(codes[41:], fsq.ids_to_codes(tok.encode(params, clip).ids, tok.levels))
  np.testing.assert_allclose(extra["vae latents"][41], np.ravel(tok.encode_latents(params, clip)), atol=1e-4)
  np.testing.assert_allclose(extra["pixels"][41], clip[0, ::4].ravel() / 255, atol=1e-6)
  few = probe_run.gather(cfg, tok, params, cfg.eval.sets.val.to_dict(), 19, "val")
  np.testing.assert_array_equal(few[0], codes[:19])


@pytest.mark.slow
def test_an_evaluation_reports_the_probe(cfg, tokenizer, tmp_path):
  from vftok.data.configured import eval_loader

  tok, params, _ = tokenizer
  cfg.eval.probe_train = "train"
  task = make_task(cfg)
  frozen = {"vae": params["vae"]}
  batches = [next(iter(eval_loader(cfg, cfg.eval.sets.val.to_dict())))]
  values = task.evaluate(params, frozen, batches, 4, "val", tmp_path / "eval")
  for name in ("probe/colour/k1", "probe/motion/k4", "probe/colour/pixels", "probe/motion/chance", "high/wrong"):
    assert np.isfinite(values[name])
  assert {p.name for p in (tmp_path / "eval").iterdir()} >= {"probe-val.png", "report.html", "table.md"}
  page = (tmp_path / "eval" / "report.html").read_text()
  table = (tmp_path / "eval" / "table.md").read_text()
  assert "Semantic curve" in page and "Semantic curve" in table and "| attribute | classes | chance | k = 1 |" in table
  stored = json.loads((tmp_path / "eval" / "metrics.json").read_text())["splits"][0]["probe"]
  assert stored["rows"]["colour"]["k1"] == values["probe/colour/k1"] and stored["train_set"] == "train"
  cfg.eval.probe_train = "nowhere"
  with pytest.raises(ValueError, match="probe_train is 'nowhere', expected '', 'train' or one of shapes, val"):
    probe_run.probe_set(cfg, tok, params, "val")


def test_few_clips_have_no_probe(cfg, tokenizer):
  assert probe_run.probe_set(cfg, *tokenizer[:2], "shapes") is None


# ---- what training says of its tokens


def test_codes_used_are_counted_per_register():
  ids = jnp.array([[[1, 5], [1, 6]], [[1, 7], [2, 6]]])
  found = {name: float(total / weight) for name, (total, weight) in _codes_used(ids, 9).items()}
  assert found == {"codes/used_mean": 2.5, "codes/used_min": 2.0}
  assert [float(total) for total, _ in _codes_used(jnp.zeros((3, 2, 4), int), 9).values()] == [4.0, 1.0]


def test_the_wrong_tokens_are_those_of_another_clip_that_counts(random_model):
  _, tok, params = random_model
  latents = jax.random.normal(jax.random.key(0), tok.latent_shape(4, tok.chunk_steps))
  mask = np.array([True, False, True, True])
  found = high_noise_errors(tok.cfg, params, latents, mask)
  ids = np.asarray(fsq.codes_to_ids(fsq.quantize(tok.features(params, latents), tok.levels), tok.levels))
  assert len(np.unique(ids[mask].reshape(3, -1), axis=0)) == 3
  assert set(found) == {"null", "k1", "all", "wrong"}
  by_hand = {}
  # By hand, at each of the two times: clip 0 reads clip 3's tokens.
  noise = jax.random.normal(jax.random.key(20_260_312), latents.shape)
  for kind, whose, keep in (("wrong", [3, 1, 0, 2], 4), ("all", [0, 1, 2, 3], 4), ("k1", [0, 1, 2, 3], 1)):
    tokens = VideoTokens.full(ids[whose]).truncate(keep)
    error = 0
    for t in (0.85, 0.95):
      v = tok.velocity(params, tokens, t * noise + (1 - t) * latents, t, collapse=False)
      error += np.square(v - (noise - latents)).mean((1, 2, 3, 4)) / 2
    by_hand[kind] = np.asarray(error)[mask]
    np.testing.assert_allclose(np.asarray(found[kind])[mask], by_hand[kind], rtol=1e-5)
  assert np.abs(by_hand["wrong"] / by_hand["all"] - 1).min() > 1e-4 < np.abs(by_hand["k1"] / by_hand["all"] - 1).min()


def test_high_noise_is_a_mean_over_clips_that_count(random_model):
  _, tok, params = random_model
  video = np.random.default_rng(0).integers(0, 255, (4, 17, 16, 16, 3), np.uint8)
  watch, mask = HighNoise(tok, params), np.array([True, True, False, True])
  batches = [{"video": video, "_mask": mask}, {"video": video[:1], "_mask": np.ones(1, bool)}]
  assert list(watch.watch(batches)) == batches
  expected = high_noise_errors(tok.cfg, params, tok.encode_latents(params, video), mask)
  for kind, error_B in expected.items():
    assert watch.scalars()[f"high/{kind}"] == pytest.approx(float(np.asarray(error_B)[mask].mean()), rel=1e-4)
  assert HighNoise(tok, params).scalars() == {}


# ---- soft tokens


def test_soft_tokens_are_what_the_decoder_reads(random_model):
  _, tok, params = random_model
  ids = np.random.default_rng(0).integers(0, tok.codebook_size, (2, 5, 4))
  keep = np.array([[3, 0, 1, 2, 3], [1, 1, 1, 1, 1]])
  tokens = VideoTokens.full(ids).truncate(keep)
  features, mask = tok.soft_tokens(params, tokens)
  assert features.shape == (2, 5, 3, 64) and features.dtype == jnp.float32 and mask.shape == (2, 5, 3)
  np.testing.assert_array_equal(mask, np.arange(3) < keep[:, :, None])
  assert not np.any(features[~np.asarray(mask)])
  into = params["decoder"]["codes_in"]
  expected = np.asarray(fsq.ids_to_codes(ids[:, :, :3], tok.levels)) @ into["kernel"] + into["bias"]
  np.testing.assert_allclose(features[mask], expected[np.asarray(mask)], rtol=1e-5, atol=1e-5)
  traced, shown = jax.jit(tok.soft_tokens)(params, tokens)
  assert traced.shape == (2, 5, 4, 64)
  np.testing.assert_allclose(traced[:, :, :3], features, rtol=1e-5, atol=1e-5)
  assert not np.any(shown[:, :, 3])
  with pytest.raises(ValueError, match=r"tokens\.ids has shape"):
    tok.soft_tokens(params, dataclasses.replace(tokens, ids=tokens.ids[:, :, :2]))
