"""The generator against SemanTok's numbers: logits, and greedy ids under guidance with and without a cache."""

from __future__ import annotations

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vftok.generator.api import Generator
from vftok.tools.golden import Errors

GUIDANCE = 2.0


def check_generator(path: pathlib.Path) -> Errors:
  g = load_file(path)
  errors = Errors(g)
  with safe_open(path, framework="np") as file:
    config = file.metadata()["config"]
  with tempfile.TemporaryDirectory() as directory:
    save_file({k.removeprefix("w."): v for k, v in g.items() if k.startswith("w.")}, f"{directory}/model.safetensors")
    (pathlib.Path(directory) / "config.json").write_text(config)
    gen, params = Generator.load(directory)
  cond = {"label": g["in.class_id"]} if "in.class_id" in g else {k: g[f"in.{k}"] for k in ("text_emb", "text_mask")}
  errors.close("out.logits", gen.logits(params, g["in.ids"], cond))
  errors.close("out.logits_null", gen.logits(params, g["in.ids"], None))
  made = gen.generate(params, jax.random.key(0), cond, guidance=GUIDANCE, temperature=0.0)
  errors.equal("out.greedy_cfg2", made.flatten()[0])
  same = np.array_equal(_uncached(gen, params, cond, g["in.ids"].shape), g["out.greedy_cfg2"])
  errors.found["out.greedy_cfg2, uncached"] = 0.0 if same else float("inf")
  return errors


def _uncached(gen, params, cond, shape) -> np.ndarray:
  """Greedy ids [B, L] by one whole forward pass per token."""
  ids = jnp.zeros(shape, jnp.int32)
  for i in range(shape[1]):
    with_cond, without = (gen.logits(params, ids, c)[:, i] for c in (cond, None))
    ids = ids.at[:, i].set(jnp.argmax(without + GUIDANCE * (with_cond - without), axis=-1))
  return np.asarray(ids)
