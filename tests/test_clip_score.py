"""CLIP with the user's weights: against plain NumPy on random weights of the released layout, and strict files."""

import json
import math

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from vftok.frozen.metrics import clip

WORDS = ("a", "red", "ball", "jumps", "blue", "cube")
TEXT, VISION = dict(dim=12, heads=2, hidden=20), dict(dim=16, heads=4, hidden=24)
DEPTH, SIZE, PATCH, PROJECTION = 2, 16, 8, 10
CONFIG = {
  "model_type": "clip",
  "projection_dim": PROJECTION,
  "text_config": {
    "hidden_size": 12,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 10,
    "max_position_embeddings": 9,
    "hidden_act": "gelu",
  },
  "vision_config": {
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": SIZE,
    "patch_size": PATCH,
  },
}


def tensors_of(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)
  tensors = {
    "logit_scale": np.asarray(4.6, np.float32),
    "text_model.embeddings.position_ids": np.arange(9)[None],
    "text_model.embeddings.token_embedding.weight": normal(10, 12),
    "text_model.embeddings.position_embedding.weight": normal(9, 12),
    "vision_model.embeddings.class_embedding": normal(16),
    "vision_model.embeddings.patch_embedding.weight": normal(16, 3, PATCH, PATCH),
    "vision_model.embeddings.position_embedding.weight": normal(5, 16),
    "text_projection.weight": normal(PROJECTION, 12),
    "visual_projection.weight": normal(PROJECTION, 16),
  }
  norms = {"text_model.final_layer_norm": 12, "vision_model.pre_layrnorm": 16, "vision_model.post_layernorm": 16}
  for name, sizes in (("text", TEXT), ("vision", VISION)):
    for i in range(DEPTH):
      at, d, h = f"{name}_model.encoder.layers.{i}", sizes["dim"], sizes["hidden"]
      for part in ("q", "k", "v", "out"):
        tensors[f"{at}.self_attn.{part}_proj.weight"], tensors[f"{at}.self_attn.{part}_proj.bias"] = (
          normal(d, d),
          normal(d),
        )
      for part, out, inputs in (("fc1", h, d), ("fc2", d, h)):
        tensors[f"{at}.mlp.{part}.weight"], tensors[f"{at}.mlp.{part}.bias"] = normal(out, inputs), normal(out)
      norms |= {f"{at}.layer_norm{n}": d for n in (1, 2)}
  for key, d in norms.items():
    tensors[f"{key}.weight"], tensors[f"{key}.bias"] = 1 + normal(d), normal(d)
  return tensors


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp("clip")
  write(path, tensors_of())
  return path


def write(path, tensors, config=CONFIG):
  save_file(tensors, path / "model.safetensors")
  (path / "config.json").write_text(json.dumps(config))
  names = {word: i for i, word in enumerate(("<unk>", *WORDS))}
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="<unk>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model.add_special_tokens([clip.START, clip.END])
  model.save(str(path / "tokenizer.json"))


def norm(x, tensors, key):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * tensors[f"{key}.weight"] + tensors[f"{key}.bias"]


def layers(x_SxD, tensors, name, heads, act, causal):
  linear = lambda x, key: x @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"]
  s, d = x_SxD.shape
  for i in range(DEPTH):
    at = f"{name}_model.encoder.layers.{i}"
    y = norm(x_SxD, tensors, f"{at}.layer_norm1")
    q, k, v = (linear(y, f"{at}.self_attn.{n}_proj").reshape(s, heads, -1) for n in "qkv")
    out = np.zeros_like(q)
    for h in range(heads):
      logits = q[:, h] @ k[:, h].T / math.sqrt(d // heads)
      if causal:
        logits[np.triu_indices(s, 1)] = -np.inf
      p = np.exp(logits - logits.max(-1, keepdims=True))
      out[:, h] = p / p.sum(-1, keepdims=True) @ v[:, h]
    x_SxD = x_SxD + linear(out.reshape(s, d), f"{at}.self_attn.out_proj")
    y = act(linear(norm(x_SxD, tensors, f"{at}.layer_norm2"), f"{at}.mlp.fc1"))
    x_SxD = x_SxD + linear(y, f"{at}.mlp.fc2")
  return x_SxD


def oracle(ids, image_HxWx3, tensors):
  """Cosine of one text, ids with both special tokens, and one normalised image."""
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  gelu = lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  x = tensors["text_model.embeddings.token_embedding.weight"][ids]
  x = x + tensors["text_model.embeddings.position_embedding.weight"][: len(ids)]
  x = norm(layers(x, tensors, "text", 2, gelu, True), tensors, "text_model.final_layer_norm")
  text = tensors["text_projection.weight"] @ x[-1]
  kernel = tensors["vision_model.embeddings.patch_embedding.weight"]
  cells = [
    (kernel * image_HxWx3[i : i + PATCH, j : j + PATCH].transpose(2, 0, 1)).sum((1, 2, 3))
    for i in (0, PATCH)
    for j in (0, PATCH)
  ]
  x = np.stack([tensors["vision_model.embeddings.class_embedding"], *cells])
  x = norm(x + tensors["vision_model.embeddings.position_embedding.weight"], tensors, "vision_model.pre_layrnorm")
  x = layers(x, tensors, "vision", 4, lambda x: x / (1 + np.exp(-1.702 * x)), False)
  seen = tensors["visual_projection.weight"] @ norm(x[0], tensors, "vision_model.post_layernorm")
  return text @ seen / np.linalg.norm(text) / np.linalg.norm(seen)


def test_score_equals_the_oracle(directory):
  score = clip.CLIPScore(directory, frames=2)
  video = np.random.default_rng(1).integers(0, 256, (3, 5, SIZE, SIZE, 3)).astype(np.uint8)
  values = score(video, ["a red ball", "a blue cube jumps", ""])
  tensors, size = load_file(directory / "model.safetensors"), len(WORDS) + 1
  for row, words in ((0, (1, 2, 3)), (1, (1, 5, 6, 4))):
    ids = [size, *words, size + 1]
    images = [(frame / 255 - clip.MEAN) / clip.STD for frame in video[row, [0, 4]]]
    expected = np.mean([oracle(ids, image, tensors) for image in images])
    assert values[row] == pytest.approx(expected, abs=1e-5)
  assert np.isnan(values[2]) and abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t, c: t.pop("text_projection.weight"), "lacks text_projection.weight"),
    (lambda t, c: t.update(extra=np.zeros(1, np.float32)), "has the unknown extra"),
    (lambda t, c: c.update(model_type="bert"), "model_type 'bert', expected 'clip'"),
    (lambda t, c: c["vision_config"].update(patch_size=7), "patch_size 7, expected a multiple"),
    (lambda t, c: c["text_config"].update(hidden_act="tanh"), "hidden_act 'tanh'"),
    (lambda t, c: c["text_config"].update(vocab_size=5), "embeddings of 5|expected"),
  ],
)
def test_wrong_files_are_refused_in_one_sentence(change, message, tmp_path):
  tensors, config = tensors_of(), json.loads(json.dumps(CONFIG))
  change(tensors, config)
  write(tmp_path, tensors, config)
  with pytest.raises(ValueError, match=message):
    clip.load(tmp_path)
