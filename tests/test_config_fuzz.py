"""Configs changed at random: a sentence or a model, never another exception."""

import copy
import functools
import json
import warnings

import flextok_files
import pytest
import query_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import load_with

from vftok.convert import reference_config, semantok_ar
from vftok.families.evatok import reference as evatok_reference
from vftok.families.flextok import released as released_flextok
from vftok.families.query import larp_ar_weights
from vftok.families.query import released as query_released
from vftok.frozen.metrics import clip
from vftok.frozen.text import minilm, t5
from vftok.io import hub, shipped
from vftok.models import config_json
from vftok.models.config import GeneratorConfig, TokenizerConfig
from vftok.models.router import RouterConfig
from vftok.models.vae import VAEConfig


def places(tree, path=()):
  """Paths of all values in plain JSON."""
  children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
  for key, value in children:
    yield (*path, key)
    yield from places(value, (*path, key))


WORDS = [
  "",
  "full",
  "causal",
  "flexible",
  "sincos",
  "learnable_prod",
  "mask",
  "null",
  "float32",
  "videoflextok.FSQ",
]
SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-2, 40),
  st.sampled_from([64, 2**31, 2**63, 10**30, 10**400]),
  st.floats(),
  st.sampled_from(WORDS),
  st.text(max_size=8),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.sampled_from([*WORDS, "_target_"]), inner, max_size=3)
  ),
  max_leaves=6,
)


@st.composite
def mutated(draw, config):
  config = copy.deepcopy(config)
  for _ in range(draw(st.integers(1, 3))):
    paths = list(places(config))
    if not paths:
      break
    *parents, last = draw(st.sampled_from(paths))
    inner = config
    for parent in parents:
      inner = inner[parent]
    how = draw(st.sampled_from(["drop", "replace", "copy", "wrap", "rename", "deepen"]))
    if how == "drop":
      del inner[last]
    elif how == "replace":
      inner[last] = draw(VALUES)
    elif how == "copy":  # a value of another place: right kind, wrong meaning
      *others, name = draw(st.sampled_from(paths))
      source = config
      for parent in others:
        source = source[parent]
      inner[last] = copy.deepcopy(source[name])
    elif how == "wrap":
      inner[last] = draw(st.sampled_from([[inner[last]], {"x": inner[last]}, str(inner[last])]))
    elif how == "rename" and isinstance(inner, dict):
      inner[draw(st.text(max_size=6))] = inner.pop(last)
    elif how == "deepen":
      for _ in range(draw(st.sampled_from([3, 70, 300]))):
        inner[last] = [inner[last]]
  return config


def loads_or_says_why(model, directory, config):
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      load_with(model, directory, config)
  except (ValueError, FileNotFoundError) as error:
    assert "\n" not in str(error) and str(error).endswith("."), str(error)


HUGE = [10**400, "x" * 5000, [10**400] * 300, {"x" * 5000: 1}, 0]
T5 = dict(model_type="t5", vocab_size=9, d_model=8, num_layers=2, num_heads=2, d_kv=4, d_ff=8, dense_act_fn="relu")
T5 |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=9, layer_norm_epsilon=1e-6)
TOWER = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, hidden_act="gelu", layer_norm_eps=1e-5)
BERT = dict(model_type="bert", position_embedding_type="absolute", max_position_embeddings=7, type_vocab_size=2)
CLIP = dict(model_type="clip", projection_dim=8, text_config=TOWER | dict(vocab_size=9), vision_config=TOWER)
SEMANTOK = dict(depth=2, vocab=30, seq_len=10, n_classes=3, ctx_dim=4, n_ctx_null=1, head_bias=True)


def own(name, kind):
  """A shipped config, and what reads it."""
  return lambda: (hub.read_json(shipped.find(name) / "config.json"), lambda config: config_json.from_json(kind, config))


def released(name, key, read):
  return lambda: (json.loads(query_models.golden(name)[1][key]), read)


def flextok():
  weights, config, _ = flextok_files.golden_parts()
  prefix = released_flextok.VAE_PREFIX
  shapes = {k.removeprefix(prefix): a.shape for k, a in weights.items() if k.startswith(prefix)}
  vae = lambda config: released_flextok.vae_config(released_flextok.parts_of(config)["vae"], shapes)
  return config, lambda config: released_flextok.parse(config, vae(config))


READERS = {  # a good config, and what reads it without weights
  "tokenizer": own("vftok-mini", TokenizerConfig),
  "VAE": own("vftok-mini-vae", VAEConfig),
  "generator": own("vftok-mini-t2v", GeneratorConfig),
  "router": own("vftok-mini-router", RouterConfig),
  "VideoFlexTok": released("small", "config", lambda config: reference_config.parse(config, VAEConfig())),
  "FlexTok": flextok,
  "LARP": released("larp_small", "config", query_released.parse),
  "AdapTok": released("adaptok_small", "config", query_released.parse),
  "LARP's generator": released("larp_small", "ar_config", larp_ar_weights.parse),
  "EVATok": released("evatok_small", "config", evatok_reference.parse),
  "SemanTok's generator": lambda: (SEMANTOK, semantok_ar.parse),
  "T5": lambda: (T5, lambda config: t5.config_of("t5", config, "float32")),
  "BERT": lambda: (
    TOWER | BERT | dict(vocab_size=9, intermediate_size=8),
    lambda config: minilm.config_of("bert", config, "float32"),
  ),
  "CLIP": lambda: (CLIP, lambda config: clip._config_of("clip", config)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_no_config_has_is_a_short_sentence(name):
  """Each value of a config in turn, and each key."""
  config, read = READERS[name]()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    read(config)
    for *parents, last in list(places(config)):
      for value in (*HUGE, ...):
        changed = copy.deepcopy(config) if value is ... else config
        inner = functools.reduce(lambda part, key: part[key], parents, changed)
        before = inner[last]
        if value is not ...:
          inner[last] = value
        elif isinstance(inner, dict):
          inner["k" * 5000] = inner.pop(last)
        try:
          read(changed)
        except ValueError as error:
          said = str(error)
          assert type(error) is ValueError and len(said) < 400 and "\n" not in said, (*parents, last, said[:500])
        finally:
          inner[last] = before


FUZZ = settings(
  deadline=None,
  max_examples=60,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(data=st.data())
def test_any_released_config(small_dir, tmp_path, data):
  config = json.loads((small_dir / "config.json").read_text())
  loads_or_says_why(small_dir, tmp_path / "m", data.draw(mutated(config)))


@FUZZ
@given(data=st.data())
def test_any_own_config(own_dir, tmp_path, data):
  config = json.loads((own_dir / "config.json").read_text())
  loads_or_says_why(own_dir, tmp_path / "m", data.draw(mutated(config)))
