"""The programs of a config, lowered for a mesh of chips that are not here: train, encode, decode, sample."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vftok.generator import generate
from vftok.generator.conditions import Condition
from vftok.models import order
from vftok.models.ar_inputs import Places
from vftok.models.flops import ar_flops, attended_pairs, stack_flops, vae_flops
from vftok.runtime import sharding
from vftok.tokenizer import programs
from vftok.tokenizer.checks import guidance_of
from vftok.tools.aot_tasks import placed, planned_batch, planned_task
from vftok.train import optim
from vftok.train.state import logical_axes, planned_state
from vftok.train.step import train_step


class Planned(NamedTuple):
  """Attributes:
  lowered: what the compiler gets.
  flops: of one run, over all chips, by vftok/models/flops.py.
  batch, parameters: examples of a run; parameters of the model that runs.
  rounds: of a loop whose length is data, 0 where there is none; each reads all parameters again.
  """

  lowered: Any
  flops: float
  batch: int
  parameters: int
  rounds: int = 0


def plan(name: str, cfg: ConfigDict, mesh: Mesh, batch: int = 0) -> Planned:
  """The program `name` of a config at its own batch size, or at `batch`.

  Raises:
    ValueError: a program that the config's task does not have, or a batch that the mesh does not divide.
  """
  known = {"tokenizer": ("train", "encode", "decode"), "ar": ("train", "sample")}.get(cfg.task, ("train",))
  if name not in known:
    raise ValueError(f"program is {name!r}, expected {' or '.join(known)} for a config whose task is {cfg.task!r}.")
  if batch:
    cfg.batch_size = batch
  multiple = sharding.batch_size_multiple(mesh) * (cfg.accumulate if name == "train" else 1)
  if cfg.batch_size % multiple:
    raise ValueError(f"batch_size is {cfg.batch_size}, expected a multiple of {multiple} on this mesh.")
  task = planned_task(cfg)
  # The mesh's abstract twin: arrays made while tracing must not go to chips that are not here.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return {"train": _train, "encode": _encode, "decode": _decode, "sample": _sample}[name](cfg, task, mesh)


def _train(cfg, task, mesh) -> Planned:
  tx, _ = optim.make_optimizer(cfg.optim, cfg.steps, *logical_axes(task.init, cfg.freeze))
  whole = sharding.replicated(mesh)
  state, places = planned_state(task.init, tx, mesh, ema=bool(cfg.ema), freeze=cfg.freeze)
  frozen, batch = task.frozen(), planned_batch(cfg, task, mesh)
  frozen = placed(frozen, sharding.frozen_shardings(frozen, mesh))
  step = functools.partial(train_step, task=task, tx=tx, cfg=cfg)
  lowered = jax.jit(step, donate_argnums=0, out_shardings=(places, whole)).lower(state, frozen, batch)
  return Planned(lowered, task.flops() * cfg.batch_size, cfg.batch_size, _size(state.params))


def _params(init, mesh, dtype=None) -> Any:
  """Shapes of a model's parameters where the mesh puts them; `dtype` for the floats among them."""
  boxed = jax.eval_shape(init, jax.random.key(0))
  places = sharding.param_shardings(sharding.logical_axes(boxed), nn.unbox(boxed), mesh)
  shape = lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=place)
  return jax.tree.map(shape, nn.unbox(boxed), places)


def _of_batch(mesh, *shape, dtype=np.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(sharding.RULES["batch"])))


def _encode(cfg, task, mesh) -> Planned:
  tok, b = task.tok, cfg.batch_size
  params = _params(functools.partial(tok.init, boxed=True), mesh)
  video = _of_batch(mesh, b, tok.chunk_frames, *tok.frame_size, 3, dtype=np.uint8)
  run = lambda params, video: programs.encode_chunk(tok.cfg, params, video)
  t, block = _sequence(tok)
  flops = stack_flops(tok.cfg.encoder.stack, t * block, attended_pairs(t, block))
  flops += vae_flops(tok.cfg.vae, tok.chunk_frames, *tok.frame_size)[0]
  return Planned(jax.jit(run).lower(params, video), b * flops, b, _size(params))


def _decode(cfg, task, mesh) -> Planned:
  """As the model decodes by default: guided, all registers computed, the null pass as one register per step."""
  tok, b, steps = task.tok, cfg.batch_size, 25
  params = _params(functools.partial(tok.init, boxed=True), mesh)
  shape = tok.latent_shape(b, tok.chunk_steps)
  ids = _of_batch(mesh, b, tok.chunk_steps, tok.registers, dtype=np.int32)
  keep, noise = _of_batch(mesh, *ids.shape[:2], dtype=np.int32), _of_batch(mesh, *shape)
  options = dict(steps=steps, solver="euler", slots=tok.registers)
  guidance = guidance_of(cfg.eval.guidance_kind, cfg.eval.guidance, tok.cfg)
  run = lambda params, ids, keep, noise: programs.decode_chunk(
    tok.cfg, params, ids, keep, noise, None, guidance, **options
  )
  t, block = _sequence(tok)
  pairs = (t * block) ** 2 if tok.cfg.decoder.mask == "full" else attended_pairs(t, block)
  flops = steps * stack_flops(tok.cfg.decoder.stack, t * block, pairs)
  patches = block - tok.cfg.encoder.registers + 1
  flops += steps * stack_flops(tok.cfg.decoder.stack, t * patches, attended_pairs(t, patches))
  flops += vae_flops(tok.cfg.vae, tok.chunk_frames, *tok.frame_size)[1]
  return Planned(jax.jit(run).lower(params, ids, keep, noise), b * flops, b, _size(params))


def _sequence(tok) -> tuple[int, int]:
  """(time steps, positions of each) of a chunk in encoder and decoder."""
  h, w = (n // p for n, p in zip(tok.cfg.latent_size, tok.cfg.decoder.patch[1:], strict=True))
  return tok.chunk_steps, h * w + tok.cfg.encoder.registers


def _sample(cfg, task, mesh) -> Planned:
  """Whole sequences, all tokens made, guided, parameters in the compute dtype."""
  gen, b = task.gen, cfg.batch_size
  ar = gen.cfg.ar
  params = _params(task.init, mesh, jnp.dtype(ar.dtype))
  seq = order.sequence(np.full((1, ar.steps), ar.slots), 0, order=ar.order)

  def run(params, keys_B, text, text_mask):
    places = Places.of(*(jnp.broadcast_to(x, (b, ar.length)) for x in (seq.time_BxL, seq.slot_BxL)))
    forced = jnp.full((b, ar.length), -1, jnp.int32)
    one = jnp.float32(1.0)
    plan = generate.Plan(places, forced, jnp.full((b,), 2.0), one, one)
    cond = Condition(null_BxG=jnp.zeros((b, 1), bool))
    if ar.n_classes:
      cond = cond._replace(label_BxG=jnp.zeros((b, 1), jnp.int32))
    if ar.ctx_dim:
      cond = cond._replace(text_BxSxC=text, text_mask_BxS=text_mask)
    keys_B = jax.vmap(jax.random.wrap_key_data)(keys_B)
    memo, state = generate.start(ar, params, plan, cond, keys_B, guided=True)
    return generate.advance(ar, params, memo, plan, state, ar.length, guided=True).ids

  width = cfg.tokenize.text_tokens
  text = _of_batch(mesh, b, width, max(1, ar.ctx_dim)), _of_batch(mesh, b, width, dtype=np.bool_)
  lowered = jax.jit(run).lower(params, _of_batch(mesh, b, 2, dtype=np.uint32), *text)
  forward = ar_flops(ar.dim, ar.depth, ar.hidden, ar.vocab, ar.length, width if ar.ctx_dim else 0)
  return Planned(lowered, 2 * b * forward, b, _size(params), ar.length)


def _size(tree) -> int:
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
