"""Experiments of configs/tokenizer.py with a 3-D grid in place of registers."""

from __future__ import annotations

GRID_MASKS = {"time_block_causal_last": "time_block_causal"}  # the same but for registers, which a grid has none of
SIDES = {"": 1, "_4": 2, "_16": 4}  # end of the name -> patches along the side of a token's cell


def grid(make, side: int):
  """The same experiment with a token for every patch, or for every square of `side` times `side` of them.

  Patches stay those of the nested model: with larger ones the decoder would paint worse, whatever its tokens say.
  """
  cfg = make()
  cfg.title, cfg.freeze, cfg.init_from = f"{cfg.title}, grid", (), ""
  for part in (cfg.model.encoder, cfg.model.decoder):
    part.update(dict(cell=(side, side), registers=0, mask=GRID_MASKS.get(part.mask, part.mask)))
  cfg.model.encoder.update(dict(linear=False, net=True))
  cfg.model.decoder.stack.adaln = 1  # there is one kind of token
  cfg.model.decoder.register_positions, cfg.model.decoder.draft = None, None
  cfg.model.decoder.replacements = tuple(name for name in cfg.model.decoder.replacements if name != "mask")
  cfg.loss.update(dict(draft=0.0, fit_batches=0))
  cfg.optim.lr_groups = {}
  cfg.eval.keeps = ()
  return cfg
