"""Compiling for chips that are not here: what a program sends, read out of its text; plans without files; bounds."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from vftok.runtime import sharding
from vftok.tools import hlo
from vftok.tools.aot_tasks import planned_batch, planned_task

ROOT = Path(__file__).parents[1]
PROGRAM = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%cond.1 (p: (s32[], bf16[16,512])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %p = (s32[]{:T(128)}, bf16[16,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%gather_inside (q: bf16[1,128]) -> bf16[4,128] {
  %q = bf16[1,128]{1,0} parameter(0)
  ROOT %ag = bf16[4,128]{1,0} all-gather(%q), channel_id=1, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%body.1 (p: (s32[], bf16[16,512])) -> (s32[], bf16[16,512]) {
  %p = (s32[]{:T(128)}, bf16[16,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %fused = bf16[4,128]{1,0} fusion(%p), kind=kCustom, calls=%gather_inside
  %ar = (f32[100]{0}, f32[28]{0}) all-reduce(%p, %p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[16,512]{1,0:T(8,128)(2,1)}) tuple(%p, %p)
}

ENTRY %main (x: bf16[16,512]) -> bf16[16,512] {
  %x = bf16[16,512]{1,0:T(8,128)(2,1)} parameter(0)
  %rs = f32[8]{0} reduce-scatter(%x), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %alone = f32[8]{0} all-reduce(%x), channel_id=5, replica_groups={{0},{1}}, to_apply=%add
  %start = (bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %done = bf16[4]{0} collective-permute-done(%start)
  ROOT %w = (s32[]{:T(128)}, bf16[16,512]{1,0:T(8,128)(2,1)}) while(%x), condition=%cond.1, body=%body.1
}
"""


def test_collectives_are_counted_as_often_as_loops_run():
  found = {c.kind: c for c in hlo.collectives(PROGRAM)}
  assert found.keys() == {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}
  assert len(hlo.collectives(PROGRAM)) == 4  # a group of one chip sends nothing
  gather, reduce, scatter = (found[k] for k in ("all-gather", "all-reduce", "reduce-scatter"))
  assert (gather.size, gather.group, gather.times) == (4 * 128 * 2, 4, 6)
  assert (reduce.size, reduce.group, reduce.times) == (128 * 4, 2, 6)
  assert (scatter.size, scatter.group, scatter.times) == (8 * 8 * 4, 8, 1)
  assert gather.sent == 6 * 1024 * 3 / 4 and reduce.sent == 6 * 512 * 2 / 2 and scatter.sent == 256 * 7 / 8
  assert found["collective-permute"].sent == 8
  assert hlo.by_kind(hlo.collectives(PROGRAM))["all-gather"] == {"instructions": 1, "times": 6, "bytes": 4608}


def test_a_loop_that_does_not_tell_its_rounds_is_an_error():
  with pytest.raises(ValueError, match="does not tell how often"):
    hlo.collectives(PROGRAM.replace("direction=LT", "direction=EQ"))
  known = 'while(%x), backend_config={"known_trip_count":{"n":"7"}}, condition=%cond.1'
  text = PROGRAM.replace("direction=LT", "direction=EQ").replace("while(%x), condition=%cond.1", known)
  assert {c.times for c in hlo.collectives(text)} == {1, 7}
  with pytest.raises(ValueError, match="has no ENTRY"):
    hlo.collectives("nothing")


@pytest.mark.parametrize(
  "config,size,millions",
  [
    ("t2v", "1.1b", 1377),
    ("c2v", "2.2b", 2591),
    ("t2v", "long", 3363),
    pytest.param("tokenizer", "d18_d28", 2537, marks=pytest.mark.slow),
  ],
)
def test_full_size_tasks_are_planned_without_files(config, size, millions):
  cfg = importlib.import_module(f"configs.{config}").get_config(size)
  task = planned_task(cfg)
  parameters = sum(x.size for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
  assert parameters / 1e6 == pytest.approx(millions, rel=0.01)
  batch = planned_batch(cfg, task, sharding.make_mesh({"data": -1}))
  assert {len(x.shape) and x.shape[0] for x in batch.values()} == {cfg.batch_size}
  if config == "t2v":
    assert batch["ids"].shape[1:] == ((21 if size == "long" else 5), 256)
    assert batch["text_emb"].shape[1:] == (128, 4096)
  frozen = jax.tree.leaves(jax.eval_shape(lambda tree: tree, task.frozen()))
  assert sum(x.size for x in frozen) > (4e8 if config == "tokenizer" else -1)  # the VAE and DINOv2-L


def test_bounds():
  aot = importlib.import_module("vftok.tools.aot")
  memory = SimpleNamespace(
    argument_size_in_bytes=100,
    output_size_in_bytes=100,
    alias_size_in_bytes=90,
    temp_size_in_bytes=50,
    generated_code_size_in_bytes=5,
  )
  chip = aot.Chip(flops=10.0, hbm=200.0, hbm_rate=30.0, ici_rate=5.0)
  facts = aot.bounds(chip, 2, 400.0, memory, {"all-gather": {"bytes": 150}})
  assert facts["bytes_per_chip"]["held"] == 165 and facts["fits"] and facts["spare"] == 0.175
  assert facts["bound_seconds"] == {"compute": 20.0, "hbm": 10.0, "ici": 30.0}
  assert facts["bound_by"] == "ici" and facts["bound_mfu"] == 0.667
  assert not aot.bounds(aot.Chip(1.0, 164.0, 1.0, 1.0), 1, 1.0, memory, {})["fits"]


@pytest.mark.parametrize(
  "words, message",
  [
    (["--topology=v9:2x2"], "topology is 'v9:2x2', expected one of v5e, v5p, v6e"),
    (["--topology=v5e:2x2", "--mesh=data"], "libtpu|--mesh is 'data', expected axes and sizes"),
  ],
)
def test_wrong_words_end_in_one_sentence(words, message):
  command = [sys.executable, "-m", "vftok.tools.aot", "--config=configs/t2v.py:66m", *words]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert re.search(message, done.stderr.splitlines()[-1])
