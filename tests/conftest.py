"""One CPU device for every test, and the small shared model, written out and loaded once per session."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported anywhere
# Tests run each program a few times and compile hundreds: quick code that is made slowly is the wrong trade here.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"  # each of two workers has one core
if version("jaxlib") < "0.11":  # the older emitters compile in half the time; later versions do not know the flag
  FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

import json  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

SMALL = Path(__file__).parent / "data" / "small.safetensors"


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory) -> Path:
  """A released model's directory: the weights under `w.` of small.safetensors and its config."""
  from safetensors import safe_open
  from safetensors.numpy import save_file

  directory = tmp_path_factory.mktemp("models") / "small"
  directory.mkdir()
  with safe_open(SMALL, "np") as file:
    weights = {key[2:]: file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
    config = json.loads(file.metadata()["config"])
  save_file(weights, directory / "model.safetensors")
  (directory / "config.json").write_text(json.dumps(config))
  return directory


@pytest.fixture(scope="session")
def small(small_dir):
  """(tokenizer, params, golden arrays by name, as torch laid them out)."""
  from safetensors import safe_open

  from vftok import Tokenizer

  tok, params = Tokenizer.load(small_dir)
  with safe_open(SMALL, "np") as file:
    golden = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("w.")}
  return tok, params, golden


@pytest.fixture(scope="session")
def image_parts():
  """(weights, config, golden arrays by name) of the small image model."""
  from flextok_files import golden_parts

  return golden_parts()


@pytest.fixture(scope="session")
def image_dir(image_parts, tmp_path_factory) -> Path:
  """The small image model's directory, as released ones are laid out."""
  from flextok_files import written

  return written(tmp_path_factory.mktemp("models") / "flextok", *image_parts[:2])


@pytest.fixture(scope="session")
def image_model(image_dir):
  """(tokenizer, params) of the small image model."""
  import warnings

  import vftok

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its licence
    return vftok.load(image_dir)


@pytest.fixture(scope="session")
def own_dir(small, tmp_path_factory) -> Path:
  """The small model in our own layout."""
  directory = tmp_path_factory.mktemp("own") / "small"
  small[0].save(small[1], directory)
  return directory


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> str:
  """One for all workers of this run, gone with its other temporary files."""
  base = tmp_path_factory.getbasetemp()
  return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")


@pytest.fixture(scope="session", autouse=True)
def compile_cache(cache_dir):
  """Each program is compiled once for all modules and both workers of a run."""
  import jax

  jax.config.update("jax_compilation_cache_dir", cache_dir)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


RANKED = (
  *"ar_inputs draft evatok evatok_model flextok heads larp_ar lengths models one_pass_loss order".split(),
  *"query query_parts vae".split(),
)


@pytest.fixture(scope="module", autouse=True)
def ranks(request):
  """In tests of networks and families no rank is promoted in silence: a mask of the wrong axes would fit as well."""
  import jax

  with jax.numpy_rank_promotion("raise" if request.path.stem.removeprefix("test_") in RANKED else "allow"):
    yield


LONGEST = tuple(
  f"test_{name}.py"
  for name in (
    "bare",
    "generation_eval",
    "train",
    "multidevice",
    "reconstruction",
    "ar_task",
    "ar_adaptive",
    "generate_adaptive",
    "router",
    "tokenizer",
    "switches",
    "same_model",
    "parity",
    "generator",
    "vae",
  )
)


def pytest_collection_modifyitems(items):
  """The longest files first: with one file per worker at a time, the last one started decides when the suite ends."""
  items.sort(key=lambda item: item.path.name not in LONGEST)


def _smoke_tokenizer():
  from configs import tokenizer as experiment
  from vftok import Tokenizer
  from vftok.models.config import TokenizerConfig
  from vftok.models.config_json import from_dict

  return Tokenizer(from_dict(TokenizerConfig, experiment.get_config("smoke").model.to_dict()))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  """(tokenizer, params, path) of the smoke size as training starts with it."""
  from starts import started

  tok = _smoke_tokenizer()
  params = started(tok.init)
  path = tmp_path_factory.mktemp("tok") / "model"
  tok.save(params, path)
  return tok, params, str(path)


@pytest.fixture
def as_cudnn(monkeypatch):
  """XLA in cuDNN's place: it checks what cuDNN is asked for and not what it does."""
  import jax

  plain = jax.nn.dot_product_attention
  forced = lambda *a, implementation="", **k: plain(*a, **k, implementation="xla")
  monkeypatch.setattr(jax.nn, "dot_product_attention", forced)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
  """(path, tokenizer, params) of the smoke size: 4 registers, 5 time steps; random, no layer still zero."""
  import jax
  import numpy as np

  tok = _smoke_tokenizer()
  leaves, tree = jax.tree.flatten(jax.eval_shape(tok.init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = tree.unflatten([np.float32(0.2) * rng.standard_normal(x.shape, np.float32) for x in leaves])
  path = tmp_path_factory.mktemp("tok") / "model"
  tok.save(params, path)
  return path, tok, params


@pytest.fixture(scope="session")
def routers(random_model, tmp_path_factory):
  """{head: directory} of routers for `random_model` that have learned nothing."""
  from router_files import untrained

  return untrained(random_model, tmp_path_factory.mktemp("router"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
  """{net: file} of tiny frozen feature nets."""
  from feature_files import tiny_nets

  return tiny_nets(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def quick_programs():
  """Programs run once here: XLA need not polish them. A config's shapes are found once, not at every load."""
  import functools

  import jax

  from vftok.convert import load

  found = functools.cache(load.abstract_params)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(load, "abstract_params", found)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
