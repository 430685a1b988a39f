"""The words of the command line. Imports nothing heavy: --help must not wait for jax."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence

from vftok import __version__
from vftok.runtime.words import cut


def _seed(text: str) -> int:
  if not re.fullmatch(r"-?\d{1,18}", text):
    raise argparse.ArgumentTypeError(f"{cut(text)!r} is no whole number of at most 18 digits")
  return int(text)


def _counts(text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a whole number, or several with commas: try 16 or 1,4,16."
    ) from None


def parser(runs: Sequence[Callable]) -> argparse.ArgumentParser:
  """The parser; `runs` are the functions of `info`, `encode`, ..., each gets the parsed arguments."""
  run_of = {run.__name__: run for run in runs}
  top = argparse.ArgumentParser(prog="vftok", description="Flexible-length video tokens.")
  top.add_argument("--version", action="version", version=f"vftok {__version__}")
  commands = top.add_subparsers(required=True, metavar="COMMAND")

  def command(name, summary, *positional):
    sub = commands.add_parser(name, help=summary, description=summary)
    sub.set_defaults(run=run_of[name])
    for argument, text in positional:
      sub.add_argument(argument, metavar=argument.upper(), help=text)
    return sub

  model = ("model", "folder, .safetensors file or Hub id")
  sub = command("info", "what a model, a VAE or a .vft file is", ("what", "model, VAE or .vft file"))
  sub.add_argument("--json", action="store_true", help="print JSON")

  video = ("video", "video or picture to read")
  sub = command("encode", "video or picture to tokens", model, video, ("out", ".vft file to write"))
  sub.add_argument("--keep", type=_counts, metavar="K", help="tokens per time step, K or K1,K2,... (default: all)")
  sub.add_argument("--budget", metavar="auto:N", help="N tokens per time step on average, or auto:preference=1.2")
  sub.add_argument("--router", metavar="DIR", help="of --budget (default: the one that comes with the model)")
  sub.add_argument(
    "--tries", type=int, default=0, metavar="N", help="of --budget: decode N ways to spread it, keep the best"
  )
  _reading(sub)

  out = ("out", ".mp4, .gif or .png to write")
  sub = command("decode", "tokens to video", model, ("vft", ".vft file to read"), out)
  sub.add_argument("--keep", type=_counts, metavar="K", help="use fewer tokens: K, or K1,K2,... one per time step")
  sub.add_argument("--first-frames", metavar="VIDEO", help="start from the first frames of this video")
  sub.add_argument("--first-count", type=int, default=1, metavar="N", help="how many of them: 1, 5, 9, ... (default 1)")
  _sampling(sub)

  sub = command(
    "truncate",
    "shorter tokens, without the model",
    ("vft", ".vft file to read"),
    ("out", ".vft file to write"),
  )
  sub.add_argument("--keep", type=_counts, required=True, metavar="K", help="K, or K1,K2,... one per time step")

  sub = command(
    "reconstruct",
    "original and reconstructions side by side, and curves of PSNR and SSIM",
    model,
    video,
    ("out", ".mp4, .gif or .png to write; the curves go beside it as .png"),
  )
  sub.add_argument("--keep", type=_counts, metavar="K1,K2,...", help="budgets to show (default: 1,4,16,64 and all)")
  sub.add_argument("--json", action="store_true", help="print JSON")
  _reading(sub)
  _sampling(sub)

  sub = command(
    "sample", "a text, a class or first frames to video", ("generator", "folder, file, shipped name or Hub id")
  )
  sub.add_argument("words", nargs="*", metavar="[PROMPT] OUT", help="what to show, and the .mp4 or .gif to write")
  sub.add_argument(
    "--class",
    "--classes",
    dest="label",
    metavar="NAME[,NAME]",
    help="classes by name or number, in place of a prompt",
  )
  sub.add_argument("--first-frames", metavar="VIDEO", help="start with the first frames of this video")
  sub.add_argument("--first-count", type=int, default=5, metavar="N", help="how many of them: 1, 5, 9, ... (default 5)")
  sub.add_argument("--keep", type=_counts, metavar="K1,K2,...", help="budgets to show (default: all tokens)")
  sub.add_argument("--mean-length", type=float, metavar="M", help="tokens per time step on average (adaptive models)")
  sub.add_argument(
    "--frames",
    "--long",
    type=int,
    metavar="N",
    help="1 + a multiple of 4, or 0: until Ctrl-C; beyond one sequence it goes on",
  )
  sub.add_argument(
    "--context", type=int, default=5, metavar="N", help="frames that longer videos go on from (default 5)"
  )
  sub.add_argument("-n", "--samples", type=int, default=1, metavar="N", help="videos of the prompt (default 1)")
  sub.add_argument("--text-encoder", metavar="DIR", help="where its text encoder's weights are (T5)")
  sub.add_argument("--tokenizer", metavar="MODEL", help="default: the one the generator names")
  _dino(sub)
  sub.add_argument("--fps", type=float, default=8.0, help="of the video written (default 8)")
  sub.add_argument("--gen-guidance", type=float, metavar="W", help="of the generator (default: its own, by budget)")
  sub.add_argument("--temperature", type=float, default=1.0, help="of the generator; 0 is greedy (default 1)")
  sub.add_argument("--top-k", type=int, default=0, metavar="N", help="keep the N likeliest tokens (default all)")
  sub.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest up to P (default 1)")
  _sampling(sub)

  what = "a tokenizer or generator in its authors' layout"
  command("export", what, ("model", "folder, file, shipped name or Hub id"), ("out", "folder to write"))
  return top


def parse(top: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
  """Arguments in any order: argparse alone takes no more words once an option came between them."""
  args, rest = top.parse_known_args(argv)
  if rest and (not hasattr(args, "words") or any(word.startswith("-") and word != "-" for word in rest)):
    top.error(f"unrecognized arguments: {' '.join(rest)}")
  if rest:
    args.words += rest
  return args


def _dino(sub):
  sub.add_argument("--dino", metavar="WEIGHTS", help="DINOv2 weights, folder or Hub id, for encoders that read them")


def _reading(sub):
  _dino(sub)
  sub.add_argument("--fps", type=float, help="frames per second to sample the video at (default: its own)")
  sub.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="skip this much of the video")
  sub.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames")
  sub.add_argument(
    "--fit",
    choices=("pad", "error"),
    default="pad",
    help="frames that fill no whole chunk: pad (default) or refuse",
  )


def _sampling(sub):
  sub.add_argument("--steps", type=int, metavar="N", help="solver steps (default: the model's, 30 for released ones)")
  sub.add_argument("--guidance", choices=("apg", "cfg", "none"), help="default: the model's, apg for released ones")
  sub.add_argument("--scale", type=float, help="guidance scale (default: the model's; else 20 for apg, 3 for cfg)")
  sub.add_argument("--solver", choices=("euler", "heun", "ab2"), default="euler", help="default euler")
  sub.add_argument("--seed", type=_seed, default=0, help="of the noise (default 0)")
