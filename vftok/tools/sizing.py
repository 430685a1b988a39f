"""Which slice each full-size config is meant for, compiled for it: `python -m vftok.tools.sizing`.

Compiles by `vftok.tools.aot` what launch/aot/ has no JSON of (--again: all of it), then writes the tables of
launch/README.md between their markers and launch/aot/scaling.png. Nothing runs on a TPU: all times are bounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from vftok.runtime.ending import exit_code
from vftok.runtime.files import whole_file
from vftok.show.page import markdown_table
from vftok.show.progress import progress

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Row:
  """One compilation; `options` go to `vftok.tools.aot`."""

  name: str
  config: str
  topology: str
  options: tuple[str, ...] = ()


SIZES = (
  Row("tokenizer_d18_d18", "tokenizer:d18_d18", "v5e:8x8"),
  Row("tokenizer_d18_d28", "tokenizer:d18_d28", "v5p:4x4x4"),
  Row("c2v_2.2b", "c2v:2.2b", "v5p:4x4x4"),
  Row("t2v_1.1b", "t2v:1.1b", "v5p:4x4x4"),
  Row("t2v_5.2b", "t2v:5.2b", "v5p:4x4x4"),
  Row("t2v_long", "t2v:long", "v5p:4x4x8"),
)
PROGRAMS = (
  Row("encode_d18_d28", "tokenizer:d18_d28", "v5p:2x2x1", ("--program=encode", "--batch=64", "--mesh=data=4")),
  Row("decode_d18_d28", "tokenizer:d18_d28", "v5p:2x2x1", ("--program=decode", "--batch=64", "--mesh=data=4")),
  Row("sample_1.1b", "t2v:1.1b", "v5p:2x2x1", ("--program=sample", "--batch=64", "--mesh=data=4")),
  Row("sample_long", "t2v:long", "v5p:2x2x1", ("--program=sample", "--batch=16", "--mesh=data=1,tensor=4")),
)
SCALING = (
  Row("t2v_1.1b_on_16", "t2v:1.1b", "v5p:2x2x4"),
  SIZES[3],
  Row("t2v_1.1b_on_256", "t2v:1.1b", "v5p:4x8x8"),
  Row("tokenizer_d18_d28_on_16", "tokenizer:d18_d28", "v5p:2x2x4", ("--config.accumulate=4",)),  # else 189 GB
  SIZES[1],
  Row("tokenizer_d18_d28_on_256", "tokenizer:d18_d28", "v5p:4x8x8"),
)
LENGTHS = (
  SIZES[5],
  Row("t2v_long_161_frames", "t2v:long", "v5p:4x4x8", ("--config.tokenize.frames=161",)),
  Row("t2v_long_321_frames", "t2v:long", "v5p:4x4x8", ("--config.tokenize.frames=321",)),
)

# What the cost table assumes: share of the chips' peak that training reaches (levanter and maxtext report 35-55 % at
# such sizes, never measured here), and list prices of a chip hour on demand in the US, in dollars.
MFU = {"tokenizer": 0.40, "ar": 0.35}
PRICES = {"v5e": 1.20, "v5p": 4.20, "v6e": 2.70}


def compile_rows(rows, folder: Path, again: bool) -> None:
  """Writes folder/NAME.json of each row that has none.

  Raises:
    RuntimeError: the compiler refused a row; its last line says why.
  """
  missing = [row for row in dict.fromkeys(rows) if again or not (folder / f"{row.name}.json").exists()]
  with progress("compiling", len(missing), "programs") as advance:
    for row in missing:
      file, size = row.config.split(":")
      command = [sys.executable, "-m", "vftok.tools.aot", f"--config={ROOT}/configs/{file}.py:{size}"]
      command += [f"--topology={row.topology}", f"--out={folder / row.name}.json", *row.options]
      done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
      if done.returncode:
        raise RuntimeError(f"{row.name}: {(done.stderr.strip() or 'no word from the compiler').splitlines()[-1]}")
      advance(1)


def size_table(rows, folder: Path) -> list[list[str]]:
  """What is held per chip, and bounds of one step."""
  cells = [["config", "parameters", "chips", "mesh", "batch", "remat", "held GiB", "spare", "step bound (ms)"]]
  cells[0] += ["compute / HBM / ICI (ms)", "bound MFU", "compiled in"]
  for row, facts in _facts(rows, folder):
    seconds = facts["bound_seconds"]
    ms = " / ".join(f"{1e3 * seconds[k]:.3g}" for k in ("compute", "hbm", "ici"))
    axes = ", ".join(f"{axis} {n}" for axis, n in facts["mesh"].items() if n > 1)
    held = facts["bytes_per_chip"]["held"] / 2**30
    cells.append([f"`{row.config}`", f"{facts['parameters'] / 1e6:,.0f} M", facts["topology"], axes])
    cells[-1] += [str(facts["batch_size"]), facts["remat"], f"{held:.1f}", f"{100 * facts['spare']:.0f} %"]
    cells[-1] += [f"{1e3 * max(seconds.values()):.3g}", ms, f"{facts['bound_mfu']:.2f}"]
    cells[-1] += [f"{facts['seconds']['compile']:.0f} s"]
  return cells


def program_table(rows, folder: Path) -> list[list[str]]:
  """Encoding, decoding and sampling, a batch at a time."""
  cells = [["program", "chips", "mesh", "batch", "held GiB", "bound (s)", "bound by", "a chip and second at most"]]
  for row, facts in _facts(rows, folder):
    bound = max(facts["bound_seconds"].values())
    axes = ", ".join(f"{axis} {n}" for axis, n in facts["mesh"].items() if n > 1)
    rate = f"{facts['batch_size'] / bound / facts['chips']:.3g} clips"
    cells.append([f"{facts['program']} `{row.config}`", facts["topology"], axes, str(facts["batch_size"])])
    cells[-1] += [f"{facts['bytes_per_chip']['held'] / 2**30:.1f}", f"{bound:.3g}", facts["bound_by"], rate]
  return cells


def length_table(rows, folder: Path) -> list[list[str]]:
  """Temporary memory of the long config's step by length."""
  cells = [["frames", "tokens in a sequence", "temporary GiB per chip", "MiB per 1,000 tokens of a chip"]]
  for row, facts in _facts(rows, folder):
    frames = int(row.options[0].rpartition("=")[2]) if row.options else 81
    tokens = ((frames - 1) // 4 + 1) * 32
    temporary = facts["bytes_per_chip"]["temporary"]
    per = temporary / 2**20 / (tokens * facts["batch_size"] / facts["chips"] / 1000)
    cells.append([str(frames), f"{tokens:,}", f"{temporary / 2**30:.2f}", f"{per:,.0f}"])
  return cells


def cost_table(rows, folder: Path) -> list[list[str]]:
  """Chip hours, days and dollars of whole runs at the assumed MFU: FLOPs of a step x steps / (peak x MFU)."""
  from vftok.tools.aot import CHIPS

  cells = [["run", "steps", "FLOPs", *(f"{chip}: chip hours, $, days on 64" for chip in PRICES)]]
  for row, facts in _facts(rows, folder):
    task = "tokenizer" if row.config.startswith("tokenizer") else "ar"
    flops = facts["analytic_flops"] * facts["steps"]
    cells.append([f"`{row.config}`", f"{facts['steps']:,}", f"{flops:.2e}"])
    for chip, price in PRICES.items():
      hours = flops / (CHIPS[chip].flops * MFU[task]) / 3600
      cells[-1].append(f"{hours:,.0f} h, ${hours * price:,.0f}, {hours / 64 / 24:.1f} d")
  return cells


def scaling_plot(rows, folder: Path, path: Path) -> None:
  """Memory per chip and bounds over the number of chips, the batch being the same."""
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
  for config in dict.fromkeys(row.config for row in rows):
    facts = [f for row, f in _facts(rows, folder) if row.config == config]
    chips = [f["chips"] for f in facts]
    axes[0].plot(chips, [f["bytes_per_chip"]["held"] / 2**30 for f in facts], "o-", label=config)
    for name, style in (("compute", "o-"), ("ici", "s:")):
      axes[1].plot(chips, [1e3 * f["bound_seconds"][name] for f in facts], style, label=f"{config}, {name}")
    axes[2].plot(chips, [f["bound_mfu"] for f in facts], "o-", label=config)
  titles = ("held per chip (GiB)", "bounds of a step (ms)", "bound MFU, not measured")
  for axis, title in zip(axes, titles, strict=True):
    axis.set(title=title, xscale="log", xlabel="v5p chips, same batch of 512")
    axis.set_xticks([16, 64, 256], ["16", "64", "256"])
    axis.minorticks_off()
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
  axes[0].set_yscale("log", base=2)
  axes[1].set_yscale("log")
  axes[2].set_ylim(0, 1.05)
  with whole_file(path) as temporary:
    figure.savefig(temporary, dpi=110, format="png")
  plt.close(figure)


def _facts(rows, folder: Path):
  return [(row, json.loads((folder / f"{row.name}.json").read_text())) for row in rows]


def between(text: str, name: str, new: str) -> str:
  """`text` with what stands between the markers of `name` replaced.

  Raises:
    ValueError: it has no such markers.
  """
  begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
  if begin not in text or end not in text:
    raise ValueError(f"the page has no markers {begin.strip()} and {end}: put them where the table goes.")
  head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
  return f"{head}{new.strip()}\n{tail}"


TABLES = (
  ("sizes", SIZES, size_table),
  ("programs", PROGRAMS, program_table),
  ("lengths", LENGTHS, length_table),
  ("costs", SIZES, cost_table),
)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m vftok.tools.sizing", description=__doc__.split("\n\n")[0])
  parser.add_argument("--again", action="store_true", help="compile everything anew (about an hour on two cores)")
  return exit_code("sizing", run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
  folder, page = ROOT / "launch" / "aot", ROOT / "launch" / "README.md"
  folder.mkdir(exist_ok=True)
  compile_rows((*SIZES, *PROGRAMS, *SCALING, *LENGTHS), folder, args.again)
  scaling_plot(SCALING, folder, folder / "scaling.png")
  text = page.read_text()
  for name, rows, table in TABLES:
    text = between(text, name, markdown_table(table(rows, folder)))
  with whole_file(page) as path:
    path.write_text(text)
  print(f"{page}, {folder / 'scaling.png'}")


if __name__ == "__main__":
  sys.exit(main())
