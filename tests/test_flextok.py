"""FlexTok, the image model: the reference's own numbers, the released layout, and its interface."""

import dataclasses
import warnings

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flextok_files import changed, golden_parts, pictures, written
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

import vftok
from vftok.convert.load import abstract_params
from vftok.families.flextok import FlexTok, released, vae_weights
from vftok.models import flow
from vftok.models.encoder import Encoder
from vftok.models.layers import PositionConfig
from vftok.tools.parity_flextok import check_flextok

pytestmark = [
  pytest.mark.filterwarnings("ignore:released FlexTok weights"),
]


@pytest.fixture(scope="module")
def parts():
  return golden_parts()


@pytest.fixture(scope="module")
def directory(parts, tmp_path_factory):
  return written(tmp_path_factory.mktemp("models") / "flextok", *parts[:2])


@pytest.fixture(scope="module")
def model(directory):
  return vftok.load(directory)


# ---- the reference's numbers


def test_every_golden_tensor_is_matched():
  """Relative L2, as the reference's float32 allows: its time features are of up to 1000 radians."""
  from flextok_files import GOLDEN

  errors = check_flextok(GOLDEN)
  assert not errors.not_compared()
  limits = {"vae": 1e-5, "latents": 1e-5, "enc": 1e-5, "fsq.bounded": 1e-5, "quants": 0, "ids": 0}
  limits |= {"dec.patches": 1e-5, "dec.registers": 1e-5, "dec.xt": 1e-5, "sample.apg7_5.image": 3e-4, "sample": 2e-4}
  for key, error in errors.found.items():
    limit = next((limit for start, limit in limits.items() if key.startswith(start)), 1e-4)
    assert error <= limit, (key, error, limit)


def test_guidance_has_the_image_pipelines_constants_and_norms_over_a_whole_picture(model, parts):
  (tok, params), g = model, parts[2]
  tokens, noise = vftok.VideoTokens.full(g["ids"][:, None]), pictures(g["in.noise"])
  latents = lambda **of: tok.decode_latents(params, tokens, noise=noise, steps=2, guidance=vftok.APG(7.5, **of))
  same = latents(momentum=-0.5, threshold=2.5, eta=0.0)
  assert np.array_equal(latents(), same)
  assert not np.allclose(same, latents(momentum=0.0), atol=1e-3)
  cond, null = (jax.random.normal(jax.random.key(i), (2, 1, 3, 3, 4)) for i in (0, 1))
  got, running = vftok.APG(3.0, 0.0, -0.5, 0.1, per_channel=False).combine(cond, null, jnp.ones_like(cond), 0)
  for i in range(2):  # by hand, a sample as one vector
    c, d = (np.asarray(x, np.float64).reshape(-1) for x in (cond[i], cond[i] - null[i] - 0.5))
    d = d * min(1, 0.1 / np.linalg.norm(d))
    u = c / np.linalg.norm(c)
    np.testing.assert_allclose(got[i].reshape(-1), c + 2 * (d - (d @ u) * u), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(running, cond - null - 0.5, rtol=1e-5, atol=1e-6)
  assert flow.of_model(vftok.APG(1.0), tok.cfg.apg) == vftok.APG(1.0, 0.0, -0.5, 2.5, per_channel=False)


# ---- the released layout


def test_saved_in_the_released_layout_bit_for_bit(model, directory, tmp_path):
  tok, params = model
  tok.save(params, tmp_path / "out")
  before, after = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "out"))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[key], after[key]) for key in before)
  again, params2 = vftok.load(tmp_path / "out")
  assert again == tok and tok.fingerprint(params) == again.fingerprint(params2)
  (tmp_path / "out" / "model.safetensors").unlink()
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json"]


def test_the_licence_is_said_in_one_line_each_time_weights_are_loaded(directory):
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    vftok.load(directory)
    (text,) = [str(w.message) for w in said]
  assert "research only" in text and "\n" not in text and len(text) < 400
  assert said[0].filename == __file__


def test_fresh_parameters_have_the_shapes_and_axes_of_loaded_ones(model):
  tok, params = model
  shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  assert shapes(jax.eval_shape(tok.init, jax.random.key(0))) == shapes(params)
  boxed = jax.eval_shape(lambda key: tok.init(key, boxed=True), jax.random.key(0))
  spec = nn.get_partition_spec(boxed)["vae"]["encoder"]
  assert spec["mid"]["block_1"]["conv1"]["kernel"] == PartitionSpec(None, None, "conv_in", "conv_out")
  assert spec["down_0_block_0"]["norm1"]["scale"] == PartitionSpec("conv_in")


SWITCHES = {
  "learned sums, no register positions, a shift": [
    ("enc/enc_posemb_module.posemb_type", "learnable_sum"),
    ("dec/dec_registers_posemb_module", ...),
    ("vae.shift_factor", 0.25),
  ],
  "products, full and causal": [
    ("enc/enc_posemb_module.posemb_type", "learnable_prod"),
    ("dec/dec_registers_posemb_module.posemb_type", "learnable_prod"),
    ("enc/enc_seq_packer.mask_mode", "full"),
    ("dec/dec_seq_packer.mask_mode", "causal"),
  ],
  "no patch positions, causal_last, no null vector": [
    ("enc/enc_posemb_module", ...),
    ("dec/dec_seq_packer.mask_mode", "causal_last"),
    ("dec/dec_latent_dropout", ...),
  ],
  "a wide picture, one modulation, no mask vector": [
    ("enc/enc_posemb_module.max_sizes", [2, 4]),
    ("dec/dec_patches_posemb_module.max_sizes", [2, 4]),
    ("dec/dec_transformer.adaLN_expansion", 1),
    ("dec/dec_nested_dropout", ...),
  ],
  "patches of one latent, heads without bias or time": [
    ("enc/enc_patch_emb.patch_sizes", [1, 1]),
    ("dec/dec_noise_patch_emb.patch_sizes", [1, 1]),
    ("dec/dec_to_patches.patch_sizes", [1, 1]),
    ("enc/enc_to_latents.proj_bias", False),
    ("dec/dec_to_patches.proj_bias", False),
    ("dec/dec_to_patches.adaLN_emb_read_key", ...),
  ],
  "biases, no gate, no norm, time in thousands, other levels": [
    *(
      (f"{part}_transformer.{flag}", value)
      for part in ("enc/enc", "dec/dec")
      for flag, value in dict(
        qkv_bias=True, proj_bias=True, mlp_bias=True, gated_mlp=False, qk_norm=False, mlp_ratio=2.0
      ).items()
    ),
    ("dec/dec_time_embedder.max_timestep", 1000.0),
    ("dec/dec_time_embedder.frequency_embedding_size", 64),
    ("regularizer.levels", [5, 3, 2]),
    ("enc/enc_to_latents.dim_out", 3),
    ("dec/dec_from_latents.dim_in", 3),
  ],
}
NO_CHANGE = {
  "interpolated to the same size": [("enc/enc_posemb_module.posemb_scaling", "interpolate")],
  "what only training reads": [
    ("dec/dec_nested_dropout.size_sampling_mode", "uniform_pow2"),
    ("enc/enc_transformer.use_act_checkpoint", True),
    ("enc/enc_transformer.drop_path_rate", 0.1),
    ("enc/enc_transformer.something_off", False),
    ("vae.sample_posterior", True),
  ],
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_read_written_and_read_again(name, model, parts, tmp_path):
  config = changed(parts[1], *SWITCHES[name])
  vae = vae_weights.KLConfig((32,), 1, 4, scaling=0.6, shift=config["vae"].get("shift_factor") or 0.0)
  cfg, names = released.parse(config, vae)
  tok = FlexTok(cfg)
  rng = np.random.default_rng(0)
  fresh = lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
  params = traverse.unflatten_dict({path: fresh(leaf) for path, leaf in abstract_params(cfg).items()})
  tok.save(params, tmp_path / "model")
  assert load_file(tmp_path / "model" / "model.safetensors").keys() == released.rules(cfg, names).keys()
  again, loaded = vftok.load(tmp_path / "model")
  assert again == tok and dataclasses.replace(again.cfg, vae=model[0].cfg.vae) != model[0].cfg
  assert jax.tree.all(jax.tree.map(np.array_equal, params, loaded))


@pytest.mark.parametrize("name", NO_CHANGE)
def test_switches_that_change_nothing(name, model, parts):
  assert released.parse(changed(parts[1], *NO_CHANGE[name]), model[0].cfg.vae)[0] == model[0].cfg


def test_the_size_of_pictures_is_what_both_tables_cover(model, parts):
  config = changed(parts[1], ("enc/enc_posemb_module.max_sizes", [8, 6]))
  assert released.parse(config, model[0].cfg.vae)[0].latent_size == (8, 8)
  cfg = released.parse(changed(config, ("dec/dec_patches_posemb_module", ...)), model[0].cfg.vae)[0]
  assert FlexTok(cfg).frame_size == (128, 96)


def test_a_model_of_other_switches_encodes_and_decodes(parts, tmp_path):
  """Learned tables, a causal decoder that has no null vector, a wide picture, levels of 30 codes."""
  changes = [
    ("enc/enc_posemb_module.posemb_type", "learnable_sum"),
    ("enc/enc_posemb_module.max_sizes", [2, 3]),
    ("dec/dec_patches_posemb_module.max_sizes", [2, 3]),
    ("dec/dec_patches_posemb_module.posemb_type", "learnable_prod"),
    ("dec/dec_seq_packer.mask_mode", "causal"),
    ("dec/dec_latent_dropout", ...),
    ("regularizer.levels", [5, 3, 2]),
    ("enc/enc_to_latents.dim_out", 3),
    ("dec/dec_from_latents.dim_in", 3),
  ]
  cfg, _ = released.parse(changed(parts[1], *changes), vae_weights.KLConfig((32,), 1, 4, scaling=0.6))
  rng = np.random.default_rng(0)
  fresh = lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
  params = traverse.unflatten_dict({path: fresh(leaf) for path, leaf in abstract_params(cfg).items()})
  tok = FlexTok(cfg)
  video = rng.integers(0, 256, (2, 1, 4, 6, 3)).astype(np.uint8)
  tokens = tok.encode(params, video, budget=3)
  assert tokens.ids.shape == (2, 1, 16) and tok.codebook_size == 30
  assert tokens.ids.min() >= 0 and tokens.ids.max() < 30
  out = tok.decode(params, tokens, jax.random.key(0), steps=2, guidance=None)
  assert out.shape == video.shape and np.isfinite(out).all()
  with pytest.raises(ValueError, match="no null vector"):
    tok.decode(params, tokens, jax.random.key(0))
  # Without positions of registers a causal encoder's token does not know of later ones.
  part = lambda p, n: tok.features(
    {**p, "encoder": {**p["encoder"], "registers": p["encoder"]["registers"].at[:, n:].multiply(-1.0)}}, latents
  )
  latents, p = tok.encode_latents(params, video), jax.tree.map(jnp.asarray, params)
  moved = np.abs(part(p, 5) - tok.features(p, latents)).max((0, 1, 3))
  assert moved[:5].max() < 1e-5 and moved[5:].min() > 1e-4


def test_positions_of_fewer_axes_are_those_of_one_time_step(model, parts):
  tok, params = model
  cfg = dataclasses.replace(tok.cfg.encoder, positions=PositionConfig("learnable_prod", (5, 4)))
  table = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
  x = np.zeros((1, 1, 8, 8, 4), np.float32)
  of = {**params["encoder"], "patch_positions": {"table": jnp.asarray(table)}}
  _, named = jax.jit(lambda p: Encoder(cfg).apply({"params": p}, x, collect=True))(of)
  expected = params["encoder"]["patch_in"]["bias"] + table[0, :4, None] * table[1, None, :4]
  np.testing.assert_allclose(named["patches"][0, 0], expected, rtol=1e-6, atol=1e-6)


def test_names_in_the_file_may_be_wrapped_or_old(model, parts, tmp_path):
  weights, config, _ = parts
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

  def rename(key):
    for new, name in old.items():
      key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
    return key.replace("blocks.1.attn", "blocks.1._checkpoint_wrapped_module.attn")

  renamed = {rename(key): value for key, value in weights.items()}
  assert len(renamed.keys() - weights.keys()) >= 16 + 8
  tok, params = vftok.load(written(tmp_path, renamed, config))
  assert tok == model[0] and jax.tree.all(jax.tree.map(np.array_equal, params, model[1]))


def test_a_stored_feature_head_is_read_along(model, tmp_path):
  cfg = dataclasses.replace(model[0].cfg, decoder=dataclasses.replace(model[0].cfg.decoder, readout=(1, 8)))
  cfg = dataclasses.replace(cfg, vae=vae_weights.KLConfig((32,), 1, 4, scaling=0.6))
  params = traverse.unflatten_dict({k: np.zeros(leaf.shape, np.float32) for k, leaf in abstract_params(cfg).items()})
  FlexTok(cfg).save(params, tmp_path / "model")
  assert vftok.load(tmp_path / "model")[0] == FlexTok(cfg)


def test_released_sizes(parts):
  """d18_d28 by the spec's table of shapes; the VAE has Stable Diffusion's 83,653,863 parameters but for its latents."""
  changes = [
    *(
      (f"enc/{name}.dim", 1152)
      for name in ("enc_patch_emb", "enc_posemb_module", "enc_register_module", "enc_to_latents")
    ),
    *((f"{part}_transformer.head_dim", 64) for part in ("enc/enc", "dec/dec")),
    *((f"{name}.channels_in", 16) for name in ("enc/enc_patch_emb", "dec/dec_noise_patch_emb")),
    *((f"{name}.max_sizes", [16, 16]) for name in ("enc/enc_posemb_module", "dec/dec_patches_posemb_module")),
    ("enc/enc_transformer.dim", 1152),
    ("enc/enc_transformer.depth", 18),
    ("dec/dec_transformer.dim", 1792),
    ("dec/dec_transformer.depth", 28),
    ("enc/enc_register_module.n_max", 256),
    ("dec/dec_registers_posemb_module.max_sizes", [256]),
    ("dec/dec_to_patches.channels_out", 16),
  ]
  cfg, names = released.parse(changed(parts[1], *changes), vae_weights.KLConfig(scaling=0.6))
  assert FlexTok(cfg).frame_size == (256, 256)
  leaves = abstract_params(cfg)
  shape = lambda rule: rule.to_theirs(np.broadcast_to(np.int8(0), leaves[rule.path].shape)[rule.index]).shape
  table = released.rules(cfg, names)
  expected = {
    "encoder.module_dict.enc_patch_emb.patch_proj.weight": (1152, 64),
    "encoder.module_dict.enc_posemb_module.posembs": (1, 1152, 16, 16),
    "encoder.module_dict.enc_register_module.registers": (256, 1152),
    "encoder.module_dict.enc_transformer.blocks.17.mlp.fc1.weight": (3072, 1152),
    "encoder.module_dict.enc_to_latents.proj.weight": (6, 1152),
    "decoder.module_dict.dec_from_latents.proj.weight": (1792, 6),
    "decoder.module_dict.dec_registers_posemb_module.posembs": (1, 1, 1792, 256),
    "decoder.module_dict.dec_nested_dropout.dropout_mask_token": (1792,),
    "decoder.module_dict.dec_latent_dropout.nullcond": (1792,),
    "decoder.module_dict.dec_patches_posemb_module.posembs": (1, 1792, 16, 16),
    "decoder.module_dict.dec_time_embedder.mlp.0.weight": (1792, 256),
    "decoder.module_dict.dec_transformer.blocks.27.adaLN_modulation.1.weight": (12 * 1792, 1792),
    "decoder.module_dict.dec_transformer.blocks.27.mlp.fc2.weight": (1792, 4778),
    "decoder.module_dict.dec_to_patches.proj.weight": (64, 1792),
    "decoder.module_dict.dec_to_patches.adaLN_modulation.1.weight": (3584, 1792),
    "vae.vae.quant_conv.weight": (32, 32, 1, 1),
    "vae.vae.decoder.up_blocks.0.upsamplers.0.conv.weight": (512, 512, 3, 3),
    "vae.vae.encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
  }
  assert {key: shape(table[key]) for key in expected} == expected
  sizes = lambda start: sum(leaf.size for path, leaf in leaves.items() if path[0] == start)
  more = 24 * (512 * 9 + 1) + 12 * 512 * 9 + (32 * 33 - 8 * 9) + (16 * 17 - 4 * 5)  # 16 latent channels for 4
  assert sizes("vae") == 83_653_863 + more


def test_one_file_with_its_config_as_python_literals(model, parts, tmp_path):
  """As released files carry it: None, True, tuples and small numbers that YAML takes for text."""
  config = changed(
    parts[1],
    ("vae.dtype_override", None),
    ("enc/enc_patch_emb.patch_sizes", (2, 2)),
    ("dec/dec_transformer.drop_path_rate", 1e-06),
    ("dec/dec_seq_packer.something", None),
  )
  metadata = {key: value if isinstance(value, str) else repr(value) for key, value in config.items()}
  save_file(parts[0], tmp_path / "flextok.safetensors", metadata=metadata)
  tok, params = vftok.load(tmp_path / "flextok.safetensors")
  assert tok == model[0] and tok.fingerprint(params) == tok.fingerprint(model[1])


def test_registers_packed_first_swap_the_modulations(model, parts):
  tok, config = model[0], parts[1]
  keys = [("dec/dec_seq_packer.input_list_read_keys", ["dec_quants", "dec_patches"])]
  keys += [("dec/dec_unpacker.inner_seq_write_keys", ["dec_quants", "dec_patches"])]
  cfg, names = released.parse(changed(config, *keys), tok.cfg.vae)
  rule = released.rules(cfg, names)["decoder.module_dict.dec_transformer.blocks.0.adaLN_modulation.1.bias"]
  assert cfg == tok.cfg and names.registers_first and rule.index == (0, slice(None, None, -1))


# ---- the interface


def test_a_video_is_pictures_by_themselves(model, parts):
  (tok, params), image = model, pictures(parts[2]["in.image"])
  assert (tok.chunk_frames, tok.overlap_frames, tok.chunk_steps, tok.registers) == (1, 0, 1, 16)
  assert (tok.nested, tok.one_pass, tok.frame_size, tok.codebook_size) == (True, False, (64, 64), 64_000)
  video = np.concatenate([image[:1], image[1:], image[:1]], axis=1)
  tokens = tok.encode(params, video)
  assert np.array_equal(np.asarray(tokens.ids)[0], parts[2]["ids"][[0, 1, 0]]) and tokens.frames == 3
  assert len(list(tok.encode_stream(params, [video[:, :2], video[:, 2:]]))) == 3
  pad = tok.encode(params, video, fit="pad", budget=4)
  assert pad.keep.tolist() == [[4, 4, 4]] and pad.frames == 3
  noise = [pictures(parts[2]["in.noise"])[:1]] * 3
  out = tok.decode(params, tokens, noise=noise, steps=2, guidance=None)
  assert (
    out.shape == (1, 3, 64, 64, 3) and np.array_equal(out[:, 0], out[:, 2]) and not np.array_equal(out[:, 0], out[:, 1])
  )
  assert [p.shape[1] for p in tok.decode_stream(params, tokens, noise=noise, steps=2, guidance=None)] == [1, 1, 1]
  latents = tok.encode_latents(params, video[:, :2])  # of any number of frames
  assert latents.shape == (1, 2, 8, 8, 4)
  np.testing.assert_allclose(latents[:, :1], tok.encode_latents(params, video[:, :1]), atol=1e-5)


def test_described_and_opened_in_bfloat16(model, directory):
  tok, params = model
  facts = tok.describe(params)
  assert facts["parameters"] == {"vae": 1_067_079, "encoder": 101_574, "decoder": 134_704, "total": 1_303_357}
  assert facts["fingerprint"] == tok.fingerprint(params)
  assert (tok.cfg.guidance, tok.cfg.scale, tok.cfg.solver_steps) == ("apg", 7.5, 20)
  other, _ = vftok.load(directory, dtype="bfloat16")
  assert other.cfg.vae.dtype == other.cfg.decoder.stack.dtype == "bfloat16"
  assert other.fingerprint(params) == tok.fingerprint(params)
  scaled = dataclasses.replace(tok.cfg, vae=dataclasses.replace(tok.cfg.vae, scaling=0.7))
  assert FlexTok(scaled).fingerprint(params) != tok.fingerprint(params)


# ---- bad input

BAD_CONFIGS = {
  "unknown module": ([("enc/enc_transformer._target_", "flextok.Rotary")], "'flextok.Rotary'"),
  "another VAE": ([("vae._target_", "flextok.regularizers.quantize_fsq.FSQ")], "expected StableDiffusionVAE"),
  "another regularizer": ([("regularizer._target_", "flextok.vae_wrapper.StableDiffusionVAE")], "expected FSQ"),
  "unknown switch": ([("enc/enc_transformer.rope_theta", 100.0)], "'rope_theta' = 100.0"),
  "unknown switch of a position": ([("dec/dec_patches_posemb_module.shift", [1, 2])], "'shift'"),
  "unknown mask": ([("enc/enc_seq_packer.mask_mode", "block_causal")], "mask_mode='block_causal'"),
  "3-D patches": ([("enc/enc_patch_emb.patch_sizes", [1, 2, 2])], "expected 2: height and width"),
  "patches go out otherwise": ([("dec/dec_to_patches.patch_sizes", [2, 1])], "expected those that go in"),
  "1-D sincos": ([("dec/dec_registers_posemb_module.posemb_type", "sincos")], "'sincos' positions of sizes (16,)"),
  "unknown positions": ([("enc/enc_posemb_module.posemb_type", "fourier")], "'fourier' positions"),
  "unknown scaling": ([("enc/enc_posemb_module.posemb_scaling", "crop")], "posemb_scaling='crop'"),
  "a resized table": (
    [
      ("dec/dec_patches_posemb_module.max_sizes", [8, 8]),
      ("dec/dec_patches_posemb_module.posemb_scaling", "interpolate"),
    ],
    "'interpolate' from (8, 8) to (4, 4)",
  ),
  "a random order": ([("enc/enc_register_module.ordering_mode", "random")], "ordering_mode = 'random'"),
  "muP": ([("enc/enc_to_latents.use_mup_readout", True)], "use_mup_readout=true"),
  "no scaling": ([("vae.scaling_factor", ...)], "lacks the argument 'scaling_factor'"),
  "scaling zero": ([("vae.scaling_factor", 0)], "scaling_factor = 0"),
  "scaling text": ([("vae.scaling_factor", "0.6")], "scaling_factor = '0.6'"),
  "other channels": ([("vae.latent_channels", 16)], "latent_channels = 16 and tensors of 4"),
  "no decoder": ([("decoder", ...)], "no part 'decoder'"),
  "a part that is none": ([("regularizer", [8, 8])], "regularizer = [8, 8]"),
  "levels": ([("regularizer.levels", [8, 8])], "expected one per FSQ level, 2"),
  "no registers": ([("enc/enc_register_module.n_max", ...)], "lacks the argument 'n_max'"),
  "broken wiring": (
    [("dec/dec_from_latents.read_key", "quantts")],
    "reads 'quantts', which no module before it writes",
  ),
  "too large": ([("enc/enc_register_module.n_max", 10**9)], "registers"),
  "other tensors": ([("enc/enc_transformer.depth", 3)], "transformer.blocks.2.attn.wk.weight and 5 more"),
  "of another shape": ([("enc/enc_transformer.mlp_ratio", 2.0)], "with shape (170, 64), expected (85, 64)"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_is_not_known_is_refused_in_one_sentence(name, parts, tmp_path):
  changes, sentence = BAD_CONFIGS[name]
  with pytest.raises(ValueError) as error:
    vftok.load(written(tmp_path, parts[0], changed(parts[1], *changes)))
  text = str(error.value)
  assert sentence in text and len(text) < 400 and text.endswith(".") and "\n" not in text


VAE = released.VAE_PREFIX
BAD_WEIGHTS = {
  "no VAE": (lambda w: {k: v for k, v in w.items() if not k.startswith(VAE)}, "no tensor under 'vae.vae.'"),
  "half a VAE": (lambda w: {k: v for k, v in w.items() if "vae.encoder" not in k}, "no whole tensor"),
  "one tensor short": (
    lambda w: {k: v for k, v in w.items() if k != f"{VAE}decoder.conv_norm_out.bias"},
    "lacks vae.vae",
  ),
  "one too many": (lambda w: {**w, "encoder.more": np.zeros(3, np.float32)}, "has unused encoder.more"),
  "NaN": (lambda w: {**w, f"{VAE}encoder.conv_in.bias": np.full(32, np.nan, np.float32)}, "NaN or infinite"),
  "groups": (
    lambda w: {**w, f"{VAE}encoder.down_blocks.1.resnets.0.conv1.weight": np.zeros((40, 32, 3, 3), np.float32)},
    "40 channels",
  ),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_in_one_sentence(name, parts, tmp_path):
  change, sentence = BAD_WEIGHTS[name]
  with pytest.raises(ValueError) as error:
    vftok.load(written(tmp_path, change(parts[0]), parts[1]))
  text = str(error.value)
  assert sentence in text and len(text) < 400 and "\n" not in text


CALLS = {
  "size": (lambda t, p: t.encode(p, np.zeros((1, 1, 32, 64, 3), np.uint8)), "expected 64x64"),
  "an image without frames": (
    lambda t, p: t.encode(p, np.zeros((1, 64, 64, 3), np.uint8)),
    "expected [B, F, 64, 64, 3]",
  ),
  "range": (lambda t, p: t.encode(p, np.full((1, 1, 64, 64, 3), 200.0)), "pass uint8"),
  "first frames": (lambda t, p: t.decode(p, t.ids, first_frames=np.zeros((1, 1, 64, 64, 3))), "first_frames are given"),
  "ids": (lambda t, p: t.decode(p, vftok.VideoTokens.full(np.full((1, 1, 16), 64_000)), jax.random.key(0)), "64000"),
  "no key": (lambda t, p: t.decode(p, vftok.VideoTokens.full(np.zeros((1, 1, 16), int))), "neither key nor noise"),
  "two steps as one": (lambda t, p: t.features(p, np.zeros((1, 2, 8, 8, 4), np.float32)), "at most 1"),
  "an option": (lambda t, p: vftok.load("x", dino="y"), "does not exist"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls_are_one_sentence(name, model):
  call, sentence = CALLS[name]
  tok, params = model
  object.__setattr__(tok, "ids", vftok.VideoTokens.full(np.zeros((1, 1, 16), int)))
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    call(tok, params)
  assert sentence in str(error.value) and len(str(error.value)) < 400


def test_options_of_other_families_are_named(directory):
  with pytest.raises(ValueError, match="'dino' is no option of loading a model of the family flextok"):
    vftok.load(directory, dino="weights")


# ---- the VAE by itself


def test_a_vae_opens_by_itself_in_diffusers_layout(model, parts, tmp_path):
  prefix = released.VAE_PREFIX
  weights = {key.removeprefix(prefix): value for key, value in parts[0].items() if key.startswith(prefix)}
  config = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "scaling_factor": 0.6,
    "block_out_channels": [32, 32, 32, 64],
  }
  folder = written(tmp_path / "vae", weights, config)
  (folder / "model.safetensors").rename(folder / vae_weights.WEIGHTS)
  cfg, params = vae_weights.load_vae(folder)
  assert cfg == model[0].cfg.vae and jax.tree.all(jax.tree.map(np.array_equal, params, model[1]["vae"]))
  for changes, sentence in (
    ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
    ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "down_block_types"),
    ({"_class_name": "AutoencoderTiny"}, "_class_name = 'AutoencoderTiny'"),
    ({"scaling_factor": "1"}, "scaling_factor = '1'"),
    ({"latents_mean": [0.0] * 4}, "mean and deviation"),
    ({"norm_num_groups": 24}, "multiple of its 24 groups"),
    ({"latent_channels": 8}, "latent_channels = 8"),
  ):
    (folder / vae_weights.WEIGHTS).rename(folder / "model.safetensors")
    written(folder, weights, {**config, **changes})
    (folder / "model.safetensors").rename(folder / vae_weights.WEIGHTS)
    with pytest.raises(ValueError) as error:
      vae_weights.load_vae(folder)
    assert sentence in str(error.value) and len(str(error.value)) < 400
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    vae_weights.load_vae(tmp_path)


def test_other_vaes_of_this_kind(tmp_path):
  """No attention, no 1x1 convolutions, other depths: told by the tensors alone; scale and shift undo each other."""
  kind = vae_weights.KLConfig((8, 16), 1, 2, 3, 4, 0.5, 0.25, False, False, False)
  rng = np.random.default_rng(0)
  fresh = lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)
  flat = {path: fresh(leaf) for path, leaf in vae_weights.abstract_params(kind).items()}
  weights = {key: rule.to_theirs(flat[rule.path]) for key, rule in vae_weights.rules(kind).items()}
  config = {"scaling_factor": 0.5, "shift_factor": 0.25, "norm_num_groups": 4, "layers_per_block": 1}
  cfg, params = vae_weights.load_vae(written(tmp_path, weights, config))
  assert cfg == kind and not any("quant_conv" in key or "attentions" in key for key in weights)
  net, bare = cfg.module(), dataclasses.replace(cfg, scaling=1.0, shift=0.0).module()

  @jax.jit
  def run(x):
    of = lambda net, x, method: net.apply({"params": params}, x, method=method)
    (mean, logvar), (z, z_logvar) = of(net, x, "posterior"), of(net, x, "encode")
    return mean, logvar, z, z_logvar, of(net, z, "decode"), of(bare, mean, "decode")

  x = rng.uniform(-1, 1, (2, 1, 8, 12, 3)).astype(np.float32)
  mean, logvar, z, z_logvar, out, plain = run(x)
  np.testing.assert_allclose(z, (mean - 0.25) * 0.5, atol=1e-6)
  np.testing.assert_allclose(z_logvar, logvar + 2 * np.log(0.5), atol=1e-6)
  assert out.shape == x.shape
  np.testing.assert_allclose(out, plain, atol=1e-4)


def test_group_norm_by_hand():
  from vftok.families.flextok.vae import GroupNorm

  x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6)).astype(np.float32) + 3
  y = GroupNorm("float32", act=False, groups=2).apply({"params": {"scale": np.arange(6.0), "bias": np.ones(6)}}, x)
  for b, f, g in np.ndindex(2, 3, 2):
    part = x[b, f, :, :, 3 * g : 3 * g + 3].astype(np.float64)
    expected = (part - part.mean()) / np.sqrt(part.var() + 1e-6) * np.arange(6.0)[3 * g : 3 * g + 3] + 1
    np.testing.assert_allclose(y[b, f, :, :, 3 * g : 3 * g + 3], expected, rtol=1e-4, atol=1e-4)
