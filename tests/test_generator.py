"""The generator: against a NumPy reading of SemanTok's layout, cached == uncached, budgets, bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from starts import moved, started

import vftok
from vftok.generator import generate
from vftok.generator.api import Generator
from vftok.models import order
from vftok.models.ar import AR, ARConfig
from vftok.models.ar_inputs import Condition, Places
from vftok.models.config import GeneratorConfig
from vftok.tokens import VideoTokens

T, K, V = 5, 4, 29
TEXT = {
  "text_emb": np.random.default_rng(5).normal(size=(2, 6, 12)),
  "text_mask": np.array([[1] * 6, [1, 1, 1, 0, 0, 0]]),
}


def released(depth=1, vocab=V, **own):
  """(config, tensors) in SemanTok's layout with random weights; seq_len T * K."""
  config = {"depth": depth, "vocab": vocab, "seq_len": T * K} | own
  d, h = 64 * depth, -(-int(8 * 64 * depth / 3) // 64) * 64
  rng = np.random.default_rng(1)
  w = lambda *shape: rng.normal(0, 0.3 if len(shape) == 1 else shape[-1] ** -0.5, shape).astype(np.float32)
  t = {"tok_emb.weight": w(vocab, d), "head.weight": w(vocab, d), "pos_emb": w(T * K + 1, d), "sos": w(d)}
  t["norm.weight"] = 1 + w(d)
  if own.get("head_bias"):
    t["head.bias"] = w(vocab)
  if "n_classes" in own:
    t["cls_emb.weight"] = w(own["n_classes"] + 1, d)
  if "ctx_dim" in own:
    t |= {"ctx_in.weight": w(d, own["ctx_dim"]), "ctx_null": w(own["n_ctx_null"], d)}
  for i in range(depth):
    block = {"n1.weight": 1 + w(d), "n2.weight": 1 + w(d), "attn.qkv.weight": w(3 * d, d), "attn.proj.weight": w(d, d)}
    block |= {"ffn.w1.weight": w(h, d), "ffn.w3.weight": w(h, d), "ffn.w2.weight": w(d, h)}
    if "ctx_dim" in own:
      block |= {"nx.weight": 1 + w(d), "xattn.q.weight": w(d, d), "xattn.kv.weight": w(2 * d, d)}
      block["xattn.proj.weight"] = w(d, d)
    t |= {f"blocks.{i}.{k}": v for k, v in block.items()}
  return config, t


def oracle(config, t, ids, label=None, text=None):
  """Logits [L, V] in float64 of one sequence; None, None is the null condition."""
  t = {k: v.astype(np.float64) for k, v in t.items()}
  rms = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w
  heads = lambda x: x.reshape(len(x), -1, 64).swapaxes(0, 1)

  def attention(q, k, v, causal):
    s = heads(q) @ heads(k).swapaxes(1, 2) / 8
    s = np.where(np.tri(*s.shape[1:], dtype=bool), s, -np.inf) if causal else s
    p = np.exp(s - s.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) @ heads(v)).swapaxes(0, 1).reshape(len(q), -1)

  start = t["sos"]
  if "cls_emb.weight" in t:
    start = start + t["cls_emb.weight"][config["n_classes"] if label is None else label]
  x = np.concatenate([start[None], t["tok_emb.weight"][ids[:-1]]]) + t["pos_emb"][: len(ids)]
  if "ctx_null" in t:
    context = t["ctx_null"] if text is None else text @ t["ctx_in.weight"].T
  for i in range(config["depth"]):
    w = {k.split(".", 2)[2]: v for k, v in t.items() if k.startswith(f"blocks.{i}.")}
    x = x + attention(*np.split(rms(x, w["n1.weight"]) @ w["attn.qkv.weight"].T, 3, 1), True) @ w["attn.proj.weight"].T
    if "ctx_null" in t:
      k, v = np.split(context @ w["xattn.kv.weight"].T, 2, 1)
      x = x + attention(rms(x, w["nx.weight"]) @ w["xattn.q.weight"].T, k, v, False) @ w["xattn.proj.weight"].T
    y = rms(x, w["n2.weight"])
    gate = y @ w["ffn.w1.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * (y @ w["ffn.w3.weight"].T)) @ w["ffn.w2.weight"].T
  return rms(x, t["norm.weight"]) @ t["head.weight"].T + t.get("head.bias", 0)


VARIANTS = {
  "class": dict(n_classes=3),
  "text": dict(ctx_dim=12, n_ctx_null=3),
  "both": dict(depth=2, vocab=31, n_classes=2, ctx_dim=12, n_ctx_null=2, head_bias=True),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request, tmp_path_factory):
  config, tensors = released(**VARIANTS[request.param])
  path = tmp_path_factory.mktemp("released") / "model"
  path.mkdir()
  save_file(tensors, path / "model.safetensors")
  (path / "config.json").write_text(json.dumps(config))
  return (*Generator.load(path), config, tensors, path)


def ids_of(b=2, vocab=V, length=T * K):
  return np.random.default_rng(2).integers(0, vocab, (b, length))


def test_logits_equal_the_oracle(variant):
  gen, params, config, tensors, _ = variant
  ids = ids_of(vocab=config["vocab"])
  conditions = [None]
  conditions += [{"label": np.array([0, 1])}] if "n_classes" in config else []
  conditions += [TEXT] if "ctx_dim" in config else []
  for cond in conditions:
    got = gen.logits(params, ids, cond)
    for b in range(2):
      label = None if cond is None or "label" not in cond else cond["label"][b]
      text = None if cond is None or "text_emb" not in cond else cond["text_emb"][b, : cond["text_mask"][b].sum()]
      np.testing.assert_allclose(got[b], oracle(config, tensors, ids[b], label, text), atol=2e-4, rtol=1e-4)


def test_logits_are_pure_functions_of_parameters_and_ids():
  """Traced by shapes alone: ids, classes and texts may be unknown, counts may not."""
  gen = Generator(GeneratorConfig(ARConfig(vocab=V, steps=T, slots=K, depth=1, n_classes=3, ctx_dim=12, n_ctx_null=2)))
  params, ids = jax.eval_shape(gen.init, jax.random.key(0)), jax.ShapeDtypeStruct((2, 6), jnp.int32)
  label = jax.ShapeDtypeStruct((2,), jnp.int32)
  out = jax.eval_shape(lambda p, i, c: gen.logits(p, i, {"label": c}), params, ids, label)
  assert out.shape == (2, 6, V)
  text = {"text_emb": jax.ShapeDtypeStruct((2, 3, 12), jnp.float32), "text_mask": jax.ShapeDtypeStruct((2, 3), bool)}
  assert jax.eval_shape(gen.logits, params, ids, text).shape == (2, 6, V)
  with pytest.raises(ValueError, match="keep is traced, expected counts that are known"):
    jax.eval_shape(lambda p, i, k: gen.logits(p, i, keep=k), params, ids, jax.ShapeDtypeStruct((2, T), jnp.int32))


def test_files_round_trip_and_are_strict(variant, tmp_path):
  gen, params, config, tensors, _ = variant
  gen.export(params, tmp_path / "theirs")
  assert json.loads((tmp_path / "theirs" / "config.json").read_text()) == config
  gen.save(params, tmp_path / "ours")
  for folder in ("theirs", "ours"):
    again, loaded = Generator.load(tmp_path / folder)
    assert again == gen
    jax.tree.map(np.testing.assert_array_equal, params, loaded)
  for change, message in (
    (lambda t: t.pop("sos"), "lacks sos"),
    (lambda t: t.update(extra=np.zeros(2, np.float32)), "has unused extra"),
    (lambda t: t.update(sos=np.zeros(3, np.float32)), "holds sos with shape"),
  ):
    broken = dict(tensors)
    change(broken)
    save_file(broken, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ValueError, match=message):
      Generator.load(tmp_path / "theirs")


@pytest.mark.parametrize(
  "change", [{"depth": 0}, {"depth": "1"}, {"dropout": 0.1}, {"head_bias": 1}, {"seq_len": None}]
)
def test_impossible_configs_are_one_sentence(tmp_path, change):
  config, tensors = released(n_classes=3)
  save_file(tensors, tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config | change))
  with pytest.raises(ValueError, match="config has"):
    Generator.load(tmp_path)


# ---- our own layout: places, budgets, given tokens


@pytest.fixture(scope="module")
def own():
  ar = ARConfig(vocab=V, steps=T, slots=K, depth=2, width=64, head_dim=32, n_classes=3, ctx_dim=12, n_ctx_null=2)
  gen = Generator(GeneratorConfig(ar, guidance=((65536, 2.0),), classes=("cube", "ball", "duck")))
  return gen, moved(started(gen.init))  # greedy choices must not hang on the last bit


CONDITIONS = {"class": {"label": np.array([0, 2])}, "text": TEXT, "null": None}


def uncached(gen, params, cond, keep, given=None, given_steps=0, guidance=2.0):
  """Greedy ids [B, T, K] one whole forward per token: the slow and obvious way."""
  from vftok.generator.conditions import condition

  keep = np.array(keep)
  seq = order.sequence(keep, given_steps, order=gen.cfg.ar.order)
  places = Places.of(seq.time_BxL, seq.slot_BxL)
  ids = np.zeros(seq.time_BxL.shape, np.int32)
  known = np.zeros_like(ids, bool)
  if given is not None:
    whole = np.zeros((*keep.shape, K), np.int32)
    whole[:, :given_steps] = given
    ids, known = order.write(whole, seq), seq.time_BxL < given_steps
  run = jax.jit(lambda ids, cond: AR(gen.cfg.ar).apply({"params": params}, ids, places, cond))
  full, null = condition(gen.cfg, cond, len(keep)), condition(gen.cfg, None, len(keep))
  for i in range(ids.shape[1]):
    u, c = run(ids, null)[:, i], run(ids, full)[:, i]
    best = np.argmax(u + guidance * (c - u), -1)
    ids[:, i] = np.where(known[:, i] | ~seq.valid_BxL[:, i], ids[:, i], best)
  return order.read(ids, seq, keep.shape[1], K)


@pytest.mark.parametrize("kind", CONDITIONS)
def test_cached_equals_uncached_at_mixed_budgets(own, kind):
  gen, params = own
  keep = np.array([[3] * T, [1, 4, 2, 0, 3]])
  want = uncached(gen, params, CONDITIONS[kind], keep)
  got = gen.generate(params, jax.random.key(0), CONDITIONS[kind], batch=2, keep=keep, temperature=0.0)
  np.testing.assert_array_equal(got.ids, want)
  np.testing.assert_array_equal(got.keep, keep)


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_a_smaller_budget_is_a_prefix_and_batches_equal_singles(own, budget):
  gen, params = own
  key = jax.random.key(3)
  whole = gen.generate(params, key, CONDITIONS["class"], temperature=0.7, guidance=1.5)
  short = gen.generate(params, key, CONDITIONS["class"], keep=budget, temperature=0.7, guidance=1.5)
  np.testing.assert_array_equal(whole.ids[:, :, :budget], short.ids[:, :, :budget])
  assert not short.ids[:, :, budget:].any()
  one = gen.generate(params, key, {"label": [0]}, keep=budget, temperature=0.7, guidance=1.5)
  np.testing.assert_array_equal(one.ids[0], short.ids[0])


def test_given_tokens_come_first_and_stay(own):
  gen, params = own
  given = VideoTokens.full(ids_of(2, V, 2 * K).reshape(2, 2, K)).truncate([K, 2])
  keep = np.full((2, T), 2)
  got = gen.generate(params, jax.random.key(0), CONDITIONS["text"], keep=2, given=given, temperature=0.0)
  keep[:, :2] = given.keep
  kept = np.arange(K) < np.asarray(given.keep)[:, :, None]
  np.testing.assert_array_equal(got.ids[:, :2], np.asarray(given.ids) * kept)
  want = uncached(gen, params, CONDITIONS["text"], keep, np.asarray(given.ids), 2)
  np.testing.assert_array_equal(got.ids, want)
  other = VideoTokens.full((np.asarray(given.ids) + 1) % V).truncate([K, 2])
  changed = gen.generate(params, jax.random.key(0), CONDITIONS["text"], keep=2, given=other, temperature=0.0)
  assert (np.asarray(changed.ids)[:, 2:] != np.asarray(got.ids)[:, 2:]).any()


def test_forced_tokens_edit_a_video(own):
  gen, params = own
  forced = np.full((1, T, K), -1)
  forced[0, 2, 0], forced[0, 4, 3] = 7, 11
  got = gen.generate(params, jax.random.key(0), {"label": ["duck"]}, forced=forced, temperature=0.0)
  free = gen.generate(params, jax.random.key(0), {"label": ["duck"]}, temperature=0.0)
  assert got.ids[0, 2, 0] == 7 and got.ids[0, 4, 3] == 11
  np.testing.assert_array_equal(got.ids[0, :2, 0], free.ids[0, :2, 0])  # what comes before an edit does not see it


def test_stream_shows_coarse_versions_of_what_generate_gives(own):
  gen, params = own
  options = dict(temperature=0.9, keep=3)
  pieces = list(gen.stream(params, jax.random.key(1), CONDITIONS["class"], **options))
  whole = gen.generate(params, jax.random.key(1), CONDITIONS["class"], **options)
  assert [p.keep.max().item() for p in pieces] == [1, 2, 3]
  for piece in pieces:
    kept = np.arange(K) < np.asarray(piece.keep)[:, :, None]
    np.testing.assert_array_equal(np.asarray(piece.ids) * kept, np.asarray(whole.ids) * kept)


def test_one_program_for_all_budgets_of_a_length(own):
  gen, params = own
  generate.advance.clear_cache()
  for keep in ([[4, 0, 2, 2, 2]], [[2] * T], [[1, 1, 4, 4, 0]]):
    gen.generate(params, jax.random.key(0), {"label": [1]}, keep=np.array(keep))
  assert generate.advance._cache_size() == 1


def test_a_condition_changes_the_logits_and_padding_does_not(own):
  gen, params = own
  ids = ids_of()
  with_text = gen.logits(params, ids, TEXT)
  assert np.abs(with_text - gen.logits(params, ids, None)).max() > 1e-2
  emb = TEXT["text_emb"] + 100 * (1 - TEXT["text_mask"])[:, :, None]
  np.testing.assert_allclose(gen.logits(params, ids, TEXT | {"text_emb": emb}), with_text, atol=1e-5)
  empty = TEXT | {"text_mask": np.zeros((2, 6), int)}
  np.testing.assert_allclose(gen.logits(params, ids, empty), gen.logits(params, ids, None), atol=1e-5)


def test_packed_sequences_do_not_see_each_other(own):
  gen, params = own
  ids = ids_of()
  a, b = order.sequence([[2] * T]), order.sequence([[1, 2, 0, 1, 1]], 2)
  first, second = order.write(ids.reshape(2, T, K)[:1], a), order.write(ids.reshape(2, T, K)[1:], b)
  join = lambda x, y, fill: np.concatenate([x, y, np.full((1, 2), fill)], axis=1)
  segment = join(np.zeros_like(first), np.ones_like(second), -1)
  places = Places.of(join(a.time_BxL, b.time_BxL, 0), join(a.slot_BxL, b.slot_BxL, 0), segment)
  cond = Condition(
    label_BxG=np.array([[0, 2]]),
    text_BxSxC=TEXT["text_emb"].reshape(1, 12, 12),
    text_mask_BxS=TEXT["text_mask"].reshape(1, 12),
    text_segment_BxS=np.repeat([[0, 1]], 6, axis=1),
    null_BxG=np.array([[False, False]]),
  )
  run = jax.jit(lambda *args: AR(gen.cfg.ar).apply({"params": params}, *args))
  packed = run(join(first, second, 0), places, cond)
  for i, (row, seq, start) in enumerate(((first, a, 0), (second, b, first.shape[1]))):
    alone = Condition(
      np.array([[(0, 2)[i]]]), TEXT["text_emb"][i : i + 1], TEXT["text_mask"][i : i + 1], None, np.array([[False]])
    )
    want = run(row, Places.of(seq.time_BxL, seq.slot_BxL), alone)
    np.testing.assert_allclose(packed[:, start : start + row.shape[1]], want, atol=1e-4)


def test_top_k_and_top_p():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 2000))
  keys = jax.random.split(jax.random.key(0), 2000)
  counts = lambda **options: np.bincount(generate.sample(logits, keys, 1.0, **options), minlength=4) / 2000
  np.testing.assert_allclose(counts(), [0.5, 0.3, 0.15, 0.05], atol=0.04)
  np.testing.assert_allclose(counts(top_k=2), [0.625, 0.375, 0, 0], atol=0.04)
  np.testing.assert_allclose(counts(top_p=0.79), [0.625, 0.375, 0, 0], atol=0.04)
  assert counts(top_p=0.01)[0] == 1 and counts(top_k=1)[0] == 1
  assert (np.asarray(generate.sample(logits, keys, 0.0)) == 0).all()


SIZES = {
  10: 49e6,
  12: 85e6,
  16: 201e6,
  18: 287e6,
  20: 393e6,
  24: 679e6,
  26: 864e6,
  30: 1.33e9,
  36: 2.29e9,
  38: 2.70e9,
  43: 3.91e9,
}
TEXT_SIZES = {10: 66e6, 12: 113e6, 16: 268e6, 18: 382e6, 26: 1.15e9, 36: 3.06e9, 38: 3.60e9, 43: 5.21e9}


@pytest.mark.parametrize(
  "depth, ctx, size", [(d, 0, n) for d, n in SIZES.items()] + [(d, 1024, n) for d, n in TEXT_SIZES.items()]
)
def test_full_sizes(depth, ctx, size):
  """Non-embedding parameters of the published table, counted as it does: attention and MLP of the blocks."""
  ar = ARConfig(
    vocab=64_000, steps=5, slots=256, depth=depth, n_classes=0 if ctx else 597, ctx_dim=ctx, n_ctx_null=16 * bool(ctx)
  )
  tree = jax.eval_shape(Generator(GeneratorConfig(ar)).init, jax.random.key(0))
  count = sum(x.size for x in jax.tree.leaves(tree["blocks"]))
  assert abs(count / size - 1) < 0.02 if depth == 10 else abs(count / size - 1) < 0.01


BAD = {
  "keep": (dict(keep=0), "keep is 0"),
  "keep too large": (dict(keep=K + 1), f"keep is {K + 1}"),
  "keep shape": (dict(keep=[1, 2]), "keep is"),
  "keep float": (dict(keep=1.5), "whole numbers"),
  "nothing": (dict(keep=[0] * T), "no token to make"),
  "steps": (dict(steps=T + 1), "steps is 6"),
  "temperature": (dict(temperature=-1), "temperature is -1"),
  "guidance": (dict(guidance=float("nan")), "guidance is nan"),
  "class": (dict(cond={"label": [3]}), "label is 3"),
  "class name": (dict(cond={"label": ["dog"]}), "class 'dog' is unknown"),
  "class dtype": (dict(cond={"label": [0.5]}), "expected integers"),
  "kind": (dict(cond={"image": 1}), "cond is"),
  "batch": (dict(cond={"label": [1]}, batch=2), "batch is 2"),
  "no encoder": (dict(cond={"text": ["a duck"]}), "names no text encoder"),
  "text width": (dict(cond={"text_emb": np.zeros((1, 3, 5)), "text_mask": np.ones((1, 3))}), "text_emb has shape"),
  "text NaN": (dict(cond=TEXT | {"text_emb": TEXT["text_emb"] + np.nan}), "text_emb holds NaN or infinite values"),
  "given": (dict(given=VideoTokens.full(np.zeros((1, T, K), int))), "given tokens have shape"),
  "given ids": (dict(given=VideoTokens.full(np.full((1, 2, K), V))), f"ids hold {V}"),
  "forced": (dict(forced=np.full((1, T, K), V)), "forced holds"),
  "forced shape": (dict(forced=np.zeros((1, T), int)), "forced has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(own, name):
  options, message = BAD[name]
  with pytest.raises(ValueError, match=message) as caught:
    own[0].generate(own[1], jax.random.key(0), **options)
  assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_make_no_tokens(own):
  gen, params = own
  broken = {**params, "head": jax.tree.map(lambda x: x * np.nan, params["head"])}
  with pytest.raises(ValueError, match="the generator's logits are not finite, so they make no tokens"):
    gen.generate(broken, jax.random.key(0), {"label": [1]})
  logits = jnp.array([[0.0, 1.0], [0.0, jnp.nan], [-jnp.inf, 0.0]])
  for temperature in (0.0, 1.0):
    made = generate.sample(logits, jax.random.split(jax.random.key(0), 3), temperature)
    assert made[0] in (0, 1) and made[1] == -1 and made[2] == 1


def test_prompts_and_keys(own):
  gen, params = own
  texted = Generator(dataclasses.replace(gen.cfg, text="minilm"))
  for text, message in (
    ([" "], "a prompt is empty"),
    (["a" * 10_001], "10001 characters"),
    ("a duck", "list of strings"),
  ):
    with pytest.raises(ValueError, match=message):
      texted.generate(params, jax.random.key(0), {"text": text})
  with pytest.raises(ValueError, match="expected one random key"):
    gen.generate(params, 3)
  with pytest.raises(ValueError, match="ids have shape"):
    gen.logits(params, np.zeros((1, T * K + 1), int))
  with pytest.raises(ValueError, match="fingerprint is abc"):
    Generator(dataclasses.replace(gen.cfg, fingerprint="def")).check_tokenizer("abc")
  assert vftok.Generator is Generator
