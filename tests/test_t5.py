"""T5 of every kind: against plain NumPy, strict files, captions."""

import io
import json
import math
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
import tokenizers
from safetensors.numpy import load_file, save_file
from text_files import DEPTH, DIM, HEAD, HEADS, HIDDEN, VOCAB, padded, softmax

from vftok.frozen import text
from vftok.frozen.text import t5, tokenizer
from vftok.frozen.text.encoder import abstract_params

KINDS = {
  "t5": {"model_type": "t5", "feed_forward_proj": "relu"},
  "v1.1": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"},
  "umt5": {"model_type": "umt5", "feed_forward_proj": "gated-gelu"},
}
CAPTIONS = [
  "a red ball rolls over the green grass",
  "two dogs run",
  "the camera moves slowly over a wide plain",
  "rain",
]


def config_of(kind):
  sizes = {"vocab_size": VOCAB, "d_model": DIM, "d_kv": HEAD, "d_ff": HIDDEN, "num_layers": DEPTH, "num_heads": HEADS}
  return KINDS[kind] | sizes | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}


def t5_tensors(kind, seed=0):
  """The names of the Hub, with pieces of a decoder as a full checkpoint has them."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.4, shape).astype(np.float32)
  tensors = {
    "shared.weight": normal(VOCAB, DIM),
    "encoder.final_layer_norm.weight": 1 + normal(DIM),
    "decoder.block.0.layer.0.SelfAttention.q.weight": normal(3, 3),
    "lm_head.weight": normal(VOCAB, DIM),
  }
  for i in range(DEPTH):
    at = f"encoder.block.{i}.layer"
    for name in "qkv":
      tensors[f"{at}.0.SelfAttention.{name}.weight"] = normal(HEADS * HEAD, DIM)
    tensors[f"{at}.0.SelfAttention.o.weight"] = normal(DIM, HEADS * HEAD)
    if kind == "umt5" or i == 0:
      tensors[f"{at}.0.SelfAttention.relative_attention_bias.weight"] = 3 * normal(8, HEADS)
    for name in ("wi",) if kind == "t5" else ("wi_0", "wi_1"):
      tensors[f"{at}.1.DenseReluDense.{name}.weight"] = normal(HIDDEN, DIM)
    tensors[f"{at}.1.DenseReluDense.wo.weight"] = normal(DIM, HIDDEN)
    tensors |= {f"{at}.{j}.layer_norm.weight": 1 + normal(DIM) for j in range(2)}
  return tensors


@pytest.fixture(scope="module")
def spiece():
  """A sentencepiece model of 60 pieces, numbered as T5's: padding 0, </s> 1, unknown 2."""
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS * 4),
    model_writer=out,
    vocab_size=60,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  return out.getvalue()


@pytest.fixture(scope="module")
def directories(tmp_path_factory, spiece):
  made = {}
  for kind in KINDS:
    made[kind] = tmp_path_factory.mktemp("t5") / kind
    write(made[kind], config_of(kind), t5_tensors(kind), spiece)
  return made


def write(directory, config, tensors, vocabulary):
  directory.mkdir(exist_ok=True)
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "spiece.model").write_bytes(vocabulary)
  save_file(tensors, directory / "model.safetensors")


# ---- T5 against plain NumPy in float64


def bucket(distance, count, farthest):
  """Of a key `distance` tokens after its query."""
  side = count // 2
  exact, n = side // 2, abs(distance)
  if n >= exact:
    n = min(exact + int(math.log(n / exact) / math.log(farthest / exact) * (side - exact)), side - 1)
  return n + (side if distance > 0 else 0)


def oracle_t5(ids, tensors, kind):
  """The states of one text without padding [S, D], head by head."""
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  norm = lambda x, key: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * tensors[f"{key}.weight"]
  gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  x = tensors["shared.weight"][ids]
  buckets = [[bucket(key - query, 8, 20) for key in range(len(ids))] for query in range(len(ids))]
  for i in range(DEPTH):
    at = f"encoder.block.{i}.layer"
    biased = i if kind == "umt5" else 0
    bias = tensors[f"encoder.block.{biased}.layer.0.SelfAttention.relative_attention_bias.weight"][buckets]
    y = norm(x, f"{at}.0.layer_norm")
    q, k, v = (y @ tensors[f"{at}.0.SelfAttention.{name}.weight"].T for name in "qkv")
    parts = [slice(n * HEAD, (n + 1) * HEAD) for n in range(HEADS)]
    heads = [softmax(q[:, p] @ k[:, p].T + bias[..., n]) @ v[:, p] for n, p in enumerate(parts)]
    x = x + np.concatenate(heads, -1) @ tensors[f"{at}.0.SelfAttention.o.weight"].T
    y = norm(x, f"{at}.1.layer_norm")
    mlp = {key.split(".")[-2]: value.T for key, value in tensors.items() if f"{at}.1.DenseReluDense" in key}
    hidden = np.maximum(y @ mlp["wi"], 0) if kind == "t5" else gelu(y @ mlp["wi_0"]) * (y @ mlp["wi_1"])
    x = x + hidden @ mlp["wo"]
  return norm(x, "encoder.final_layer_norm")


@pytest.mark.parametrize("kind", KINDS)
def test_t5_equals_the_oracle_whatever_the_padding(directories, kind):
  encoder, params = text.load("t5", directories[kind], max_tokens=30)
  assert (encoder.name, encoder.dim, encoder.max_tokens) == ("t5", DIM, 30)
  assert encoder.net.bias_per_layer == (kind == "umt5") and encoder.net.gated == (kind != "t5")
  ids, mask = padded([30, 7, 1], 30)
  out = encoder.encode(params, ids, mask)
  assert out.shape == (3, 30, DIM) and out.dtype == jnp.float32 and not np.any(out[~mask])
  tensors = t5_tensors(kind)
  for states, numbers, m in zip(out, ids, mask, strict=True):
    np.testing.assert_allclose(states[m], oracle_t5(numbers[m], tensors, kind), atol=5e-5)


def test_buckets_of_the_released_models():
  distance = np.arange(-600, 601)
  got = t5.buckets_of(distance, 32, 128)
  np.testing.assert_array_equal(got, [bucket(int(n), 32, 128) for n in distance])
  assert list(got[600 + np.array([-200, -127, -8, -7, 0, 7, 8, 16, 32, 64, 128])]) == [
    *(15, 15, 8, 7, 0),
    *(16 + n for n in (7, 8, 10, 12, 14, 15)),
  ]


@pytest.mark.parametrize(
  ("published", "sizes"),
  [
    (35_330_816, {"vocab": 32_128, "dim": 512, "depth": 6, "heads": 8, "hidden": 2_048, "gated": False}),
    (4_762_310_656, {"vocab": 32_128, "dim": 4_096, "depth": 24, "heads": 64, "hidden": 10_240}),
    (
      5_680_910_336,
      {"vocab": 256_384, "dim": 4_096, "depth": 24, "heads": 64, "hidden": 10_240, "bias_per_layer": True},
    ),
  ],
)
def test_t5_small_v11_xxl_and_umt5_xxl_have_the_published_number_of_parameters(published, sizes):
  assert sum(math.prod(leaf.shape) for leaf in abstract_params(t5.T5Config(**sizes)).values()) == published


def test_bfloat16_files_and_products(directories, tmp_path, spiece):
  half = {key: value.astype(ml_dtypes.bfloat16) for key, value in t5_tensors("umt5").items()}
  write(tmp_path / "half", config_of("umt5"), half, spiece)
  ids, mask = padded([9, 4], 9)
  _, exact = text.load("t5", directories["umt5"])
  outputs = []
  for dtype in ("float32", "bfloat16"):
    encoder, params = text.load("t5", tmp_path / "half", dtype=dtype)
    kernel, scale = params["layers"]["up"]["kernel"], params["layers"]["norm1"]["scale"]
    assert (kernel.dtype, scale.dtype) == (dtype, jnp.float32)
    np.testing.assert_allclose(kernel.astype(np.float32), exact["layers"]["up"]["kernel"], rtol=2**-8)
    outputs.append(np.asarray(encoder.encode(params, ids, mask)))
  rounded = {key: value.astype(np.float32) for key, value in half.items()}
  np.testing.assert_allclose(outputs[0][1, :4], oracle_t5(ids[1, :4], rounded, "umt5"), atol=5e-5)
  assert outputs[1].dtype == np.float32 and np.any(outputs[0] != outputs[1])
  np.testing.assert_allclose(outputs[1], outputs[0], atol=0.1 * np.abs(outputs[0]).max())


# ---- files


def shard(directory, target):
  """The same model in two files with an index."""
  shutil.copytree(directory, target)
  tensors = load_file(target / "model.safetensors")
  (target / "model.safetensors").unlink()
  names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  where = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
  for name in names:
    save_file({key: value for key, value in tensors.items() if where[key] == name}, target / name)
  (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return target, where


def test_shards_and_the_other_name_of_the_table_give_the_same_parameters(directories, tmp_path, spiece):
  expected = text.load("t5", directories["umt5"])[1]
  target, _ = shard(directories["umt5"], tmp_path / "shards")
  tensors = t5_tensors("umt5")
  encoder_only = {key: value for key, value in tensors.items() if key.startswith("encoder")}
  encoder_only["encoder.embed_tokens.weight"] = tensors["shared.weight"]
  write(tmp_path / "encoder", config_of("umt5"), encoder_only, spiece)
  both = encoder_only | {"shared.weight": tensors["shared.weight"]}
  write(tmp_path / "both", config_of("umt5"), both, spiece)
  for path in (target, tmp_path / "encoder", tmp_path / "both"):
    jax.tree.map(np.testing.assert_array_equal, text.load("t5", path)[1], expected)


def test_an_index_that_does_not_fit_is_one_sentence(directories, tmp_path):
  target, where = shard(directories["t5"], tmp_path / "shards")
  index, names = target / "model.safetensors.index.json", sorted(set(where.values()))
  moved = {key: names[1 - names.index(name)] for key, name in where.items()}
  for content, words in (
    ({}, "no weight_map"),
    ({"weight_map": where | {"shared.weight": "../model.safetensors"}}, "no weight_map"),
    ({"weight_map": where | {"shared.weight": "third.safetensors"}}, "no third.safetensors, which .* names"),
    ({"weight_map": where | {"extra": names[0]}}, "does not hold extra"),
    ({"weight_map": moved}, "otherwise than model.safetensors.index.json says"),
  ):
    index.write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
      text.load("t5", target)
  index.write_text("{")
  with pytest.raises(ValueError, match="is no JSON"):
    text.load("t5", target)


def without(key):
  return lambda config, tensors: tensors.pop(key)


def with_(key, *shape):
  return lambda config, tensors: tensors.update({key: np.zeros(shape, np.float32)})


def config_with(**entries):
  return lambda config, tensors: config.update(entries)


Q = "encoder.block.2.layer.0.SelfAttention.q.weight"
WI = "encoder.block.1.layer.1.DenseReluDense"
BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
BAD = {
  "missing": (without(Q), f"lacks {Q}, expected the tensors of a T5 encoder"),
  "no embeddings": (without("shared.weight"), "lacks encoder.embed_tokens.weight"),
  "no bias": (without(BIAS.format(0)), "lacks .*lative_attention_bias"),
  "unknown": (with_("encoder.block.0.extra", 3), "has the unknown encoder.block.0.extra"),
  "bias of another T5": (with_(BIAS.format(1), 8, HEADS), "has the unknown .*lative_attention_bias"),
  "layer too many": (with_(f"encoder.block.{DEPTH}.layer.0.layer_norm.weight", DIM), "has the unknown"),
  "both MLPs": (with_(f"{WI}.wi.weight", HIDDEN, DIM), "has the unknown .*wi.weight"),
  "turned": (with_(Q, DIM, HEADS * HEAD), rf"{Q} with shape \(12, 10\), expected \(10, 12\)"),
  "wide": (with_("shared.weight", VOCAB, 2 * DIM), r"shape \(64, 24\), expected \(64, 12\)"),
  "integers": (lambda c, t: t.update({Q: np.zeros((HEADS * HEAD, DIM), np.int32)}), "as int32, expected a floating"),
  "another net": (config_with(model_type="bert"), "model_type 'bert', expected one of t5, mt5, umt5"),
  "no model_type": (config_with(model_type=["t5"]), r"model_type \['t5'\]"),
  "no layers": (config_with(num_layers=0), "num_layers 0, expected a whole number"),
  "layers without end": (
    config_with(num_layers=10**9),
    "num_layers 1000000000, expected a whole number from 1 to 1024",
  ),
  "rows without end": (config_with(vocab_size=10**7, d_model=10**7), r"expected \(10000000, 10000000\)"),
  "size": (config_with(d_ff=10**12), "d_ff 1000000000000, expected a whole number from 1 to 10000000"),
  "text for a size": (config_with(d_model="12"), "d_model '12', expected a whole number"),
  "eps": (config_with(layer_norm_epsilon=-1), "layer_norm_epsilon -1, expected a small"),
  "buckets": (config_with(relative_attention_num_buckets=6), "6 buckets up to a distance of 20, expected a multiple"),
  "distance": (config_with(relative_attention_max_distance=2), "8 buckets up to a distance of 2"),
  "activation": (config_with(feed_forward_proj="gated-tanh", dense_act_fn="tanh"), "'gated-tanh' .* expected gated-"),
  "contradiction": (config_with(is_gated_act=False), "contradict each other"),
  "small table": (config_with(vocab_size=20), r"a tokenizer of \d+ tokens and embeddings of 20"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_and_configs_are_one_sentence(tmp_path, spiece, name):
  config, tensors = config_of("v1.1"), t5_tensors("v1.1")
  change, words = BAD[name]
  change(config, tensors)
  write(tmp_path / "bad", config, tensors, spiece)
  with pytest.raises(ValueError, match=words) as error:
    text.load("t5", tmp_path / "bad")
  assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_one_sentence(directories, tmp_path):
  def spoil(name, content, error, words):
    target = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
    shutil.copytree(directories["t5"], target)
    (target / name).unlink() if content is None else (target / name).write_bytes(content)
    with pytest.raises(error, match=words):
      text.load("t5", target)

  whole = (directories["t5"] / "model.safetensors").read_bytes()
  spoil("model.safetensors", whole[:-7], ValueError, "no whole safetensors")
  spoil("model.safetensors", b"PK\x03\x04 and so on", ValueError, "is a pickle")
  spoil("model.safetensors", None, FileNotFoundError, r"has no model.safetensors")
  spoil("config.json", None, FileNotFoundError, "has no config.json")
  spoil("config.json", b"[]", ValueError, "holds list")
  spoil("spiece.model", None, FileNotFoundError, "has no tokenizer: put tokenizer.json or spiece.model")
  spoil("spiece.model", b"not a model", ValueError, "no sentencepiece model")
  spoil("tokenizer.json", b"{}", ValueError, "is no tokenizer.json")
  other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
  spoil("tokenizer.json", other.to_str().encode(), ValueError, "has no token </s>")
  with pytest.raises(FileNotFoundError, match="nowhere is no directory"):
    text.load("t5", tmp_path / "nowhere")


def test_bad_arguments_are_one_sentence(directories):
  encoder, params = text.load("t5", directories["t5"], max_tokens=4)
  for call, words in (
    (lambda: text.load("clip"), "'clip', expected one of minilm, t5"),
    (lambda: text.load("t5", directories["t5"], dtype="float16"), "dtype is 'float16'"),
    (lambda: text.load("t5", directories["t5"], max_tokens=1), r"max_tokens is 1, expected 2 or more"),
    (lambda: text.load("t5", directories["t5"], max_tokens=2.0), "max_tokens is 2.0"),
    (lambda: encoder.tokenize("a red ball"), "texts is a str, expected a list"),
    (lambda: encoder.tokenize(["a", None]), r"texts\[1\] is a NoneType"),
    (lambda: encoder.encode(params, np.zeros((2, 3), np.int32), np.ones((2, 4), bool)), r"one shape \[B, S\]"),
  ):
    with pytest.raises(ValueError, match=words):
      call()
  with pytest.raises(FileNotFoundError, match="t5 has no weights of its own: pass path="):
    text.load("t5")


# ---- captions


def test_clean():
  for raw, expected in (
    ("  two\tdogs \r\n run  ", "two dogs run"),
    ("cats &amp; dogs &lt;3", "cats & dogs <3"),
    ("cats &amp;amp; dogs", "cats & dogs"),
    ("cafe\u0301\u00a0au lait", "caf\u00e9 au lait"),
    ("a\x00b\x1b[31m\u200b \ufeffred\u00adness \ud800", "ab[31m redness"),
    ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ("\u2029\x1c \x07", ""),
  ):
    assert tokenizer.clean(raw) == expected
  assert len(tokenizer.clean("ab " * 10**6)) < tokenizer.MAX_CHARS + 1


def test_t5_tokens_end_with_s_and_both_libraries_agree(directories, spiece, tmp_path):
  path = tmp_path / "t5"
  shutil.copytree(directories["t5"], path)
  first, params = text.load("t5", path, max_tokens=16)
  model = sentencepiece.SentencePieceProcessor(model_proto=spiece)
  unigram = [(model.IdToPiece(i), model.GetScore(i)) for i in range(model.GetPieceSize())]
  same = tokenizers.Tokenizer(tokenizers.models.Unigram(unigram, unk_id=2, byte_fallback=False))
  same.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  same.add_special_tokens(["</s>"])
  same.enable_padding(length=99)
  same.enable_truncation(2)
  same.save(str(path / "tokenizer.json"))
  (path / "spiece.model").unlink()
  second, _ = text.load("t5", path, max_tokens=16)
  texts = ["two  red dogs", "the camera moves slowly over the green grass and on and on", "", "rain </s>", "xyz \u96e8"]
  ids, mask = first.tokenize(texts)
  typed = 3  # what looks like </s> in a text is text to the one, nothing to the other
  other_ids, other_mask = second.tokenize(texts)
  assert all(1 not in row[typed, : m[typed].sum() - 1] for row, m in ((ids, mask), (other_ids, other_mask)))
  for ours, other in ((ids, other_ids), (mask, other_mask)):
    np.testing.assert_array_equal(np.delete(ours, typed, 0), np.delete(other, typed, 0))
  assert (ids.dtype, mask.dtype, ids.shape, mask.shape) == (np.int32, bool, (5, 16), (5, 16))
  assert model.DecodeIds(ids[0, : mask[0].sum() - 1].tolist()) == "two red dogs"
  assert [int(row[m][-1]) if m.any() else None for row, m in zip(ids, mask, strict=True)] == [1, 1, None, 1, 1]
  assert mask[1].all() and not mask[2].any() and not ids[~mask].any()
  emb, emb_mask = first.embed(params, texts)
  assert emb.shape == (5, 16, DIM) and np.isfinite(emb).all() and not np.any(emb[2])
  np.testing.assert_array_equal(emb_mask, mask)
  assert first.embed(params, [])[0].shape == (0, 16, DIM)
