"""The networks: FSQ, attention against its oracle, exact collapse, causality, full-size shapes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.models import fsq, masks
from vftok.models.attention import Layout, attend, attend_dense
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import Decoder, DecoderConfig
from vftok.models.encoder import Encoder, EncoderConfig
from vftok.models.layers import PositionConfig, layer_norm
from vftok.models.transformer import Stack, StackConfig
from vftok.models.vae import VAEConfig
from vftok.tokenizer.api import Tokenizer

LEVELS = (8, 8, 8, 5, 5, 5)


def rel(a, b) -> float:
  return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / np.linalg.norm(b))


def randomize(params, key=0, scale=0.05):
  """Every leaf random: zero-initialised heads and gates would hide what stands before them."""
  rng = np.random.default_rng(key)
  return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), params)


# ---- FSQ


def test_fsq_round_trip_on_every_id():
  ids = jnp.arange(fsq.codebook_size(LEVELS))
  codes = fsq.ids_to_codes(ids, LEVELS)
  assert len(ids) == 64_000
  np.testing.assert_array_equal(fsq.codes_to_ids(codes, LEVELS), ids)
  assert len(np.unique(np.asarray(codes), axis=0)) == 64_000
  assert float(jnp.abs(codes).max()) == 1.0


def test_fsq_codes_survive_quantisation():
  """The centre of every bin maps to its own code."""
  ids = jnp.arange(0, 64_000, 7)
  digits = fsq.ids_to_codes(ids, LEVELS) * (np.asarray(LEVELS) // 2)[None]
  half = (np.asarray(LEVELS) - 1) * (1 + fsq.EPS) / 2
  offset = np.where(np.asarray(LEVELS) % 2 == 0, 0.5, 0.0)
  z = np.arctanh(np.clip((np.asarray(digits) + offset) / half, -0.9999999, 0.9999999)) - np.arctanh(offset / half)
  np.testing.assert_array_equal(fsq.codes_to_ids(fsq.quantize(jnp.asarray(z, jnp.float32), LEVELS), LEVELS), ids)


def test_fsq_stays_float32_for_bfloat16_input():
  assert fsq.quantize(jnp.ones((4, 6), jnp.bfloat16), LEVELS).dtype == jnp.float32


# ---- attention


@pytest.mark.parametrize("mode", masks.MODES)
@pytest.mark.parametrize("stands_for", [1, 37])
def test_attend_equals_the_written_out_mask(mode, stands_for):
  layout = Layout(3, 5, 4, mode, ("full", "none", "causal", "full"), stands_for)
  q, k, v = (jax.random.normal(key, (2, 2, layout.length, 8)) for key in jax.random.split(jax.random.key(0), 3))
  q, k = layer_norm(q), layer_norm(k)
  np.testing.assert_allclose(attend(q, k, v, layout), attend_dense(q, k, v, layout), atol=2e-6)
  gradient = lambda fn: jax.grad(lambda k: jnp.sum(jnp.sin(fn(q, k, v, layout))))(k)
  np.testing.assert_allclose(gradient(attend), gradient(attend_dense), atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "time_block_causal_last"])
def test_attend_in_query_chunks_with_ragged_end(mode):
  layout = Layout(2, 300, 77, mode)
  q, k, v = (jax.random.normal(key, (1, 1, layout.length, 8)) for key in jax.random.split(jax.random.key(0), 3))
  out = attend(layer_norm(q), layer_norm(k), v, layout)
  np.testing.assert_allclose(out, attend_dense(layer_norm(q), layer_norm(k), v, layout), atol=2e-6)


def test_attend_without_qk_norm_is_safe_for_large_logits():
  layout = Layout(2, 3, 3, "time_block_causal_last")
  q, k, v = (40 * jax.random.normal(key, (1, 2, 12, 16)) for key in jax.random.split(jax.random.key(0), 3))
  out = attend(q, k, v, layout, bounded=False)
  np.testing.assert_allclose(out, attend_dense(q, k, v, layout), rtol=1e-5, atol=1e-5)


def test_unknown_mask_mode_is_named():
  with pytest.raises(ValueError, match="diagonal"):
    masks.dense("diagonal", 2, 2, 2)


# ---- transformer


@pytest.mark.slow
def test_scan_equals_unrolled_and_remat_changes_only_memory():
  layout = Layout(2, 6, 6, "time_block_causal")
  x, cond = jax.random.normal(jax.random.key(0), (2, 24, 32)), jax.random.normal(jax.random.key(1), (2, 32))
  base = StackConfig(dim=32, depth=3, head_dim=16, adaln=2)
  params = randomize(nn.unbox(jax.eval_shape(lambda: Stack(base).init(jax.random.key(0), x, layout, cond))))

  def grad(cfg):
    fn = jax.jit(jax.grad(lambda p: jnp.sum(Stack(cfg).apply(p, x, layout, cond) ** 2)))
    compiled = fn.lower(params).compile()
    return compiled(params), compiled.as_text().count("exponential")

  expected, exps = grad(base)
  unrolled, _ = grad(dataclasses.replace(base, scan=False))
  remat, exps_remat = grad(dataclasses.replace(base, remat="nothing_saveable"))
  for other in (unrolled, remat):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), other, expected)
  assert exps_remat > exps  # the forward pass really is made again

  with pytest.raises(ValueError, match="remat is 'everything'"):
    jax.eval_shape(
      lambda: Stack(dataclasses.replace(base, remat="everything")).init(jax.random.key(0), x, layout, cond)
    )


# ---- decoder: collapse

DECODER = DecoderConfig(
  StackConfig(dim=32, depth=2, head_dim=16, adaln=2),
  patch=(1, 2, 2),
  channels=4,
  registers=16,
  positions=PositionConfig("learnable_sum", (8, 8, 8)),
  register_positions=PositionConfig("learnable_sum", (16, 16)),
)


@pytest.fixture(scope="module", params=["full", "time_block_causal"])
def decoder(request):
  cfg = dataclasses.replace(DECODER, mask=request.param)
  key = jax.random.key(0)
  codes = jnp.clip(jax.random.normal(key, (2, 3, 16, 6)), -1, 1)
  x = jax.random.normal(key, (2, 3, 4, 4, 4))
  t = jnp.array([0.3, 0.9])
  params = jax.eval_shape(lambda: Decoder(cfg).init(key, codes, jnp.zeros((2, 3), int), x, t))
  params = randomize(nn.unbox(params)["params"], scale=0.3)

  @jax.jit  # one for all cases: they share the programs of their shapes
  def run(codes, counts, prefix_BxT, null_B):
    return Decoder(cfg).apply({"params": params}, codes, counts, x, t, prefix_BxT=prefix_BxT, null_B=null_B)

  return run, codes


@pytest.mark.parametrize("keep", [0, 1, 5, 16, "mixed", "null"])
@pytest.mark.parametrize("prefix", [False, True])
def test_collapse_is_exact(decoder, keep, prefix):
  velocity, codes = decoder
  counts = jnp.array([[0, 5, 1], [3, 4, 2]]) if keep == "mixed" else jnp.full((2, 3), 0 if keep == "null" else keep)
  prefix_BxT = jnp.array([[True, False, False]] * 2) if prefix else None
  null_B = jnp.ones(2, bool) if keep == "null" else None
  run = lambda codes: velocity(codes, counts, prefix_BxT, null_B)
  slots = {0: 1, 1: 1, 5: 8, 16: 16, "mixed": 8, "null": 0}[keep]
  full, collapsed = run(codes), run(codes[:, :, :slots])
  assert rel(collapsed, full) < 1e-5
  if keep not in (16,):
    other = run(codes.at[:, :, -1].add(0.5))  # beyond keep: must not matter
    np.testing.assert_array_equal(other, full)
  else:
    assert rel(run(codes.at[:, :, -1].add(0.5)), full) > 1e-3


def test_collapse_refused_where_it_would_be_wrong():
  cfg = dataclasses.replace(DECODER, mask="time_block_causal_last")
  codes, x = jnp.zeros((1, 2, 4, 6)), jnp.zeros((1, 2, 4, 4, 4))
  with pytest.raises(ValueError, match="time_block_causal_last"):
    jax.eval_shape(lambda: Decoder(cfg).init(jax.random.key(0), codes, jnp.zeros((1, 2), int), x, jnp.zeros(1)))


# ---- encoder


def test_encoder_is_causal_in_time_and_in_registers():
  cfg = EncoderConfig(StackConfig(dim=32, depth=2, head_dim=16), channels=4, registers=6, t_max=4)
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 4))
  params = randomize(nn.unbox(jax.eval_shape(lambda: Encoder(cfg).init(jax.random.key(0), x))), scale=0.2)
  run = jax.jit(Encoder(cfg).apply)
  z = run(params, x)
  later = run(params, x.at[:, 3].add(1.0))
  np.testing.assert_array_equal(z[:, :3], later[:, :3])
  assert rel(later[:, 3], z[:, 3]) > 1e-3
  moved = jax.tree.map(lambda a: a, params)
  moved["params"]["registers"] = params["params"]["registers"].at[0, 4].add(x.reshape(-1)[:32])
  changed = run(moved, x)
  np.testing.assert_array_equal(z[:, 0, :4], changed[:, 0, :4])
  assert rel(changed[:, 0, 4:], z[:, 0, 4:]) > 1e-3
  with pytest.raises(ValueError, match="5 time steps"):
    run(params, jnp.zeros((1, 5, 4, 4, 4)))


# ---- full size


def full_size(decoder_depth: int, patch: tuple[int, int, int], latent: int) -> TokenizerConfig:
  return TokenizerConfig(
    vae=VAEConfig(),
    encoder=EncoderConfig(StackConfig(dim=1152, depth=18), patch=patch),
    decoder=DecoderConfig(StackConfig(dim=64 * decoder_depth, depth=decoder_depth, adaln=2), patch=patch),
    latent_size=(latent, latent),
  )


@pytest.mark.parametrize(
  ("cfg", "total"),
  [(full_size(18, (1, 1, 1), 16), 1.025e9), (full_size(28, (1, 2, 2), 32), 2.616e9)],
  ids=["d18_d18_k600", "d18_d28"],
)
def test_full_size_parameter_counts(cfg, total):
  boxed = jax.eval_shape(lambda key: Tokenizer(cfg).init(key, boxed=True), jax.random.key(0))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(nn.unbox(tree)))
  assert abs(count(boxed) / total - 1) < 3e-3
  assert abs(count(boxed["vae"]) / 157.9e6 - 1) < 3e-3
  assert abs(count(boxed["encoder"]) / 288e6 - 1) < 3e-3

  is_box = lambda x: isinstance(x, nn.Partitioned | nn.LogicallyPartitioned)
  for path, leaf in jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]:
    assert is_box(leaf), f"{jax.tree_util.keystr(path)} has no logical axis names"
    assert len(leaf.names) == leaf.value.ndim, jax.tree_util.keystr(path)


def test_full_size_programs_trace():
  """The released sizes go through encode and a guided decode, shapes only."""
  from vftok.models.flow import APG
  from vftok.tokenizer import programs

  tok = Tokenizer(full_size(28, (1, 2, 2), 32))
  params = jax.eval_shape(tok.init, jax.random.key(0))
  video = jax.ShapeDtypeStruct((1, 17, 256, 256, 3), jnp.uint8)
  ids = jax.eval_shape(lambda p, v: programs.encode_chunk(tok.cfg, p, v), params, video)
  assert ids.shape == (1, 5, 256)
  noise = jax.ShapeDtypeStruct((1, 5, 32, 32, 16), jnp.float32)
  keep = jax.ShapeDtypeStruct((1, 5), jnp.int32)
  run = lambda p, i, k, n: programs.decode_chunk(
    tok.cfg, p, i, k, n, None, APG(scale=20.0), steps=30, solver="euler", slots=32
  )
  assert jax.eval_shape(run, params, ids, keep, noise).shape == (1, 17, 256, 256, 3)
