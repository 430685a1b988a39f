"""The layout of released FlexTok models: what is refused, each in one sentence."""

import jax
import numpy as np
import pytest
from flextok_files import changed, written

import vftok
from vftok.families.flextok import released

pytestmark = [
  pytest.mark.filterwarnings("ignore:released FlexTok weights"),
]


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
  "positions that nothing reads": (
    [("enc/enc_posemb_module.write_key", "posed")],
    "'enc_vae_latents_patched', which holds patches without positions",
  ),
  "a transformer that nothing reads": (
    [("dec/dec_transformer.output_seq_write_key", "out")],
    "'dec_packed_seq', which holds the transformer's input",
  ),
  "time of no embedder": ([("dec/dec_to_patches.adaLN_emb_read_key", "temb")], "reads 'temb', which no module before"),
  "a regularizer of nothing": ([("regularizer.latents_read_key", "z")], "the regularizer reads 'z'"),
  "too large": ([("enc/enc_register_module.n_max", 10**9)], "registers"),
  "other tensors": ([("enc/enc_transformer.depth", 3)], "transformer.blocks.2.attn.wk.weight and 5 more"),
  "of another shape": ([("enc/enc_transformer.mlp_ratio", 2.0)], "with shape (170, 64), expected (85, 64)"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_is_not_known_is_refused_in_one_sentence(name, image_parts, tmp_path):
  changes, sentence = BAD_CONFIGS[name]
  with pytest.raises(ValueError) as error:
    vftok.load(written(tmp_path, image_parts[0], changed(image_parts[1], *changes)))
  text = str(error.value)
  assert sentence in text and len(text) < 400 and text.endswith(".") and "\n" not in text


def moved(config, part, name, behind):
  """A copy of a config where module `name` of a part comes right after module `behind`."""
  modules = dict(config[part]["module_dict"])
  module, order = modules.pop(name), {}
  for other, spec in modules.items():
    order |= {other: spec} | ({name: module} if other == behind else {})
  return changed(config, (f"{part}.module_dict", order))


ORDERS = {
  "positions": ("encoder", "enc_posemb_module", "enc_seq_packer", "comes after 'enc_seq_packer'"),
  "a mask vector": ("decoder", "dec_nested_dropout", "dec_unpacker", "comes after 'dec_seq_packer'"),
  "a transformer": ("encoder", "enc_transformer", "enc_unpacker", "unpacks before a transformer"),
  "a time embedder": ("decoder", "dec_time_embedder", "dec_to_patches", "reads 'dec_temb', which no module before it"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_module_that_comes_too_late_is_refused(name, image_model, image_parts):
  """Modules run in the config's order: one that comes too late would change nothing, or had nothing to read."""
  *where, sentence = ORDERS[name]
  with pytest.raises(ValueError) as error:
    released.parse(moved(image_parts[1], *where), image_model[0].cfg.vae)
  text = str(error.value)
  assert sentence in text and len(text) < 400 and text.endswith(".") and "\n" not in text


def test_modules_may_come_in_any_order_that_works(image_model, image_parts):
  config = moved(image_parts[1], "decoder", "dec_time_embedder", "dec_from_latents")
  config = moved(config, "encoder", "enc_posemb_module", "enc_register_module")
  assert released.parse(config, image_model[0].cfg.vae)[0] == image_model[0].cfg


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
def test_weights_that_do_not_fit_are_refused_in_one_sentence(name, image_parts, tmp_path):
  change, sentence = BAD_WEIGHTS[name]
  with pytest.raises(ValueError) as error:
    vftok.load(written(tmp_path, change(image_parts[0]), image_parts[1]))
  text = str(error.value)
  assert sentence in text and len(text) < 400 and "\n" not in text


def tokens(value: int) -> vftok.VideoTokens:
  return vftok.VideoTokens.full(np.full((1, 1, 16), value))


CALLS = {
  "size": (lambda t, p: t.encode(p, np.zeros((1, 1, 32, 64, 3), np.uint8)), "expected 64x64"),
  "an image without frames": (
    lambda t, p: t.encode(p, np.zeros((1, 64, 64, 3), np.uint8)),
    "expected [B, F, 64, 64, 3]",
  ),
  "range": (lambda t, p: t.encode(p, np.full((1, 1, 64, 64, 3), 200.0)), "pass uint8"),
  "first frames": (
    lambda t, p: t.decode(p, tokens(0), first_frames=np.zeros((1, 1, 64, 64, 3))),
    "first_frames are given",
  ),
  "ids": (lambda t, p: t.decode(p, tokens(64_000), jax.random.key(0)), "64000"),
  "no key": (lambda t, p: t.decode(p, tokens(0)), "neither key nor noise"),
  "two steps as one": (lambda t, p: t.features(p, np.zeros((1, 2, 8, 8, 4), np.float32)), "at most 1"),
  "an option": (lambda t, p: vftok.load("x", dino="y"), "does not exist"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls_are_one_sentence(name, image_model):
  call, sentence = CALLS[name]
  tok, params = image_model
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    call(tok, params)
  assert sentence in str(error.value) and len(str(error.value)) < 400


def test_options_of_other_families_are_named(image_dir):
  with pytest.raises(ValueError, match="'dino' is no option of loading a model of the family flextok"):
    vftok.load(image_dir, dino="weights")
