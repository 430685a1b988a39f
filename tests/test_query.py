"""LARP and AdapTok: the references' own numbers, every switch of their configs, and what their tokens promise."""

import dataclasses
import json

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from query_models import DATA, golden, random_model, random_video, small_config, write_golden
from safetensors.numpy import load_file

import vftok
from vftok.families.query import config as configs
from vftok.families.query import masks, nets, programs, vq, weights
from vftok.families.query import released as released_config
from vftok.families.query.config import PriorConfig
from vftok.families.query.params import abstract_params
from vftok.families.query.positions import fixed_tables
from vftok.families.query.tokenizer import AdapTok
from vftok.tokens import VideoTokens
from vftok.tools import parity

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def larp(tmp_path_factory):
  """(tokenizer, params, golden arrays, directory)."""
  directory = write_golden(tmp_path_factory.mktemp("models") / "larp", "larp_small")
  return *vftok.load(directory, prior_heads=4), golden("larp_small")[0], directory


@pytest.fixture(scope="module")
def adaptok(tmp_path_factory):
  directory = write_golden(tmp_path_factory.mktemp("models") / "adaptok", "adaptok_small")
  return *vftok.load(directory), golden("adaptok_small")[0], directory


def video_of(g):
  return np.moveaxis(g["in.video"], 1, -1) * 2 - 1


# ---- the references' numbers


@pytest.mark.parametrize("name", ["larp_small", "adaptok_small"])
def test_every_golden_tensor_is_matched(name):
  errors = parity.CHECKS[name](DATA / f"{name}.safetensors")
  assert not errors.not_compared(*parity.INPUTS.get(name, ()))
  assert len(errors.found) > 12
  end_to_end = ("tok.decoded", "tok.half.decoded", "decoded.")
  limit = lambda key: 3e-5 if key.startswith(end_to_end) else 1e-5
  wrong = {key: error for key, error in errors.found.items() if not error <= limit(key)}
  assert not wrong


@pytest.mark.parametrize("name", ["larp_small", "adaptok_small"])
def test_fixed_tables_are_the_files(name):
  g, metadata = golden(name)
  cfg = released_config.parse(json.loads(metadata["config"]))
  tables = fixed_tables(cfg)
  assert set(tables) == {"patch_positions", "latent_positions", "patch_queries"}
  for ours, table in tables.items():
    np.testing.assert_allclose(table, g[f"w.{weights.TABLES[ours]}"][0], atol=2e-7)


@pytest.mark.parametrize("name", ["larp_small", "adaptok_small"])
def test_a_saved_model_is_the_released_one(name, request, tmp_path):
  tok, params, _, directory = request.getfixturevalue(name.removesuffix("_small"))
  tok.save(params, tmp_path / "out")
  ours, theirs = (load_file(d / "model.safetensors") for d in (tmp_path / "out", directory))
  assert ours.keys() == theirs.keys()
  for key, value in theirs.items():
    assert ours[key].dtype == value.dtype and np.array_equal(ours[key], value), key
  config = json.loads((directory / "config.json").read_text())
  assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


@pytest.mark.parametrize("adaptok", [False, True])
def test_configs_say_what_was_changed(adaptok):
  cfg = released_config.parse(small_config(adaptok))
  quantiser = dataclasses.replace(cfg.vq, stochastic=False, codebook_size=7, norm="ln_d")
  changed = dataclasses.replace(cfg, encoder_depth=3, use_decoder_latent_token_type_embed=True, vq=quantiser)
  assert released_config.parse(released_config.to_json(changed)) == changed != cfg
  assert released_config.parse(released_config.to_json(dataclasses.replace(changed, rest="{}"))) == changed


def released(adaptok=False, **changes):
  big = {"bottleneck_token_num": 1024, "input_size": 128, "frame_num": 16, "bottleneck_dim": 16}
  big |= {f"{part}_hidden_size": 768 for part in ("encoder", "decoder")}
  big |= {f"{part}_num_heads": 12 for part in ("encoder", "decoder")}
  big |= {f"{part}_depth": 12 for part in ("encoder", "decoder")}
  return small_config(adaptok, **big, vq_codebook_size=8192, **changes)


def count(cfg, part=None):
  return sum(int(np.prod(x.shape)) for path, x in abstract_params(cfg).items() if part in (None, path[0]))


def test_released_sizes():
  cfg = released_config.parse(released())
  assert count(cfg) - count(cfg, "fixed") == pytest.approx(172.18e6, rel=3e-4)
  assert count(cfg, "fixed") == 3 * 1024 * 768
  cfg = dataclasses.replace(cfg, prior=PriorConfig(12, 384, 1536, 1024, 6))
  assert count(cfg, "prior") == pytest.approx(21.70e6, rel=3e-4)
  assert len(weights.rules(cfg)) == 479
  groups = {"total_toks": 512, "tot_groups": 4}
  tok = AdapTok(released_config.parse(released(True) | {"bottleneck_token_num": 2048, "mask_generator": groups}))
  assert (tok.registers, tok.chunk_steps, tok.chunk_frames, tok.nested, tok.levels) == (512, 4, 16, True, (8192,))
  shapes = {rule.path: abstract_params(tok.cfg)[rule.path].shape for rule in weights.rules(tok.cfg).values()}
  assert shapes["encoder", "queries"] == (2048, 768) and shapes["fixed", "latent_positions"] == (2048, 768)


# ---- every switch

D, N = 16, 8
SWITCHES = [  # config changes, keys that come with shapes, keys that go
  ({"learned_encoder_patch_pe": True},
   {"encoder_t_embed": (1, 2, 1, 1, D), "encoder_h_embed": (1, 1, 2, 1, D), "encode_w_embed": (1, 1, 1, 2, D)},
   {"encoder_patch_pe"}),
  ({"learned_decoder_patch_query_embed": True},
   {"decoder_t_embed": (1, 2, 1, 1, D), "decoder_h_embed": (1, 1, 2, 1, D), "decoder_w_embed": (1, 1, 1, 2, D)},
   {"decoder_patch_query_embed"}),
  ({"learned_encoder_latent_query_embed": False}, {"encoder_latent_query_embed": (N, D)}, set()),
  ({"learned_decoder_latent_pe": True}, {"decoder_latent_pe": (1, N, D)}, set()),
  ({"use_encoder_patch_token_type_embed": True}, {"encoder_patch_token_type_embed": (1, 1, D)}, set()),
  ({"use_encoder_latent_query_token_type_embed": True}, {"encoder_latent_query_token_type_embed": (1, 1, D)}, set()),
  ({"use_decoder_latent_token_type_embed": True}, {"decoder_latent_token_type_embed": (1, 1, D)}, set()),
  ({"use_decoder_patch_query_token_type_embed": False}, {}, {"decoder_patch_query_token_type_embed"}),
  ({"temporal_patch_size": 1}, {"x_embedder.proj.weight": (D, 3, 8, 8)}, set()),
  ({"norm": "ln_d"}, {"bottleneck.norm_layer.weight": (4,), "bottleneck.norm_layer.bias": (4,)}, set()),
  ({"norm": "ln_nd"}, {"bottleneck.norm_layer.weight": (N, 4)}, set()),
  ({"vq_stochastic_temperature": -1.0}, {"bottleneck.regularizer.stochastic_temperature_inv": ()}, set()),
  ({"vq_stochastic": False}, {}, set()),
  ({"vq_l2_normalized": False}, {}, set()),
  ({"decoder_hidden_size": 24, "decoder_num_heads": 3, "decoder_depth": 2},
   {"bottleneck.out_linear.weight": (24, 4), "decoder.blocks.1.attn.qkv.weight": (72, 24)}, set()),
  ({"latent_pe_scale_factor": 100}, {}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "come", "go"), SWITCHES, ids=[str([*c]) for c, _, _ in SWITCHES])
def test_switches(changes, come, go, tmp_path):
  tok, params = random_model(small_config(**changes))
  tok.save(params, tmp_path / "model")
  shapes = {key: a.shape for key, a in load_file(tmp_path / "model" / "model.safetensors").items()}
  usual = set(weights.rules(released_config.parse(small_config())))
  usual -= {key for key in usual if key.startswith("decoder.blocks")}
  assert come.items() <= shapes.items()
  assert usual - go - shapes.keys() == set() and not go & shapes.keys()
  again, loaded = vftok.load(tmp_path / "model")
  assert again == tok
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  of_decoder = not come or next(iter(come)).startswith(("decoder", "bottleneck.out"))
  if of_decoder:
    ids = np.random.default_rng(0).integers(0, 24, (1, 1, N))
    run = lambda p: tok.decode(p, VideoTokens.full(ids, nested=False), clip=False)
  else:
    run = lambda p: tok.features(p, random_video(tok))
  out = run(params)
  assert out.shape == ((1, 8, 16, 16, 3) if of_decoder else (1, 1, N, 4)) and np.isfinite(out).all()
  if come and "vq_stochastic_temperature" not in changes:  # what came is read
    flat = traverse.flatten_dict(params)
    path = weights.rules(tok.cfg)[next(iter(come))].path
    added = np.arange(flat[path].size, dtype=np.float32).reshape(flat[path].shape)
    assert not np.allclose(run(traverse.unflatten_dict({**flat, path: flat[path] + added})), out, atol=1e-3)


def test_learned_positions_are_summed_over_the_grid():
  tok, params = random_model(small_config(learned_encoder_patch_pe=True, use_encoder_patch_token_type_embed=True))
  part = params["encoder"]
  video = np.float32(random_video(tok)) / 255
  run = jax.jit(lambda x: nets.Encoder(tok.cfg).apply({"params": part}, x, params["fixed"], collect=True)[1])
  named = run(video)
  expected = np.zeros((2, 2, 2, 16), np.float32)
  for t, y, x in np.ndindex(2, 2, 2):
    patch = video[0, 4 * t : 4 * t + 4, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
    kernel = part["patch_in"]["kernel"].reshape(4, 8, 8, 3, 16)
    tables = [part[f"patch_positions_{a}"].reshape(-1, 16)[i] for a, i in (("t", t), ("h", y), ("w", x))]
    expected[t, y, x] = np.einsum("thwc,thwcd->d", patch, kernel) + part["patch_in"]["bias"]
    expected[t, y, x] += sum(tables) + part["patch_type"]
  np.testing.assert_allclose(named["placed"][0], expected.reshape(-1, 16), atol=2e-5)


def test_what_the_decoder_reads_with_every_table_learned():
  switches = {"learned_decoder_latent_pe": True, "use_decoder_latent_token_type_embed": True}
  tok, params = random_model(small_config(True, **switches, learned_decoder_patch_query_embed=True))
  part, codes = params["decoder"], np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
  keep = np.array([[3, 1]])
  run = jax.jit(lambda c, k: nets.Decoder(tok.cfg).apply({"params": part}, c, params["fixed"], k, collect=True)[1])
  named = run(codes, keep)
  projected = codes @ part["codes_in"]["kernel"] + part["codes_in"]["bias"]
  projected[:, 1, 1:] = 0
  latents = projected + part["latent_positions"].reshape(2, 4, 16)[:, :3] + part["latent_type"]
  np.testing.assert_allclose(named["latents"], latents.reshape(1, 6, 16), atol=1e-5)
  t, h, w = (part[f"patch_queries_{axis}"] for axis in "thw")
  np.testing.assert_allclose(named["queries"][0], (t + h + w).reshape(8, 16) + part["query_type"], atol=1e-5)


@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("stochastic", [True, False])
def test_ids_by_numpy(l2, stochastic):
  rng = np.random.default_rng(1)
  z, table = rng.standard_normal((50, 4)).astype(np.float32), rng.standard_normal((24, 4)).astype(np.float32)
  cfg = configs.VQConfig(4, 24, l2_normalized=l2, stochastic=stochastic)
  u, e = (a / np.linalg.norm(a, axis=-1, keepdims=True) if l2 else a for a in (z, table))
  expected = (u @ e.T).argmax(1) if stochastic else ((u[:, None] - e) ** 2).sum(-1).argmin(1)
  assert np.array_equal(vq.ids_of(cfg, table, z), expected)
  np.testing.assert_allclose(vq.codes_of(cfg, table, expected), e[expected], atol=1e-6)


def test_norms_before_the_codes():
  video = None
  for norm, axes in (("ln_d", (-1,)), ("ln_nd", (-2, -1))):
    tok, params = random_model(small_config(norm=norm))
    video = random_video(tok) if video is None else video
    _, z, features = programs.encode(tok.cfg, params, np.float32(video) / 127.5 - 1)
    q = params["quantizer"]
    x = np.asarray(features) @ q["in"]["kernel"] + q["in"]["bias"]
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(z[:, 0], x * q["norm"]["scale"] + q["norm"]["bias"], atol=3e-5)


def test_a_norm_by_any_name(tmp_path):
  tok, params = random_model(small_config(norm="ln_d"))
  tok = dataclasses.replace(
    tok, cfg=dataclasses.replace(tok.cfg, vq=dataclasses.replace(tok.cfg.vq, norm_module="n.n"))
  )
  tok.save(params, tmp_path / "model")
  assert "bottleneck.n.n.weight" in load_file(tmp_path / "model" / "model.safetensors")
  assert vftok.load(tmp_path / "model")[0] == tok


def test_masks_by_their_words():
  steps, p, k = 3, 2, 2
  for first in (True, False):
    block = [[i // p for i in range(steps * p)], [i // k for i in range(steps * k)]]
    kinds = ["p"] * (steps * p), ["t"] * (steps * k)
    if not first:
      block, kinds = block[::-1], kinds[::-1]
    b, kind = np.concatenate(block), np.concatenate(kinds)
    earlier, own = b[None] <= b[:, None], b[None] == b[:, None]
    to_patch, of_patch = (kind == "p")[None], (kind == "p")[:, None]
    expected = {
      "full_causal_type1": earlier,
      "full_causal_type2": np.where(to_patch, own & of_patch, earlier),
      "full_causal_type3": np.where(to_patch, own, earlier & ~of_patch),
      "full_bi_attn": np.ones_like(own),
    }
    for mode, mask in expected.items():
      assert np.array_equal(masks.dense(masks.groups(mode, steps, p, k, patches_first=first)), mask), (mode, first)


@pytest.mark.parametrize(
  "modes",
  [("full_causal_type3", "full_causal_type1"), ("full_bi_attn", "full_bi_attn"), ("none", "full_causal_type2")],
)
def test_other_masks_run_and_dropped_tokens_are_never_read(modes):
  names = dict(zip(("encoder_attn_type", "decoder_attn_type"), modes, strict=True))
  tok, params = random_model(small_config(True, **names))
  tokens = tok.encode(params, random_video(tok)).truncate(np.array([1, 3]))
  other = tokens.replace(ids=tokens.ids.at[:, 0, 1:].set(7).at[:, 1, 3].set(5))
  assert np.array_equal(tok.decode(params, tokens), tok.decode(params, other))


# ---- what tokens promise


def test_larp_reads_all_tokens(larp):
  tok, params, g, _ = larp
  video = video_of(g)
  tokens = tok.encode(params, video)
  assert tokens.ids.shape == (2, 1, 24) and not tokens.nested and tokens.frames == 8
  assert np.array_equal(tok.encode(params, video[::-1]).ids, tokens.ids[::-1])  # clips do not see each other
  scaled = jax.tree.map(lambda x: x, params)
  scale = np.random.default_rng(0).uniform(0.2, 5, (160, 1)).astype(np.float32)
  scaled["quantizer"] = {**params["quantizer"], "table": params["quantizer"]["table"] * scale}
  assert np.array_equal(tok.encode(scaled, video).ids, tokens.ids)
  rows = np.asarray(params["quantizer"]["table"])[tokens.ids]
  codes = tok.codes_of(params, tokens.ids)
  np.testing.assert_allclose(codes, rows / np.linalg.norm(rows, axis=-1, keepdims=True), atol=1e-6)
  two = tok.encode(params, np.concatenate([video, video[:, ::-1]], axis=1))
  assert two.ids.shape == (2, 2, 24) and np.array_equal(two.ids[:, :1], tokens.ids)
  assert tok.decode(params, two).shape == (2, 16, 32, 32, 3)
  padded = tok.encode(params, video[:, :5], fit="pad")
  assert padded.frames == 5 and tok.decode(params, padded).shape[1] == 5


def test_shorter_clips_are_another_tokenizer_of_the_same_weights(larp):
  tok, params, g, _ = larp
  short = tok.shorter(4)
  assert short.steps_for(8) == 2 and tok.steps_for(8) == 1
  assert short.fingerprint(params) != tok.fingerprint(params)
  assert tok.shorter(8).encode(params, video_of(g)).ids.shape == (2, 1, 24)
  for frames in (0, 3, 12, 4.0, "4", None):
    with pytest.raises(ValueError, match=r"frames is .*, expected a multiple of 4 up to 8"):
      tok.shorter(frames)


@pytest.mark.slow
def test_adaptok_counts(adaptok):
  tok, params, g, _ = adaptok
  video = video_of(g)
  tokens = tok.encode(params, video)
  assert tokens.ids.shape == (2, 4, 8) and tokens.nested
  counts = np.array([[8, 3, 5, 1], [2, 8, 1, 4]])
  asked = tok.encode(params, video, budget=counts)
  assert np.array_equal(asked.keep, counts) and np.array_equal(asked.ids, tokens.ids)
  dropped = tok.decode(params, tokens.truncate(3), clip=False)  # computes four slots of each block
  masked = programs.decode(tok.cfg, params, tokens.ids, jnp.full((2, 4), 3))
  np.testing.assert_allclose(dropped, masked, atol=1e-5)
  assert not np.allclose(dropped, tok.decode(params, tokens.truncate(4), clip=False), atol=1e-2)
  assert np.isfinite(tok.decode(params, tokens.truncate(0), clip=False)).all()


def test_adaptok_is_causal_in_blocks(adaptok):
  tok, params, g, _ = adaptok
  video = video_of(g)[:1]
  other = video.copy()
  other[:, 12:] = -other[:, 12:]
  z, changed = (tok.features(params, v) for v in (video, other))
  assert np.array_equal(z[:, :3], changed[:, :3]) and np.abs(z[:, 3] - changed[:, 3]).max() > 0.1
  ids = tok.encode(params, video).ids
  frames = tok.decode(params, VideoTokens.full(ids), clip=False)
  later = tok.decode(params, VideoTokens.full(ids.at[:, 3].set(0)), clip=False)
  np.testing.assert_allclose(frames[:, :12], later[:, :12], atol=1e-5)
  assert np.abs(frames[:, 12:] - later[:, 12:]).max() > 0.1


def test_fingerprints_are_of_what_decides_ids(larp):
  tok, params, _, _ = larp
  touched = lambda part: {**params, part: jax.tree.map(lambda x: x * 1.01, params[part])}
  own = tok.fingerprint(params)
  assert tok.fingerprint(touched("decoder")) == tok.fingerprint(touched("prior")) == own
  assert tok.fingerprint(touched("encoder")) != own != tok.fingerprint(touched("quantizer"))
  changed = dataclasses.replace(tok, cfg=dataclasses.replace(tok.cfg, encoder_num_heads=2))
  assert changed.fingerprint(params) != own


def test_drawn_ids(larp):
  tok, params, g, _ = larp
  video = video_of(g)
  drawn = [tok.sampled_ids(params, video, jax.random.key(i)).ids for i in range(3)]
  likeliest = np.asarray(tok.encode(params, video).ids)
  assert not np.array_equal(drawn[0], drawn[1]) and np.mean(np.asarray(drawn) == likeliest) > 0.2
  cfg = configs.VQConfig(2, 2, stochastic_temperature=-1.0)  # learned: at a high one over it, the likeliest
  table, z = np.array([[1, 0], [0.9, 0.1]], np.float32), np.tile(np.array([[1, 0.0]], np.float32), (400, 1))
  assert (vq.ids_of(cfg, table, z, KEY, 1e4) == 0).all()
  assert 0.3 < np.mean(vq.ids_of(cfg, table, z, KEY, 1e-3)) < 0.7
  for inverse, likeliest in ((7.0, 0), (-7.0, 1)):  # nothing keeps what is learned above 0
    assert (vq.ids_of(cfg, table, z, None, inverse) == likeliest).all()


# ---- prior and scorer: there or not


def test_files_without_prior_or_scorer(tmp_path, larp, adaptok):
  for name, without, whole in (("larp_small", "prior_model.", larp), ("adaptok_small", "scorer.", adaptok)):
    directory = write_golden(tmp_path / name, name, without=(without,))
    tok, params = vftok.load(directory)
    assert "prior" not in params and "scorer" not in params
    assert np.array_equal(tok.encode(params, video_of(whole[2])).ids, whole[0].encode(whole[1], video_of(whole[2])).ids)
    tok.save(params, tmp_path / "again")
    vftok.load(tmp_path / "again")
  with pytest.raises(ValueError, match="no scorer"):
    tok.scores(params, video_of(adaptok[2]))
  tokens = larp[0].encode(larp[1], video_of(larp[2]))
  with pytest.raises(ValueError, match="no prior"):
    dataclasses.replace(larp[0], cfg=dataclasses.replace(larp[0].cfg, prior=None)).prior_logits(larp[1], tokens)
  with pytest.raises(ValueError, match="load with prior_heads="):
    tok, params = vftok.load(larp[3])
    tok.prior_logits(params, tokens)
  assert larp[0].prior_logits(larp[1], tokens).shape == (2, 23, 160)
  with pytest.raises(ValueError, match="7 heads, expected a divisor of its width 64"):
    vftok.load(larp[3], prior_heads=7)


def test_bfloat16(larp):
  _, params, g, directory = larp
  tok, _ = vftok.load(directory, dtype="bfloat16")
  tokens = tok.encode(params, video_of(g))
  assert np.mean(np.asarray(tokens.ids[:, 0]) == g["tok.ids"]) > 0.5
  exact, rough = (t.decode(params, tokens, clip=False) for t in (larp[0], tok))
  assert 0 < np.abs(exact - rough).mean() < 0.1 * np.abs(exact).mean()
