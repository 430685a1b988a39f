"""Shipped models: found by name, read without a network, written in float16 and widened again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import started

import vftok
from vftok.convert.load import load_vae, save_vae
from vftok.data.clip import ClipSpec
from vftok.data.sim import SimSource
from vftok.data.world import WorldSource
from vftok.io import hub, shipped
from vftok.io.int8 import SCALES
from vftok.models.ar import ARConfig
from vftok.models.config import GeneratorConfig
from vftok.models.vae import VAE
from vftok.tools import ship


def test_every_shipped_model_loads_in_float32_and_has_a_card():
  assert "vftok-mini" in shipped.names()
  for name in shipped.names():
    folder = shipped.find(name)
    assert (folder / "README.md").is_file() and (folder / "config.json").is_file()
    checkpoint = hub.open_checkpoint(name)
    widened = {"float32"} if any(key.endswith(SCALES) for key in checkpoint.shapes) else set()  # of bytes
    assert {value.dtype.name for _, value in checkpoint.tensors(checkpoint.shapes)} == {"float16"} | widened
  assert sum(p.stat().st_size for p in shipped.FOLDER.rglob("*")) < 30e6


@pytest.mark.slow
def test_the_mini_vae_rebuilds_unseen_scenes():
  cfg, params = load_vae("vftok-mini-vae")
  clips = np.asarray(WorldSource("test", 3).take([1, 2], ClipSpec(size=(64, 64)))["video"])[:, :5] / 127.5 - 1
  run = jax.jit(lambda x: VAE(cfg).apply({"params": params}, x))
  assert -10 * np.log10(np.square((np.asarray(run(clips)) - clips) / 2).mean()) > 29


def test_the_mini_tokens_say_what_is_in_the_clip():
  tok, params = vftok.Tokenizer.load("vftok-mini")
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  pytest.importorskip("pybullet", reason="the clips it was trained on are drawn by the extra: vftok[sim]")
  source = SimSource("val", 8, size=32)
  clips = np.stack([source[i]["frames"] for i in (2, 5)])  # another object, floor and sky
  psnr = lambda x, y: float(-10 * np.log10(np.mean(np.square(np.asarray(x) - (y / 127.5 - 1)) / 4)))
  vae = tok.decode_pixels(params, tok.encode_latents(params, clips))
  assert psnr(vae, clips) > 30
  tokens = tok.encode(params, clips)
  out = tok.decode(params, tokens.truncate(4), jax.random.key(0), steps=4)
  assert psnr(out, clips) > psnr(out[::-1], clips) + 3


def test_the_mini_generator_belongs_to_the_mini_tokenizer_and_knows_scenes():
  tok, params = vftok.Tokenizer.load("vftok-mini")
  gen, gen_params = vftok.Generator.load("vftok-mini-t2v")
  assert gen.cfg.tokenizer == "vftok-mini" and gen.cfg.text == "minilm"
  gen.check_tokenizer(tok.fingerprint(params))
  pytest.importorskip("pybullet", reason="the clips it was trained on are drawn by the extra: vftok[sim]")
  source = SimSource("val", 8, size=32)
  scenes = [source[i] for i in (2, 5)]
  ids = tok.encode(params, np.stack([scene["frames"] for scene in scenes])).ids[:, :, 0]  # slot 0 comes first
  logp = jax.nn.log_softmax(gen.logits(gen_params, ids))
  nll = -jnp.take_along_axis(logp, ids[..., None], 2).mean()
  assert nll < np.log(tok.codebook_size) - 2  # it knows what scenes look like
  # Texts as the encoder gives them need its weights; that other features give other tokens needs none.
  text = np.random.default_rng(0).normal(size=(1, gen.cfg.text_tokens, gen.cfg.ar.ctx_dim)).astype(np.float32)
  mask = np.ones(text.shape[:2], bool)
  one, other = (gen.logits(gen_params, ids[:1], {"text_emb": t, "text_mask": mask}) for t in (text, -text))
  assert np.abs(np.asarray(one - other)).max() > 0.1


def test_ship_halves_and_load_widens(tokenizer, tmp_path):
  tok, params, path = tokenizer
  assert ship.main([str(path), str(tmp_path / "out")]) == 0
  again, loaded = vftok.Tokenizer.load(tmp_path / "out")
  assert again == tok
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float16), b), params, loaded)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}


def test_ship_takes_generators_as_they_are(tmp_path, capsys):
  gen = vftok.Generator(GeneratorConfig(ARConfig(vocab=7, steps=1, slots=2, depth=1), tokenizer="some"))
  params = started(gen.init)
  gen.save(params, tmp_path / "model")
  assert ship.main([str(tmp_path / "model"), str(tmp_path / "out")]) == 0
  assert "for tokens of some" in capsys.readouterr().out
  again, loaded = vftok.Generator.load(tmp_path / "out")
  assert again == gen
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float16), b), params, loaded)
  assert ship.main([str(tmp_path / "model"), str(tmp_path / "none"), "--scale", "2"]) == 2
  assert "is no tokenizer" in capsys.readouterr().err


def test_ship_takes_a_better_decoder_but_no_other_encoder(tokenizer, tmp_path, capsys):
  tok, params, path = tokenizer
  vae = {**params["vae"], "decoder": jax.tree.map(lambda x: x + 1, params["vae"]["decoder"])}
  save_vae(tok.cfg.vae, vae, tmp_path / "better")
  save_vae(tok.cfg.vae, jax.tree.map(lambda x: x + 1, vae), tmp_path / "other")
  assert ship.main([str(path), str(tmp_path / "out"), "--vae", str(tmp_path / "better")]) == 0
  shipped_vae = load_vae(tmp_path / "out")[1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), vae["decoder"], shipped_vae["decoder"])
  assert ship.main([str(path), str(tmp_path / "none"), "--vae", str(tmp_path / "other")]) == 2
  assert "has another encoder" in capsys.readouterr().err
  assert not (tmp_path / "none").exists()


def test_ship_refuses_what_float16_cannot_hold(tokenizer, tmp_path):
  tok, params, _ = tokenizer
  tok.save(jax.tree.map(lambda x: x + 1e5, params), tmp_path / "big")
  with pytest.raises(ValueError, match="beyond float16's range"):
    ship.ship(tmp_path / "big", tmp_path / "out")


def test_a_name_that_nobody_has_is_one_sentence():
  with pytest.raises(FileNotFoundError, match="shipped model's name"):
    vftok.Tokenizer.load("vftok-nothing")


def test_a_directory_of_that_name_wins(tokenizer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tokenizer[0].save(tokenizer[1], "vftok-mini")
  assert vftok.Tokenizer.load("vftok-mini")[0] == tokenizer[0]


def test_the_mini_router_spreads_a_budget():
  """The one for this tokenizer is found by itself; totals are met, first steps get more."""
  tok, params = vftok.Tokenizer.load("vftok-mini")
  video = np.random.default_rng(0).integers(0, 255, (2, 17, 32, 32, 3), np.uint8)
  assert tok.encode(params, video, budget=vftok.Auto(mean=4)).total().tolist() == [20, 20]
  tokens = tok.encode(params, video, budget=vftok.Auto(mean=8))
  assert tokens.total().tolist() == [40, 40] and (tokens.keep[:, 0] > tokens.keep[:, -1]).all()
  np.testing.assert_array_equal(tokens.ids, tok.encode(params, video).ids)
