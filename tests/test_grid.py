"""The 3-D grid: a token for every patch, no registers, no order. The control of VideoFlexTok's claim."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from starts import moved, started

import vftok
from configs import tokenizer as configs
from vftok.io.vft import Vft
from vftok.models import fsq
from vftok.models.config import TokenizerConfig
from vftok.models.config_json import from_dict, from_json, to_json
from vftok.models.decoder import Decoder
from vftok.models.encoder import Encoder


def config(name: str) -> TokenizerConfig:
  return from_dict(TokenizerConfig, configs.get_config(name).model.to_dict())


CFG = config("grid_smoke")
TOK = vftok.Tokenizer(CFG)


@pytest.fixture(scope="module")
def params():
  return moved(started(TOK.init), seed=1)


@pytest.fixture(scope="module")
def video():
  return np.random.default_rng(0).integers(0, 256, (2, 17, *TOK.frame_size, 3), np.uint8)


@pytest.fixture(scope="module")
def tokens(params, video):
  return TOK.encode(params, video)


@pytest.fixture(scope="module")
def latents(params, video):
  return TOK.encode_latents(params, video)


def test_a_token_for_every_patch(tokens):
  assert (TOK.registers, TOK.nested, TOK.one_pass, TOK.budgets) == (4, False, False, [4])
  assert tokens.ids.shape == (2, 5, 4) and not tokens.nested and (np.asarray(tokens.keep) == 4).all()
  assert len(np.unique(tokens.ids)) > 8


@pytest.mark.slow
def test_ids_are_causal_and_of_their_place(params, latents):
  z = TOK.features(params, latents)
  later = TOK.features(params, latents.at[:, 3:].add(1.0))
  assert np.array_equal(z[:, :3], later[:, :3]) and not np.allclose(z[:, 3:], later[:, 3:])
  # Patches are in raster order: without attention's part, a patch's code is that of its own corner.
  alone = jax.tree.map(lambda x: x, params["encoder"])
  alone["stack"]["blocks"]["proj_kernel"] = jnp.zeros_like(alone["stack"]["blocks"]["proj_kernel"])
  run = lambda x: Encoder(CFG.encoder).apply({"params": alone}, x)
  corner = jnp.abs(run(latents.at[:, :, 2:, :2].add(1.0)) - run(latents)).max((0, 1, 3))
  assert corner[2] > 0 and not corner[jnp.array([0, 1, 3])].any()


def test_codes_are_added_to_their_patches(params, tokens, latents):
  """Codes that embed to nothing leave a plain flow; a code moves the velocity where it is, and later."""
  codes = fsq.ids_to_codes(tokens.ids, CFG.levels)
  run = lambda p, codes, **more: Decoder(CFG.decoder).apply({"params": p}, codes, tokens.keep, latents, t_B, **more)
  t_B = jnp.full(2, 0.5)
  deaf = {**params["decoder"], "codes_in": jax.tree.map(jnp.zeros_like, params["decoder"]["codes_in"])}
  assert np.array_equal(run(deaf, codes), run(deaf, -codes))
  v = run(params["decoder"], codes)
  change = jnp.abs(run(params["decoder"], codes.at[:, 2, 1].add(0.5)) - v).max((0, 4))
  assert not change[:2].any() and change[2:].any()
  assert change[2, :2, 2:].max() == change.max()  # slot 1 = 2 y + x is the upper right patch


def test_a_token_of_several_patches_is_read_off_them_and_added_to_them(latents):
  """Of 4x4 patches, token 1 of four is the upper right quarter."""
  part = lambda c: dataclasses.replace(c, patch=(1, 1, 1), cell=(2, 2), positions=None)
  cfg = dataclasses.replace(CFG, encoder=part(CFG.encoder), decoder=part(CFG.decoder))
  tok = vftok.Tokenizer(from_json(TokenizerConfig, json.loads(json.dumps(to_json(cfg)))))
  shapes = jax.eval_shape(tok.init, jax.random.key(0))
  params = moved(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), seed=1)
  still = lambda part: {**params[part], "stack": jax.tree.map(jnp.zeros_like, params[part]["stack"])}  # no attention
  encode = jax.jit(lambda p, x: Encoder(cfg.encoder).apply({"params": p}, x))
  run = lambda x: encode(still("encoder"), x)
  assert tok.registers == 4 and run(latents).shape == (2, 5, 4, cfg.encoder.out_dim)
  for y, x in ((0, 2), (0, 3), (1, 2), (1, 3)):
    change = jnp.abs(run(latents.at[:, :, y, x].add(1.0)) - run(latents)).max((0, 1, 3))
    assert change[1] > 0 and not change[jnp.array([0, 2, 3])].any()

  codes, t_B, keep = jnp.zeros((2, 5, 4, len(cfg.levels))), jnp.full(2, 0.5), jnp.full((2, 5), 4)
  decode = jax.jit(lambda p, c: Decoder(cfg.decoder).apply({"params": p}, c, keep, latents, t_B))
  velocity = lambda c: decode(still("decoder"), c)
  change = jnp.abs(velocity(codes.at[:, 2, 1].add(0.5)) - velocity(codes)).max((0, 4)) > 0
  assert change[2, :2, 2:].all() and change.sum() == 4


def test_no_code_reaches_the_null_velocity(params, tokens, latents):
  other = vftok.VideoTokens.full(tokens.ids[::-1], nested=False)
  null = TOK.velocity(params, tokens, latents, 0.7, null=True)
  assert np.array_equal(null, TOK.velocity(params, other, latents, 0.7, null=True))
  own = TOK.velocity(params, tokens, latents, 0.7)
  assert not np.allclose(own, TOK.velocity(params, other, latents, 0.7)) and not np.allclose(own, null)
  given = TOK.velocity(params, tokens, latents, 0.7, prefix=1)
  assert np.array_equal(given[:, :0], own[:, :0]) and not np.allclose(given[:, 0], own[:, 0])


@pytest.mark.slow
def test_video_comes_back_chunk_by_chunk(params, video):
  long = np.concatenate([video, video[:, 1:]], axis=1)
  tokens = TOK.encode(params, long)
  assert tokens.ids.shape == (2, 9, 4)
  whole = TOK.decode(params, tokens, jax.random.key(0), steps=2, guidance=vftok.CFG(2.0))
  assert whole.shape == long.shape and np.isfinite(whole).all()
  pieces = list(
    TOK.decode_stream(params, TOK.encode_stream(params, [long]), jax.random.key(0), steps=2, guidance=vftok.CFG(2.0))
  )
  assert np.array_equal(whole, np.concatenate(pieces, 1))


def test_tokens_without_order_cannot_be_cut(params, tokens, video):
  assert tokens.truncate(4) is not None  # all of them
  for cut in (lambda: tokens.truncate(3), lambda: TOK.encode(params, video, budget=2)):
    with pytest.raises(ValueError, match=r"^these tokens have no order, so none can be left out: [^.]+\.$"):
      cut()
  with pytest.raises(ValueError, match="some pieces are nested and some have no order"):
    vftok.VideoTokens.concat([tokens, vftok.VideoTokens.full(tokens.ids)])
  with pytest.raises(ValueError, match="keep all of them"):
    TOK.velocity(params, tokens.replace(keep=tokens.keep - 1), jnp.zeros(TOK.latent_shape(2, 5)), 0.5)


def test_files_say_so(params, tokens, tmp_path):
  one = jax.tree.map(lambda x: x[:1], tokens)
  vft = Vft.of(one, TOK, 8.0, TOK.fingerprint(params))
  again = Vft.from_bytes(vft.to_bytes())
  assert not again.nested and not again.tokens().nested and np.array_equal(again.tokens().ids, one.ids)
  nested = dataclasses.replace(vft, nested=True)
  assert Vft.from_bytes(nested.to_bytes()).nested and len(nested.to_bytes()) == len(vft.to_bytes())
  assert again.truncate(4).to_bytes() == vft.to_bytes()
  with pytest.raises(ValueError, match="have no order"):
    again.truncate(1)
  TOK.save(params, tmp_path / "grid")
  tok, loaded = vftok.load(tmp_path / "grid")
  assert tok.cfg == CFG and tok.fingerprint(loaded) == TOK.fingerprint(params)


# Millions by arithmetic on the nested model: 286.65 in the encoder, and as many with 143.5 of adaLN in the decoder
# beside the modulation of the head, the two layers of the time, and two blocks and the projection of REPA.
def test_parameters_at_the_papers_size():
  parts = jax.eval_shape(vftok.Tokenizer(config("grid_d18_d18")).init, jax.random.key(0))
  millions = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
  assert millions(parts["encoder"]) == pytest.approx(286.65, rel=0.003)
  decoder, blocks = parts["decoder"], parts["decoder"]["stack"]["blocks"]
  adaln = millions([blocks["adaln_kernel"], blocks["adaln_bias"]])
  assert adaln == pytest.approx(143.5, rel=0.003)
  more = [decoder[name] for name in ("readout", "head_adaln", "time_in", "time_out")]
  assert millions(decoder) - adaln - millions(more) == pytest.approx(286.65, rel=0.003)


@pytest.mark.parametrize(("end", "tokens"), [("", 256), ("_4", 64), ("_16", 16)])
@pytest.mark.parametrize("size", ["d18_d18", "d18_d28_stage2"])
def test_every_size_has_grids_of_three_rates(size, end, tokens):
  tok = vftok.Tokenizer(config(f"grid_{size}{end}"))
  assert tok.registers == tokens and not tok.nested and tok.chunk_steps == 5


WRONG = {
  "mask vector": (lambda c: c["decoder"].update(replacements=["mask", "null"]), "no mask"),
  "two kinds": (lambda c: c["decoder"]["stack"].update(adaln=2), "1 where there are no registers"),
  "cell": (lambda c: [c[part].update(cell=[1, 3]) for part in ("encoder", "decoder")], r"divisors of \(2, 2\)"),
  "two cells": (lambda c: c["decoder"].update(cell=[1, 2]), r"the encoder's \(1, 1\)"),
  "no cell": (lambda c: c["encoder"].update(cell=[0, 1]), "whole numbers of 1"),
  "other patches": (lambda c: c["decoder"].update(patch=[1, 1, 1]), "the encoder's"),
  "registers": (lambda c: c["decoder"].update(registers=4), "the encoder's 0"),
  "positions": (
    lambda c: c["decoder"].update(register_positions={"kind": "learnable_sum", "max_sizes": [16, 16]}),
    "None without registers",
  ),
  "linear": (lambda c: c["encoder"].update(linear=True), "none without registers"),
  "global": (lambda c: c["encoder"].update(global_token=8), "none without registers"),
}


def test_registers_have_no_cells():
  data = json.loads(json.dumps(to_json(config("smoke"))))
  for part in ("encoder", "decoder"):
    data[part].update(cell=[1, 2])
  with pytest.raises(ValueError, match=r"encoder\.cell = .*expected \(1, 1\) where there are registers"):
    from_json(TokenizerConfig, data)


@pytest.mark.parametrize("name", WRONG)
def test_configs_that_no_grid_has(name):
  change, expected = WRONG[name]
  data = json.loads(json.dumps(to_json(CFG)))
  change(data)
  with pytest.raises(ValueError, match=expected):
    from_json(TokenizerConfig, data)
