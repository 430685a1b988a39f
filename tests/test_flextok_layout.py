"""The layout of released FlexTok models: read, written, with its switches."""

import dataclasses
import json
import warnings

import flax.linen as nn
import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flextok_files import changed, written
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

import vftok
from vftok.convert.load import abstract_params
from vftok.families.flextok import FlexTok, released, vae_weights
from vftok.models.encoder import Encoder
from vftok.models.layers import PositionConfig

pytestmark = [
  pytest.mark.filterwarnings("ignore:released FlexTok weights"),
]


# ---- the released layout


def test_saved_in_the_released_layout_bit_for_bit(image_model, image_dir, tmp_path):
  tok, params = image_model
  tok.save(params, tmp_path / "out")
  before, after = (load_file(d / "model.safetensors") for d in (image_dir, tmp_path / "out"))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[key], after[key]) for key in before)
  again, params2 = vftok.load(tmp_path / "out")
  assert again == tok and tok.fingerprint(params) == again.fingerprint(params2)
  (tmp_path / "out" / "model.safetensors").unlink()
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json"]


def test_the_licence_is_said_in_one_line_each_time_weights_are_loaded(image_dir):
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    vftok.load(image_dir)
    (text,) = [str(w.message) for w in said]
  assert "research only" in text and "\n" not in text and len(text) < 400
  assert said[0].filename == __file__


def test_fresh_parameters_have_the_shapes_and_axes_of_loaded_ones(image_model):
  tok, params = image_model
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
def test_switches_are_read_written_and_read_again(name, image_model, image_parts, tmp_path):
  config = changed(image_parts[1], *SWITCHES[name])
  vae = vae_weights.KLConfig((32,), 1, 4, scaling=0.6, shift=config["vae"].get("shift_factor") or 0.0)
  cfg, names = released.parse(config, vae)
  tok = FlexTok(cfg)
  rng = np.random.default_rng(0)
  fresh = lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
  params = traverse.unflatten_dict({path: fresh(leaf) for path, leaf in abstract_params(cfg).items()})
  tok.save(params, tmp_path / "model")
  assert load_file(tmp_path / "model" / "model.safetensors").keys() == released.rules(cfg, names).keys()
  assert json.loads((tmp_path / "model" / "config.json").read_text()) == config
  again, loaded = vftok.load(tmp_path / "model")
  assert again == tok and dataclasses.replace(again.cfg, vae=image_model[0].cfg.vae) != image_model[0].cfg
  assert jax.tree.all(jax.tree.map(np.array_equal, params, loaded))


@pytest.mark.parametrize("name", NO_CHANGE)
def test_switches_that_change_nothing(name, image_model, image_parts):
  assert released.parse(changed(image_parts[1], *NO_CHANGE[name]), image_model[0].cfg.vae)[0] == image_model[0].cfg


def test_the_size_of_pictures_is_what_both_tables_cover(image_model, image_parts):
  config = changed(image_parts[1], ("enc/enc_posemb_module.max_sizes", [8, 6]))
  assert released.parse(config, image_model[0].cfg.vae)[0].latent_size == (8, 8)
  cfg = released.parse(changed(config, ("dec/dec_patches_posemb_module", ...)), image_model[0].cfg.vae)[0]
  assert FlexTok(cfg).frame_size == (128, 96)


@pytest.mark.slow
def test_a_model_of_other_switches_encodes_and_decodes(image_parts, tmp_path):
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
  cfg, _ = released.parse(changed(image_parts[1], *changes), vae_weights.KLConfig((32,), 1, 4, scaling=0.6))
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


def test_positions_of_fewer_axes_are_those_of_one_time_step(image_model, image_parts):
  tok, params = image_model
  cfg = dataclasses.replace(tok.cfg.encoder, positions=PositionConfig("learnable_prod", (5, 4)))
  table = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
  x = np.zeros((1, 1, 8, 8, 4), np.float32)
  of = {**params["encoder"], "patch_positions": {"table": jnp.asarray(table)}}
  _, named = jax.jit(lambda p: Encoder(cfg).apply({"params": p}, x, collect=True))(of)
  expected = params["encoder"]["patch_in"]["bias"] + table[0, :4, None] * table[1, None, :4]
  np.testing.assert_allclose(named["patches"][0, 0], expected, rtol=1e-6, atol=1e-6)


def test_names_in_the_file_may_be_wrapped_or_old(image_model, image_parts, tmp_path):
  weights, config, _ = image_parts
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

  def rename(key):
    for new, name in old.items():
      key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
    return key.replace("blocks.1.attn", "blocks.1._checkpoint_wrapped_module.attn")

  renamed = {rename(key): value for key, value in weights.items()}
  assert len(renamed.keys() - weights.keys()) >= 16 + 8
  tok, params = vftok.load(written(tmp_path, renamed, config))
  assert tok == image_model[0] and jax.tree.all(jax.tree.map(np.array_equal, params, image_model[1]))


def test_tensors_of_two_16_bit_kinds_that_share_a_leaf_are_widened(image_model, image_parts, tmp_path):
  """Neither kind holds the other's values: layers' matrices, which are one array here, become float32."""
  weights, config, _ = image_parts
  kind = lambda key: np.float16 if ".blocks.0." in key else ml_dtypes.bfloat16
  stored = {key: value.astype(kind(key)) for key, value in weights.items()}
  tok, params = vftok.load(written(tmp_path / "two", stored, config))
  _, exact = vftok.load(written(tmp_path / "one", {k: v.astype(np.float32) for k, v in stored.items()}, config))
  assert tok == image_model[0] and {x.dtype.name for x in jax.tree.leaves(params["encoder"]["stack"])} == {"float32"}
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.float32(a), b), params, exact))


def test_a_stored_feature_head_is_read_along(image_model, tmp_path):
  cfg = dataclasses.replace(image_model[0].cfg, decoder=dataclasses.replace(image_model[0].cfg.decoder, readout=(1, 8)))
  cfg = dataclasses.replace(cfg, vae=vae_weights.KLConfig((32,), 1, 4, scaling=0.6))
  params = traverse.unflatten_dict({k: np.zeros(leaf.shape, np.float32) for k, leaf in abstract_params(cfg).items()})
  FlexTok(cfg).save(params, tmp_path / "model")
  assert vftok.load(tmp_path / "model")[0] == FlexTok(cfg)


def test_released_sizes(image_parts):
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
  cfg, names = released.parse(changed(image_parts[1], *changes), vae_weights.KLConfig(scaling=0.6))
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


def test_one_file_with_its_config_as_python_literals(image_model, image_parts, tmp_path):
  """As released files carry it: None, True, tuples and small numbers that YAML takes for text."""
  config = changed(
    image_parts[1],
    ("vae.dtype_override", None),
    ("enc/enc_patch_emb.patch_sizes", (2, 2)),
    ("dec/dec_transformer.drop_path_rate", 1e-06),
    ("dec/dec_seq_packer.something", None),
  )
  metadata = {key: value if isinstance(value, str) else repr(value) for key, value in config.items()}
  save_file(image_parts[0], tmp_path / "flextok.safetensors", metadata=metadata)
  tok, params = vftok.load(tmp_path / "flextok.safetensors")
  assert tok == image_model[0] and tok.fingerprint(params) == tok.fingerprint(image_model[1])


def test_registers_packed_first_swap_the_modulations(image_model, image_parts):
  tok, config = image_model[0], image_parts[1]
  keys = [("dec/dec_seq_packer.input_list_read_keys", ["dec_quants", "dec_patches"])]
  keys += [("dec/dec_unpacker.inner_seq_write_keys", ["dec_quants", "dec_patches"])]
  cfg, names = released.parse(changed(config, *keys), tok.cfg.vae)
  rule = released.rules(cfg, names)["decoder.module_dict.dec_transformer.blocks.0.adaLN_modulation.1.bias"]
  assert cfg == tok.cfg and names.registers_first and rule.index == (0, slice(None, None, -1))
