"""The loop: stop and resume without a trace, NaN, SIGTERM, metrics, accumulation, donation, one compile."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vftok.runtime import sharding
from vftok.tasks import TASKS, make_task
from vftok.train import evaluate, loop, optim
from vftok.train.state import init_state, logical_axes, merge, split
from vftok.train.writer import keep_until, read_metrics

ROOT = Path(__file__).parents[1]
CASES = (
  "pixels",
  *(pytest.param(name, marks=pytest.mark.slow) for name in ("tokenizer", "grid", "vae", "larp", "adaptok", "evatok")),
)


def config(name: str, **changes):
  """A smoke config; "pixels" is the VAE's, for the smallest task there is, see the fixture."""
  sys.path.insert(0, str(ROOT))
  module = __import__(f"configs.{dict(pixels='vae', grid='tokenizer').get(name, name)}", fromlist=["get_config"])
  cfg = module.get_config("grid_smoke" if name == "grid" else "smoke")
  for key, value in changes.items():
    cfg.update_from_flattened_dict({key: value})
  return cfg


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
  """name -> workdir of an uninterrupted run of that config, made when it is first asked for."""

  @functools.cache
  def workdir(name: str) -> Path:
    path = tmp_path_factory.mktemp("runs") / name
    with pytest.MonkeyPatch.context() as patch:
      if name == "pixels":
        patch.setitem(TASKS, "vae", "pixel_task:PixelTask")
      loop.run(config(name), path)
    return path

  return workdir


@pytest.fixture
def pixels(monkeypatch):
  """Configs of the VAE train the smallest task there is."""
  monkeypatch.setitem(TASKS, "vae", "pixel_task:PixelTask")


def trace(workdir):
  rows = read_metrics(workdir / "metrics.jsonl")
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_stop_and_resume_leave_the_trace_of_one_run(name, whole_run, tmp_path, capsys, request):
  if name == "pixels":
    request.getfixturevalue("pixels")
  cut = config(name)
  cut.minutes = 1e-9  # stops and saves after the first step
  loop.run(cut, tmp_path)
  assert [row["step"] for row in trace(tmp_path)] == [1]
  loop.run(config(name), tmp_path)
  assert trace(tmp_path) == trace(whole_run(name))
  assert [row["step"] for row in trace(tmp_path)] == [1, 2, 3, 4]
  assert "note: minutes is 0.0" in capsys.readouterr().out
  for part in (path.name for path in (tmp_path / "model").iterdir()):
    assert (tmp_path / "model" / part).read_bytes() == (whole_run(name) / "model" / part).read_bytes()


@pytest.mark.slow
def test_another_batch_size_repeats_and_skips_nothing(tmp_path):
  """The position is carried as examples seen; today's config says nothing about it."""
  from vftok.data.configured import train_loader

  loop.run(config("vae", steps=2), tmp_path)
  larger = config("vae", steps=3, batch_size=8)
  loop.run(larger, tmp_path)
  with train_loader(larger, 2 * 4) as loader:
    assert trace(tmp_path)[-1]["data/ids"] == loop._ids(next(iter(loader)))["data/ids"]
  loop.run(config("vae", steps=4), tmp_path)
  with train_loader(config("vae"), 2 * 4 + 8) as loader:
    assert trace(tmp_path)[-1]["data/ids"] == loop._ids(next(iter(loader)))["data/ids"]


@pytest.mark.slow
def test_lines_beyond_the_checkpoint_are_written_again_not_twice(whole_run, tmp_path):
  loop.run(config("tokenizer", steps=2), tmp_path)  # saves at 2
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + json.dumps({"step": 3, "loss": 99.0}) + '\n{"step": 4, "lo')
  loop.run(config("tokenizer"), tmp_path)
  assert [row["step"] for row in trace(tmp_path)] == [1, 2, 3, 4]
  assert all(row["loss"] < 50 for row in trace(tmp_path))


def test_a_run_leaves_something_to_see(whole_run):
  workdir = whole_run("pixels")
  for name, size in {"curves.png": 100, "config.json": 100, "model/config.json": 10, "metrics.jsonl": 100}.items():
    assert (workdir / name).stat().st_size > size
  assert list((workdir / "tensorboard").iterdir())


def refuses(params, batches):
  raise ValueError("init_from holds another model")


REFUSED = {  # changes of the config -> words of the sentence
  "init_from": ({}, "init_from holds another"),
  "resume_from": ({"resume_from": "nowhere"}, "nowhere, which has no checkpoint"),
  "freeze": ({"freeze": ("nothing",)}, "freeze names 'nothing'"),
  "every": ({"optim.every": {"nothing": 2}}, "optim names 'nothing'"),
  "follow": ({"optim.follow": {"nothing": 2}}, "optim names 'nothing'"),
  "schedule": ({"optim.schedule": "up"}, "optim.schedule is 'up'"),
  "task": ({"task": "magic"}, "config.task is 'magic'"),
  "sources": ({"data.sources": {"x": {"kind": "x"}}}, "kind is 'x'"),
  "wandb": ({"wandb": "x"}, "wandb is not installed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_start_leaves_things_as_they_were(name, pixels, monkeypatch, tmp_path, whole_run):
  changes, sentence = REFUSED[name]
  cfg = config("vae")
  with cfg.unlocked():
    for key, value in changes.items():
      *parents, last = key.split(".")
      inner = functools.reduce(getattr, parents, cfg)
      inner[last] = type(inner[last])(value)
  if name == "init_from":
    monkeypatch.setattr("pixel_task.PixelTask.start", staticmethod(refuses))
  monkeypatch.setattr("vftok.train.writer.present", lambda module: module != "wandb")
  with pytest.raises(ValueError, match=sentence):
    loop.run(cfg, tmp_path / "new" / "run")
  assert not list(tmp_path.iterdir())
  if name not in ("init_from", "resume_from"):  # which a run that goes on does not look at
    before = {path: path.stat().st_mtime_ns for path in whole_run("pixels").rglob("*")}
    with pytest.raises(ValueError, match=sentence):
      loop.run(cfg, whole_run("pixels"))
    assert {path: path.stat().st_mtime_ns for path in whole_run("pixels").rglob("*")} == before


def test_evaluating_nothing_leaves_nothing(pixels, tmp_path):
  with pytest.raises(ValueError, match="has no checkpoint: train first"):
    evaluate.run(config("vae"), tmp_path / "new" / "run")
  assert not list(tmp_path.iterdir())


def test_nan_stops_the_run_and_names_the_last_good_step(pixels, tmp_path):
  cfg = config("vae", steps=40, save_every=2)
  cfg.optim.lr, cfg.optim.warmup, cfg.optim.clip = 1e30, 2, 0.0
  with pytest.raises(loop.NotFinite, match=r"at step \d+, .*(no step was saved|last good checkpoint is step \d+)"):
    loop.run(cfg, tmp_path)
  losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
  assert np.isfinite(losses).all()


@pytest.mark.slow  # test_bare has a run and its evaluation in the fast half
def test_evaluation_of_a_run(whole_run, tmp_path):
  values = evaluate.run(config("tokenizer"), whole_run("tokenizer"))
  assert np.isfinite(values["shapes/psnr/keep 4"]) and np.isfinite(values["shapes/psnr/VAE alone"])
  assert (whole_run("tokenizer") / "eval" / "shapes" / "report.html").exists()
  with pytest.raises(ValueError, match="has no checkpoint: train first"):
    evaluate.run(config("tokenizer"), tmp_path)


@pytest.mark.slow
def test_a_trained_model_loads_and_media_show_it(whole_run):
  from vftok import Tokenizer

  tok, params = Tokenizer.load(whole_run("tokenizer") / "model")
  video = np.random.default_rng(0).integers(0, 255, (1, 17, 16, 16, 3), np.uint8)
  assert tok.encode(params, video).ids.shape == (1, 5, 4)
  cfg = config("tokenizer")
  grid = make_task(cfg).media(params, {"vae": params["vae"]}, {"video": video})["reconstruction"]
  assert grid.dtype == np.uint8 and grid.shape[0] == 17


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"batch_size": 3, "accumulate": 2}, "batch_size is 3, expected a multiple of 2"),
    ({"mesh.data": 3}, "the mesh .* does not fill the 1 devices"),
    ({"task": "poet"}, "config.task is 'poet', expected one of vae, tokenizer"),
    ({"freeze": ("encodr",)}, "freeze names 'encodr'"),
    ({"optim.schedule": "zigzag"}, "optim.schedule is 'zigzag'"),
    ({"resume_from": "/nowhere-at-all"}, "config.resume_from is /nowhere-at-all"),
    ({"loss.time": "sometimes"}, "noise law is 'sometimes'"),
    ({"loss.nested": "half"}, "nested law is 'half'"),
    ({"data.sources": {"shapes": {"kind": "shape"}}}, "kind is 'shape'"),
  ],
)
def test_bad_configs_give_one_sentence(changes, message, tmp_path, request):
  if "data.sources" in changes:  # found after the first parameters are made: few of them
    request.getfixturevalue("pixels")
  cfg = config("pixels" if "data.sources" in changes else "tokenizer")
  with cfg.unlocked():
    for key, value in changes.items():
      part, _, leaf = key.rpartition(".")
      setattr(cfg[part] if part else cfg, leaf, value)
  if "resume_from" in changes:
    cfg.resume_from = str(tmp_path / "nowhere-at-all")
    message = "which has no checkpoint"
  with pytest.raises(ValueError, match=message):
    loop.run(cfg, tmp_path / "run")


@pytest.mark.slow
def test_resuming_another_model_is_refused(whole_run, tmp_path):
  cfg = config("vae")
  cfg.resume_from = str(whole_run("pixels"))
  with pytest.raises(ValueError, match="does not fit this config"):
    loop.run(cfg, tmp_path)


def _state_and_batch(cfg, batch=8):
  task = make_task(cfg)
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
  mesh = sharding.make_mesh({"data": -1})
  state, _ = init_state(task.init, tx, mesh, seed=0, ema=True, freeze=cfg.freeze)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 255, (batch, 17, 16, 16, 3), np.uint8)
  return task, tx, state, {"video": jnp.asarray(video), "_mask": jnp.ones(batch, bool)}


@pytest.mark.parametrize("name", ["pixels", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_accumulation_is_the_big_batch_and_the_state_is_donated(name, request):
  if name == "pixels":
    request.getfixturevalue("pixels")
  cfg = config("vae" if name == "pixels" else name)
  if name == "tokenizer":
    cfg.loss.usage = 0.0  # a statistic of the batch: slices have their own
  cfg.optim.warmup = 0
  task, tx, state, batch = _state_and_batch(cfg)
  frozen = task.frozen()
  results = {}
  for parts in (1, 4):
    cfg.accumulate = parts
    step = functools.partial(loop.train_step, task=task, tx=tx, cfg=cfg)
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    analysis = compiled.memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert analysis.alias_size_in_bytes >= 0.9 * size
    new, metrics = compiled(jax.tree.map(jnp.copy, state), frozen, batch)
    results[parts] = (float(metrics["loss"]), new.params)
  assert results[1][0] == pytest.approx(results[4][0], rel=1e-5)
  for a, b in zip(*(jax.tree.leaves(r[1]) for r in results.values()), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)  # Adam's first step is a sign: near zero gradients may differ


@pytest.mark.parametrize("name", ["pixels", pytest.param("tokenizer", marks=pytest.mark.slow)])
def test_one_compile_for_all_steps(name, request, tmp_path):
  if name == "pixels":
    request.getfixturevalue("pixels")
  with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
    names = []
    patch.setattr("jax._src.dispatch.log_elapsed_time", _counting(names))
    loop.run(config("vae" if name == "pixels" else name), tmp_path)
  assert sum("train_step" in name for name in names) == 1


def _counting(names):
  import contextlib

  @contextlib.contextmanager
  def log(fmt, fun_name=None, event=None):
    if "XLA compilation" in fmt:
      names.append(str(fun_name))
    yield

  return log


def test_split_and_merge_are_inverse():
  tree = {"a": {"b": 1, "c": 2}, "d": 3}
  trained, fixed = split(tree, ("a/b",))
  assert trained == {"a": {"c": 2}, "d": 3} and fixed == {"a": {"b": 1}}
  assert merge(trained, fixed) == tree


@pytest.mark.slow
def test_freezing_leaves_a_part_alone(tmp_path):
  cfg = config("tokenizer", steps=2)
  cfg.freeze, cfg.loss.fit_batches = ("encoder",), 0
  before = jax.device_get(init_state_params(cfg)["encoder"])
  state = loop.run(cfg, tmp_path)
  assert "encoder" not in state.params
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.fixed["encoder"]))


def init_state_params(cfg):
  _, _, state, _ = _state_and_batch(cfg)
  return state.model


def test_mup_scales_the_learning_rate_with_width():
  cfg = config("tokenizer")
  cfg.optim.mup_base_width = 32
  task = make_task(cfg)
  axes, shapes = logical_axes(task.init, ())
  scales = optim.lr_scales(cfg.optim, axes, shapes)
  blocks = scales["encoder"]["stack"]["blocks"]
  assert blocks["qkv_kernel"] == blocks["proj_kernel"] == pytest.approx(32 / 64)  # width 64
  assert blocks["down_kernel"] == pytest.approx(0.5, rel=0.02) and blocks["up_kernel"] == 0.5
  assert scales["encoder"]["head"]["kernel"] == 0.5 and scales["encoder"]["patch_in"]["kernel"] == 1
  assert scales["encoder"]["registers"] == scales["decoder"]["mask_token"] == 1


def test_schedules_start_peak_and_end_where_they_should():
  cfg = config("tokenizer").optim
  cfg.lr, cfg.warmup, cfg.final = 1.0, 10, 0.1
  for name, end in (("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)):
    cfg.schedule = name
    rate = optim.schedule(cfg, 110)
    assert float(rate(0)) == 0 and float(rate(10)) == pytest.approx(1) and float(rate(110)) == pytest.approx(end)
  cfg.schedule, cfg.final = "wsd", 0.0  # EVATok's generators: constant, and down to 0 in the last fifth of all steps
  rates = [float(optim.schedule(cfg, 110)(n)) for n in (0, 5, 10, 60, 88, 99, 110)]
  np.testing.assert_allclose(rates, [0, 0.5, 1, 1, 1, 0.5, 0], atol=1e-6)
  cfg.decay = 0.0
  with pytest.raises(ValueError, match=r"optim.decay is 0.0, expected the share"):
    optim.schedule(cfg, 110)


def test_half_written_metrics_are_cut(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
  keep_until(path, 1)
  assert path.read_text() == '{"step": 1}\n'


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGTERM", 0), ("SIGINT", 130)])
def test_signals_save_and_end_the_run(name, code, tmp_path):
  environment = {**os.environ, "VFTOK_CACHE": str(tmp_path / "cache")}
  command = [sys.executable, "-m", "vftok.main", "--config=configs/vae.py:smoke", f"--workdir={tmp_path / 'run'}"]
  command.append("--config.steps=100000")
  process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  for line in process.stdout:
    if line.startswith("step 3/"):
      process.send_signal(getattr(signal, name))
      break
  rest = process.stdout.read()
  assert process.wait(120) == code, rest
  assert "stopped at step" in rest
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
