"""EVATok's networks: the golden file, a float64 oracle for every switch, what may see what, the quantiser, sizes."""

import dataclasses
import json

import evatok_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evatok_files import GOLDEN, TINY, parameters, random_model, random_video
from starts import started

import vftok
from vftok.families.evatok import vq
from vftok.families.evatok.api import EVATok
from vftok.families.evatok.config import SIZES, EvatokConfig, check
from vftok.families.evatok.networks import Decoder, Encoder, nested_means
from vftok.models.config_json import from_dict
from vftok.models.layers import unit
from vftok.tokens import kept_slots
from vftok.tools import parity
from vftok.tools.parity_evatok import losses_of, write_model


def test_every_golden_tensor_is_matched():
  errors = parity.CHECKS["evatok_small"](GOLDEN)
  assert not errors.not_compared() and len(errors.found) == 47
  for key, error in errors.found.items():
    assert error <= (3e-5 if key.endswith("score_margin") else 1e-5), (key, error)


SWITCHES = {
  "plain": {},
  "neck, other patches": dict(neck=6, frames=6, patch=(1, 2, 8), counts=(1, 3, 8), code_dim=3),
  "neck and norm, unrolled": dict(
    neck=6, norm_in=True, encoder=dataclasses.replace(TINY.encoder, scan=False, mlp_ratio=2)
  ),
}


@pytest.mark.parametrize("fields", SWITCHES.values(), ids=SWITCHES)
def test_ids_and_frames_are_those_of_the_oracle(fields):
  tok, params = random_model(**fields)
  video = random_video(tok)
  keep = np.random.default_rng(2).choice(tok.counts[-3:], (2, tok.chunk_steps))
  tokens = tok.encode(params, video, budget=keep)
  frames = np.asarray(tok.decode(params, tokens, clip=False))
  for i, counts in enumerate(keep):
    mine = np.concatenate([row[:k] for row, k in zip(np.asarray(tokens.ids[i]), counts, strict=True)])
    assert np.array_equal(mine, oracle.encode(tok.cfg, params, video[i], counts)[1])
    expected = oracle.decode(tok.cfg, params, mine, counts)
    assert np.abs(frames[i] - expected).max() <= 3e-5 * np.abs(expected).max()
  assert len(np.unique(tokens.ids)) > 4  # and 0, of what is dropped


def test_nested_means_are_prefixes_and_end_in_the_map():
  x = np.random.default_rng(0).standard_normal((2, 3, 16, 16, 5)).astype(np.float32)
  means = jax.jit(nested_means, static_argnums=1)
  most = np.asarray(means(x, 9))
  assert most.shape == (2, 3, 512, 5) and np.array_equal(most[:, :, 256:].reshape(x.shape), x)
  assert np.allclose(means(x, 5), most[:, :, :32], atol=1e-6)
  assert np.allclose(most[0, 0, 2:4], [x[0, 0, :, :8].mean((0, 1)), x[0, 0, :, 8:].mean((0, 1))], atol=1e-6)


@pytest.fixture(scope="module")
def model():
  return random_model()


def with_dropped_rows(tok, params, keep, value):
  """Positions of slots that no clip keeps hold `value`, where queries of the encoder and keys of the decoder are."""
  dropped = (np.arange(tok.registers) >= np.max(keep, axis=0)[:, None]).reshape(-1)
  params = jax.tree.map(np.array, params)
  params["encoder"]["qformer"]["query_places"][dropped] = value
  params["decoder"]["qformer"]["ref_places"][dropped] = value
  return params


def test_nothing_of_dropped_slots_reaches_kept_ones(model):
  tok, params = model
  video, keep = random_video(tok), np.array([[4, 8], [2, 8]])
  tokens = tok.encode(params, video, budget=keep)
  other = with_dropped_rows(tok, params, keep, 1e3)
  assert np.array_equal(tok.encode(other, video, budget=keep).ids, tokens.ids)
  kept = np.arange(tok.registers) < keep[..., None]
  assert not np.asarray(tokens.ids)[~kept].any()
  frames = tok.decode(params, tokens)
  for rubbish in (-7, 10**6, 5):
    odd = tokens.replace(ids=jnp.where(kept, tokens.ids, rubbish))
    assert np.array_equal(tok.decode(other, odd), frames)
  full = tok.encode(params, video)
  assert not np.array_equal(tok.encode(other, video).ids, full.ids)  # those rows do matter where they are kept


def test_steps_see_no_later_ones_and_all_of_their_own(model):
  tok, params = model
  video = random_video(tok)
  both, later = tok.encode(params, video, budget=[8, 16]), tok.encode(params, video, budget=[8, 2])
  assert np.array_equal(both.ids[:, 0], later.ids[:, 0])
  fewer = tok.encode(params, video, budget=[4, 16])
  assert not np.array_equal(fewer.ids[:, 0, :4], both.ids[:, 0, :4])  # no order: another count is another code
  changed = video.copy()
  changed[:, 2:] *= -1
  assert np.array_equal(tok.encode(params, changed, budget=8).ids[:, 0], tok.encode(params, video, budget=8).ids[:, 0])
  frames, cut = (tok.decode(params, tokens, clip=False) for tokens in (both, later))
  assert np.array_equal(frames[:, :2], cut[:, :2]) and not np.array_equal(frames[:, 2:], cut[:, 2:])


def test_losses_count_kept_slots_only_and_train_each_side():
  rng = np.random.default_rng(0)
  z, table = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 8, 4), (16, 4)))
  kept = np.arange(8) < rng.integers(1, 8, (2, 3))[..., None]
  losses = jax.jit(losses_of)
  found = losses(z, table, kept)
  a, b = oracle.unit(z[kept].astype(np.float64)), oracle.unit(table.astype(np.float64))
  cosine = a @ b.T
  square = ((a - b[cosine.argmax(1)]) ** 2).mean()
  p = np.exp((2 * cosine - 2) / 0.01)
  p /= p.sum(1, keepdims=True)
  each = -np.sum(p * np.log(np.maximum(p, 1e-300)), 1).mean()
  expected = {
    "codebook": square,
    "commit": square / 4,
    "entropy": each + np.sum(p.mean(0) * np.log(p.mean(0) + 1e-5)),
  }
  assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-5)
  odd = np.where(kept[..., None], z, np.float32(9.0))
  assert all(np.array_equal(losses(odd, table, kept)[name], value) for name, value in found.items())
  of = jax.jit(jax.jacrev(losses_of, (0, 1)))(z, table, kept)
  assert not of["codebook"][0].any() and of["codebook"][1].any()
  assert of["commit"][0].any() and not of["commit"][1].any()
  assert not of["entropy"][0][~kept].any() and of["entropy"][1].any()


def test_gradients_pass_the_codes_turned_or_straight():
  rng = np.random.default_rng(0)
  z, q, g = (oracle.unit(rng.standard_normal((5, 4))).astype(np.float32) for _ in range(3))
  for rotate in (True, False):
    assert np.allclose(vq.passed_on(z, q, rotate=rotate), q, atol=1e-6)
    back = jax.vjp(lambda z, r=rotate: vq.passed_on(z, jnp.asarray(q), rotate=r), jnp.asarray(z))[1](jnp.asarray(g))[0]
    if not rotate:
      assert np.array_equal(back, g)
      continue
    assert np.allclose(np.linalg.norm(back, axis=1), 1, atol=1e-5)  # turned, as the code is turned to z
    assert np.allclose((back * z).sum(1), (g * q).sum(1), atol=1e-5)


def test_sizes_are_the_papers():
  """Section 3.1 of the spec: 25.2 M and 113.4 M of layers, 144.6 M in all, 145 M published."""
  cfg = EvatokConfig()
  layers = lambda half: 6 * half.dim + half.depth * (16 * half.dim**2 + 19 * half.dim)
  assert layers(SIZES["small"]) == pytest.approx(25.2e6, rel=2e-3)
  assert layers(SIZES["base"]) == pytest.approx(113.4e6, rel=2e-3)
  rest = (1024 + 2048) * (512 + 768) + 769 * 512 + 513 * 512 + 513 * 8 + 9 * 768 + 769 * 768 + 16_384 * 8
  norms = 2 * (512 + 768)  # after the last layer
  whole = sum(half.depth * (16 * half.dim**2 + 19 * half.dim) for half in (cfg.encoder, cfg.decoder))
  assert parameters(cfg) == whole + norms + rest == 143_969_288  # as the golden has its parts: 0.44 % below
  with_neck = dataclasses.replace(cfg, neck=256, norm_in=True)  # what GigaTok has beside them
  assert parameters(with_neck) == pytest.approx(144.6e6, rel=3e-3)
  assert parameters(dataclasses.replace(cfg, codebook_size=8192)) == parameters(cfg) - 8192 * 8
  assert (cfg.steps, cfg.places, cfg.slots, cfg.grid) == (4, 256, 512, (16, 16))


def test_fresh_parameters_carry_axes():
  tok = EVATok(TINY)
  boxed = jax.eval_shape(lambda key: tok.init(key, boxed=True), jax.random.key(0))
  is_box = lambda x: isinstance(x, nn.Partitioned)
  assert all(map(is_box, jax.tree.leaves(boxed, is_leaf=is_box)))
  params = started(tok.init)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, nn.unbox(boxed))
  spread = params["encoder"]["qformer"]["query_places"].std() * 16**0.5  # tables: normal, D^-1/2
  assert 0.85 < spread < 1.15 and not params["encoder"]["head"]["bias"].any()
  assert 0.01 < params["decoder"]["head"]["kernel"].std() < 0.02


@pytest.mark.slow
def test_gradients_reach_every_parameter(model):
  """What training needs of the parts: one pass, codes by the rotation trick, the quantiser's losses, pure in jit."""
  tok, params = model
  video, keep = random_video(tok), np.array([[8, 4], [16, 2]], np.int32)

  def loss(params):
    z = Encoder(tok.cfg).apply({"params": params["encoder"]}, video / 2, keep)
    table = params["quantizer"]["codebook"]
    codes = vq.passed_on(unit(z), vq.codes_of(vq.ids_of(z, table), table))
    frames = Decoder(tok.cfg).apply({"params": params["decoder"]}, codes, keep)
    return jnp.abs(frames - video / 2).mean() + sum(losses_of(z, table, kept_slots(keep, tok.registers)).values())

  gradients = jax.jit(jax.grad(loss))(params)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all() and np.any(gradient), path
  unused = gradients["encoder"]["qformer"]["query_places"].reshape(2, 16, -1)[1, 4:]
  assert not unused.any()  # slots of the second step that no clip keeps


def test_half_precision_is_near(model, tmp_path):
  tok, params = model
  tok.save(params, tmp_path / "m")
  half, same = vftok.load(tmp_path / "m", dtype="bfloat16")
  assert half.cfg.encoder.dtype == half.cfg.decoder.dtype == "bfloat16"
  assert half.fingerprint(same) == tok.fingerprint(params)
  tokens = tok.encode(params, random_video(tok), budget=8)
  frames = tok.decode(params, tokens, clip=False)
  error = np.abs(half.decode(same, tokens, clip=False) - frames).max() / np.abs(frames).max()
  assert 0 < error < 0.05


def test_the_golden_config_is_read_back(tmp_path):
  metadata = write_model(GOLDEN, tmp_path)
  tok, _ = vftok.load(tmp_path)
  assert tok.counts == tuple(json.loads(metadata["config"])["spatial_token_num_choices"])


BAD_CONFIGS = [
  (dict(patch=(3, 4, 4)), "patch"),
  (dict(frame_size=(8, 18)), "patch"),
  (dict(frame_size=(8, 0)), "frame_size"),
  (dict(counts=(2, 2, 16)), "rise"),
  (dict(counts=()), "counts"),
  (dict(counts=(2, 12)), "power of two"),
  (dict(counts=(1,)), "power of two"),
  (dict(counts=(2, 32)), "divide the grid (2, 4)"),
  (dict(codebook_size=1), "codebook_size"),
  (dict(code_dim=0), "code_dim"),
  (dict(neck=-1), "neck"),
  (dict(encoder=dataclasses.replace(TINY.encoder, heads=3)), "encoder.heads"),
  (dict(encoder=dataclasses.replace(TINY.encoder, depth=0)), "encoder.depth"),
  (dict(decoder=dataclasses.replace(TINY.decoder, dtype="float16")), "decoder.dtype"),
  (dict(decoder=dataclasses.replace(TINY.decoder, remat="all")), "decoder.remat"),
  (dict(frames=2**16, patch=(2, 4, 4)), "at most 32768 tokens"),
]


@pytest.mark.parametrize("fields, names", BAD_CONFIGS)
def test_impossible_configs_are_named(fields, names):
  with pytest.raises(ValueError, match=r"^the config has") as caught:
    check(dataclasses.replace(TINY, **fields))
  assert names in str(caught.value) and len(str(caught.value)) < 400


def test_configs_are_checked_as_all_others():
  data = dataclasses.asdict(TINY)
  assert from_dict(EvatokConfig, data) == TINY
  for change, names in (({"depth": 3}, "unknown key 'depth'"), ({"neck": 1.5}, "config.neck is 1.5, expected int")):
    with pytest.raises(ValueError, match=names):
      from_dict(EvatokConfig, data | change)
