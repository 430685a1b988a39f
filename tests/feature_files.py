"""What tests of frozen feature nets share: tensors of tiny ones, one program for each, and oracles."""

import functools
import math

import jax
import numpy as np
from safetensors.numpy import save_file

# Each program runs once on a handful of numbers: compiling it is all the cost.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DIM, DEPTH, HEADS, HIDDEN = 28, 2, 2, 40
PATCH, TABLE, REGISTERS = 4, 5, 2
GRID = (3, 4)  # of the images and clips below
SPLIT = {"dinov2": "attention.attention.", "vjepa2": "attention."}


def layer_tensors(rng, layer, qkv, proj, scales):
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  tensors = {}
  for name in ("norm1", "norm2"):
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = 1 + normal(DIM), normal(DIM)
  for name in qkv:
    rows = DIM * 3 // len(qkv)
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = normal(rows, DIM), normal(rows)
  for name, out, inputs in ((proj, DIM, DIM), ("mlp.fc1", HIDDEN, DIM), ("mlp.fc2", DIM, HIDDEN)):
    tensors[f"{layer}.{name}.weight"], tensors[f"{layer}.{name}.bias"] = normal(out, inputs), normal(out)
  return tensors | {f"{layer}.{name}": 1 + normal(DIM) for name in scales}


def dinov2_tensors(registers=0, seed=0):
  """The layout of transformers, with the mask token that we do not need."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  tensors = {
    "embeddings.cls_token": normal(1, 1, DIM),
    "embeddings.mask_token": normal(1, DIM),
    "embeddings.position_embeddings": normal(1, 1 + TABLE**2, DIM),
    "embeddings.patch_embeddings.projection.weight": normal(DIM, 3, PATCH, PATCH),
    "embeddings.patch_embeddings.projection.bias": normal(DIM),
    "layernorm.weight": 1 + normal(DIM),
    "layernorm.bias": normal(DIM),
  }
  if registers:
    tensors["embeddings.register_tokens"] = normal(1, registers, DIM)
  for i in range(DEPTH):
    qkv = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    scales = ("layer_scale1.lambda1", "layer_scale2.lambda1")
    tensors |= layer_tensors(rng, f"encoder.layer.{i}", qkv, "attention.output.dense", scales)
  return tensors


def hub_layout(tensors):
  """The same DINOv2 under the keys of torch.hub, query, key and value in one tensor."""
  renames = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer", "blocks"),
    ("attention.output.dense", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm", "norm"),
  )
  out = {}
  for key, value in tensors.items():
    for old, new in renames:
      key = key.replace(old, new)
    if ".query." in key:
      parts = [value] + [tensors[old] for old in (swap(key, "key"), swap(key, "value"))]
      out[key.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
    elif ".key." not in key and ".value." not in key:
      out[key] = value
  return out


def swap(key, name):
  return key.replace("blocks", "encoder.layer").replace("query", name)


def vjepa2_tensors(seed=0):
  """The layout of transformers, with a predictor and, as in a classifier, a pooler; neither is needed."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  qkv = [f"attention.{name}" for name in ("query", "key", "value")]
  tensors = {
    "encoder.embeddings.patch_embeddings.proj.weight": normal(DIM, 3, 2, PATCH, PATCH),
    "encoder.embeddings.patch_embeddings.proj.bias": normal(DIM),
    "encoder.layernorm.weight": 1 + normal(DIM),
    "encoder.layernorm.bias": normal(DIM),
    "predictor.embeddings.mask_tokens": normal(10, 1, 1, 8),
    "predictor.embeddings.predictor_embeddings.weight": normal(8, DIM),
    "predictor.proj.bias": normal(DIM),
  }
  for i in range(DEPTH):
    tensors |= layer_tensors(rng, f"encoder.layer.{i}", qkv, "attention.proj", ())
  tensors |= layer_tensors(rng, "predictor.layer.0", qkv, "attention.proj", ())
  return tensors


def write(tensors, path):
  save_file(tensors, path)
  return path


def tiny_nets(directory):
  """{net: path}."""
  return {
    "dinov2": write(dinov2_tensors(), directory / "dinov2.safetensors"),
    "registers": write(dinov2_tensors(REGISTERS), directory / "registers.safetensors"),
    "vjepa2": write(vjepa2_tensors(), directory / "vjepa2.safetensors"),
  }


@functools.partial(fast_jit, static_argnums=0)
def apply(net, params, inputs):
  return net.apply(params, inputs)


@functools.partial(fast_jit, static_argnums=(0, 3, 4))
def targets(net, params, video, grid, reduce="mean"):
  return net.targets(params, video, grid, reduce)


# ---- the nets in plain NumPy, in float64


def layer_norm(x, tensors, key):
  centered = x - x.mean(-1, keepdims=True)
  scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
  return scaled * tensors[f"{key}.weight"] + tensors[f"{key}.bias"]


def oracle_layers(x_NxD, tensors, kind, turn):
  """All layers of one sample, head by head; `turn` is applied to queries and keys [N, head_dim]."""
  linear = lambda x, key: x @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"]
  e = DIM // HEADS
  for i in range(DEPTH):
    at = f"encoder.layer.{i}"
    y = layer_norm(x_NxD, tensors, f"{at}.norm1")
    q, k, v = (linear(y, f"{at}.{SPLIT[kind]}{name}") for name in ("query", "key", "value"))
    heads = []
    for n in range(HEADS):
      part = slice(n * e, (n + 1) * e)
      logits = turn(q[:, part]) @ turn(k[:, part]).T / math.sqrt(e)
      p = np.exp(logits - logits.max(-1, keepdims=True))
      heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
    proj = "attention.output.dense" if kind == "dinov2" else "attention.proj"
    y = linear(np.concatenate(heads, -1), f"{at}.{proj}")
    x_NxD = x_NxD + y * tensors.get(f"{at}.layer_scale1.lambda1", 1.0)
    y = linear(layer_norm(x_NxD, tensors, f"{at}.norm2"), f"{at}.mlp.fc1")
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    x_NxD = x_NxD + linear(y, f"{at}.mlp.fc2") * tensors.get(f"{at}.layer_scale2.lambda1", 1.0)
  return x_NxD


def cubic(x, a):
  x = abs(x)
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resample(values, n, offset=0.0):
  """PyTorch's bicubic along axis 0, entry by entry: a = -0.75, indices clamped."""
  size, out = len(values), []
  for i in range(n):
    at = (i + 0.5) * size / (n + offset) - 0.5
    taps = [math.floor(at) + j for j in (-1, 0, 1, 2)]
    out.append(sum(cubic(at - tap, -0.75) * values[min(max(tap, 0), size - 1)] for tap in taps))
  return np.stack(out)


def resample_antialiased(values, n):
  """Pillow's bicubic along axis 0: a = -0.5, widened where it shrinks, weights divided by their sum."""
  size, out = len(values), []
  wide = max(size / n, 1.0)
  for i in range(n):
    at = (i + 0.5) * size / n - 0.5
    w = np.array([cubic((at - j) / wide, -0.5) for j in range(size)])
    out.append(np.tensordot(w / w.sum(), values, 1))
  return np.stack(out)


def oracle_dinov2(image_HxWx3, tensors, registers, offset=0.0):
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  h, w = image_HxWx3.shape[0] // PATCH, image_HxWx3.shape[1] // PATCH
  patches = np.zeros((h, w, DIM))
  for i in range(h):
    for j in range(w):
      window = image_HxWx3[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH].transpose(2, 0, 1)
      patches[i, j] = (tensors["embeddings.patch_embeddings.projection.weight"] * window).sum((1, 2, 3))
  patches += tensors["embeddings.patch_embeddings.projection.bias"]
  positions = tensors["embeddings.position_embeddings"][0]
  table = positions[1:].reshape(TABLE, TABLE, DIM)
  fn = resample_antialiased if registers else functools.partial(resample, offset=offset)
  if (h, w) != (TABLE, TABLE):
    table = fn(fn(table, h).swapaxes(0, 1), w).swapaxes(0, 1)
  first = [tensors["embeddings.cls_token"][0, 0] + positions[0]]
  first += list(tensors["embeddings.register_tokens"][0]) if registers else []
  x = np.concatenate([np.stack(first), (patches + table).reshape(h * w, DIM)])
  x = layer_norm(oracle_layers(x, tensors, "dinov2", lambda x: x), tensors, "layernorm")
  return x[len(first) :].reshape(h, w, DIM), x[0]


def oracle_turn(x_NxE, grid):
  """V-JEPA 2's RoPE, channel by channel: its two channels of a pair take different frequencies."""
  size = 2 * (x_NxE.shape[1] // 3 // 2)
  frequency = [10000 ** (-k / (size / 2)) for k in range(size // 2)]
  out = x_NxE.copy()
  for token, position in enumerate(np.ndindex(*grid)):
    for axis in range(3):
      for c in range(size):
        at, angle = axis * size + c, position[axis] * frequency[c % (size // 2)]
        partner = -x_NxE[token, at + 1] if c % 2 == 0 else x_NxE[token, at - 1]
        out[token, at] = x_NxE[token, at] * math.cos(angle) + partner * math.sin(angle)
  return out


def oracle_vjepa2(video_FxHxWx3, tensors):
  tensors = {key: value.astype(np.float64) for key, value in tensors.items()}
  grid = (len(video_FxHxWx3) // 2, video_FxHxWx3.shape[1] // PATCH, video_FxHxWx3.shape[2] // PATCH)
  x = np.zeros((*grid, DIM))
  for t, i, j in np.ndindex(*grid):
    window = video_FxHxWx3[2 * t : 2 * t + 2, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
    x[t, i, j] = (tensors["encoder.embeddings.patch_embeddings.proj.weight"] * window.transpose(3, 0, 1, 2)).sum(
      (1, 2, 3, 4)
    )
  x = (x + tensors["encoder.embeddings.patch_embeddings.proj.bias"]).reshape(-1, DIM)
  x = oracle_layers(x, tensors, "vjepa2", lambda x: oracle_turn(x, grid))
  return layer_norm(x, tensors, "encoder.layernorm").reshape(*grid, DIM)
