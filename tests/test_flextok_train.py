"""Training FlexTok, the tokenizer of pictures: what learns, what is saved, its recipes; then pictures from a class."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vftok
from configs import c2v, flextok
from vftok.cli import commands
from vftok.convert.load import abstract_params
from vftok.families.flextok import export, released, vae_weights
from vftok.families.flextok.config import FlexTokConfig
from vftok.models import config_json
from vftok.models.flow import APG
from vftok.tasks import make_task
from vftok.tokenizer.checks import guidance_of
from vftok.tools.tokenize_dataset import tokenize
from vftok.train import evaluate, loop

pytestmark = pytest.mark.filterwarnings("ignore:released FlexTok weights")


@pytest.fixture(scope="module")
def learned():
  """(task, parameters off zero, their gradients) of the smallest one on four pictures."""
  task = make_task(flextok.smoke())
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), nn.unbox(jax.jit(task.init)(jax.random.key(0)))
  )
  batch = {"video": rng.integers(0, 256, (4, 1, 16, 16, 3), np.uint8), "_mask": np.ones(4, bool)}
  keys, frozen = jax.random.split(jax.random.key(1), 4), task.frozen()
  loss = lambda params: task.loss(params, frozen, batch, keys, jnp.int32(0))[0]
  return task, params, jax.jit(jax.grad(loss))(params)


def test_every_leaf_learns(learned):
  still = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(learned[2]) if not np.any(g)]
  assert {path.split("'")[-2] for path in still} == {"table"} and len(still) == 2  # the sinusoids of both parts stay


def test_flops_are_counted_before_anything_is_made():
  task = make_task(flextok.smoke())
  few, params = task.flops(), task.frozen()["vae"]
  cfg = flextok.smoke()
  cfg.model.encoder.stack.depth = 2
  assert 0 < few < make_task(cfg).flops() and all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
  np.asarray(jax.tree.leaves(params)[0])  # no tracer has stayed


def test_what_is_saved_opens_as_a_released_one(learned, tmp_path):
  task, params, _ = learned
  task.save(params, task.frozen(), tmp_path / "model")
  tok, loaded = vftok.load(tmp_path / "model")
  assert tok.cfg == task.tok.cfg and tok.chunk_frames == 1
  picture = np.random.default_rng(2).integers(0, 256, (2, 1, 16, 16, 3), np.uint8)
  ids = task.tok.encode({"vae": task.frozen()["vae"], **params}, picture).ids
  assert len(np.unique(ids)) > 2
  np.testing.assert_array_equal(tok.encode(loaded, picture).ids, ids)


def test_a_vae_is_saved_and_read_back(tmp_path, capsys):
  """Its model opens by itself, tells its scale, and is the VAE of a tokenizer trained over it."""
  task, folder = make_task(flextok.vae_smoke()), tmp_path / "vae"
  params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
  task.save(params, {}, folder)
  config = json.loads((folder / "config.json").read_text())
  assert config["_class_name"] == "AutoencoderKL" and config["block_out_channels"] == [32, 32]
  read, found = vae_weights.load_vae(folder)
  assert read == task.model and task.flops() > 0
  jax.tree.map(np.testing.assert_array_equal, found, params["vae"])
  over = flextok.smoke()
  over.vae = str(folder)
  jax.tree.map(np.testing.assert_array_equal, make_task(over).frozen()["vae"], params["vae"])
  assert commands.main(["info", str(folder), "--json"]) == 0
  facts = json.loads(capsys.readouterr().out)
  assert facts["strides"] == {"height": 2, "width": 2} and facts["channels"] == 4


@pytest.mark.slow  # a minute, most of it the compiler's
def test_a_vae_learns(tmp_path):
  cfg = flextok.vae_smoke()
  loop.run(cfg, tmp_path)
  _, params = vae_weights.load_vae(tmp_path / "model")
  start = nn.unbox(make_task(cfg).init(jax.random.key(cfg.seed)))["vae"]
  assert jax.tree.all(jax.tree.map(lambda a, b: not np.array_equal(a, b), start, params))
  assert np.isfinite(evaluate.run(cfg, tmp_path)["shapes/psnr/VAE alone"])


def test_a_vae_that_its_files_could_not_tell_is_refused():
  cfg = flextok.smoke()
  cfg.model.vae.groups = 16
  with pytest.raises(ValueError, match="norms of 16 groups, expected 32"):
    make_task(cfg)


def test_it_sees_pictures_and_starts_from_its_own_kind():
  cfg = flextok.smoke()
  cfg.data.frames = 17
  with pytest.raises(ValueError, match=r"data\.frames is 17, expected 1"):
    make_task(cfg)
  cfg = flextok.smoke()
  cfg.init_from = "vftok-mini"
  with pytest.raises(ValueError, match="init_from is 'vftok-mini', which is no FlexTok"):
    make_task(cfg).start({}, ())


@pytest.mark.parametrize(
  "size, encoder, decoder", [("d12_d12", 768, 768), ("d18_d18", 1152, 1152), ("d18_d28", 1152, 1792)]
)
def test_published_sizes_are_those_of_released_configs(size, encoder, decoder):
  cfg = flextok.get_config(size)
  model = config_json.build(FlexTokConfig, cfg.model.to_dict(), "config")
  assert (model.encoder.stack.dim, model.decoder.stack.dim, model.encoder.registers) == (encoder, decoder, 256)
  read, names = released.parse(export.released_config(model), model.vae)
  plain = lambda c: c.with_dtype("float32")
  assert plain(read).encoder.stack.depth == encoder // 64 and read.decoder.stack.depth == decoder // 64
  assert {rule.path for rule in released.rules(model, names).values()} <= set(abstract_params(model))
  assert guidance_of(cfg.eval.guidance_kind, cfg.eval.guidance, model) == APG(7.5).of_model(*FlexTokConfig.apg)
  assert (cfg.data.frames, cfg.data.size, cfg.loss.nested, cfg.eval.rfvd) == (1, 256, "uniform", False)


@pytest.mark.slow
def test_from_pictures_to_pictures_of_a_class(tmp_path):
  """Trained, scored, its tokens stored, a generator over them trained, scored, and sampled into a PNG."""
  cfg = flextok.smoke()
  loop.run(cfg, tmp_path / "tok")
  numbers = evaluate.run(cfg, tmp_path / "tok")
  assert np.isfinite(numbers["shapes/psnr/keep 4"]) and not any("first frame" in name for name in numbers)
  cfg = c2v.get_config("smoke")
  cfg.tokenize.update(dict(tokenizer=str(tmp_path / "tok" / "model"), frames=1))
  tokenize(cfg, tmp_path / "tokens")
  for sources in (cfg.data.sources, cfg.eval.sets.val):
    sources.tokens.directory = str(tmp_path / "tokens")
  cfg.data.frames = 1
  loop.run(cfg, tmp_path / "ar")
  cfg.eval.generation.update(dict(clips=4, fvd=False, keeps=(1, 4), steps=2))
  assert np.isfinite(evaluate.run(cfg, tmp_path / "ar")["val/bits_per_token"])
  words = ["sample", str(tmp_path / "ar" / "model"), str(tmp_path / "a.png"), "--class", "1", "--steps", "2"]
  assert commands.main([*words, "--tokenizer", str(tmp_path / "tok" / "model")]) == 0
  assert (tmp_path / "a.png").is_file()
