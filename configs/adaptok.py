"""AdapTok (arXiv 2505.17011): configs/adaptok.py:SIZE with SIZE one of smoke, mini64 and k600.

LARP's recipe with tokens in blocks of time, cut at random; k600 has the arguments of the released run, not the code's
defaults.
"""

from __future__ import annotations

from configs import larp

BLOCKS = dict(encoder_attn_type="full_causal_type1", decoder_attn_type="full_causal_type2", nested=True, groups=4)


def get_config(size: str = "mini64"):
  return {make.__name__: make for make in (smoke, mini64, k600)}[size]()


def _cut(cfg, *, tokens: int, title: str, **counts):
  """The same experiment with `tokens` in each of four blocks of time, cut by a normal law."""
  cfg.title, cfg.family = title, "adaptok"
  cfg.model.update(dict(BLOCKS, bottleneck_token_num=4 * tokens, group_tokens=tokens))
  cfg.model.prior.length = 4 * tokens
  cfg.loss.update(dict(counts="normal", **counts))
  return cfg


def smoke():
  """Two seconds a step on any machine: for tests."""
  cfg = _cut(larp.smoke(), tokens=4, title="AdapTok smoke", counts_mean=2.0, counts_std=1.0, counts_least=1)
  cfg.eval.keeps = (1, 4)
  return cfg


def mini64():
  """As configs/larp.py:mini64, 64 tokens a block at most."""
  return _cut(larp.mini64(), tokens=64, title="AdapTok mini", counts_mean=32.0, counts_std=16.0, counts_least=1)


def k600():
  """AdapTok as it was released: 512 tokens a block, 32 to 512 of them kept, 250 epochs."""
  cfg = larp.k600()
  epochs = cfg.steps // 150
  cfg.steps = 250 * epochs
  return _cut(cfg, tokens=512, title="AdapTok", counts_mean=256.0, counts_std=128.0, counts_least=32)
