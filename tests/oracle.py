"""A second, slow implementation of the released models, to judge vftok by: float64 numpy, no code of vftok's.

It runs a released config the way the reference does: module by module, each reading and writing a data
dictionary, with torch-layout tensors, dense masks written out from the specification and no shortcut. No VAE.
"""

import numpy as np


def layer_norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def silu(x):
  return x / (1 + np.exp(-x))


def mask(mode, steps, sizes, cross=None):
  """bool [N, N], row = query. `sizes`: lengths of a step's sub-sequences; the first one is the prefix."""
  prefix, block = sizes[0], sum(sizes)
  allowed = np.zeros((steps * block, steps * block), bool)
  for q in range(steps * block):
    for k in range(steps * block):
      (tq, i), (tk, j) = divmod(q, block), divmod(k, block)
      within = j < prefix or j <= i
      if cross is not None:
        how = cross[("prefix" if i < prefix else "nonprefix") + "2" + ("prefix" if j < prefix else "nonprefix")]
        seen = {"full": True, "none": False, "causal": j <= i}[how]
        allowed[q, k] = within if tk == tq else (tk < tq and seen)
      else:
        allowed[q, k] = {
          "full": True,
          "causal": k <= q,
          "time_block_causal": tk <= tq,
          "time_block_causal_last": tk < tq or (tk == tq and within),
        }[mode]
  return allowed


class FSQ:
  def __init__(self, levels):
    self.levels = np.array(levels)
    self.basis = np.cumprod([1, *levels[:-1]])

  def bounded(self, z):
    half = (self.levels - 1) * (1 + 1e-3) / 2
    offset = np.where(self.levels % 2 == 0, 0.5, 0.0)
    return np.tanh(z + np.arctanh(offset / half)) * half - offset

  def ids(self, z):
    return ((np.rint(self.bounded(z)) + self.levels // 2) * self.basis).sum(-1).astype(int)

  def codes(self, ids):
    half = self.levels // 2
    return ((ids[..., None] // self.basis) % self.levels - half) / half


class Oracle:
  """Runs `tree` (the config's `video_flex_tok`) over `tensors` (torch keys, no prefix); channels first."""

  def __init__(self, tree, tensors):
    self.tree = tree
    self.tensors = {k: np.asarray(v).astype(np.float64) for k, v in tensors.items()}
    self.fsq = FSQ(tree["regularizer"]["levels"])

  def features(self, latents):
    """z [B, T, K, c] of latents [B, C, T, h, w]."""
    data = {self.tree["vae"]["vae_latents_write_key"]: latents.astype(np.float64)}
    return self._run("encoder", data)[self.tree["regularizer"]["latents_read_key"]]

  def velocity(self, ids, x, t, keep=None, *, null=False, prefix=0):
    """[B, C, T, h, w] at x and times t [B]; keep int [B, T], the first `prefix` steps given clean."""
    noise, pipeline = self.tree["flow_matching_noise_module"], self.tree["pipeline"]
    data = {
      self.tree["regularizer"]["quants_write_key"]: self.fsq.codes(ids),
      noise["noised_images_write_key"]: x.astype(np.float64),
      noise["timesteps_write_key"]: np.broadcast_to(np.float64(t), len(ids)),
    }
    self.keep, self.null, self.prefix = keep, null, prefix
    return self._run("decoder", data)[pipeline["reconst_write_key"]]

  def sample(self, ids, noise, steps, keep=None, *, cfg=None, apg=None, first=None):
    """Euler from t = 1. cfg: scale; apg: (scale, eta, momentum, threshold); first: clean [B, C, P, h, w]."""
    x, running = noise.astype(np.float64), 0.0
    given = 0 if first is None else first.shape[2]
    for i in range(steps, 0, -1):
      if given:
        x[:, :, :given] = first
      t = i / steps
      v = self.velocity(ids, x, t, keep, prefix=given)
      if cfg is not None or apg is not None:
        null = self.velocity(ids, x, t, keep, null=True, prefix=given)
        if cfg is not None:
          v = null + cfg * (v - null)
        else:
          scale, eta, momentum, threshold = apg
          running = v - null + momentum * running
          v = v + (scale - 1) * project(running, v, eta, threshold)
      x = x - v / steps
    if given:
      x[:, :, :given] = first
    return x

  def _run(self, part, data):
    for name, spec in self.tree[part]["module_dict"].items():
      self.at = f"{part}.module_dict.{name}"
      getattr(self, spec["_target_"].rsplit(".", 1)[-1])(spec, data)
    return data

  def _w(self, name):
    return self.tensors[f"{self.at}.{name}"]

  def _linear(self, name, x):
    bias = self.tensors.get(f"{self.at}.{name}.bias", 0.0)
    return x @ self._w(f"{name}.weight").T + bias

  # ---- one method per module class of the config

  def PerSampleOp(self, spec, data):
    first_to_last = spec["per_sample_op"]["_target_"].endswith("channels_first_to_last")
    x = data[spec["read_key"]]
    data[spec["write_key"]] = np.moveaxis(x, 1, -1) if first_to_last else np.moveaxis(x, -1, 1)

  def PatchEmbedder(self, spec, data):
    x, (pt, ph, pw) = data[spec["input_tensor_list_read_key"]], spec["patch_sizes"]
    b, t, h, w, c = x.shape
    out = np.zeros((b, t // pt, h // ph, w // pw, pt * ph * pw * c))
    for i in range(pt):
      for j in range(ph):
        for k in range(pw):
          first = ((i * ph + j) * pw + k) * c
          out[..., first : first + c] = x[:, i::pt, j::ph, k::pw]
    data[spec["patches_list_write_key"]] = self._linear("patch_proj", out)

  def PositionalEmbeddingAdder(self, spec, data):
    x, table = data[spec["read_key"]], self._w("posembs")
    sizes = x.shape[1:-1]
    if spec["posemb_type"] == "sincos":
      position = np.moveaxis(table[0], 0, -1)[: sizes[0], : sizes[1]]
    else:
      position = np.zeros((*sizes, x.shape[-1]))
      for index in np.ndindex(*sizes):
        parts = [table[axis, 0, :, i] for axis, i in enumerate(index)]
        position[index] = np.sum(parts, 0) if spec["posemb_type"] == "learnable_sum" else np.prod(parts, 0)
    data[spec["write_key"]] = x + position

  def RegistersTemporal2D(self, spec, data):
    b, t = data[spec["input_tensor_list_read_key"]].shape[:2]
    data[spec["registers_write_key"]] = np.repeat(self._w("registers")[None, :t], b, 0)

  def LinearLayer(self, spec, data):
    data[spec["write_key"]] = self._linear("proj", data[spec["read_key"]])

  def MaskedNestedDropout(self, spec, data):
    x = data[spec["read_write_key"]].copy()
    if self.keep is not None:
      for b, t in np.ndindex(self.keep.shape):
        x[b, t, self.keep[b, t] :] = self._w("dropout_mask_token")
    data[spec["read_write_key"]] = x

  def MaskedPrefixDropout(self, spec, data):
    x = data[spec["read_write_key"]].copy()
    x[:, : self.prefix] = self._w("dropout_mask_token")
    data[spec["read_write_key"]] = x

  def LearnedNullCond(self, spec, data):
    if self.null:
      data[spec["read_write_key"]] = np.zeros_like(data[spec["read_write_key"]]) + self._w("nullcond")

  def BlockWiseSequenceInterleavePacker(self, spec, data):
    parts = [data[key] for key in spec["input_list_read_keys"]]
    self.shapes = [p.shape for p in parts]
    flat = [p.reshape(*p.shape[:2], -1, p.shape[-1]) for p in parts]
    sizes = [p.shape[2] for p in flat]
    b, t, _, d = flat[0].shape
    data[spec["packed_seq_write_key"]] = np.concatenate(flat, 2).reshape(b, -1, d)
    self.subsequence = np.tile(np.repeat(np.arange(len(sizes)), sizes), t)
    self.mask = mask(spec["mask_mode"], t, sizes, spec.get("cross_timestep_attention_config"))
    self.sizes = sizes

  def FlexTransformer(self, spec, data):
    x = data[spec["input_seq_read_key"]]
    emb = data[spec["adaLN_emb_read_key"]] if spec.get("adaLN_emb_read_key") else None
    at = self.at
    for i in range(spec["depth"]):
      self.at = f"{at}.blocks.{i}"
      if emb is None:
        x = x + self._attention(spec, layer_norm(x))
        x = x + self._mlp(spec, layer_norm(x))
        continue
      m = self._linear("adaLN_modulation.1", silu(emb)).reshape(len(x), spec["adaLN_expansion"], 6, -1)
      which = self.subsequence if spec["adaLN_expansion"] > 1 else 0 * self.subsequence
      gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = np.moveaxis(m[:, which], 2, 0)
      x = x + gate_a * self._attention(spec, layer_norm(x) * (1 + scale_a) + shift_a)
      x = x + gate_m * self._mlp(spec, layer_norm(x) * (1 + scale_m) + shift_m)
    data[spec["output_seq_write_key"]] = x

  def _attention(self, spec, x):
    b, n, d = x.shape
    e = spec.get("head_dim", 64)
    q, k, v = (self._linear(f"attn.{w}", x).reshape(b, n, d // e, e).swapaxes(1, 2) for w in ("wq", "wk", "wv"))
    if spec.get("qk_norm", True):
      q, k = layer_norm(q), layer_norm(k)
    logits = np.where(self.mask, q @ k.swapaxes(2, 3) * 8 / e, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True)) @ v
    return self._linear("attn.proj", out.swapaxes(1, 2).reshape(b, n, d))

  def _mlp(self, spec, x):
    hidden = silu(self._linear("mlp.fc1", x))  # the specification names no activation where gated_mlp is false
    if spec.get("gated_mlp", True):
      hidden = hidden * self._linear("mlp.fc3", x)
    return self._linear("mlp.fc2", hidden)

  def SequenceInterleavedUnpacker(self, spec, data):
    x = data[spec["packed_seq_read_key"]]
    x = x.reshape(len(x), self.shapes[0][1], sum(self.sizes), -1)
    pieces = np.split(x, np.cumsum(self.sizes)[:-1], axis=2)
    for key, piece, shape in zip(spec["inner_seq_write_keys"], pieces, self.shapes, strict=True):
      data[key] = piece.reshape(shape)

  def LinearHead(self, spec, data):
    data[spec["write_key"]] = self._linear("proj", layer_norm(data[spec["read_key"]]))

  def ToPatchesLinearHead(self, spec, data):
    x = layer_norm(data[spec["read_key"]])
    if spec.get("adaLN_emb_read_key"):
      m = self._linear("adaLN_modulation.1", silu(data[spec["adaLN_emb_read_key"]]))[:, None, None, None]
      shift, scale = np.split(m, 2, -1)
      x = x * (1 + scale) + shift
    y, (pt, ph, pw), c = self._linear("proj", x), spec["patch_sizes"], spec["channels_out"]
    b, t, h, w, _ = y.shape
    out = np.zeros((b, t * pt, h * ph, w * pw, c))
    for i in range(pt):
      for j in range(ph):
        for k in range(pw):
          first = ((i * ph + j) * pw + k) * c
          out[:, i::pt, j::ph, k::pw] = y[..., first : first + c]
    data[spec["write_key"]] = out

  def TimestepEmbedder(self, spec, data):
    half = spec["frequency_embedding_size"] // 2
    frequencies = 1000 / spec["max_timestep"] * np.exp(-np.log(256) * np.arange(half) / half)
    angles = data[spec["timesteps_read_key"]][:, None] * frequencies
    features = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    data[spec["time_embedding_write_key"]] = self._linear("mlp.2", silu(self._linear("mlp.0", features)))

  def TransformerHead(self, spec, data):
    """Training only: nothing downstream reads it."""


def project(difference, cond, eta, threshold):
  """APG's update: norms per sample and channel over (T, h, w)."""
  axes = (2, 3, 4)
  norm = np.sqrt((difference**2).sum(axes, keepdims=True))
  if threshold > 0:
    difference = difference * np.minimum(1, threshold / norm)
  unit = cond / np.sqrt((cond**2).sum(axes, keepdims=True))
  parallel = (difference * unit).sum(axes, keepdims=True) * unit
  return difference - parallel + eta * parallel
