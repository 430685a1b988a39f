"""Where every parameter of the full-size configs lives, against tests/data/shardings.json.

After a change on purpose: VFTOK_WRITE_GOLDEN=1 pytest tests/test_shardings.py, and read the diff.
"""

import json
import math
import os
from pathlib import Path

import jax
import pytest

from configs import c2v, t2v, tokenizer
from vftok.runtime import sharding
from vftok.tools.aot_tasks import planned_task
from vftok.train.state import logical_axes

GOLDEN = Path(__file__).parent / "data" / "shardings.json"
CONFIGS = {
  "tokenizer:d18_d18": (tokenizer, 64),
  "tokenizer:d18_d28": (tokenizer, 64),
  "c2v:2.2b": (c2v, 64),
  "t2v:1.1b": (t2v, 64),
  "t2v:5.2b": (t2v, 64),
  "t2v:long": (t2v, 128),
}


def placed(name):
  """({path: "shape spec"}, share of all parameters that one chip holds) on the config's own mesh."""
  module, chips = CONFIGS[name]
  cfg = module.get_config(name.split(":")[1])
  sizes = cfg.mesh.to_dict()
  known = math.prod(n for n in sizes.values() if n > 0)
  shape = [chips // known if sizes.get(axis, 1) == -1 else sizes.get(axis, 1) for axis in sharding.MESH_AXES]
  assert math.prod(shape) == chips
  mesh = jax.sharding.AbstractMesh(tuple(shape), sharding.MESH_AXES)
  axes, shapes = logical_axes(planned_task(cfg).init, cfg.freeze)
  places = sharding.param_shardings(axes, shapes, mesh)
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  specs = [place.spec for place in jax.tree.leaves(places)]
  text, held, whole = {}, 0, 0
  for (path, leaf), spec in zip(leaves, specs, strict=True):
    cut = [a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)]
    held += leaf.size / math.prod(mesh.shape[a] for a in cut)
    whole += leaf.size
    text["/".join(key.key for key in path)] = f"{list(leaf.shape)} {list(spec)}"
  return text, held / whole * sizes.get("fsdp", 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_live_where_they_did(name):
  text, share = placed(name)
  assert share < 1.02, "what should be cut up by fsdp is whole"
  known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
  if os.environ.get("VFTOK_WRITE_GOLDEN"):
    GOLDEN.write_text(json.dumps({**known, name: text}, indent=1, sort_keys=True) + "\n")
    return
  assert text == known[name]
