"""A tokenizer family in one file: the grey of each quarter of a frame, every fourth frame. No order, one pass."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vftok.io import hub
from vftok.tokenizer.families import Family
from vftok.tokenizer.one_pass import OnePass

ROW = Family("grey", "grey_family", lambda config: config.get("family") == "grey")


@dataclasses.dataclass(frozen=True)
class Grey(OnePass):
  side: int = 16
  shades: int = 16

  nested = False
  registers, chunk_frames, chunk_steps = 4, 8, 2

  @property
  def levels(self):
    return (self.shades,)

  @property
  def frame_size(self):
    return (self.side, self.side)

  def ids_of(self, params, video):
    quarters = video[:, ::4].reshape(len(video), 2, 2, self.side // 2, 2, self.side // 2, 3).mean((3, 5, 6))
    shade = jnp.argmin(jnp.abs(quarters[..., None] - params["table"]["shades"]), -1)
    return jnp.where(jnp.isfinite(quarters), shade, -1).reshape(len(video), 2, 4).astype(jnp.int32)

  def codes_of(self, params, ids):
    return params["table"]["shades"][jnp.asarray(ids)][..., None]

  def frames_of(self, params, ids, keep):
    grey = self.codes_of(params, ids).reshape(len(ids), 2, 2, 2, 1)
    for axis, times in ((1, 4), (2, self.side // 2), (3, self.side // 2), (4, 3)):
      grey = jnp.repeat(grey, times, axis)
    return grey

  def decides(self, params):
    return dataclasses.asdict(self), params

  def save(self, params, directory):
    shades = np.asarray(params["table"]["shades"])
    hub.save_files(directory, {"shades": shades}, {"family": "grey", **dataclasses.asdict(self)})


def load(name, *, dtype=None):
  checkpoint = hub.open_checkpoint(name)
  table = {key: jnp.asarray(value) for key, value in checkpoint.tensors(["shades"])}
  return Grey(checkpoint.config["side"], checkpoint.config["shades"]), {"table": table}
