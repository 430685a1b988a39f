"""Parts of LARP and AdapTok that training makes: the prior over kept tokens, fresh parameters of all."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from query_models import random_model, random_video, small_config
from starts import started

import vftok
from vftok.families.query import nets, vq
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
