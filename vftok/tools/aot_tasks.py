"""Tasks of full-size configs without their files: no weights, no tokens, no videos, only shapes."""

from __future__ import annotations

import functools
from typing import Any

import flax.traverse_util as traverse
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vftok.frozen.features.convert import abstract_params
from vftok.frozen.features.dinov2 import DINOv2
from vftok.frozen.features.vjepa2 import VJEPA2
from vftok.runtime.sharding import RULES
from vftok.tasks import Task, make_task
from vftok.tasks.frozen_nets import FrozenNets
from vftok.tasks.tokenizer import TokenizerTask

# What the released tokenizers give, from which full-size generators are sized: FSQ codes and text features.
CODEBOOK, REGISTERS = 64_000, 256
TEXT_DIM = {"t5": 4096, "minilm": 384}


class PlannedTokenizerTask(TokenizerTask):
  """A TokenizerTask whose frozen nets have shapes and no weights."""

  def _nets(self, model):
    make = lambda kind: {"dinov2": DINOv2, "vjepa2": VJEPA2}[kind]()
    planned = lambda net: (net, traverse.unflatten_dict(abstract_params(net)))
    dino = lambda model, path: planned(DINOv2())
    return FrozenNets(
      self.loss_cfg, self.cfg.dino, model, load_dino=dino, load_features=lambda kind, path: planned(make(kind))
    )

  def frozen(self) -> Any:
    frozen = {"vae": jax.eval_shape(lambda: self._random_vae)}
    return frozen | self.nets.params


def planned_task(cfg: ConfigDict) -> Task:
  """The task of a config, with nothing read from disk.

  Raises:
    ValueError: a config that no task can be made of.
  """
  if cfg.task == "tokenizer":
    cfg = cfg.copy_and_resolve_references()
    cfg.vae = ""  # the VAE of the config itself, which is VidTok's at its full size
    return PlannedTokenizerTask(cfg)
  if cfg.task != "ar":
    return make_task(cfg)
  asked = cfg.tokenize
  meta = dict(shape=[(asked.frames - 1) // 4 + 1, REGISTERS], codebook_size=CODEBOOK, tokenizer="", fingerprint="")
  meta |= dict(label_names=[], text=asked.text, text_path="")
  meta["text_shape"] = [asked.text_tokens, TEXT_DIM[asked.text]] if asked.text else None
  return make_task(cfg, metas=[meta])


def planned_batch(cfg: ConfigDict, task: Task, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """What the loader gives a step, cut along its first axis as `sharding.to_devices` cuts it."""
  place = NamedSharding(mesh, P(RULES["batch"]))
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((cfg.batch_size, *shape), dtype, sharding=place)
  batch = {"_mask": array(np.bool_), "label": array(np.int32), "source": array(np.int32), "index": array(np.int64)}
  if cfg.task != "ar":
    size = task.tok.frame_size if cfg.task == "tokenizer" else (cfg.data.size,) * 2
    return batch | {"video": array(np.uint8, cfg.data.frames, *size, 3)}
  ar, asked = task.gen.cfg.ar, cfg.tokenize
  batch["ids"] = array(np.uint16, ar.steps, REGISTERS)
  if ar.ctx_dim:
    batch |= {
      "text_emb": array(np.float16, asked.text_tokens, ar.ctx_dim),
      "text_mask": array(np.bool_, asked.text_tokens),
    }
  return batch


def placed(tree, places) -> Any:
  """Shapes and dtypes of a tree, each at its place."""
  as_planned = lambda x, place: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=place)
  return jax.tree.map(as_planned, jax.eval_shape(functools.partial(jax.tree.map, jnp.asarray), tree), places)
