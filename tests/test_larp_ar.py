"""LARP's generators beyond the golden numbers (tests/test_query.py): files, switches, sampling, refusals."""

import json

import jax
import numpy as np
import pytest
from query_models import golden, random_params, write_golden
from safetensors.numpy import load_file, save_file

import vftok
from vftok.families.query import larp_ar_weights as weights
from vftok.families.query.larp_ar import LarpGenerator, load_larp_ar
from vftok.families.query.larp_ar_net import LarpARConfig

SMALL = {"dim": 16, "n_layer": 2, "n_head": 4, "multiple_of": 8, "num_classes": 3, "vocab_size": 12, "max_seq_len": 5}


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
  """(generator, params, golden arrays, directory)."""
  directory = write_golden(tmp_path_factory.mktemp("ar") / "class", "larp_small", "ar_config")
  return *load_larp_ar(directory), golden("larp_small")[0], directory


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
  directory = write_golden(tmp_path_factory.mktemp("ar") / "frames", "larp_small", "fp_config")
  return *load_larp_ar(directory), golden("larp_small")[0], directory


def small(**changes):
  cfg = weights.parse(SMALL | changes)
  return LarpGenerator(cfg), random_params(cfg, weights.abstract_params, fixed=False)


@pytest.mark.parametrize("kind", ["classes", "frames"])
def test_a_saved_generator_is_the_released_one(kind, request, tmp_path):
  gen, params, _, directory = request.getfixturevalue(kind)
  gen.save(params, tmp_path / "out")
  ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "out", directory))
  assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in theirs)
  again, loaded = load_larp_ar(tmp_path / "out")
  assert again == gen
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
  ("more", "millions"), [({}, 631.98), ({"frame_prediction": True, "cls_token_num": 1025}, 633.16)]
)
def test_released_sizes(more, millions):
  cfg = weights.parse({**{key: getattr(LarpARConfig, key) for key in weights.NEEDED}, **more})
  total = sum(int(np.prod(x.shape)) for x in weights.abstract_params(cfg).values())
  assert total / 1e6 == pytest.approx(millions, abs=0.006)
  assert cfg.hidden == 3584 and cfg.length == (2048 if more else 1024)
  assert ("class_table",) in weights.abstract_params(cfg) or more


@pytest.mark.parametrize(
  "changes",
  [{"n_kv_head": 2}, {"ffn_dim_multiplier": 1.3}, {"use_fixed_pe": True}, {"norm_eps": 0.1}, {"n_kv_head": None}],
)
def test_switches(changes, tmp_path):
  gen, params = small(**changes)
  gen.save(params, tmp_path / "model")
  again, _ = load_larp_ar(tmp_path / "model")
  assert again == gen
  shapes = {key: a.shape for key, a in load_file(tmp_path / "model" / "model.safetensors").items()}
  heads = 4 + 2 * (changes.get("n_kv_head") or 4)
  hidden = 56 if "ffn_dim_multiplier" in changes else 48
  assert shapes["layers.0.attention.wqkv.weight"] == (4 * heads, 16)
  assert shapes["layers.1.feed_forward.w2.weight"] == (16, hidden)
  labels = np.array([0, 2])
  tokens = gen.generate(params, labels=labels, guidance=2.0, temperature=0)  # over a cache
  logits = gen.logits(params, tokens.ids[:, 0], labels=labels, guidance=2.0)
  assert np.array_equal(np.argmax(logits, -1), tokens.ids[:, 0])  # and in one pass
  plain, _ = small()
  if "norm_eps" in changes:
    assert not np.allclose(plain.logits(params, tokens.ids, labels=labels, guidance=2.0), logits, atol=1e-3)


def test_logits_by_numpy():
  gen, params = small(n_kv_head=2)
  ids, label = np.array([[3, 1, 4, 1, 5]]), np.array([1])
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x = np.concatenate([p["class_table"][label], p["token_table"][ids[0, :-1]]]) + p["position_table"]
  norm = lambda x, scale: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale
  softmax = lambda a: np.exp(a - a.max(-1, keepdims=True)) / np.exp(a - a.max(-1, keepdims=True)).sum(-1, keepdims=True)
  for i in range(2):
    b = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
    qkv = np.einsum("ld,dhe->hle", norm(x, b["n1"]["scale"]), b["qkv"])
    for h in range(4):
      q, k, v = qkv[h], qkv[4 + h // 2], qkv[6 + h // 2]
      x = x + softmax(np.where(np.tri(5, dtype=bool), q @ k.T / 2, -np.inf)) @ v @ b["proj"][h]
    up = np.einsum("ld,dbh->blh", norm(x, b["n2"]["scale"]), b["up"])
    x = x + (up[0] / (1 + np.exp(-up[0])) * up[1]) @ b["down"]
  expected = norm(x, p["norm"]["scale"]) @ p["head"]
  np.testing.assert_allclose(gen.logits(params, ids, labels=label)[0], expected, atol=2e-5)


def test_generated_tokens(classes):
  gen, params, g, _ = classes
  run = lambda seed, **more: gen.generate(params, jax.random.key(seed), labels=[0, 3, -1], **more)
  tokens = run(0)
  assert tokens.ids.shape == (3, 1, 24) and not tokens.nested and np.all(tokens.keep == 24)
  assert np.array_equal(run(0).ids, tokens.ids) and not np.array_equal(run(1).ids, tokens.ids)
  cold = run(0, temperature=1e-4).ids
  assert np.mean(cold == gen.generate(params, labels=[0, 3, -1], temperature=0).ids) > 0.9
  null = gen.logits(params, g["tok.ids"], labels=[-1, -5])
  assert np.array_equal(null, gen.logits(params, g["tok.ids"], labels=[7, 7]))
  part = gen.logits(params, g["tok.ids"][:, :4], labels=[1, 2])
  np.testing.assert_allclose(part, gen.logits(params, g["tok.ids"], labels=[1, 2])[:, :4], atol=1e-5)


def test_frames_given_as_tokens_of_the_tokenizer(frames, tmp_path):
  gen, params, g, _ = frames
  tok, tok_params = vftok.load(write_golden(tmp_path / "tok", "larp_small"))
  given = tok.encode(tok_params, np.moveaxis(g["fp.cond_video"], 1, -1) * 2 - 1)
  tokens = gen.generate(params, given=given, temperature=0)
  assert np.array_equal(tokens.ids[:, 0], g["fp.greedy_ids"])
  assert tok.decode(tok_params, tokens).shape == (2, 8, 32, 32, 3)


def test_what_is_not_finite_becomes_no_token(classes):
  gen, params, _, _ = classes
  with pytest.raises(ValueError, match="logits are not finite"):
    gen.generate({**params, "head": params["head"] * np.float32(np.nan)}, labels=[1], temperature=0)
  with pytest.raises(ValueError, match="params are of another model"):
    gen.generate({**params, "head": params["head"][1:]}, labels=[1], temperature=0)


IDS = np.zeros((1, 24), np.int32)
BAD_CALLS = [
  ("classes", "logits", {"ids": IDS, "labels": [8]}, "a label is 8, expected 0..6"),
  ("classes", "logits", {"ids": IDS, "labels": [0.5]}, "labels are"),
  ("classes", "logits", {"ids": IDS, "labels": 3}, "labels are"),
  ("classes", "logits", {"ids": IDS}, "labels are"),
  ("classes", "logits", {"ids": IDS, "given": IDS}, "expected labels= and nothing given"),
  ("classes", "logits", {"ids": IDS + 160, "labels": [1]}, "ids holds 160, expected 0..159"),
  ("classes", "logits", {"ids": IDS, "labels": [1, 2]}, "expected [2, 1..24]"),
  ("classes", "logits", {"ids": np.zeros((1, 25), int), "labels": [1]}, "ids have shape (1, 25)"),
  ("classes", "logits", {"ids": "3", "labels": [1]}, "expected whole numbers [B, L]"),
  ("classes", "generate", {"labels": [1], "temperature": -1}, "temperature is -1"),
  ("classes", "generate", {"labels": [1], "temperature": float("nan")}, "temperature is nan"),
  ("classes", "generate", {"labels": [1]}, "neither key nor noise"),
  ("classes", "generate", {"labels": [1], "guidance": "2", "temperature": 0}, "guidance is '2'"),
  ("frames", "generate", {"labels": [1], "temperature": 0}, "neither labels nor guidance"),
  ("frames", "generate", {"given": IDS, "guidance": 2.0, "temperature": 0}, "neither labels nor guidance"),
  ("frames", "generate", {"given": IDS[:, 1:], "temperature": 0}, "given has shape (1, 23), expected [B, 24]"),
  ("frames", "generate", {"given": IDS - 1, "temperature": 0}, "given holds -1"),
]


@pytest.mark.parametrize(("kind", "call", "options", "sentence"), BAD_CALLS)
def test_bad_calls(kind, call, options, sentence, request):
  gen, params, _, _ = request.getfixturevalue(kind)
  with pytest.raises(ValueError) as caught:
    getattr(gen, call)(params, **options)
  assert sentence in str(caught.value) and len(str(caught.value)) < 400


BAD_FILES = [
  (lambda c: c.pop("dim"), "lacks 'dim'"),
  (lambda c: c.update(dim="64"), "dim = '64'"),
  (lambda c: c.update(dim=-1), "dim = -1"),
  (lambda c: c.update(dim=63), "n_head = 4"),
  (lambda c: c.update(n_layer=0), "n_layer = 0"),
  (lambda c: c.update(n_layer=10**6), "n_layer = 1000000, expected at most"),
  (lambda c: c.update(n_layer=3), "lacks layers.2.attention.wo.weight"),
  (lambda c: c.update(n_layer=1), "has unused layers.1.attention.wo.weight"),
  (lambda c: c.update(n_kv_head=3), "n_kv_head = 3"),
  (lambda c: c.update(rope_theta=1e4), "'rope_theta'"),
  (lambda c: c.update(cls_token_num=2), "cls_token_num = 2"),
  (lambda c: c.update(max_seq_len=25), "abs_pe with shape (1, 24, 64), expected (1, 25, 64)"),
  (lambda c: c.update(frame_prediction=1), "frame_prediction = 1"),
  (lambda c: c.update(ffn_dim_multiplier=1e308), "ffn_dim_multiplier = 1e+308, expected 0.001 to 1000"),
  (lambda c: c.update(norm_eps=float("inf")), "holds inf"),
  (lambda c: (c.clear(), c.update(golden_tokenizer())), "is no LARP generator"),
]


def golden_tokenizer():
  return json.loads(golden("larp_small")[1]["config"])


@pytest.mark.parametrize(("change", "sentence"), BAD_FILES)
def test_bad_files(change, sentence, classes, tmp_path):
  config = json.loads((classes[3] / "config.json").read_text())
  change(config)
  save_file(load_file(classes[3] / "model.safetensors"), tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError) as caught:
    load_larp_ar(tmp_path)
  assert sentence in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)
