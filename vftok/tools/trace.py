"""Where the time of profiled steps went: `python -m vftok.tools.trace RUN/profile [--hlo PROGRAM.txt]`.

A run writes the trace with `--config.profile="(6,9)"`: steps 6 to 8; `vftok.tools.bench_step --trace RUN` writes one of
three steps, and the program beside it. Kernels are summed over all of them by what they
compute, longest first; `busy` is the share of the time between the first and the last in which the device did anything.
With the optimised program (`XLA_FLAGS="--xla_dump_to=DIR --xla_dump_hlo_as_text"`, the file
`*jit_train_step*after_optimizations.txt`) kernels are named by the module they belong to.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

from vftok.runtime.ending import exit_code

PROGRAM = "program.txt"  # the optimised program beside a trace

_NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]+)"', re.MULTILINE)
_AROUND = ("while", "call", "conditional")  # they last as long as what they run
_NOISE = re.compile(r"^(jit|jvp|vmap|transpose|checkpoint|rematted_computation|while|body|cond|closed_call)\b.*")


class Kernel(NamedTuple):
  """One call on a device: the instruction it belongs to, its program, begin and length in nanoseconds."""

  op: str
  module: str
  begin: float
  length: float


def kernels(directory: Path) -> list[Kernel]:
  """All calls in the trace under `directory`.

  Raises:
    FileNotFoundError: there is no trace.
  """
  files = sorted(Path(directory).rglob("*.xplane.pb"))
  if not files:
    raise FileNotFoundError(f"{directory} holds no *.xplane.pb: run with --config.profile='(6,9)' first.")
  planes = list(ProfileData.from_file(str(files[-1])).planes)
  chosen = [plane for plane in planes if plane.name.startswith("/device:")] or planes  # a CPU's are the host's
  found = []
  for plane in chosen:
    for line in plane.lines:
      if line.name.startswith(("XLA ", "Steps", "Framework", "Source")):  # sums of the kernels below
        continue
      for event in line.events:
        stats = dict(event.stats)
        op = str(stats.get("hlo_op", event.name))
        if ("hlo_op" in stats or plane.name.startswith("/device:")) and not op.startswith(_AROUND):
          found.append(
            Kernel(
              op,
              str(stats.get("hlo_module", "")),
              event.start_ns,
              event.duration_ns,
            )
          )
  return found


def scopes(hlo: str, depth: int = 4) -> dict[str, str]:
  """{instruction: the modules it belongs to, at most `depth` deep} of a program's text."""
  return {op: scope(name, depth) for op, name in _NAMED.findall(hlo)}


def scope(op_name: str, depth: int) -> str:
  """ "jit(step)/transpose(jvp(Decoder))/stack/blocks/dot" -> "Decoder/stack/blocks back"."""
  back = "transpose(" in op_name
  parts = [re.sub(r"^(?:\w+\()+|\)+$", "", part) if "jvp(" in part else part for part in op_name.split("/")]
  kept = [part for part in parts[:-1] if part and not _NOISE.match(part)][:depth]
  return "/".join(kept or parts[-1:]) + (" back" if back else "")


def busy(calls: Iterable[Kernel]) -> float:
  """Share of the time from the first call to the end of the last in which one ran."""
  spans = sorted((call.begin, call.begin + call.length) for call in calls)
  total, end = 0.0, spans[0][0]
  for begin, stop in spans:
    total += max(0.0, stop - max(begin, end))
    end = max(end, stop)
  return total / max(end - spans[0][0], 1e-9)


def table(calls: list[Kernel], names: dict[str, str], top: int) -> str:
  """Markdown: milliseconds, share, calls and name, the longest first."""
  sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
  for call in calls:
    entry = sums[names.get(call.op) or re.sub(r"[.\d]+$", "", call.op)]
    entry[0] += call.length
    entry[1] += 1
  total = sum(length for length, _ in sums.values())
  rows = sorted(sums.items(), key=lambda row: -row[1][0])[:top]
  lines = [f"| {1e-6 * t:.2f} | {t / total:.1%} | {n} | {name} |" for name, (t, n) in rows]
  return "\n".join(["| ms | share | calls | what |", "| ---: | ---: | ---: | --- |", *lines])


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.trace", description=__doc__.split("\n\n")[0])
  parser.add_argument("directory", type=Path)
  parser.add_argument("--hlo", type=Path, help=f"the optimised program, as text; default: {PROGRAM} in the directory")
  parser.add_argument("--module", default="train_step", help="only programs with this in their name; '' for all")
  parser.add_argument("--depth", type=int, default=4, help="of module names")
  parser.add_argument("--top", type=int, default=30)
  return exit_code("trace", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
  everything = kernels(args.directory)
  calls = [call for call in everything if args.module in call.module] or everything
  program = args.hlo or args.directory / PROGRAM
  names = scopes(program.read_text(), args.depth) if args.hlo or program.exists() else {}
  other = sum(call.length for call in everything) - sum(call.length for call in calls)
  print(f"{len(calls)} calls, busy {busy(calls):.0%}, other programs {1e-6 * other:.1f} ms\n")
  print(table(calls, names, args.top))


if __name__ == "__main__":
  sys.exit(main())
