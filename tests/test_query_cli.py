"""LARP and AdapTok from the command line, AdapTok's own budgets, and what both refuse in one sentence."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from command_line import runner
from query_models import random_model, random_video, small_config, write_golden
from safetensors.numpy import load_file, save_file

import vftok
from vftok.budget.auto import Auto
from vftok.budget.scored import Scored, counts
from vftok.cli import commands
from vftok.io.vft import read_vft
from vftok.io.video import read_video
from vftok.io.video_writer import write_video
from vftok.tokens import VideoTokens


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with both models, a clip of 20 frames, and two videos of tokens."""
  folder = tmp_path_factory.mktemp("place")
  write_golden(folder / "larp", "larp_small")
  write_golden(folder / "adaptok", "adaptok_small")
  t, y, x = np.mgrid[:20, :32, :32]
  wave = np.stack([np.sin(x / 5 + t / 3), np.cos(y / 4 - t / 7), np.sin((x + y + t) / 6)], axis=-1)
  write_video(str(folder / "clip.mp4"), np.uint8(127 + 120 * wave), 8)
  return folder


@pytest.fixture
def run(place, monkeypatch, capsys, compile_cache):
  monkeypatch.chdir(place)
  monkeypatch.setattr("vftok.runtime.memory.use_compile_cache", lambda *a, **k: None)
  return runner(capsys)


@pytest.fixture
def refused(place, monkeypatch, capsys, run):
  def refused(words):
    before = {p: p.stat().st_mtime_ns for p in place.iterdir()}
    assert commands.main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 420
    assert {p: p.stat().st_mtime_ns for p in place.iterdir()} == before
    return captured.err

  return refused


@pytest.mark.slow
def test_larp(run, refused):
  facts = json.loads(run("info larp --json"))
  assert (facts["family"], facts["tokens_per_step"], facts["nested"], facts["steps_per_chunk"]) == (
    "LARP",
    24,
    False,
    1,
  )
  assert facts["parameters"]["prior"] == 102728
  assert run("encode larp clip.mp4 larp.vft").startswith("larp.vft: 20 frames, 3 time steps, 72 tokens; ")
  vft = read_vft("larp.vft")
  assert (vft.levels, vft.nested, vft.fingerprint, vft.chunk_frames) == ((160,), False, facts["fingerprint"], 8)
  tok, params = vftok.load("larp")
  video = read_video("clip.mp4", (32, 32))[0][None]
  assert np.array_equal(vft.tokens().ids, tok.encode(params, video, fit="pad").ids)
  run("decode larp larp.vft larp.mp4")
  assert read_video("larp.mp4")[0].shape == (20, 32, 32, 3)
  assert [row["keep"] for row in json.loads(run("reconstruct larp clip.mp4 side.mp4 --json"))["rows"]] == [24]
  assert "no order" in refused("truncate larp.vft cut.vft --keep 3")
  assert "no order" in refused("decode larp larp.vft cut.mp4 --keep 3")
  assert "made by model" in refused("decode adaptok larp.vft cut.mp4")


@pytest.mark.slow
def test_adaptok(run, refused):
  facts = json.loads(run("info adaptok --json"))
  assert (facts["family"], facts["tokens_per_step"], facts["nested"], facts["steps_per_chunk"]) == (
    "AdapTok",
    8,
    True,
    4,
  )
  assert run("encode adaptok clip.mp4 all.vft").startswith("all.vft: 20 frames, 8 time steps, 64 tokens; ")
  run("encode adaptok clip.mp4 three.vft --keep 3")
  assert run("truncate all.vft cut.vft --keep 3") == "cut.vft: 8 time steps, 24 tokens\n"
  assert Path("cut.vft").read_bytes() == Path("three.vft").read_bytes()
  run("encode adaptok clip.mp4 scored.vft --budget scored:4")
  vft = read_vft("scored.vft")
  assert vft.keep.sum() == 4 * 8 and set(vft.keep) <= {2, 4, 6, 8} and len(set(vft.keep)) > 1
  run("decode adaptok scored.vft scored.mp4")
  assert read_video("scored.mp4")[0].shape == (20, 32, 32, 3)
  rows = json.loads(run("reconstruct adaptok clip.mp4 side.mp4 --json"))["rows"]
  assert [row["keep"] for row in rows] == [1, 4, 8]
  for words, sentence in (
    ("encode adaptok clip.mp4 out.vft --budget scored:1", "budget.mean is 1.0, expected 2 to 8"),
    ("encode adaptok clip.mp4 out.vft --budget scored:many", "such as scored:256"),
    ("encode adaptok clip.mp4 out.vft --budget scored:4 --tries 3", "expected neither"),
    ("encode adaptok clip.mp4 out.vft --budget auto:4", "this model lacks"),
    ("encode larp clip.mp4 out.vft --budget scored:4", "no order"),
    ("encode larp clip.mp4 out.vft --keep 4", "no order"),
    ("encode larp clip.mp4 out.vft --keep 25", "--keep is 25, expected 0 to 24"),
    ("encode larp clip.mp4 out.vft --fit error", "20 frames, expected a count that fits chunks such as 16 or 24"),
    ("encode larp clip.mp4 out.vft --dino weights", "'dino' is no option of loading a model of the family larp"),
    ("decode adaptok all.vft out.mp4 --steps 4", "decodes in one pass"),
    ("decode adaptok all.vft out.mp4 --guidance cfg", "decodes in one pass"),
    ("decode adaptok all.vft out.mp4 --first-frames clip.mp4", "first_frames"),
  ):
    assert sentence in refused(words), words


# ---- budgets


@pytest.fixture(scope="module")
def scored():
  """(a random AdapTok with a scorer, its parameters)."""
  sizes = {"scorer_hidden_size": 16, "scorer_num_heads": 2, "scorer_depth": 1, "scorer_step": 1}
  masks = {"total_toks": 2, "tot_groups": 4}
  tok, params = random_model(small_config(True, frame_num=16, mask_generator=masks, **sizes), scorer=True)
  params["scorer"]["project"] = jax.tree.map(lambda x: 4 * x, params["scorer"]["project"])  # so that clips differ
  params["encoder"]["patch_in"] = jax.tree.map(lambda x: 4 * x, params["encoder"]["patch_in"])
  return tok, params


def test_the_scorers_budget(scored):
  tok, params = scored
  video = random_video(tok, batch=3, chunks=2)
  tokens = tok.encode(params, video, budget=Scored(mean=1.5))
  assert np.array_equal(tokens.ids, tok.encode(params, video).ids)
  by_chunk = np.asarray(tokens.keep).reshape(3, 2, 4)
  assert np.all(by_chunk.sum(-1) == 6) and np.unique(by_chunk.reshape(-1, 4), axis=0).shape[0] > 1
  assert np.array_equal(tok.encode(params, video[1:2], budget=Scored(1.5)).keep, tokens.keep[1:2])
  pieces = list(tok.encode_stream(params, [video[:, :5], video[:, 5:]], budget=Scored(1.5)))
  assert np.array_equal(VideoTokens.concat(pieces).keep, tokens.keep)
  assert np.all(tok.encode(params, video, budget=Scored(2)).keep == 2)
  assert np.all(tok.encode(params, video, budget=Scored(1)).keep == 1)


def test_blocks_are_decided_in_order_given_earlier_counts():
  losses = np.array([[[9, 5, 0], [9, 1, 0], [9, 8, 7]]], np.float32)
  seen = []

  def scores_of(params, ids, features, keep):
    seen.append(keep.tolist()[0])
    return losses if len(seen) == 1 else losses * np.array([[[0], [10], [1000]]])

  tok = SimpleNamespace(cfg=SimpleNamespace(scorer_step=2), scores_of=scores_of)
  found = counts(tok, None, np.zeros((1, 3, 6)), None, 4)
  # Of 6 units 3 + 2 + 1 lose least; then, as the scorer sees it, the last block gains more by the 3 that are left.
  assert seen == [[6, 6, 6], [6, 6, 6], [6, 2, 6]] and found.tolist() == [[6, 2, 4]]


def test_scores_need_a_scorer(scored):
  tok, params = scored
  bare, _ = random_model(small_config(True))
  with pytest.raises(ValueError, match="of an AdapTok model with a scorer"):
    bare.encode(params, random_video(bare), budget=Scored(2))
  for mean in (0, "4", float("nan"), None):
    with pytest.raises(ValueError, match=r"budget\.mean is"):
      Scored(mean)
  with pytest.raises(ValueError, match="this model lacks"):
    tok.encode(params, random_video(tok), budget=Auto(mean=1))


# ---- refusals


def _args(c):
  return c["bottleneck"]["args"]


BAD_CONFIGS = [  # family, change of the golden model's config, words of the sentence
  ("larp", lambda c: c.update(bottleneck=3), "bottleneck = 3"),
  ("larp", lambda c: c["bottleneck"].pop("args"), "expected an object with 'name' and 'args'"),
  ("larp", lambda c: _args(c).update(norm="batch_norm"), "bottleneck.args.norm = 'batch_norm'"),
  ("larp", lambda c: _args(c).update(bottleneck_dim=None), "bottleneck_dim = None"),
  ("larp", lambda c: _args(c)["regularizer"].update(name="fsq"), "regularizer.name = 'fsq', expected 'vq'"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(codebook_size=0), "codebook_size = 0"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(stochastic_temperature=0), "stochastic_temperature = 0"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(stochastic="yes"), "stochastic = 'yes'"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(stochastic_temperature=-1), "lacks bottleneck.regularizer"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(codebook_size=161), "shape (160, 8), expected (161, 8)"),
  ("larp", lambda c: _args(c)["regularizer"]["args"].update(codebooks=2), "bottleneck.args.regularizer.args.codebooks"),
  ("larp", lambda c: _args(c).update(groups=2), "bottleneck.args.groups = 2"),
  ("larp", lambda c: c.pop("patch_size"), "lacks 'patch_size'"),
  ("larp", lambda c: c.update(patch_size=7, decoder_patch_size=7), "input_size = 32 and patch_size = 7"),
  ("larp", lambda c: c.update(patch_size=True), "patch_size = True"),
  ("larp", lambda c: c.update(decoder_patch_size=16), "decoder_patch_size = 16"),
  ("larp", lambda c: c.update(frame_num=10), "frame_num = 10"),
  ("larp", lambda c: c.update(in_channels=4), "in_channels = 4"),
  ("larp", lambda c: c.update(in_channels=3.0), "in_channels = 3.0"),
  ("larp", lambda c: c.update(temporal_patch_size=1, decoder_temporal_patch_size=True), "temporal_patch_size = True"),
  ("larp", lambda c: c.update(transformer_name="mamba"), "transformer_name = 'mamba'"),
  ("larp", lambda c: c.update(decoder_name="conv"), "decoder_name = 'conv'"),
  ("larp", lambda c: c.update(encoder_num_heads=5), "encoder_num_heads = 5"),
  ("larp", lambda c: c.update(encoder_depth=10**9), "encoder_depth = 1000000000"),
  ("larp", lambda c: c.update(encoder_depth=3), "lacks encoder.blocks.2"),
  ("larp", lambda c: c.update(encoder_depth=1), "has unused encoder.blocks.1"),
  ("larp", lambda c: c.update(bottleneck_token_num=40000), "at most 32768 in all"),
  ("larp", lambda c: c.update(input_size=65536), "at most 32768 in all"),
  ("larp", lambda c: c.update(learned_decoder_latent_pe=1), "learned_decoder_latent_pe = 1"),
  ("larp", lambda c: c.update(learned_encoder_patch_pe=True), "lacks encode_w_embed, encoder_h_embed and 1 more"),
  ("larp", lambda c: c.update(use_rotary=True), "'use_rotary' = True, which vftok does not know"),
  ("larp", lambda c: c.update(mystery=1), "'mystery' = 1, which vftok does not know"),
  ("larp", lambda c: c.update(latent_pe_scale_factor=-1), "latent_pe_scale_factor = -1"),
  ("larp", lambda c: c["prior_model"]["args"].update(n_head=5), "the prior has 5 heads"),
  ("larp", lambda c: c["prior_model"]["args"].update(n_head=False), "the prior has False heads"),
  ("larp", lambda c: c["prior_model"].update(latent_ce_temperature=0), "latent_ce_temperature = 0"),
  ("adaptok", lambda c: c.update(mask_generator=None), "mask_generator = None"),
  ("adaptok", lambda c: c["mask_generator"].pop("total_toks"), "lacks 'mask_generator.total_toks'"),
  ("adaptok", lambda c: c["mask_generator"].update(tot_groups=3), "3 groups of 8 tokens, expected 32 tokens"),
  ("adaptok", lambda c: c["mask_generator"].update(tot_groups=8, total_toks=4), "groups that divide its 4 patches"),
  ("adaptok", lambda c: c.update(encoder_attn_type="full_causal_type2"), "encoder_attn_type = 'full_causal_type2'"),
  ("adaptok", lambda c: c.update(decoder_attn_type="window"), "decoder_attn_type = 'window'"),
  ("adaptok", lambda c: c.update(encoder_attn_type=["a"]), "encoder_attn_type = ['a']"),
  ("adaptok", lambda c: c.pop("decoder_attn_type"), "lacks 'decoder_attn_type'"),
  ("adaptok", lambda c: c.update(decode_mode="loop"), "decode_mode = 'loop'"),
  ("adaptok", lambda c: c.update(scorer_step=3), "scorer_step = 3"),
  ("adaptok", lambda c: c.pop("scorer_depth"), "a scorer, and the config no scorer_depth"),
  ("adaptok", lambda c: c.update(scorer_depth=3), "lacks scorer.blocks.2"),
  ("adaptok", lambda c: c.update(use_sinks=True), "'use_sinks' = True"),
  ("adaptok", lambda c: c.pop("bottleneck_token_num"), "lacks 'bottleneck_token_num'"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "change", "sentence"), BAD_CONFIGS, ids=[s for _, _, s in BAD_CONFIGS])
def test_bad_configs(family, change, sentence, place, tmp_path):
  config = json.loads((place / family / "config.json").read_text())
  change(config)
  (tmp_path / "model.safetensors").symlink_to(place / family / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError) as caught:
    vftok.load(tmp_path)
  assert sentence in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_adaptoks_config_may_hold_more(place, tmp_path):
  config = json.loads((place / "adaptok" / "config.json").read_text()) | {"mystery": 1, "encoder_attn_type": "none"}
  config |= {"use_decoder_latent_token_type_embed": None}
  (tmp_path / "model.safetensors").symlink_to(place / "adaptok" / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps(config))
  tok, params = vftok.load(tmp_path)
  tok.save(params, tmp_path / "out")
  assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_damaged_weights(place, tmp_path):
  tensors = load_file(place / "larp" / "model.safetensors")
  (tmp_path / "config.json").symlink_to(place / "larp" / "config.json")
  for change, sentence in (
    (lambda t: t.pop("prior_model.head.bias"), "lacks prior_model.head.bias"),
    (lambda t: t.pop("prior_model.pos_emb"), "no whole prior"),
    (lambda t: t.update({"prior_model.pos_emb": np.zeros((1, 2**40, 0), np.float32)}), "a prior of length 1099511627"),
    (lambda t: t.update({"scorer.project.bias": np.zeros(3, np.float32)}), "has unused scorer.project.bias"),
    (lambda t: t.update({"encoder_latent_query_embed": np.full((24, 64), np.nan, np.float32)}), "NaN or infinite"),
    (lambda t: t.update({"x_embedder.proj.weight": np.zeros((64, 3, 8, 8), np.float32)}), "expected (64, 3, 4, 8, 8)"),
    (lambda t: t.update({"x_embedder.proj.bias": np.zeros(64, np.int32)}), "as int32"),
  ):
    changed = dict(tensors)
    change(changed)
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
      vftok.load(tmp_path)
    assert sentence in str(caught.value) and len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def models():
  return {"larp": random_model(small_config()), "adaptok": random_model(small_config(True))}


VIDEO = np.zeros((1, 8, 16, 16, 3), np.uint8)
IDS = {"larp": np.zeros((1, 1, 8), int), "adaptok": np.zeros((1, 2, 4), int)}
BAD_CALLS = [
  (lambda t, p, ids: t.encode(p, VIDEO[0]), "expected [B, F, 16, 16, 3]"),
  (lambda t, p, ids: t.encode(p, VIDEO[:, :, :8]), "frames are 8x16, expected 16x16"),
  (lambda t, p, ids: t.encode(p, VIDEO[:, :7]), "the video has 7 frames"),
  (lambda t, p, ids: t.encode(p, np.full(VIDEO.shape, np.nan)), "NaN"),
  (lambda t, p, ids: t.encode(p, VIDEO / 1.0 + 200), "expected float in [-1, 1]"),
  (lambda t, p, ids: t.encode(p, VIDEO, fit="crop"), "fit is 'crop'"),
  (lambda t, p, ids: t.features(p, VIDEO[:, :4]), "expected one chunk of 8"),
  (lambda t, p, ids: t.decode(p, VideoTokens.full(ids + 24, nested=t.nested)), "ids holds 24, expected 0..23"),
  (lambda t, p, ids: t.decode(p, VideoTokens.full(ids[:, :, 1:], nested=t.nested)), "expected [B, T,"),
  (lambda t, p, ids: t.decode(p, ids), "expected VideoTokens"),
  (lambda t, p, ids: t.decode(p, VideoTokens.full(ids), steps=3), "one pass"),
  (lambda t, p, ids: t.decode(p, VideoTokens.full(ids), bits=3), "'bits' is no option"),
  (lambda t, p, ids: t.encode({**p, "encoder": {}}, VIDEO), "params are of another model"),
  (lambda t, p, ids: t.decode({"encoder": p["encoder"]}, VideoTokens.full(ids)), "expected a dict with 'decoder'"),
  (lambda t, p, ids: t.sampled_ids(p, VIDEO, None), "key"),
  (lambda t, p, ids: t.encode({**p, "quantizer": {**p["quantizer"], "in": _nan(p)}}, VIDEO), "not finite"),
]  # fmt: skip


def _nan(params):
  into = params["quantizer"]["in"]
  return {**into, "bias": into["bias"] * np.float32(np.nan)}


@pytest.mark.parametrize("family", ["larp", "adaptok"])
@pytest.mark.parametrize(("call", "sentence"), BAD_CALLS, ids=[s for _, s in BAD_CALLS])
def test_bad_calls(family, call, sentence, models):
  with pytest.raises(ValueError) as caught:
    call(*models[family], IDS[family])
  assert sentence in str(caught.value) and len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_larp_refuses_what_has_an_order(models):
  tok, params = models["larp"]
  with pytest.raises(ValueError, match="no order"):
    tok.encode(params, VIDEO).truncate(3)
  with pytest.raises(ValueError, match="reads all tokens"):
    tok.decode(params, VideoTokens.full(IDS["larp"]).truncate(3))
  adaptok, weights = models["adaptok"]
  drawn = adaptok.sampled_ids(weights, VIDEO, jax.random.key(0))
  assert drawn.nested and drawn.ids.shape == (1, 2, 4)
