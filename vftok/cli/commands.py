"""The command line: videos to .vft token files and back.

`vftok info | encode | decode | truncate | reconstruct | sample | export`, each with --help. Bad input gives one
sentence on stderr and exit code 2.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from vftok.cli.arguments import parse, parser
from vftok.runtime.ending import exit_code
from vftok.runtime.words import brief

# jax, PyAV and the models load inside the commands: --help must not wait for them.


def main(argv=None) -> int:
  """Runs one command. Returns the exit code: 0, or 2 after a sentence on stderr."""
  args = parse(parser((info, encode, decode, truncate, reconstruct, sample, export)), argv)
  return exit_code("vftok", args.run, args, interrupted="stopped.")


def load_tokenizer(path, dino=None):
  """(tokenizer, params) of a folder, a safetensors file or a Hub id; `dino`: weights of the net its encoder reads."""
  from vftok import Tokenizer
  from vftok.runtime.memory import keep_memory, use_compile_cache

  keep_memory()
  use_compile_cache()
  return Tokenizer.load(path, dino=dino)


def info(args):
  from vftok.io.vft import is_vft, read_vft

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
      "nested": vft.nested,
      "chunk_frames": vft.chunk_frames,
      "overlap_frames": vft.overlap_frames,
      "model": vft.fingerprint,
    }
  elif (vae := _vae_file(args.what)) is not None:
    from vftok.convert.load import load_vae
    from vftok.tokenizer.identity import describe_vae

    facts = describe_vae(*load_vae(vae))
  elif _is_picture_vae(args.what):
    from vftok.families.flextok import vae_weights

    facts = vae_weights.describe(*vae_weights.load_vae(args.what))
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


def _vae_file(what):
  """The open file of a VAE by itself, None for every other kind; what is wrong with those is said by who loads them."""
  from vftok.io import hub
  from vftok.models.config_json import FORMAT_VAE

  try:
    checkpoint = hub.open_checkpoint(what)
  except (ValueError, OSError):
    return None
  return checkpoint if checkpoint.config.get("format") == FORMAT_VAE else None


def _is_picture_vae(what) -> bool:
  """Whether it is a folder in diffusers' layout of an AutoencoderKL, what FlexTok's trainings stand on."""
  from vftok.io import hub

  try:
    return hub.read_json(Path(what) / hub.CONFIG).get("_class_name") == "AutoencoderKL"
  except (ValueError, OSError):
    return False


def encode(args):
  from vftok.budget.auto import Auto
  from vftok.io.vft import Vft, write_vft
  from vftok.runtime.files import check_target

  if Path(args.out).suffix.lower() != ".vft":
    raise ValueError(f"{args.out} is no name for a token file, expected one that ends in .vft: rename it.")
  check_target(args.out)
  tok, params = load_tokenizer(args.model, args.dino)
  keep = _per_step(args.keep or [tok.registers])
  for count in args.keep or ():
    _check_keep(count, tok)
  if args.budget is not None and args.keep is not None:
    shown = ",".join(map(str, args.keep))
    raise ValueError(f"--keep is {shown} and --budget {args.budget}, expected one of the two: leave the other out.")
  if args.tries and args.budget is None:
    raise ValueError(f"--tries is {args.tries} without --budget, expected a budget to spread: pass --budget auto:8.")
  if args.router is not None and args.budget is None:
    raise ValueError(
      f"--router is {brief(args.router)} without --budget, expected one to spread: pass --budget auto:8."
    )
  budget = None if args.budget is None else Auto.parse(args.budget, args.router, args.tries)
  if not tok.nested and args.keep is not None:  # such tokens are made for their number
    budget = keep
  tokens, fps, seconds = _encode(tok, params, args, budget)
  vft = Vft.of(tokens.truncate(keep) if tok.nested else tokens, tok, fps, tok.fingerprint(params))
  write_vft(args.out, vft)
  _report(args.out, vft.frames, seconds, f"{len(vft.keep)} time steps, {len(vft.ids)} tokens")


def decode(args):
  import jax

  from vftok.io.vft import read_vft
  from vftok.io.video import read_video
  from vftok.io.video_writer import check_video_name, to_uint8, video_writer
  from vftok.runtime.files import check_target
  from vftok.show.progress import COMPILING, progress

  check_video_name(args.out)
  check_target(args.out)
  vft = read_vft(args.vft)
  check_video_name(args.out, vft.frames)
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
  options = _sampler(args, tok)
  began = time.monotonic()
  with (
    video_writer(args.out, vft.fps) as writer,
    progress("decoding", vft.frames, first=COMPILING) as advance,
  ):
    for piece in tok.decode_stream(params, tokens, jax.random.key(args.seed), first_frames=first, **options):
      writer.write(to_uint8(piece[0]))
      advance(piece.shape[1])
  _report(args.out, writer.frames, time.monotonic() - began, f"{int(tokens.total()[0])} tokens")


def truncate(args):
  from vftok.io.vft import truncate_vft

  vft = truncate_vft(args.vft, args.out, _per_step(args.keep))
  print(f"{args.out}: {len(vft.keep)} time steps, {len(vft.ids)} tokens")


def reconstruct(args):
  import jax

  from vftok.cli.reconstruct import side_by_side, table
  from vftok.io.video import iter_frames
  from vftok.io.video_writer import check_video_name
  from vftok.runtime.files import check_target
  from vftok.show.picture import curves_png

  check_video_name(args.out)
  check_target(args.out)
  if Path(args.out).exists() and Path(args.out).samefile(args.video):
    raise ValueError(f"{args.out} is the input itself, expected another file to write: choose another name.")
  tok, params = load_tokenizer(args.model, args.dino)
  keeps = sorted(set(args.keep or ([*tok.budgets[:-1:2], tok.registers] if tok.nested else tok.budgets)))
  for keep in keeps:
    _check_keep(keep, tok)
  options = _sampler(args, tok)
  if tok.nested:
    tokens, fps, _ = _encode(tok, params, args)
    budgets = {keep: tokens.truncate(keep) for keep in keeps}
  else:  # every budget is a code of its own
    budgets = {}
    for keep in keeps:
      budgets[keep], fps, _ = _encode(tok, params, args, keep)
    tokens = budgets[keep]
  check_video_name(args.out, tokens.frames)
  originals = iter_frames(args.video, tok.frame_size, args.fps, start=args.start, max_frames=args.max_frames)
  key = jax.random.key(args.seed)
  rows = side_by_side(tok, params, budgets, originals, args.out, fps, key, **options)
  curves = Path(args.out).with_suffix(".png")
  curves = str(curves.with_stem(f"{curves.stem}_curves") if curves == Path(args.out) else curves)
  height, width = tok.frame_size
  how = f"{options['steps']} steps" if options else "one pass"
  what = f"{tokens.frames} frames at {fps:.3g} fps, {width} x {height}, {how}"
  values = {"PSNR (dB)": [r["psnr"] for r in rows], "SSIM": [r["ssim"] for r in rows]}
  curves_png(curves, keeps, [r["bits"] for r in rows], values, f"{Path(args.video).name}: {what}")
  if args.json:
    facts = {
      "frames": tokens.frames,
      "fps": fps,
      "time_steps": tokens.keep.shape[1],
      "video": args.out,
      "curves": curves,
    }
    finite = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]
    print(json.dumps({**facts, "rows": finite}, indent=2))
  else:
    print(table(rows, tokens.frames, fps))
    print(f"wrote {args.out} and {curves}")


def sample(args):
  from vftok.cli.sample import run

  run(args, load_tokenizer, _sampler)


def export(args):
  from vftok.cli.export import run

  run(args)


def _encode(tok, params, args, budget=None):
  """(VideoTokens of the whole clip, frames per second, seconds it took)."""
  from vftok.io.video import iter_frames, video_info
  from vftok.show.progress import COMPILING, progress
  from vftok.tokenizer.checks import check_made
  from vftok.tokens import VideoTokens

  own_fps, length = video_info(args.video)
  fps = own_fps if args.fps is None else args.fps
  frames = iter_frames(args.video, tok.frame_size, args.fps, start=args.start, max_frames=args.max_frames)
  expected = None if length is None else max(1, round((length - args.start) * fps))
  if args.max_frames is not None:
    expected = min(expected or args.max_frames, args.max_frames)
  pieces, began, routed = [], time.monotonic(), {} if budget is None else {"budget": budget}
  with progress("encoding", expected, first=COMPILING) as advance:
    for piece in tok.encode_stream(params, (frame[None] for frame in frames), fit=args.fit, **routed):
      pieces.append(piece)
      advance(piece.frames)
  tokens = check_made(VideoTokens.concat(pieces), f"the encoder's features of {args.video}")
  return tokens, fps, time.monotonic() - began


def _sampler(args, tok) -> dict:
  from vftok import APG, CFG

  if tok.one_pass:
    for name in ("steps", "guidance", "scale"):
      if getattr(args, name) not in (None, "none"):
        raise ValueError(f"--{name} is {getattr(args, name)}, but this tokenizer decodes in one pass: leave it out.")
    return {}
  kinds = {"apg": (APG, 20.0), "cfg": (CFG, 3.0)}
  name = args.guidance or (tok.cfg.guidance if "null" in tok.cfg.decoder.replacements else "none")
  if args.scale is None and args.guidance in (None, tok.cfg.guidance) and name in kinds:
    args.scale = tok.cfg.scale
  if name == "none" and args.scale is not None:
    raise ValueError(f"--scale is {args.scale:g} without guidance, expected apg or cfg: leave one of the two out.")
  guidance = None
  if name != "none":
    kind, scale = kinds[name]
    guidance = kind(scale=scale if args.scale is None else args.scale)
  steps = tok.cfg.solver_steps if args.steps is None else args.steps
  return {"steps": steps, "guidance": guidance, "solver": args.solver}


def _check_keep(keep: int, tok):
  if not 0 <= keep <= tok.registers:
    raise ValueError(f"--keep is {keep}, expected 0 to {tok.registers}, the model's tokens per time step: lower it.")


def _check_model(vft, tok, params, args):
  fingerprint = tok.fingerprint(params)
  if vft.fingerprint != fingerprint:
    raise ValueError(
      f"{args.vft} was made by model {vft.fingerprint}, but {args.model} is model {fingerprint}: "
      "decode with the model that encoded it."
    )
  mine = (tok.registers, tuple(tok.levels), tuple(tok.frame_size), tok.chunk_frames, tok.overlap_frames, tok.nested)
  theirs = (vft.registers, vft.levels, vft.size, vft.chunk_frames, vft.overlap_frames, vft.nested)
  if mine != theirs or vft.frames > tok.frames_for(len(vft.keep)):
    raise ValueError(f"{args.vft} contradicts the model it names, expected {mine} and not {theirs}: encode it again.")


def _per_step(keep: list[int]):
  """A single count stays one number; several are one per time step."""
  import numpy as np

  return keep[0] if len(keep) == 1 else np.asarray(keep)


def _report(path, frames: int, seconds: float, what: str):
  print(f"{path}: {frames} frames, {what}; {seconds:.1f} s, {frames / max(seconds, 1e-9):.3g} frames/s")


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


if __name__ == "__main__":
  sys.exit(main())
