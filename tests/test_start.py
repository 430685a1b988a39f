"""What a command pays before it works: programs compiled, models traced for their shapes. Counted, never timed."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok import Tokenizer
from vftok.convert import load
from vftok.io import leaves
from vftok.runtime import memory
from vftok.tokenizer import identity, programs

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
  """A list that gets an entry for every program compiled, or read from disk, meanwhile."""
  seen = []
  count = lambda event, seconds, **_: seen.append(seconds) if event == COMPILED else None
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_duration_listener(count)


def test_the_counter_counts():
  with compilations() as seen:
    jnp.arange(1237) * 3
  assert seen


def test_loading_compiles_nothing_and_encoding_few_programs(random_model):
  path, tok, params = random_model
  with compilations() as seen:
    loaded = Tokenizer.load(path)[1]
    assert tok.fingerprint(loaded) == tok.fingerprint(params)
  assert seen == []
  jax.clear_caches()  # whatever other tests have run
  with compilations() as seen:
    tokens = tok.encode(loaded, np.zeros((1, tok.chunk_frames, *tok.frame_size, 3), np.uint8))
  assert 3 <= len(seen) <= 7  # the VAE, the encoder, its ids, counts, and what else single operations need at first
  assert tokens.ids.shape == (1, tok.chunk_steps, tok.registers)


def test_a_fingerprint_is_the_same_from_the_host_and_from_the_device(random_model, monkeypatch):
  _, tok, params = random_model
  mine = tok.fingerprint(params)
  monkeypatch.setattr(identity.jax, "default_backend", lambda: "gpu")
  assert tok.fingerprint(jax.device_put(params)) == mine


def test_ids_are_those_of_the_single_operations(random_model):
  _, tok, _ = random_model
  z = 3 * np.random.default_rng(0).standard_normal((2, 5, 4, len(tok.levels)), np.float32)
  with jax.disable_jit():
    expected = programs.ids_of(tok.cfg, jnp.asarray(z))
  np.testing.assert_array_equal(programs.ids_of(tok.cfg, z), expected)


@pytest.fixture
def cache(tmp_path):
  """A folder of its own for what is kept between processes."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
  load.abstract_params.cache_clear()
  yield tmp_path / "cache"
  jax.config.update("jax_compilation_cache_dir", before)


def test_a_model_is_traced_for_its_shapes_once_and_never_again(random_model, cache, monkeypatch):
  path, _, params = random_model
  Tokenizer.load(path)
  assert len(list(cache.glob("shapes-*.json"))) == 1
  load.abstract_params.cache_clear()  # as in another process
  monkeypatch.setattr(jax, "eval_shape", None)
  again = Tokenizer.load(path)[1]
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, params)


def test_damaged_shapes_are_found_again(cache):
  init = lambda key: {"a": {"b": jnp.zeros((2, 3)), "c": jnp.zeros((), jnp.int32)}}
  first = leaves.leaves_of("a config", init)
  (path,) = cache.glob("shapes-*.json")
  whole = path.read_text()
  for damaged in ("", "[1]", '{"a": 3}', '{"a": [[2], "nothing"]}', whole[:-1]):
    path.write_text(damaged)
    assert leaves.leaves_of("a config", init) == first
    assert path.read_text() == whole


def test_shapes_of_another_config_or_another_code_are_not_taken(cache, monkeypatch):
  other = leaves._file("a config")
  assert leaves._file("another") != other
  monkeypatch.setattr(leaves, "_code", lambda: [("ar.py", 1, 2)])
  assert leaves._file("a config") != other
  jax.config.update("jax_compilation_cache_dir", None)
  assert leaves._file("a config") is None


def test_where_nothing_can_be_kept_shapes_are_found_all_the_same(tmp_path, cache):
  (tmp_path / "cache").write_text("a file in the way")
  init = lambda key: {"a": jnp.zeros((2, 3))}
  assert leaves.leaves_of("a config", init)[("a",)].shape == (2, 3)


def test_small_programs_are_kept_too(tmp_path, monkeypatch):
  monkeypatch.setenv("VFTOK_CACHE", str(tmp_path))
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = [getattr(jax.config, name) for name in names]
  try:
    jax.config.update(names[0], None)
    memory.use_compile_cache()
    assert Path(jax.config.jax_compilation_cache_dir) == tmp_path / "jax"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  finally:
    for name, value in zip(names, before, strict=True):
      jax.config.update(name, value)
