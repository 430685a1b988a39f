"""Checkpoints: damage is told and gone round, what is read is what was saved, a full disk is a sentence."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vftok.runtime.checksums import _host, _sums, checksums
from vftok.train.checkpoint import Checkpoints, NotSaved
from vftok.train.state import TrainState

SHAPES = {"encoder": {"kernel": (40, 30), "bias": (30,)}}


def state(step, seed=0, width=30):
  rng = np.random.default_rng(seed)
  make = lambda shape: jnp.asarray(rng.standard_normal([width if n == 30 else n for n in shape]), jnp.float32)
  params = jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
  moments = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
  ema = jax.tree.map(lambda x: x + 1, params)
  rng = jax.random.key_data(jax.random.key(seed))
  return TrainState(jnp.int32(step), params, {}, moments, ema, rng)


def target(width=30):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0, width=width))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A workdir with steps 2 and 4."""
  workdir = tmp_path_factory.mktemp("run")
  checkpoints = Checkpoints(workdir)
  for step in (2, 4):
    checkpoints.save(step, state(step, seed=step), {"examples": 10 * step}, {"steps": 9, "levels": (1, 2)})
  checkpoints.close()
  return workdir


@pytest.fixture
def run(written, tmp_path):
  shutil.copytree(written / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


def restored(workdir, **options):
  checkpoints = Checkpoints(workdir, **options)
  try:
    return checkpoints.restore(target())
  finally:
    checkpoints.close()


def same(found, step):
  jax.tree.map(np.testing.assert_array_equal, found.state, state(step, seed=step))
  assert found.step == step and found.data["examples"] == 10 * step and found.config == {"steps": 9, "levels": [1, 2]}


def test_what_was_saved_comes_back(run):
  same(restored(run), 4)


def largest(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(folder):
  path = largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def cut(folder):
  path = largest(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def number(folder):
  path = next((folder / "data").rglob("metadata"))
  path.write_text(path.read_text().replace('"examples": 40', '"examples": 48'))


def other_step(folder):
  data = folder.parent / "2" / "data"
  shutil.rmtree(folder / "data")
  shutil.copytree(data, folder / "data")


def other_arrays(folder):
  shutil.rmtree(folder / "state")
  shutil.copytree(folder.parent / "2" / "state", folder / "state")


def no_json(folder):
  next((folder / "config").rglob("metadata")).write_text('{"steps"')


def without(*names):
  def run(folder):
    for name in names:
      shutil.rmtree(folder / name)

  return run


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def nothing_in(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


DAMAGE = dict(
  flipped=flip,
  cut=cut,
  another_position=number,
  position_of_another_step=other_step,
  arrays_of_another_step=other_arrays,
  half_a_config=no_json,
  no_data=without("data"),
  no_state=without("state"),
  empty=empty,
  emptied_files=nothing_in,
)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_told_and_gone_round(kind, run, capsys):
  DAMAGE[kind](run / "checkpoints" / "4")
  same(restored(run, read_only=True), 2)
  assert kind == "empty" or "4 is damaged (" in capsys.readouterr().out
  assert (run / "checkpoints" / "4").exists(), "nothing is moved by who only reads"
  same(restored(run), 2)
  names = {path.name for path in (run / "checkpoints").iterdir()}
  assert names == ({"2"} if kind == "empty" else {"2", "4.damaged"})
  checkpoints = Checkpoints(run)
  checkpoints.save(4, state(4, seed=4), {"examples": 40}, {"steps": 9, "levels": (1, 2)})
  checkpoints.close()
  same(restored(run), 4)


def test_nothing_whole_is_left(run):
  for step in ("2", "4"):
    flip(run / "checkpoints" / step)
  with pytest.raises(ValueError, match=r"holds no checkpoint that can be read; the newest, step 4, .*get a whole copy"):
    restored(run)


def test_what_is_left_of_a_checkpoint_is_no_reason_to_start_anew(run):
  shutil.rmtree(run / "checkpoints" / "2")
  shutil.rmtree(run / "checkpoints" / "4" / "state")
  checkpoints = Checkpoints(run)
  assert checkpoints.latest() == 4
  with pytest.raises(ValueError, match=r"the newest, step 4, is damaged \(files of it are missing\)"):
    checkpoints.restore(target())
  checkpoints.close()
  assert (run / "checkpoints" / "4").exists()


def test_another_model_is_no_damage(run):
  checkpoints = Checkpoints(run)
  with pytest.raises(ValueError, match=r"4 does not fit this config \(ema/encoder/bias is of shape \(30,\) in it"):
    checkpoints.restore(target(width=31))
  checkpoints.close()
  assert (run / "checkpoints" / "4").exists()


def test_a_part_alone(run):
  checkpoints, whole = Checkpoints(run, read_only=True), target()
  found = checkpoints.restore_part({"step": whole.step, "ema": whole.ema})
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, found.state["ema"], state(4, seed=4).ema)
  assert set(found.state) == {"step", "ema"}


def test_a_full_disk_is_one_sentence_and_older_checkpoints_stay(run):
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpoints = Checkpoints(run)
  big = state(6)
  rng = np.random.default_rng(0)
  big = big.replace(ema={"big": jnp.asarray(rng.standard_normal((300, 400)), jnp.float32)})
  try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    with pytest.raises(NotSaved) as error:
      checkpoints.save(6, big, {"examples": 60}, {})
      checkpoints.wait()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, before)
  checkpoints.close()
  sentence = str(error.value)
  assert f"{run}/checkpoints/6 could not be written (" in sentence and "File too large" in sentence
  assert "goes on from step 4" in sentence and len(sentence) < 400
  assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "4"}
  same(restored(run), 4)


def test_old_checkpoints_without_checksums_are_read(run):
  """Of versions that saved none: their data is {"examples": ...} alone."""
  path = next((run / "checkpoints" / "4" / "data").rglob("metadata"))
  path.write_text(json.dumps({"examples": 40}))
  same(restored(run), 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
def test_checksums_agree_on_host_and_device_and_see_every_bit(dtype):
  rng = np.random.default_rng(0)
  x = (
    jnp.asarray(rng.integers(0, 2, (5, 7, 3)), dtype)
    if dtype == "bool"
    else jnp.asarray(rng.normal(size=(5, 7, 3)) * 9).astype(dtype)
  )
  host = np.asarray(x)
  assert list(_host(host)) == [int(n) for n in jax.jit(_sums)(x)]
  other = host.copy()
  other.reshape(-1)[[3, 50]] = other.reshape(-1)[[50, 3]]
  if (other != host).any():
    assert _host(other)[0] == _host(host)[0] and _host(other)[1] != _host(host)[1]
  assert checksums({"a": x})["['a']"] == list(_host(host))


def test_umask_is_kept(tmp_path):
  before = os.umask(0o027)
  try:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), {"examples": 1}, {})
    checkpoints.close()
  finally:
    os.umask(before)
  modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
  assert modes == {"0o640"}


HOSTS = """
import sys
import jax, jax.numpy as jnp, numpy as np
address, count, index, workdir, what = sys.argv[1:]
jax.distributed.initialize(address, num_processes=int(count), process_id=int(index), initialization_timeout=120)
from jax.sharding import NamedSharding, PartitionSpec as P
from vftok.train.checkpoint import Checkpoints
from vftok.runtime.sharding import make_mesh
from vftok.train.state import TrainState

mesh = make_mesh({"data": 1, "fsdp": -1})
cut, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
put = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda i: x[i])
rng = np.random.default_rng(0)
params = {"a": put(rng.normal(size=(64, 300)).astype(np.float32), cut), "b": put(np.ones(3, np.float32), whole)}
key = put(np.arange(2, dtype=np.uint32), whole)

def state(step):
  moved = jax.tree.map(lambda x: x + step, params)
  return TrainState(put(np.int32(step), whole), moved, {}, {"m": params}, params, key)

checkpoints = Checkpoints(workdir)
with jax.set_mesh(mesh):
  if what == "save":
    for step in (2, 4):
      checkpoints.save(step, state(step), {"examples": step}, {})
  else:
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    found = checkpoints.restore(target)
    same = jax.tree.map(lambda x, y: bool((x == y).all()), found.state, state(found.step))
    print("STEP", found.step, all(jax.tree.leaves(same)), flush=True)
checkpoints.close()
"""


def hosts(count, workdir, what):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
  environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // count}"
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
  words = [[sys.executable, "-c", HOSTS, address, str(count), str(i), str(workdir), what] for i in range(count)]
  jobs = [subprocess.Popen(command, **pipes) for command in words]
  texts = [job.communicate(timeout=300)[0] for job in jobs]
  assert [job.returncode for job in jobs] == [0] * count, texts[0][-2000:]
  return texts


@pytest.mark.slow
def test_processes_agree_which_checkpoint_is_whole(tmp_path):
  hosts(2, tmp_path, "save")
  assert all("STEP 4 True" in text for text in hosts(2, tmp_path, "restore"))
  flip(tmp_path / "checkpoints" / "4")
  texts = hosts(2, tmp_path, "restore")
  assert all("STEP 2 True" in text for text in texts) and any("4 is damaged (" in text for text in texts)
  assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "4.damaged"}
  assert "STEP 2 True" in hosts(1, tmp_path, "restore")[0], "sums of two processes hold in one"
