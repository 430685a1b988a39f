"""Configs changed at random: a sentence or a model, never another exception."""

import copy
import json
import warnings

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import load_with


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
