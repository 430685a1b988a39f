"""Every switch a released config can set: random checkpoints against the numpy oracle in oracle.py.

Names of modules, data keys and tensors are those of the golden file; each model changes some switches.
"""

import dataclasses

import numpy as np
import pytest
from oracle import Oracle, mask
from safetensors.numpy import load_file
from switch_models import (
  DATA,
  GRID,
  MIXED,
  MODELS,
  PREFIX,
  SOME,
  TIMES,
  TOLERANCE,
  K,
  build,
  golden,
  inputs,
  last,
  named_cross,
  relative,
  same_leaves,
  write,
)

from vftok import APG, CFG, Tokenizer, VideoTokens
from vftok.tokenizer.programs import ids_of, vae_encode

THOROUGH = ("k600_like", "registers_first")
QUICK = ("flexible",)  # the golden itself is compared in tests/test_parity.py


pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_model(name, tmp_path):
  model = MODELS[name]
  config, tensors = build(model)
  path = write(tmp_path / "released", config, tensors | golden()[1])
  tok, params = Tokenizer.load(path)
  oracle = Oracle(config["video_flex_tok"], tensors)
  assert (tok.overlap_frames, tok.registers, tok.chunk_steps) == (model.overlap, K, 5)
  step = 5 if model.overlap == 0 else 5 - (model.overlap + 3) // 4
  assert tok.steps_for(17 + 2 * (17 - model.overlap)) == 5 + 2 * step

  latents, ids, noise = inputs(tok.codebook_size)
  assert tok.codebook_size == np.prod(model.levels)
  z = tok.features(params, last(latents))
  expected = oracle.features(latents)
  assert relative(z, expected) < TOLERANCE
  bounded = oracle.fsq.bounded(expected)
  sure = (np.abs(bounded - np.rint(bounded)) < 0.499).all(-1)
  assert sure.mean() > 0.9 and (np.asarray(ids_of(tok.cfg, z)) == oracle.fsq.ids(expected))[sure].all()
  assert len(np.unique(oracle.fsq.ids(expected))) > 10

  all_kept = VideoTokens.full(ids)
  has = set(model.overwrite)
  # (keep, null, prefix, collapse); programs take long to compile, so most models run each switch once
  mixed, some = (MIXED, SOME) if "mask" in has else (None, None)
  prefix = 1 if "prefix" in has else 0
  cases = [(mixed, False, prefix, False)]
  if name in THOROUGH:
    cases = [(keep, False, 0, False) for keep in (None, MIXED, SOME)]
    cases += [(None, False, 0, True), (SOME, False, 0, True)]
    cases += [(SOME, False, 1, True), (SOME, False, 1, False)] if "prefix" in has else []
    cases += [(None, True, 0, True), (None, True, 0, False)]
  results = {}
  for keep, null, prefix, collapse in cases:
    expected = last(oracle.velocity(ids, noise, TIMES, keep, null=null, prefix=prefix))
    what = (str(keep), null, prefix)
    assert all(relative(expected, other) > 1e-2 for key, other in results.items() if key != what)
    results[what] = expected
    tokens = all_kept if keep is None else all_kept.truncate(keep)
    v = tok.velocity(params, tokens, last(noise), TIMES, null=null, prefix=prefix, collapse=collapse)
    assert relative(v, expected) < TOLERANCE, (what, collapse)

  if "mask" not in has:
    with pytest.raises(ValueError, match="no mask vector"):
      tok.velocity(params, all_kept.truncate(SOME), last(noise), TIMES)
  if "null" not in has:
    with pytest.raises(ValueError, match="no null vector"):
      tok.decode_latents(params, all_kept, guidance=CFG(3.0), steps=4, noise=last(noise))
  tokens = all_kept if some is None else all_kept.truncate(some)
  if "null" not in has:
    guidance, options = None, {}
  elif list(MODELS).index(name) % 2:
    guidance, options = CFG(3.0), {"cfg": 3.0}
  else:
    guidance, options = APG(5.0, 0.5, -0.5, 0.6), {"apg": (5.0, 0.5, -0.5, 0.6)}
  x = tok.decode_latents(params, tokens, guidance=guidance, steps=4, noise=last(noise))
  assert relative(x, last(oracle.sample(ids, noise, 4, some, **options))) < TOLERANCE

  def run(tok, params):  # the last program again: it is compiled already
    return np.asarray(tok.velocity(params, tokens, last(noise), TIMES, null=null, prefix=prefix, collapse=collapse))

  tokens = all_kept
  tok.save(params, tmp_path / "saved")
  tok.export(params, tmp_path / "exported")
  for copy_of in ("saved", "exported"):
    again, params_again = Tokenizer.load(tmp_path / copy_of)
    assert again == tok
    assert again.fingerprint(params_again) == tok.fingerprint(params)
    same_leaves(params, params_again)
    np.testing.assert_array_equal(run(tok, params), run(again, params_again))
  exported = load_file(tmp_path / "exported" / "model.safetensors")
  original = {PREFIX + k: v for k, v in (tensors | golden()[1]).items()}
  assert exported.keys() == original.keys()
  for key, value in original.items():
    if model.registers_first and model.adaln == 2 and "dec_transformer" in key and "adaLN" in key:
      patches_first = np.concatenate(np.split(value, 2)[::-1])
      np.testing.assert_array_equal(exported[key], patches_first, strict=True)
    else:
      np.testing.assert_array_equal(exported[key], value, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 5])
def test_chunks(overlap, tmp_path):
  """Two chunks: tokens and pixels as section 1.3 composes them from encoder, sampler and VAE."""
  config, tensors = build(dataclasses.replace(MODELS["golden_like"], overlap=overlap))
  tok, params = Tokenizer.load(write(tmp_path / "released", config, tensors | golden()[1]))
  oracle = Oracle(config["video_flex_tok"], tensors)
  frames, again = 34 - overlap, 2 if overlap else 0  # of the second chunk's steps, how many stand twice
  rng = np.random.Generator(np.random.PCG64(11))
  video = np.repeat(rng.uniform(-1, 1, (1, frames, 8, 8, 3)), 4, 2).repeat(4, 3).astype(np.float32)

  def first(x):
    return np.moveaxis(np.asarray(x), -1, 1)

  z = [oracle.features(first(tok.encode_latents(params, video[:, start : start + 17]))) for start in (0, 17 - overlap)]
  z = np.concatenate([z[0], z[1][:, again:]], 1)
  tokens = tok.encode(params, video)
  edge = np.abs(oracle.fsq.bounded(z) - np.rint(oracle.fsq.bounded(z))).max(-1) > 0.499
  assert tokens.ids.shape == (1, 10 - again, K) and (np.asarray(tokens.ids) == oracle.fsq.ids(z))[~edge].all()

  ids, keep = np.asarray(tokens.ids), np.full((1, 5), 2)
  noise = rng.standard_normal((2, 1, 16, 5, GRID, GRID)).astype(np.float32)
  pieces = [tok.decode_pixels(params, last(oracle.sample(ids[:, :5], noise[0], 2, keep, cfg=3.0)))]
  given = first(vae_encode(tok.cfg, params, pieces[0][:, -overlap:])[0]) if overlap else None
  ids = np.concatenate([oracle.fsq.ids(oracle.features(given)), ids[:, 5:]], 1) if overlap else ids[:, 5:]
  second = oracle.sample(ids, noise[1], 2, np.full((1, 5), 2), cfg=3.0, first=given)
  pieces.append(tok.decode_pixels(params, last(second))[:, overlap:])
  expected = np.concatenate([np.clip(p, -1, 1) for p in pieces], 1)
  # frames go from chunk to chunk as the VAE gives them, not clipped
  ours = tok.decode(params, tokens.truncate(2), steps=2, guidance=CFG(3.0), noise=[last(n) for n in noise])
  assert relative(ours, expected) < TOLERANCE


def test_the_oracle_itself():
  """Its numbers are the reference's, on the golden file; its masks too."""
  tensors = load_file(DATA / "small.safetensors")
  weights = {k.removeprefix("w." + PREFIX): v for k, v in tensors.items() if k.startswith("w.")}
  oracle = Oracle(golden()[0]["video_flex_tok"], weights)
  assert relative(oracle.features(tensors["in.latents"]), tensors["enc.prequant"]) < 1e-5
  ids, x, t, keep = tensors["enc.token_ids"], tensors["dec.xt"], tensors["dec.t"], np.full((1, 5), 3)
  for name, options in {
    "v_all": {},
    "v_keep0": {"keep": 0 * keep},
    "v_keep3": {"keep": keep},
    "v_keep3_prefix1": {"keep": keep, "prefix": 1},
    "v_null": {"null": True},
  }.items():
    assert relative(oracle.velocity(ids, x, t, **options), tensors[f"dec.{name}"]) < 1e-5
  for name, options in {
    "keep3_cfg3": {"cfg": 3, "keep": keep},
    "apg5_eta.5_mom-.5_thr2.5": {"apg": (5, 0.5, -0.5, 2.5)},
    "cond_clean_apg5": {"apg": (5, 0, 0, 0.6), "first": tensors["in.cond_latents"]},
  }.items():
    assert relative(oracle.sample(ids, tensors["in.noise"], 4, **options), tensors[f"samp4.{name}"]) < 1e-5
  masks = load_file(DATA / "masks.safetensors")
  flexible = {
    "n2n_none": ("full", "none", "full", "none"),
    "p2n_none_n2n_causal": ("full", "none", "full", "causal"),
    "p2p_only": ("full", "none", "none", "none"),
  }
  for mode in ("full", "causal", "time_block_causal", "time_block_causal_last", *flexible):
    cross = named_cross(flexible[mode]) if mode in flexible else None
    key = f"B1.flexible.{mode}" if mode in flexible else f"B1.{mode}"
    assert (mask(mode, 3, (5, 4), cross) == masks[key][:27, :27]).all(), mode
