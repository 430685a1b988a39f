"""The command line: videos to .vft token files and back.

`vftok info | encode | decode | truncate | reconstruct`, each with --help. Bad input gives one sentence on
stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

# jax, PyAV and the models load inside the commands: --help must not wait for them.


def main(argv=None) -> int:
  """Runs one command. Returns the exit code: 0, or 2 after a sentence on stderr."""
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except (ValueError, FileNotFoundError) as error:
    print(f"vftok: error: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:  # whoever reads our output has seen enough, as in `vftok info m | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except OSError as error:
    print(f"vftok: error: {error.filename or 'a file'} cannot be used: {error.strerror}.", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("vftok: stopped.", file=sys.stderr)
    return 130
  return 0


def load_tokenizer(path):
  """(tokenizer, params) of a folder, a safetensors file or a Hub id."""
  from vftok import Tokenizer

  return Tokenizer.load(path)


def info(args):
  from vftok.vft import is_vft, read_vft

  if is_vft(args.what):
    vft = read_vft(args.what)
    facts = {
      "frames": vft.frames,
      "fps": vft.fps,
      "seconds": vft.frames / vft.fps,
      "height": vft.size[0],
      "width": vft.size[1],
      "time_steps": len(vft.keep),
      "tokens": len(vft.ids),
      "tokens_per_step": {
        "least": int(vft.keep.min()),
        "most": int(vft.keep.max()),
        "possible": vft.registers,
      },
      "bits": vft.bits,
      "bits_per_second": vft.bits * vft.fps / vft.frames,
      "levels": list(vft.levels),
      "codebook_size": vft.codebook_size,
      "chunk_frames": vft.chunk_frames,
      "overlap_frames": vft.overlap_frames,
      "model": vft.fingerprint,
    }
  else:
    tok, params = load_tokenizer(args.what)
    facts = tok.describe(params)
  if args.json:
    print(json.dumps(facts, indent=2))
  else:
    rows = list(_flat(facts))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
      print(f"{name:<{width}}  {value}")


def encode(args):
  from vftok.data.video import check_target
  from vftok.vft import Vft, write_vft

  if Path(args.out).suffix.lower() != ".vft":
    raise ValueError(f"{args.out} is no name for a token file, expected one that ends in .vft: rename it.")
  check_target(args.out)
  tok, params = load_tokenizer(args.model)
  keep = tok.registers if args.keep is None else args.keep
  _check_keep(keep, tok)
  tokens, fps, seconds = _encode(tok, params, args)
  vft = Vft.of(tokens.truncate(keep), tok, fps, tok.fingerprint(params))
  write_vft(args.out, vft)
  _report(args.out, vft.frames, seconds, f"{len(vft.keep)} time steps, {len(vft.ids)} tokens")


def decode(args):
  import jax

  from vftok.data.video import check_target, check_video_name, read_video, to_uint8, video_writer
  from vftok.progress import progress
  from vftok.vft import read_vft

  check_video_name(args.out)
  check_target(args.out)
  vft = read_vft(args.vft)
  tok, params = load_tokenizer(args.model)
  _check_model(vft, tok, params, args)
  tokens = vft.tokens()
  if args.keep is not None:
    tokens = tokens.truncate(_per_step(args.keep))
  first = None
  if args.first_frames:
    count = args.first_count
    first, _ = read_video(args.first_frames, vft.size, vft.fps, max_frames=count, min_frames=count)
    first = first[None]
  options = _sampler(args)
  began = time.monotonic()
  with video_writer(args.out, vft.fps) as writer, progress("decoding", vft.frames) as advance:
    for piece in tok.decode_stream(params, tokens, jax.random.key(args.seed), first_frames=first, **options):
      writer.write(to_uint8(piece[0]))
      advance(piece.shape[1])
  _report(args.out, writer.frames, time.monotonic() - began, f"{int(tokens.total()[0])} tokens")


def truncate(args):
  from vftok.vft import truncate_vft

  vft = truncate_vft(args.vft, args.out, _per_step(args.keep))
  print(f"{args.out}: {len(vft.keep)} time steps, {len(vft.ids)} tokens")


def reconstruct(args):
  import jax
  import numpy as np

  from vftok.data.video import check_target, check_video_name, iter_frames, to_uint8, video_writer
  from vftok.evals.pixels import PixelScores
  from vftok.picture import curves_png, labelled_grid, si
  from vftok.progress import progress

  check_video_name(args.out)
  check_target(args.out)
  if Path(args.out).exists() and Path(args.out).samefile(args.video):
    raise ValueError(f"{args.out} is the input itself, expected another file to write: choose another name.")
  keeps = sorted(set(args.keep))
  tok, params = load_tokenizer(args.model)
  for keep in keeps:
    _check_keep(keep, tok)
  tokens, fps, _ = _encode(tok, params, args)
  frames, steps = tokens.frames, tokens.keep.shape[1]

  bits_per_token = math.log2(tok.codebook_size)
  rows = [{"keep": k, "tokens": k * steps, "bits": k * steps * bits_per_token} for k in keeps]
  labels = [f"original\n{frames} frames at {fps:.3g} fps"]
  labels += [f"k = {r['keep']}\n{r['tokens']} tokens, {si(r['bits'], 'bit')}" for r in rows]
  # One key for all budgets: the same noise, so that columns differ by their tokens alone.
  key, options = jax.random.key(args.seed), _sampler(args)
  streams = [tok.decode_stream(params, tokens.truncate(k), key, **options) for k in keeps]
  scores, seconds = [PixelScores() for _ in keeps], [0.0] * len(keeps)
  originals = iter_frames(args.video, tok.frame_size, args.fps, start=args.start, max_frames=args.max_frames)
  with video_writer(args.out, fps) as writer, progress("decoding", frames * len(keeps)) as advance:
    while writer.frames < frames:  # all budgets advance together, chunk by chunk: memory stays small
      columns = []
      for i, stream in enumerate(streams):
        began = time.monotonic()
        columns.append(to_uint8(next(stream)[0]))
        seconds[i] += time.monotonic() - began
        advance(len(columns[-1]))
      original = np.stack(list(itertools.islice(originals, len(columns[0]))))
      for score, column in zip(scores, columns, strict=True):
        score.update(original, column)
      writer.write(labelled_grid([original, *columns], labels))
  for row, score, spent in zip(rows, scores, seconds, strict=True):
    row.update(psnr=score.psnr, ssim=score.ssim, seconds=spent)
  curves = str(Path(args.out).with_suffix(".png"))
  values = {"PSNR (dB)": [r["psnr"] for r in rows], "SSIM": [r["ssim"] for r in rows]}
  height, width = tok.frame_size
  title = f"{Path(args.video).name}: {frames} frames at {fps:.3g} fps, {width} x {height}, {args.steps} steps"
  curves_png(curves, keeps, [r["bits"] for r in rows], values, title)
  _table(args, rows, {"frames": frames, "fps": fps, "time_steps": steps, "video": args.out, "curves": curves})


def _encode(tok, params, args):
  """(VideoTokens of the whole clip, frames per second, seconds it took)."""
  from vftok.data.video import iter_frames, video_info
  from vftok.progress import progress
  from vftok.types import VideoTokens

  own_fps, length = video_info(args.video)
  fps = own_fps if args.fps is None else args.fps
  frames = iter_frames(args.video, tok.frame_size, args.fps, start=args.start, max_frames=args.max_frames)
  expected = None if length is None else max(1, round((length - args.start) * fps))
  if args.max_frames is not None:
    expected = min(expected or args.max_frames, args.max_frames)
  pieces, began = [], time.monotonic()
  with progress("encoding", expected) as advance:
    for piece in tok.encode_stream(params, (frame[None] for frame in frames), fit=args.fit):
      pieces.append(piece)
      advance(piece.frames)
  return VideoTokens.concat(pieces), fps, time.monotonic() - began


def _sampler(args) -> dict:
  from vftok import APG, CFG

  kinds = {"apg": (APG, 20.0), "cfg": (CFG, 3.0)}
  guidance = None
  if args.guidance != "none":
    kind, scale = kinds[args.guidance]
    guidance = kind(scale=scale if args.scale is None else args.scale)
  elif args.scale is not None:
    raise ValueError(
      f"--scale is {args.scale:g} without guidance, expected apg or cfg: leave one of the two out."
    )
  return {"steps": args.steps, "guidance": guidance, "solver": args.solver}


def _check_keep(keep: int, tok):
  if not 0 <= keep <= tok.registers:
    raise ValueError(
      f"--keep is {keep}, expected 0 to {tok.registers}, the model's tokens per time step: lower it."
    )


def _check_model(vft, tok, params, args):
  fingerprint = tok.fingerprint(params)
  if vft.fingerprint != fingerprint:
    raise ValueError(
      f"{args.vft} was made by model {vft.fingerprint}, but {args.model} is model {fingerprint}: "
      "decode with the model that encoded it."
    )
  mine = (tok.registers, tuple(tok.levels), tuple(tok.frame_size), tok.chunk_frames, tok.overlap_frames)
  theirs = (vft.registers, vft.levels, vft.size, vft.chunk_frames, vft.overlap_frames)
  if mine != theirs or vft.frames > tok.frames_for(len(vft.keep)):
    raise ValueError(
      f"{args.vft} contradicts the model it names, expected {mine} and not {theirs}: encode it again."
    )


def _per_step(keep: list[int]):
  """A single count stays one number; several are one per time step."""
  import numpy as np

  return keep[0] if len(keep) == 1 else np.asarray(keep)


def _report(path, frames: int, seconds: float, what: str):
  print(f"{path}: {frames} frames, {what}; {seconds:.1f} s, {frames / max(seconds, 1e-9):.3g} frames/s")


def _table(args, rows, facts):
  if args.json:
    finite = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]
    print(json.dumps({**facts, "rows": finite}, indent=2))
    return
  print(" keep   tokens       bits   kbit/s  PSNR dB    SSIM  frames/s")
  for r in rows:
    rate, speed = r["bits"] * facts["fps"] / facts["frames"] / 1e3, facts["frames"] / max(r["seconds"], 1e-9)
    quality = f"{r['psnr']:>8.2f} {r['ssim']:>7.4f}"
    print(f"{r['keep']:>5} {r['tokens']:>8} {r['bits']:>10.0f} {rate:>8.3g} {quality} {speed:>9.3g}")
  print(f"wrote {facts['video']} and {facts['curves']}")


def _flat(facts: dict, prefix: str = ""):
  for name, value in facts.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}.")
    elif isinstance(value, float):
      yield f"{prefix}{name}", f"{value:.6g}"
    elif isinstance(value, int) and not isinstance(value, bool):
      yield f"{prefix}{name}", f"{value:,}"
    else:
      yield f"{prefix}{name}", value


def _counts(text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(",")]
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text!r} is not a whole number, or several with commas: try 16 or 1,4,16."
    ) from None


def _parser() -> argparse.ArgumentParser:
  from vftok import __version__

  parser = argparse.ArgumentParser(prog="vftok", description="Flexible-length video tokens.")
  parser.add_argument("--version", action="version", version=f"vftok {__version__}")
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def command(run, summary, *positional):
    sub = commands.add_parser(run.__name__, help=summary, description=summary)
    sub.set_defaults(run=run)
    for name, text in positional:
      sub.add_argument(name, metavar=name.upper(), help=text)
    return sub

  model = ("model", "folder, .safetensors file or Hub id")
  sub = command(info, "what a model or a .vft file is", ("what", "model or .vft file"))
  sub.add_argument("--json", action="store_true", help="print JSON")

  sub = command(encode, "video to tokens", model, ("video", "video to read"), ("out", ".vft file to write"))
  sub.add_argument("--keep", type=int, metavar="K", help="tokens kept per time step (default: all)")
  _reading(sub)

  sub = command(
    decode, "tokens to video", model, ("vft", ".vft file to read"), ("out", ".mp4 or .gif to write")
  )
  sub.add_argument(
    "--keep", type=_counts, metavar="K", help="use fewer tokens: K, or K1,K2,... one per time step"
  )
  sub.add_argument("--first-frames", metavar="VIDEO", help="start from the first frames of this video")
  sub.add_argument(
    "--first-count", type=int, default=1, metavar="N", help="how many of them: 1, 5, 9, ... (default 1)"
  )
  _sampling(sub)

  sub = command(
    truncate, "shorter tokens, without the model", ("vft", ".vft file to read"), ("out", ".vft file to write")
  )
  sub.add_argument(
    "--keep", type=_counts, required=True, metavar="K", help="K, or K1,K2,... one per time step"
  )

  sub = command(
    reconstruct,
    "original and reconstructions side by side, and curves of PSNR and SSIM",
    model,
    ("video", "video to read"),
    ("out", ".mp4 or .gif to write; the curves go beside it as .png"),
  )
  sub.add_argument(
    "--keep", type=_counts, default=[1, 4, 16, 64, 256], metavar="K1,K2,...", help="budgets to show"
  )
  sub.add_argument("--json", action="store_true", help="print JSON")
  _reading(sub)
  _sampling(sub)
  return parser


def _reading(sub):
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
  sub.add_argument("--steps", type=int, default=30, metavar="N", help="solver steps (default 30)")
  sub.add_argument("--guidance", choices=("apg", "cfg", "none"), default="apg", help="default apg")
  sub.add_argument("--scale", type=float, help="guidance scale (default 20 for apg, 3 for cfg)")
  sub.add_argument("--solver", choices=("euler", "heun", "ab2"), default="euler", help="default euler")
  sub.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")


if __name__ == "__main__":
  sys.exit(main())
