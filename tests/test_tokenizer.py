"""The public API on the small model: exact, deterministic, and the same whole or by pieces."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vftok
from vftok.cli import commands
from vftok.cli.arguments import parser
from vftok.models import flow
from vftok.tokenizer import programs
from vftok.tokens import VideoTokens

KEY = jax.random.key(0)
STEPS = {"steps": 1, "guidance": None}


@pytest.fixture(scope="module")
def video():
  """65 frames of moving waves and noise, uint8 [1, 65, 32, 32, 3]."""
  rng = np.random.default_rng(0)
  t, y, x = np.mgrid[:65, :32, :32]
  wave = np.stack([np.sin(x / 5 + t / 3), np.cos(y / 4 - t / 7), np.sin((x + y + t) / 6)], axis=-1)
  return np.uint8(np.clip(127.5 + 90 * wave + rng.normal(0, 25, wave.shape), 0, 255))[None]


def random_tokens(tok, steps, batch=1, seed=0, frames=None):
  ids = np.random.default_rng(seed).integers(0, tok.codebook_size, (batch, steps, tok.registers))
  return VideoTokens.full(ids, frames)


# ---- encode


def test_the_same_video_gives_the_same_ids(small, video):
  tok, params, golden = small
  clip = video[:, :17]
  tokens = tok.encode(params, clip)
  assert tokens.ids.shape == (1, 5, 8) and tokens.ids.dtype == jnp.int32 and tokens.frames == 17
  assert np.array_equal(tokens.keep, np.full((1, 5), 8))
  assert len(np.unique(tokens.ids)) > 10  # a constant would pass every equality below
  assert np.array_equal(tokens.ids, tok.encode(params, clip).ids)
  assert np.array_equal(tokens.ids, tok.encode(params, jnp.asarray(clip)).ids)
  # Float form: the same sum in another program, so an id may change only where z sits on a rounding edge.
  floats = np.float32(clip) / np.float32(127.5) - 1
  assert np.mean(np.asarray(tok.encode(params, floats).ids) == np.asarray(tokens.ids)) >= 0.95
  a, b = (tok.features(params, tok.encode_latents(params, x)) for x in (clip, floats))
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  reference = tok.encode(params, golden["in.video"].transpose(0, 2, 3, 4, 1))
  assert np.array_equal(reference.ids, golden["enc.token_ids"])


@pytest.mark.slow
def test_posterior_mean_and_samples(small, video):
  tok, params, _ = small
  clip = video[:, :17]
  mean, logvar = programs.vae_encode(tok.cfg, params, clip)
  assert np.array_equal(tok.encode_latents(params, clip), mean)
  draws = np.stack([tok.encode_latents(params, clip, jax.random.key(i)) for i in range(64)])
  z = (draws - np.asarray(mean)) / np.exp(0.5 * np.asarray(logvar))
  assert np.array_equal(draws[0], tok.encode_latents(params, clip, jax.random.key(0)))
  # 64 draws of 1280 values each: standard errors of mean and std are 0.0035 and 0.0025.
  assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
  assert np.abs(z.mean(axis=0)).max() < 6 / 8


@pytest.mark.parametrize("sizes", [(1,) * 49, (17, 16, 16), (20, 3, 26), (48, 1)], ids=str)
def test_streamed_encode_is_the_whole_encode(small, video, sizes):
  tok, params, _ = small
  whole = tok.encode(params, video[:, :49])
  assert whole.ids.shape == (1, 13, 8) and whole.frames == 49
  pieces = np.split(video[0, :49], np.cumsum(sizes)[:-1])
  chunks = list(tok.encode_stream(params, iter(pieces)))
  assert [c.frames for c in chunks] == [17, 16, 16]
  assert np.array_equal(VideoTokens.concat(chunks).ids, whole.ids)
  by_hand = np.concatenate([tok.encode(params, video[:, i : i + 17]).ids[:, bool(i) :] for i in (0, 16, 32)], axis=1)
  assert np.array_equal(by_hand, whole.ids)


def test_encode_stream_waits_for_no_frame_it_does_not_need(small, video):
  tok, params, _ = small
  taken = []

  def camera():
    for i in range(65):
      taken.append(i)
      yield video[0, i : i + 1]

  stream = tok.encode_stream(params, camera())
  next(stream)
  assert len(taken) == 17
  next(stream)
  assert len(taken) == 33


@pytest.mark.parametrize("frames", [1, 17, 20, 33, 40, 49, 65])
def test_padded_video_comes_back_as_long_as_it_was(small, video, frames):
  tok, params, _ = small
  clip = video[:, :frames]
  tokens = tok.encode(params, clip, fit="pad")
  assert tokens.frames == frames
  out = tok.decode(params, tokens, KEY, **STEPS)
  assert out.shape == (1, frames, 32, 32, 3) and out.dtype == jnp.float32
  assert np.abs(out).max() <= 1
  full = 17 + 16 * -(-max(frames - 17, 0) // 16)
  by_hand = np.pad(clip, [(0, 0), (0, full - frames), (0, 0), (0, 0), (0, 0)], mode="edge")
  assert np.array_equal(tokens.ids, tok.encode(params, by_hand).ids)
  if frames == full:
    assert np.array_equal(tokens.ids, tok.encode(params, clip).ids)


# ---- decode


def test_streamed_decode_is_the_whole_decode(small):
  tok, params, _ = small
  tokens = random_tokens(tok, 13, frames=45)
  whole = tok.decode(params, tokens, KEY, **STEPS)
  assert whole.shape == (1, 45, 32, 32, 3)
  parts = list(tok.decode_stream(params, tokens, KEY, **STEPS))
  assert [p.shape[1] for p in parts] == [17, 16, 12]
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)

  def one(start, stop, frames):
    return VideoTokens(tokens.ids[:, start:stop], tokens.keep[:, start:stop], frames)

  pieces = [one(0, 5, 17), one(5, 9, 16), one(9, 13, 12)]
  parts = list(tok.decode_stream(params, iter(pieces), KEY, **STEPS))
  assert [p.shape[1] for p in parts] == [17, 16, 12]
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)
  # Each chunk has noise of its own, drawn from fold_in(key, chunk).
  noise = [jax.random.normal(jax.random.fold_in(KEY, i), (1, 5, 4, 4, 16)) for i in range(3)]
  assert np.array_equal(tok.decode(params, tokens, noise=noise, **STEPS), whole)
  assert not np.allclose(tok.decode(params, tokens, jax.random.key(1), **STEPS), whole, atol=1e-2)


@pytest.mark.parametrize("collapse", [True, False])
def test_ids_beyond_keep_never_matter(small, collapse):
  tok, params, _ = small
  keep = np.array([[3, 0, 8, 1, 5]])
  one, other = random_tokens(tok, 5, seed=1), random_tokens(tok, 5, seed=2)
  kept = np.arange(8) < keep[:, :, None]
  mixed = VideoTokens.full(np.where(kept, one.ids, other.ids))
  wild = VideoTokens.full(np.where(kept, one.ids, np.int32(2**31 - 1)))

  def run(tokens):
    return tok.decode_latents(params, tokens, KEY, steps=2, guidance=vftok.CFG(3.0), collapse=collapse)

  expected = run(one.truncate(keep))
  assert np.array_equal(run(mixed.truncate(keep)), expected)
  assert np.array_equal(run(wild.truncate(keep)), expected)
  assert not np.allclose(run(mixed.truncate(8)), run(one), atol=1e-3)  # and the ones before keep do matter


def test_one_compile_for_all_keeps_of_a_bucket(small):
  tok, params, _ = small
  tokens = random_tokens(tok, 5, seed=3)

  def run(keep):
    return tok.decode_latents(params, tokens.truncate(keep), KEY, steps=1, guidance=vftok.CFG(2.0))

  run(5)
  compiled = programs.sample_latents._cache_size()
  outs = [run(keep) for keep in (6, 7, 8, [5, 1, 0, 8, 2])]
  assert programs.sample_latents._cache_size() == compiled
  assert not np.allclose(outs[0], outs[2], atol=1e-4)
  run(1)
  assert programs.sample_latents._cache_size() == compiled + 1
  assert [tok.slots(np.array([k])) for k in range(9)] == [1, 1, 2, 4, 4, 8, 8, 8, 8]


def test_first_frames_start_the_video(small, video):
  tok, params, _ = small
  tokens = random_tokens(tok, 5, seed=4)
  out = tok.decode(params, tokens, KEY, first_frames=video[:, :1], **STEPS)
  assert out.shape == (1, 17, 32, 32, 3)
  # The VAE is causal: its first frame needs no more than the first latent.
  first = programs.to_float(jnp.asarray(video[:, :1]))
  alone = jnp.pad(tok.encode_latents(params, first), [(0, 0), (0, 4), (0, 0), (0, 0), (0, 0)])
  seen = jnp.clip(tok.decode_pixels(params, alone), -1, 1)
  np.testing.assert_allclose(out[:, :1], seen[:, :1], atol=1e-4)
  assert not np.allclose(out[:, 1:], tok.decode(params, tokens, KEY, **STEPS)[:, 1:], atol=1e-2)


def test_jit_is_the_callers(small, video):
  tok, params, _ = small
  tokens = jax.eval_shape(tok.encode, params, video[:, :33])  # traced, not compiled: that takes 20 s
  assert (tokens.ids.shape, tokens.keep.shape, tokens.frames) == ((1, 9, 8), (1, 9), 33)
  traced = jax.eval_shape(lambda *args: tok.decode(*args, **STEPS), params, tokens, KEY)
  assert traced.shape == (1, 33, 32, 32, 3)

  @jax.jit
  def decode(params, tokens, key):
    return tok.decode_latents(params, tokens, key, **STEPS)

  short = random_tokens(tok, 5).truncate(3)
  expected = tok.decode_latents(params, short, KEY, **STEPS)
  np.testing.assert_allclose(decode(params, short, KEY), expected, rtol=1e-4, atol=1e-4)


def test_save_and_load(small, tmp_path):
  tok, params, _ = small
  tok.save(params, tmp_path / "own")
  again, loaded = vftok.Tokenizer.load(tmp_path / "own")
  assert again == tok and jax.tree.structure(loaded) == jax.tree.structure(params)
  assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, loaded)))
  assert again.fingerprint(loaded) == tok.fingerprint(params)
  assert json.loads((tmp_path / "own" / "config.json").read_text())["format"] == "vftok-tokenizer"


# ---- solvers


ORDERS = {"euler": 1, "heun": 2, "ab2": 2}


@pytest.mark.parametrize("solver", flow.SOLVERS)  # a new one says its order
def test_order_of_the_solvers(solver):
  order = ORDERS[solver]

  # dx/dt = 2 t x from t = 1 to 0: x(0) = x(1) / e.
  def error(steps):
    return abs(
      float(flow.sample(lambda x, t: 2 * t * x, jnp.ones((1, 1, 1, 1, 1)), steps, solver=solver).squeeze()) - np.exp(-1)
    )

  assert error(8) > 1e-4  # far above rounding, so the slope below is the solver's
  slope = np.log2(error(8) / error(32)) / 2
  assert order - 0.25 < slope < order + 0.35, slope


def test_the_command_line_knows_every_solver():
  runs = (getattr(commands, name) for name in "info encode decode truncate reconstruct sample export".split())
  known, words = parser(tuple(runs)), ["decode", "vftok-mini", "a.vft", "a.mp4", "--solver"]
  assert [known.parse_args([*words, name]).solver for name in flow.SOLVERS] == [*flow.SOLVERS]


# ---- VideoTokens


def test_truncate():
  tokens = VideoTokens.full(np.arange(2 * 3 * 4).reshape(2, 3, 4))
  assert np.array_equal(tokens.truncate(2).keep, [[2] * 3] * 2)
  assert np.array_equal(tokens.truncate([1, 0, 4]).keep, [[1, 0, 4]] * 2)
  assert np.array_equal(tokens.truncate([[1, 2, 3], [4, 0, 1]]).keep, [[1, 2, 3], [4, 0, 1]])
  assert np.array_equal(tokens.truncate([1, 3, 2]).truncate(2).keep, [[1, 2, 2]] * 2)  # never grows
  assert np.array_equal(tokens.truncate(2).ids, tokens.ids) and tokens.truncate(2).keep.dtype == jnp.int32
  assert np.array_equal(tokens.truncate([[1, 2, 3], [4, 0, 1]]).total(), [6, 5])
  traced = jax.jit(lambda tokens, k: tokens.truncate(k).keep)(tokens, jnp.array([1, 0, 4]))
  assert np.array_equal(traced, [[1, 0, 4]] * 2)


def test_flatten_is_coarse_first():
  tokens = VideoTokens.full(np.array([[[0, 1, 2], [10, 11, 12]]])).truncate([2, 1])
  ids, kept = tokens.flatten()
  assert ids.tolist() == [[0, 10, 1, 11, 2, 12]]
  assert kept.tolist() == [[True, True, True, False, False, False]]
  assert int(kept.sum()) == int(tokens.total()[0]) == 3


def test_concat():
  one = VideoTokens.full(np.zeros((2, 5, 4)), 17).truncate(3)
  two = VideoTokens.full(np.ones((2, 4, 4)), 11)
  joined = VideoTokens.concat([one, two])
  assert joined.ids.shape == (2, 9, 4) and joined.frames == 28
  assert np.array_equal(joined.keep, [[3] * 5 + [4] * 4] * 2)
  assert VideoTokens.concat([one, dataclasses.replace(two, frames=None)]).frames is None


# ---- import


def test_import_is_light():
  code = """
import json, sys, time
import jax
before, began = set(sys.modules), time.perf_counter()
import vftok
seconds = time.perf_counter() - began
bare = set(sys.modules) - before
vftok.Tokenizer, vftok.VideoTokens, vftok.CFG, vftok.APG
print(json.dumps([seconds, time.perf_counter() - began, sorted(bare), sorted(sys.modules)]))
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  seconds, with_names, bare, every = json.loads(done.stdout)
  print(f"import vftok: {seconds:.4f} s beyond jax, {with_names:.2f} s with its public names")
  assert bare == ["vftok", "vftok.runtime", "vftok.runtime.lazy"]
  roots = {name.split(".")[0] for name in every}
  heavy = roots & {"torch", "tensorflow", "matplotlib", "av", "huggingface_hub", "grain"}
  assert not heavy, heavy
