"""The direct path of tiny tokenizers: a linear encoder, a draft, and the flow that starts from it."""

import dataclasses
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

from vftok.models import config_json
from vftok.models.config import TokenizerConfig
from vftok.models.decoder import Decoder, draft_of
from vftok.models.draft import draft_velocity
from vftok.models.encoder import Encoder
from vftok.tasks import make_task
from vftok.tasks.linear_codes import step_code
from vftok.tokenizer.api import Tokenizer
from vftok.tools.study import linear_limit

CFG = config_json.from_dict(
  TokenizerConfig, importlib.import_module("configs.tokenizer").get_config("smoke").model.to_dict()
)
T, K, C = 3, CFG.decoder.registers, CFG.decoder.code_dim


def random_params(module, *args, seed=0):
  rng = np.random.default_rng(seed)
  shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *args)))
  return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)


def codes_of(b=2, seed=1):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (b, T, K, C)), jnp.float32)


def test_a_draft_sees_kept_codes_of_its_own_and_of_its_context_only():
  net, codes, keep = draft_of(CFG.decoder), codes_of(), jnp.asarray([[2, 0, 4], [1, 3, 4]])
  params = random_params(net, codes, keep)
  run = jax.jit(net.apply)
  draft, variance = run(params, codes, keep)
  assert draft.shape == (2, T, 2, 2, CFG.decoder.channels * 4) and variance.shape == (2, T, 1, 1, draft.shape[-1])
  beyond = jnp.arange(K)[None, None] >= keep[..., None]
  np.testing.assert_array_equal(run(params, jnp.where(beyond[..., None], 9.0, codes), keep)[0], draft)
  for t in range(T):
    moved = np.asarray(run(params, codes.at[:, t].multiply(-0.5), jnp.full((2, T), K))[0])
    changed = (moved != np.asarray(run(params, codes, jnp.full((2, T), K))[0])).any((0, 2, 3, 4))
    assert changed.tolist() == [t <= step <= t + CFG.decoder.draft.context for step in range(T)]
  short = run(params, codes[:, :, :2], jnp.minimum(keep, 2))[0]  # fewer slots are the same thing as fewer kept
  np.testing.assert_allclose(short, run(params, codes, jnp.minimum(keep, 2))[0], atol=1e-6)


def test_a_step_that_keeps_nothing_is_unknown():
  net, codes = draft_of(CFG.decoder), codes_of()
  params = random_params(net, codes, jnp.full((2, T), K))
  draft, variance = net.apply(params, codes, jnp.zeros((2, T), int))
  assert not draft.any() and (variance == 1).all()


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 1.0])
def test_the_velocity_around_a_draft_is_the_conditional_mean(t):
  """Against least squares over samples: for Gaussians the conditional mean is the best linear guess."""
  rng, draft, variance = np.random.default_rng(0), 1.5, 0.4
  clean, noise = draft + variance**0.5 * rng.normal(size=400_000), rng.normal(size=400_000)
  noisy = t * noise + (1 - t) * clean
  slope, offset = np.polyfit(noisy, noise - clean, 1)
  x = np.array([-1.0, 0.5, 2.0])
  np.testing.assert_allclose(draft_velocity(draft, variance, x, t), slope * x + offset, atol=0.02)


@pytest.mark.slow
def test_the_decoder_starts_at_its_draft_and_ignores_it_without_condition():
  cfg, codes, keep = CFG.decoder, codes_of(1), jnp.full((1, T), K)
  noisy, t = jnp.asarray(np.random.default_rng(2).normal(size=(1, T, 4, 4, cfg.channels)), jnp.float32), jnp.ones((1,))
  net = Decoder(cfg)
  params = nn.unbox(started(lambda key: net.init(key, codes, keep, noisy, t)))
  params["params"]["draft"] = random_params(draft_of(cfg), codes, keep)["params"]
  run = jax.jit(net.apply)
  draft = draft_of(cfg).apply({"params": params["params"]["draft"]}, codes, keep)[0]
  patches = draft.reshape(1, T, 2, 2, 2, 2, -1).transpose(0, 1, 2, 4, 3, 5, 6).reshape(noisy.shape)
  np.testing.assert_allclose(run(params, codes, keep, noisy, t), noisy - patches, atol=1e-5)  # pure noise, zero head
  null = run(params, codes, keep, noisy, t, null_B=jnp.ones((1,), bool))
  np.testing.assert_allclose(null, noisy, atol=1e-5)
  given = run(params, codes, keep, noisy, t, prefix_BxT=jnp.asarray([[True, False, False]]))
  np.testing.assert_allclose(given[:, 0], noisy[:, 0], atol=1e-5)


@pytest.mark.slow
def test_merged_registers_leave_the_velocity_as_it_is():
  cfg, codes, keep = CFG.decoder, codes_of(), jnp.asarray([[2, 1, 2], [1, 2, 2]])
  noisy = jnp.asarray(np.random.default_rng(2).normal(size=(2, T, 4, 4, cfg.channels)), jnp.float32)
  params = random_params(Decoder(cfg), codes, keep, noisy, jnp.full((2,), 0.6))
  run = jax.jit(Decoder(cfg).apply)
  full = run(params, codes, keep, noisy, jnp.full((2,), 0.6))
  np.testing.assert_allclose(run(params, codes[:, :, :2], keep, noisy, jnp.full((2,), 0.6)), full, atol=2e-5)


def test_the_linear_start_is_the_principal_components_of_each_kind_of_step():
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(300, 3, 12)) @ rng.normal(size=(12, 12)) + 5
  latents[:, 0] *= 3  # the first step has statistics of its own
  fit = jax.tree.map(np.asarray, step_code(latents, 4))
  for kind, some in enumerate((latents[:, :1], latents[:, 1:])):
    x = some.reshape(-1, 12)
    z = x @ fit["linear_kernel"][kind] + fit["linear_bias"][kind]
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(4), atol=1e-3)
    left = np.linalg.svd((x - x.mean(0)) / np.sqrt(len(x)), full_matrices=False)[0][:, :4] * np.sqrt(len(x))
    np.testing.assert_allclose(np.abs((left * z).mean(0)), 1, atol=5e-3)  # in order, up to sign
  with pytest.raises(ValueError, match=r"got 3 clips, expected more: raise loss\.fit_batches"):
    step_code(latents[:3], 4)


@pytest.mark.slow
def test_a_net_joins_a_linear_encoder_without_changing_its_codes(tmp_path):
  """mini_draft, then mini: the second stage starts where the first one stopped."""
  module = importlib.import_module("configs.tokenizer")
  first = module.get_config("smoke")
  first.model.encoder.net = False
  first.loss.flow = 0.0
  task = make_task(first)
  rng = np.random.default_rng(0)
  batches = [{"video": rng.integers(0, 256, (4, 17, 16, 16, 3), dtype=np.uint8)} for _ in range(3)]
  params = task.start(nn.unbox(started(task.init)), batches)
  assert set(params["encoder"]) == {"linear_kernel", "linear_bias"}
  loss, metrics = jax.jit(task.loss)(params, task.frozen(), batches[0], jax.random.split(jax.random.key(1), 4), 0)
  assert np.isfinite(loss) and "draft" in metrics and "flow" not in metrics
  task.save(params, task.frozen(), tmp_path / "model")

  second = module.get_config("smoke")
  second.init_from = str(tmp_path / "model")
  grown = make_task(second)
  more = grown.start(nn.unbox(started(grown.init, 2)), [])
  latents = jnp.asarray(rng.normal(size=(1, 5, 4, 4, CFG.encoder.channels)), jnp.float32)
  small = Encoder(dataclasses.replace(CFG.encoder, net=False)).apply({"params": params["encoder"]}, latents)
  large = jax.jit(Encoder(CFG.encoder).apply)({"params": more["encoder"]}, latents)
  np.testing.assert_allclose(large, small, atol=1e-5)
  assert np.abs(np.asarray(small)).max() > 0.1


def test_impossible_drafts_are_named():
  data = dataclasses.asdict(CFG)
  for part, key, value, message in (
    (
      "decoder",
      "draft",
      dict(grid=(3, 3)),
      r"decoder\.draft\.grid = \(3, 3\), expected the patches of a step, \(2, 2\)",
    ),
    ("decoder", "draft", dict(grid=(2, 2), context=9), r"decoder\.draft\.context = 9, expected 0\.\.4"),
    ("encoder", "net", False, None),
  ):
    changed = {**data, part: {**data[part], key: value}}
    if message is None:
      changed["encoder"]["linear"] = False
      message = r"encoder\.net = False, expected True, or encoder\.linear"
    with pytest.raises(ValueError, match=message):
      config_json.from_dict(TokenizerConfig, changed)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.decoder.draft": None}, r"loss\.draft is 0\.5, but the decoder has no draft"),
    ({"loss.flow": 0.0, "loss.repa": 1.0}, r"loss\.repa is 1\.0, but without loss\.flow no decoder runs"),
  ],
)
def test_losses_that_have_nothing_to_read_are_refused(changes, message):
  cfg = importlib.import_module("configs.tokenizer").get_config("smoke")
  for key, value in changes.items():
    *path, last = key.split(".")
    part = cfg
    for name in path:
      part = part[name]
    part[last] = value
  with pytest.raises(ValueError, match=message):
    make_task(cfg)


@pytest.mark.slow
def test_a_linear_code_of_all_numbers_loses_nothing_and_fewer_lose_more():
  tok = Tokenizer(CFG)
  params = started(tok.init)
  clips = np.random.default_rng(0).integers(0, 255, (40, 17, 16, 16, 3), np.uint8)
  patches = linear_limit._patches(tok, tok.encode_latents(params, clips))
  maps = linear_limit.step_maps(patches, patches.shape[-1])
  head, *rows = linear_limit.scores(tok, params, [{"video": clips[:4]}], maps, [2, 16, 64], "train", None)
  assert head[1:3] == ["latent error", "PSNR (dB)"] and patches.shape == (40, 5, 64)
  errors = {row[0]: float(row[1]) for row in rows}
  assert list(errors) == ["linear 2", "linear 16", "linear 64", "draft", "VAE alone"]
  assert errors["linear 2"] > errors["linear 16"] > errors["linear 64"] == 0
