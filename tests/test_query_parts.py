"""Parts of LARP and AdapTok: the prior over kept tokens, fresh parameters of all, files and widths of other shapes."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from query_models import random_model, random_video, small_config
from safetensors.numpy import load_file, save_file
from starts import started

import vftok
from vftok.families.query import nets, vq
from vftok.families.query import released as released_config
from vftok.families.query.config import PriorConfig
from vftok.models.layers import unit
from vftok.tokens import VideoTokens

KEY = jax.random.key(0)


def test_the_prior_reads_kept_tokens_first():
  prior = PriorConfig(1, 8, 16, 8, 2)
  tok, params = random_model(small_config(True), prior=prior)
  ids = np.random.default_rng(0).integers(0, 24, (1, 2, 4))
  tokens = VideoTokens.full(ids).truncate(np.array([2, 3]))
  out = tok.prior_logits(params, tokens)
  kept = [0, 1, 4, 5, 6]
  codes = vq.codes_of(tok.cfg.vq, params["quantizer"]["table"], tokens.ids.reshape(1, -1)[:, kept])
  rows = np.array([kept])[:, :-1]
  pred = jax.jit(nets.Prior(tok.cfg).apply)({"params": params["prior"]}, codes[:, :-1], rows)
  expected = unit(pred) @ unit(params["quantizer"]["table"]).T
  np.testing.assert_allclose(out[:, :4], expected, atol=1e-5)


@pytest.mark.slow
def test_fresh_parameters(tmp_path):
  scorer = {"scorer_hidden_size": 16, "scorer_num_heads": 2, "scorer_depth": 1, "scorer_step": 2}
  config = small_config(True, **scorer, vq_stochastic_temperature=-1.0)
  tok, _ = random_model(config, scorer=True, prior=PriorConfig(1, 64, 64, 8, 1))
  boxed = started(functools.partial(tok.init, boxed=True))
  assert all(hasattr(x, "names") for x in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names")))
  params = nn.unbox(boxed)
  assert not np.any(params["decoder"]["head"]["kernel"]) and np.std(params["encoder"]["queries"]) < 0.04
  assert np.std(params["quantizer"]["table"]) == pytest.approx(0.5**0.5, rel=0.15)  # Kaiming, 4 channels
  tok.save(boxed, tmp_path / "model")
  again, loaded = vftok.load(tmp_path / "model")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert again.cfg.prior.dim == 64 and again.cfg.scorer
  assert np.allclose(tok.decode(params, tok.encode(params, random_video(tok)), clip=False), -1)  # a last layer of zeros


@pytest.mark.parametrize(
  ("changes", "key"),
  [
    ({"learned_encoder_latent_query_embed": False}, "encoder_latent_query_embed"),
    ({"vq_stochastic_temperature": -1.0}, "bottleneck.regularizer.stochastic_temperature_inv"),
  ],
)
def test_an_axis_in_front_stays(changes, key, tmp_path):
  tok, params = random_model(small_config(**changes))
  tok.save(params, tmp_path / "model")
  tensors = load_file(file := tmp_path / "model" / "model.safetensors")
  tensors[key] = tensors[key][None]
  save_file(tensors, file)
  again, loaded = vftok.load(tmp_path / "model")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  again.save(loaded, tmp_path / "saved")
  saved = load_file(tmp_path / "saved" / "model.safetensors")
  assert {k: a.shape for k, a in saved.items()} == {k: a.shape for k, a in tensors.items()}


@pytest.mark.parametrize(
  ("width", "learned", "multiple"),
  [(6, "patches tokens", 1), (9, "patches tokens", 1), (6, "patches", 2), (9, "patches", 2), (6, "tokens", 4)],
)
def test_widths_are_multiples_where_positions_are_fixed(width, learned, multiple):
  switches = {
    "encoder": ("learned_encoder_patch_pe", "learned_encoder_latent_query_embed"),
    "decoder": ("learned_decoder_patch_query_embed", "learned_decoder_latent_pe"),
  }
  for part, (patches, tokens) in switches.items():
    changes = {patches: "patches" in learned, tokens: "tokens" in learned}
    config = small_config(**{f"{part}_hidden_size": width, f"{part}_num_heads": 3}, **changes)
    if not width % multiple:
      tok, params = random_model(config)
      assert tok.decode(params, tok.encode(params, random_video(tok))).shape == (1, 8, 16, 16, 3)
    else:
      with pytest.raises(ValueError, match=f"{part}_hidden_size = {width}, expected a multiple of {multiple}, as"):
        released_config.parse(config)
