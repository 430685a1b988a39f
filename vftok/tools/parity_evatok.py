"""The golden EVATok of `vftok.tools.parity`: every stage under every assignment of counts."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vftok.families.evatok import vq
from vftok.families.evatok.config import EvatokConfig
from vftok.families.evatok.networks import Decoder, Encoder
from vftok.models.layers import unit
from vftok.tokenizer.families import load
from vftok.tokenizer.programs import exact
from vftok.tokens import kept_slots
from vftok.tools.golden import Errors, first, last, vq_losses


def write_model(path: pathlib.Path, directory: str | pathlib.Path) -> dict:
  """Writes config.json and model.safetensors of the weights under `w.` of a golden file. Returns its metadata."""
  with safe_open(path, framework="np") as file:
    metadata = file.metadata()
    weights = {key.removeprefix("w."): file.get_tensor(key) for key in file.keys() if key.startswith("w.")}
  save_file(weights, pathlib.Path(directory) / "model.safetensors")
  (pathlib.Path(directory) / "config.json").write_text(metadata["config"])
  return metadata


def check_evatok(path: pathlib.Path) -> Errors:
  with tempfile.TemporaryDirectory() as directory:
    metadata = write_model(path, directory)
    tok, params = load(directory)
  errors = Errors(load_file(path))
  video = last(errors.golden["in.video"])
  for i, counts in enumerate(json.loads(metadata["assignments"])):
    _check_assignment(errors, tok, params, video, f"a{i}", np.int32(counts))
  return errors


@functools.partial(jax.jit, static_argnums=0)
def _run(cfg: EvatokConfig, params, video, keep):
  """(z, what stands in the encoder, cosines of the two nearest codes, codes, what stands in the decoder, losses)."""
  codebook = params["quantizer"]["codebook"]
  with exact("float32"):
    z, enc = Encoder(cfg).apply({"params": params["encoder"]}, video, keep, collect=True)
    best = jax.lax.top_k(vq.cosines(z, codebook), 2)[0]
    codes = vq.codes_of(vq.ids_of(z, codebook), codebook)
    _, dec = Decoder(cfg).apply({"params": params["decoder"]}, codes, keep, collect=True)
    return z, enc, best, codes, dec, losses_of(z, codebook, kept_slots(keep, cfg.slots))


def losses_of(z, codebook, kept) -> dict[str, jax.Array]:
  """The quantiser's terms as EVATok weighs them beside each other."""
  found = vq_losses(unit(z), vq.codes_of(vq.ids_of(z, codebook), codebook), kept)
  return {**found, "commit": 0.25 * found["commit"], "entropy": vq.entropy(unit(z), unit(codebook), kept)}


def _check_assignment(errors: Errors, tok, params, video, at: str, counts_T) -> None:
  keep = np.broadcast_to(counts_T, (len(video), tok.chunk_steps))
  kept = np.asarray(kept_slots(keep, tok.registers))
  packed = lambda x: np.asarray(x)[kept].reshape(len(video), -1, *x.shape[3:])  # blocks one after another
  z, enc, best, codes, dec, losses = _run(tok.cfg, params, jnp.asarray(video), keep)
  errors.close(f"{at}.pre_quant", packed(z))
  errors.close(f"{at}.enc_out", packed(enc["out"]))
  errors.close(f"{at}.score_margin", packed(best[..., 0] - best[..., 1]))
  errors.close(f"{at}.dec_out", dec["out"])
  for name, value in losses.items():
    errors.close(f"{at}.loss_{name}", value)
  tokens = tok.encode(params, video * 2, budget=counts_T)
  errors.equal(f"{at}.ids", packed(tokens.ids))
  errors.close(f"{at}.decoded", first(tok.decode(params, tokens, clip=False) / 2))
  if f"{at}.pooled" in errors.golden:
    shared = {"patch_embed": enc["patches"], "pooled": enc["pooled"], "enc_queries": packed(enc["queries"])}
    shared |= {"quantized": packed(codes), "dec_refs": packed(dec["refs"]), "dec_queries": dec["queries"]}
    shared |= {f"enc_block{i}": x for i, x in enumerate(enc["layers"])}
    shared |= {f"dec_block{i}": x for i, x in enumerate(dec["layers"])}
    for name, value in shared.items():
      errors.close(f"{at}.{name}", value)
