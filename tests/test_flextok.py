"""FlexTok, the image model: the reference's own numbers, its interface, and its VAE by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flextok_files import pictures, written

import vftok
from vftok.families.flextok import FlexTok, released, vae_weights
from vftok.models import flow
from vftok.tools.parity_flextok import check_flextok

pytestmark = [
  pytest.mark.filterwarnings("ignore:released FlexTok weights"),
]


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


def test_guidance_has_the_image_pipelines_constants_and_norms_over_a_whole_picture(image_model, image_parts):
  (tok, params), g = image_model, image_parts[2]
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


# ---- the interface


@pytest.mark.slow
def test_a_video_is_pictures_by_themselves(image_model, image_parts):
  (tok, params), image = image_model, pictures(image_parts[2]["in.image"])
  assert (tok.chunk_frames, tok.overlap_frames, tok.chunk_steps, tok.registers) == (1, 0, 1, 16)
  assert (tok.nested, tok.one_pass, tok.frame_size, tok.codebook_size) == (True, False, (64, 64), 64_000)
  video = np.concatenate([image[:1], image[1:], image[:1]], axis=1)
  tokens = tok.encode(params, video)
  assert np.array_equal(np.asarray(tokens.ids)[0], image_parts[2]["ids"][[0, 1, 0]]) and tokens.frames == 3
  assert len(list(tok.encode_stream(params, [video[:, :2], video[:, 2:]]))) == 3
  pad = tok.encode(params, video, fit="pad", budget=4)
  assert pad.keep.tolist() == [[4, 4, 4]] and pad.frames == 3
  noise = [pictures(image_parts[2]["in.noise"])[:1]] * 3
  out = tok.decode(params, tokens, noise=noise, steps=2, guidance=None)
  assert (
    out.shape == (1, 3, 64, 64, 3) and np.array_equal(out[:, 0], out[:, 2]) and not np.array_equal(out[:, 0], out[:, 1])
  )
  assert [p.shape[1] for p in tok.decode_stream(params, tokens, noise=noise, steps=2, guidance=None)] == [1, 1, 1]
  latents = tok.encode_latents(params, video[:, :2])  # of any number of frames
  assert latents.shape == (1, 2, 8, 8, 4)
  np.testing.assert_allclose(latents[:, :1], tok.encode_latents(params, video[:, :1]), atol=1e-5)


def test_described_and_opened_in_bfloat16(image_model, image_dir):
  tok, params = image_model
  facts = tok.describe(params)
  assert facts["parameters"] == {"vae": 1_067_079, "encoder": 101_574, "decoder": 134_704, "total": 1_303_357}
  assert facts["fingerprint"] == tok.fingerprint(params)
  assert (tok.cfg.guidance, tok.cfg.scale, tok.cfg.solver_steps) == ("apg", 7.5, 20)
  other, _ = vftok.load(image_dir, dtype="bfloat16")
  assert other.cfg.vae.dtype == other.cfg.decoder.stack.dtype == "bfloat16"
  assert other.fingerprint(params) == tok.fingerprint(params)
  scaled = dataclasses.replace(tok.cfg, vae=dataclasses.replace(tok.cfg.vae, scaling=0.7))
  assert FlexTok(scaled).fingerprint(params) != tok.fingerprint(params)


# ---- the VAE by itself


def test_a_vae_opens_by_itself_in_diffusers_layout(image_model, image_parts, tmp_path):
  prefix = released.VAE_PREFIX
  weights = {key.removeprefix(prefix): value for key, value in image_parts[0].items() if key.startswith(prefix)}
  config = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "scaling_factor": 0.6,
    "block_out_channels": [32, 32, 32, 64],
  }
  folder = written(tmp_path / "vae", weights, config)
  (folder / "model.safetensors").rename(folder / vae_weights.WEIGHTS)
  cfg, params = vae_weights.load_vae(folder)
  assert cfg == image_model[0].cfg.vae and jax.tree.all(jax.tree.map(np.array_equal, params, image_model[1]["vae"]))
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
  with pytest.raises(ValueError, match="4 levels of 99 blocks, expected at most 32"):
    dataclasses.replace(cfg, blocks=99)
  shallow = dataclasses.replace(cfg, blocks=1)
  assert vae_weights.stated_otherwise(shallow, {"layers_per_block": 1}) == ""
  assert vae_weights.stated_otherwise(shallow, {"layers_per_block": True}) == "layers_per_block = True and tensors of 1"


@pytest.mark.slow
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
