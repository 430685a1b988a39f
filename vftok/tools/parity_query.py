"""LARP and AdapTok against their references' numbers: every stage, short clips, dropped tokens, the generators."""

from __future__ import annotations

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vftok.families.query import masks, nets, vq
from vftok.families.query import programs as query
from vftok.families.query.larp_ar import load_larp_ar
from vftok.tokenizer import families
from vftok.tools.golden import Errors, first, last, vq_losses

INPUTS = {"larp_small": ("ar.w.", "fp.w.", "ar.labels", "fp.cond_video")}


def opened(path: pathlib.Path, load=families.load, prefix: str = "w.", config: str = "config"):
  """What `load` makes of the weights under `prefix` and of a config in the metadata."""
  with safe_open(path, framework="np") as file:
    text = file.metadata()
    tensors = {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
  plain = json.loads(text[config])
  if config == "config" and "prior" in text:  # its name is the golden file's own, so the config does not tell its heads
    plain["prior_model"]["args"]["n_head"] = json.loads(text["prior"])["n_head"]
  with tempfile.TemporaryDirectory() as directory:
    save_file(tensors, f"{directory}/model.safetensors")
    (pathlib.Path(directory) / "config.json").write_text(json.dumps(plain))
    return load(directory)


def _pixels(frames):
  """Our [-1, 1], channels last -> theirs."""
  return first((frames + 1) / 2)


def _margin(tok, params, z) -> np.ndarray:
  found = np.sort(vq.scores(tok.cfg.vq, params["quantizer"]["table"], z), axis=-1)
  return found[..., -1] - found[..., -2]


def check_larp(path: pathlib.Path) -> Errors:
  tok, params = opened(path)
  errors = Errors(load_file(path))
  g, video = errors.golden, last(errors.golden["in.video"]) * 2 - 1
  _check_larp_stages(errors, tok, params, video)
  short = tok.shorter(tok.chunk_frames // 2)
  tokens = short.encode(params, video[:, : short.chunk_frames])
  errors.equal("tok.half.ids", tokens.ids[:, 0])
  errors.close("tok.half.decoded", _pixels(short.decode(params, tokens, clip=False)))
  _check_prior(errors, tok, params)
  _check_generators(errors, path, g["tok.ids"])
  given = tok.encode(params, last(g["fp.cond_video"]) * 2 - 1).ids[:, 0]
  errors.equal("fp.cond_ids", np.pad(given, ((0, 0), (0, 1)), constant_values=tok.codebook_size))
  return errors


def _check_larp_stages(errors: Errors, tok, params, video) -> None:
  cfg, table = tok.cfg, params["quantizer"]["table"]
  run = jax.jit(lambda x: nets.Encoder(cfg).apply({"params": params["encoder"]}, x, params["fixed"], collect=True))
  out, named = run((jnp.asarray(video) + 1) / 2)
  errors.close("tok.patch_embed", named["patches"])
  errors.close("tok.enc_in_patches", named["placed"])
  for i, block in enumerate(named["blocks"]):
    errors.close(f"tok.enc_block{i}", block)
  errors.close("tok.enc_out", out)
  ids, z, features = query.encode(cfg, params, jnp.asarray(video))
  errors.close("tok.enc_out", features, "tok.enc_out, program")
  errors.close("tok.projected_z", z)
  errors.close("tok.z_normed", vq.compared(cfg.vq, z))
  errors.close("tok.codebook", vq.compared(cfg.vq, table))
  errors.close("tok.score_margin", _margin(tok, params, z))
  u, codes = vq.compared(cfg.vq, z), vq.codes_of(cfg.vq, table, ids)
  passed = u + (codes - u)
  errors.close("tok.regularized_z", passed)
  tokens = tok.encode(params, video)
  errors.equal("tok.ids", tokens.ids[:, 0])
  losses = vq_losses(u, codes, np.ones(ids.shape, bool))
  for name, value in losses.items():
    errors.close(f"tok.loss_{name}", value)
  weights = {"commit": cfg.vq.commitment_loss_weight, "codebook": cfg.vq.codebook_loss_weight}
  errors.close("tok.loss_q", sum(weight * losses[name] for name, weight in weights.items()))
  decode = jax.jit(lambda c: nets.Decoder(cfg).apply({"params": params["decoder"]}, c, params["fixed"], collect=True))
  frames, named = decode(passed)
  errors.close("tok.decoded", first(frames))
  for key, name in (
    ("tok.bottleneck_out", "projected"),
    ("tok.dec_in_latents", "latents"),
    ("tok.dec_in_queries", "queries"),
    ("tok.dec_out", "out"),
  ):
    errors.close(key, named[name])
  errors.close("tok.decoded_from_ids", _pixels(tok.decode(params, tokens, clip=False)))


def _check_prior(errors: Errors, tok, params) -> None:
  ids = jnp.asarray(errors.golden["tok.ids"], jnp.int32)[:, None]
  predicted, logits = query.prior(tok.cfg, params, ids)
  start = vq.codes_of(tok.cfg.vq, params["quantizer"]["table"], ids[:, 0, :1])
  errors.close("tok.prior.pred", np.concatenate([start, predicted], axis=1))
  errors.close("tok.prior.logits", logits)
  likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 0, 1:, None], axis=-1)
  errors.close("tok.prior.ce_one_round", -likelihood.mean())


def _check_generators(errors: Errors, path: pathlib.Path, ids) -> None:
  g = errors.golden
  with safe_open(path, framework="np") as file:
    guidance = json.loads(file.metadata()["guidance"])
  gen, params = opened(path, load_larp_ar, "ar.w.", "ar_config")
  labels = g["ar.labels"]
  for key, options in (
    ("logits", {"labels": labels}),
    ("logits_null", {"labels": labels * 0 - 1}),
    ("logits_guided", {"labels": labels, "guidance": guidance}),
  ):
    errors.close(f"ar.{key}", gen.logits(params, ids, **options))
  greedy = lambda **options: gen.generate(params, temperature=0, **options).ids[:, 0]
  errors.equal("ar.greedy_ids", greedy(labels=labels))
  errors.equal("ar.greedy_guided_ids", greedy(labels=labels, guidance=guidance))
  gen, params = opened(path, load_larp_ar, "fp.w.", "fp_config")
  given = g["fp.cond_ids"][:, :-1]
  errors.close("fp.logits", gen.logits(params, ids, given=given))
  errors.equal("fp.greedy_ids", gen.generate(params, temperature=0, given=given).ids[:, 0])


def check_adaptok(path: pathlib.Path) -> Errors:
  tok, params = opened(path)
  errors = Errors(load_file(path))
  cfg, video = tok.cfg, last(errors.golden["in.video"]) * 2 - 1
  errors.equal("enc_mask", masks.dense(nets.encoder_groups(cfg)))
  errors.equal("dec_mask", masks.dense(nets.decoder_groups(cfg, cfg.group_tokens)))
  tokens = tok.encode(params, video)
  ids, z, features = query.encode(cfg, params, jnp.asarray(video))
  errors.close("enc_out", features)
  errors.close("projected_z", z)
  errors.close("score_margin", _margin(tok, params, z))
  errors.equal("ids", np.asarray(tokens.ids).reshape(len(ids), -1))
  codes = vq.codes_of(cfg.vq, params["quantizer"]["table"], ids)
  project = nets.Decoder(cfg).apply({"params": params["decoder"]}, codes, method=nets.Decoder.project)
  errors.close("bottleneck_out", project)
  with safe_open(path, framework="np") as file:
    counts = json.loads(file.metadata()["keeps"])
  for keep in counts:
    name = "keep" + "_".join(map(str, keep))
    errors.close(f"decoded.{name}", _pixels(tok.decode(params, tokens.truncate(keep), clip=False)))
    errors.close(f"scores.{name}", tok.scores(params, video, np.tile(keep, (len(ids), 1))))
  return errors
