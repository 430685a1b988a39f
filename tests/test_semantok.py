"""SemanTok training: DINOv2 as the encoder's input, heads that predict its patch and class features."""

import feature_files as nets
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import tokenizer as experiment
from vftok import Tokenizer
from vftok.frozen.features.dino_inputs import dino_features, dino_inputs
from vftok.models import config_json
from vftok.models.config import TokenizerConfig
from vftok.tasks import frozen_nets, make_task
from vftok.tasks.losses import TokenizerLoss
from vftok.train import evaluate, loop

DIM = 64  # one head: what the converter takes where nobody says how many


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nets, "DIM", DIM)
    patch.setattr(nets, "HEADS", 1)
    path = tmp_path_factory.mktemp("dino") / "model.safetensors"
    save_file(nets.dinov2_tensors(), path)
  return str(path)


def config(weights, frames="avg", **loss):
  """The smoke size with SemanTok's encoder and heads."""
  cfg = experiment.smoke()
  cfg.dino, cfg.batch_size, cfg.model.dino_frames = weights, 2, frames
  cfg.model.encoder.linear, cfg.model.encoder.channels = False, cfg.model.vae.z_channels + DIM * bool(frames)
  cfg.model.encoder.global_token = DIM
  cfg.loss.update(prefix_latents=0.0, prefix_features=0.5, prefix_class=0.5, features="dinov2", fit_batches=0, **loss)
  return cfg


VIDEO = np.random.default_rng(0).integers(0, 256, (2, 17, 16, 16, 3), np.uint8)
LATENTS = np.random.default_rng(1).standard_normal((2, 5, 4, 4, 4)).astype(np.float32)


def see(cfg, monkeypatch, beside):
  """(what the nets of a config see of VIDEO, `beside(model, net, its parameters, video)`, images of each pass)."""
  task, passes = make_task(cfg), []
  apply = type(task.nets.dino).apply
  counted = lambda self, params, images: (passes.append(len(images)), apply(self, params, images))[1]
  monkeypatch.setattr(type(task.nets.dino), "apply", counted)

  @jax.jit
  def run(params, video):
    seen = task.nets.see(params, {"video": video}, LATENTS, (5, 2, 2))
    taken = list(passes)
    return seen, beside(task.tok.cfg, task.nets.dino, params["dino"], video / 127.5 - 1), np.asarray(taken)

  assert set(task.nets.params) == {"dino"}
  return run(task.nets.params, VIDEO)


def test_one_pass_gives_the_encoders_input_and_the_heads_targets(weights, monkeypatch):
  seen, (grid, vector), passes = see(config(weights), monkeypatch, lambda *a: dino_inputs(*a, LATENTS))
  assert passes.tolist() == [2 * 17]
  np.testing.assert_allclose(seen.grid, grid, atol=1e-4)
  np.testing.assert_allclose(seen.vector, vector, atol=1e-4)
  patches = np.asarray(grid)[..., :DIM].reshape(2, 5, 2, 2, 2, 2, DIM).mean((3, 5))  # 4 x 4 cells on 2 x 2 patches
  np.testing.assert_allclose(seen.patches, patches, atol=1e-4)
  np.testing.assert_allclose(seen.classes[:, :, 0, 0], vector, atol=1e-4)


def test_an_encoder_of_the_class_vector_alone_has_targets_of_their_own_pass(weights, monkeypatch):
  def beside(model, net, params, video):
    targets = net.targets_with_class(params, video, (5, 2, 2), "first")
    return *targets, dino_features(model, net, params, video, (4, 4))[1]

  cfg = config(weights, "", features_reduce="first")
  seen, (patches, classes, vector), passes = see(cfg, monkeypatch, beside)
  assert passes.tolist() == [2 * 5, 2 * 5]  # at the latents' size, and at that of targets
  np.testing.assert_allclose(seen.patches, patches, atol=1e-4)
  np.testing.assert_allclose(seen.classes[:, :, 0, 0], classes, atol=1e-4)
  np.testing.assert_allclose(seen.vector, vector, atol=1e-4)
  np.testing.assert_array_equal(seen.grid, LATENTS.astype(np.float16))


def test_the_loss_has_both_heads(weights):
  """By shapes alone: a head of one query a step beside that of every patch, each with its weight."""
  task = make_task(config(weights))
  params = jax.eval_shape(task.init, jax.random.key(0))
  heads = params["heads"]
  assert heads["class"]["out"]["kernel"].value.shape == heads["features"]["out"]["kernel"].value.shape == (64, DIM)
  assert heads["class"]["positions"]["table"].value.shape[1] == 5 and set(heads) == {"class", "features"}
  keys = jax.random.split(jax.random.key(0), 2)
  batch = {"video": jnp.asarray(VIDEO), "latents": jnp.asarray(LATENTS), "_mask": jnp.ones(2, bool)}  # no VAE to trace
  _, metrics = jax.eval_shape(lambda p, f: task.loss(nn.unbox(p), f, batch, keys, 0), params, task.nets.params)
  assert {"prefix_features", "prefix_class", "flow"} <= set(metrics) and "repa" not in metrics


def test_what_cannot_be_trained_is_said(weights):
  cfg = config(weights)
  cfg.dino = ""
  with pytest.raises(ValueError, match=r"the encoder reads DINOv2 features: set config\.dino to its weights"):
    make_task(cfg)
  cfg = experiment.smoke()
  cfg.loss.prefix_class, cfg.loss.features = 0.5, "vgg16"
  net, plain = object(), config_json.from_dict(TokenizerConfig, cfg.model.to_dict())
  with pytest.raises(ValueError, match="prefix_class is set and vgg16 has no class feature"):
    frozen_nets.FrozenNets(TokenizerLoss.of(cfg), "", plain, load_features=lambda *_: (net, {}))
  task = make_task(config(weights))
  with pytest.raises(ValueError, match="the sources hold latents, and the config's frozen nets see video"):
    task.nets.see(task.nets.params, {"latents": LATENTS}, LATENTS, (5, 2, 2))


@pytest.mark.slow
def test_trained_evaluated_saved_and_loaded(weights, tmp_path):
  cfg = config(weights)
  cfg.steps, cfg.eval.keeps, cfg.optim.warmup, cfg.eval.probe = 2, (4,), 0, False
  trained = jax.device_get(loop.run(cfg, tmp_path / "run"))
  assert np.abs(trained.params["encoder"]["head"]["kernel"]).max() > 0  # it starts at zero
  numbers = evaluate.run(cfg, tmp_path / "run")
  assert np.isfinite(numbers["shapes/psnr/keep 4"]) and np.isfinite(numbers["shapes/high/wrong"])
  tok, params = Tokenizer.load(tmp_path / "run/model", dino=weights)
  assert tok.encode(params, VIDEO).ids.shape == (2, 5, 4)
  assert tok.cfg.dino_frames == "avg" and "dino" not in Tokenizer.load(tmp_path / "run/model")[1]
  cfg.init_from, cfg.steps = str(tmp_path / "run/model"), 1  # heads go on too
  loop.run(cfg, tmp_path / "again")


@pytest.mark.slow
def test_gradients_reach_what_reads_the_features(weights):
  task = make_task(config(weights))
  params = jax.tree.map(lambda x: x.value, task.init(jax.random.key(0)), is_leaf=lambda x: hasattr(x, "value"))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
  keys, batch = jax.random.split(jax.random.key(0), 2), {"video": VIDEO, "_mask": np.ones(2, bool)}
  grads = jax.jit(jax.grad(lambda p: task.loss(p, task.frozen(), batch, keys, 0)[0]))(params)
  patches = np.asarray(grads["encoder"]["patch_in"]["kernel"]).reshape(2, 2, DIM + 4, -1)
  assert np.abs(patches[:, :, :DIM]).max() > 0 < np.abs(grads["encoder"]["global_in"]["kernel"]).max()
  for head in ("features", "class"):
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["heads"][head]))
