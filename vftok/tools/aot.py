"""Compiles a config's own programs for a TPU slice that is not here.

`python -m vftok.tools.aot --config=configs/t2v.py:1.1b --topology=v5p:4x4x4 [--mesh data=1,fsdp=64] [--program sample]`

The real TPU compiler (libtpu, which pip installs) does it on any machine: bytes per chip and collectives are those of
the real program. It cannot run: times below are lower bounds by published rates, never measurements.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the machine that compiles needs no TPU
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
from absl import app, flags
from jax.experimental import topologies

from vftok.runtime import sharding, target
from vftok.runtime.ending import or_exit
from vftok.runtime.files import whole_file
from vftok.tools import hlo
from vftok.tools.aot_programs import plan
from vftok.train.experiment import define_config
from vftok.train.experiment import run as run_main


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published numbers of one chip: bf16 FLOP/s, bytes of HBM, HBM bytes/s, ICI bytes/s over all its links, one way."""

  flops: float
  hbm: float
  hbm_rate: float
  ici_rate: float


# cloud.google.com/tpu/docs: v5e, v5p, v6e.
CHIPS = {
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
  "v6e": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected argument {argv[1]!r}: options start with --, config values with --config.")
  options = flags.FLAGS
  report = or_exit(
    lambda: compile_program(options.config, options.topology, options.mesh, options.program, options.batch)
  )
  text = json.dumps(report, indent=2) + "\n"
  if flags.FLAGS.out:
    with whole_file(flags.FLAGS.out) as path:
      path.write_text(text)
  print(text, end="")


def compile_program(cfg, topology: str, axes: str | None = None, program: str = "train", batch: int = 0) -> dict:
  """A program of `cfg` for a slice, as facts: bytes per chip, collectives, FLOPs, bounds.

  Raises:
    ModuleNotFoundError: libtpu is not installed.
    ValueError: an unknown chip, slice, mesh axis or program, a batch that the mesh does not divide, or a program that
      does not fit.
  """
  chip, devices = devices_of(topology)
  if axes:
    cfg.mesh.update(dict(dict(data=1, fsdp=1, tensor=1, seq=1), **_axes(axes)))
  mesh = sharding.make_mesh(cfg.mesh.to_dict(), devices)
  target.COMPILE_FOR = "tpu"
  began = time.monotonic()
  planned = plan(program, cfg, mesh, batch)
  traced = time.monotonic()
  compiled, text = _compiled(planned.lowered)
  seconds = dict(lower=round(traced - began, 1), compile=round(time.monotonic() - traced, 1))
  facts = dict(program=program, title=cfg.title, topology=topology, chips=len(devices), mesh=dict(mesh.shape))
  facts |= dict(batch_size=planned.batch, accumulate=cfg.accumulate, steps=cfg.steps, remat=_remat(cfg))
  facts |= dict(parameters=planned.parameters, seconds=seconds)
  collectives = hlo.by_kind(hlo.collectives(text, planned.rounds))
  memory = compiled.memory_analysis()
  return facts | bounds(chip, len(devices), planned.flops, memory, collectives, max(1, planned.rounds))


def _remat(cfg) -> str:
  model = cfg.model
  stack = model.ar if "ar" in model else model.decoder.stack if "decoder" in model else {}
  return stack.get("remat", "none")


def _compiled(lowered):
  """(executable, text of the optimised program). The compiler writes the text itself: jaxlib cannot read all of it."""
  with tempfile.TemporaryDirectory() as dump:
    try:
      compiled = lowered.compile(compiler_options={"xla_dump_to": dump, "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      sizes = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
      facts = f"temporaries of {sizes[1]} on {sizes[2]} of HBM" if sizes else str(error).splitlines()[0]
      raise ValueError(f"it does not fit ({facts}): more chips or fsdp, a smaller batch, accumulate, remat.") from None
    (path,) = Path(dump).glob("*.after_optimizations.txt")
    return compiled, path.read_text()


def devices_of(topology: str) -> tuple[Chip, list]:
  """(published numbers, devices) of "v5p:4x4x4"."""
  name, _, shape = topology.partition(":")
  if name not in CHIPS or not shape:
    raise ValueError(f"topology is {topology!r}, expected one of {', '.join(CHIPS)} and a slice: v5e:4x4, v5p:4x4x4.")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{name}-8")
  try:
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
  except Exception as error:  # the plug-in raises what it likes
    if "not installed" in str(error) or "libtpu" in str(error):
      raise ModuleNotFoundError("compiling for TPU needs libtpu: pip install libtpu.") from None
    raise ValueError(f"topology {topology!r} is refused: {str(error).splitlines()[0]}") from None
  return CHIPS[name], list(devices)


def _axes(text: str) -> dict[str, int]:
  try:
    return {name.strip(): int(size) for name, size in (part.split("=") for part in text.split(","))}
  except ValueError:
    raise ValueError(f"--mesh is {text!r}, expected axes and sizes such as data=1,fsdp=64.") from None


def bounds(chip: Chip, chips: int, flops: float, memory, collectives: dict, rounds: int = 1) -> dict:
  """What a chip holds and what a run cannot be faster than. The three times are not added: they may overlap.

  A loop of `rounds` reads the arguments in each of them.
  """
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  held += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  moved = rounds * memory.argument_size_in_bytes + memory.output_size_in_bytes + 2 * memory.temp_size_in_bytes
  sent = sum(kind["bytes"] for kind in collectives.values())
  seconds = dict(compute=flops / chips / chip.flops, hbm=moved / chip.hbm_rate, ici=sent / chip.ici_rate)
  longest = max(seconds, key=seconds.get)
  return dict(
    bytes_per_chip=dict(
      arguments=memory.argument_size_in_bytes,
      outputs=memory.output_size_in_bytes,
      aliased=memory.alias_size_in_bytes,
      temporary=memory.temp_size_in_bytes,
      code=memory.generated_code_size_in_bytes,
      held=held,
      hbm=round(chip.hbm),
    ),
    fits=held <= chip.hbm,
    spare=round(1 - held / chip.hbm, 3),
    analytic_flops=flops,
    collectives=collectives,
    bound_seconds={name: round(value, 5) for name, value in seconds.items()},
    bound_by=longest,
    bound_mfu=round(seconds["compute"] / seconds[longest], 3),
    note="bounds by published rates, not measured: compute = analytic FLOPs / peak; hbm = arguments (in every "
    "round of sampling) and outputs once, temporaries twice; ici = bytes each chip receives",
  )


def define_flags() -> None:
  """Not at import: tests and other tools import this module beside others that take --config."""
  define_config("Experiment file: configs/t2v.py:1.1b.")
  flags.DEFINE_string("topology", "v5p:4x4x4", "Chip and slice: v5e:4x4, v5p:2x2x2, v6e:8x8, ...")
  flags.DEFINE_string("mesh", None, "Axes over the config's own: data=1,fsdp=64.")
  flags.DEFINE_string("program", "train", "train; a tokenizer's encode or decode; a generator's sample.")
  flags.DEFINE_integer("batch", 0, "Examples of a run, over all chips; 0: the config's batch_size.")
  flags.DEFINE_string("out", None, "JSON file to write; default: only printed.")


if __name__ == "__main__":
  define_flags()
  run_main(main)
