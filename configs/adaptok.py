"""AdapTok (arXiv 2505.17011): configs/adaptok.py:SIZE with SIZE one of smoke, mini64, k600, and a scorer for each.

LARP's recipe with tokens in blocks of time, cut at random; k600 has the arguments of the released run, not the code's
defaults. smoke_scorer, mini64_scorer and k600_scorer come after them, with `init_from` their model: the tokenizer stays
as it is, and a scorer learns what each block loses by few tokens.
"""

from __future__ import annotations

from configs import larp
from vftok.tasks.one_pass_loss import WEIGHTS

BLOCKS = dict(encoder_attn_type="full_causal_type1", decoder_attn_type="full_causal_type2", nested=True, groups=4)

SCORERS = {  # layers, and the step of the counts that it knows
  "smoke": dict(depth=1, step=2, steps=4),
  "mini64": dict(depth=4, step=4, steps=20_000),
  "k600": dict(depth=12, step=32, steps=100_000),  # steps: unknown
}


def get_config(size: str = "mini64"):
  sizes = {make.__name__: make for make in (smoke, mini64, k600)}
  sizes |= {f"{name}_scorer": lambda name=name: _scorer(sizes[name](), **SCORERS[name]) for name in SCORERS}
  return sizes[size]()


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
  cfg.steps = 250 * (cfg.steps // 150)
  return _cut(cfg, tokens=512, title="AdapTok", counts_mean=256.0, counts_std=128.0, counts_least=32)


def _scorer(cfg, *, depth: int, step: int, steps: int):
  """Squared error of a scorer on measured LPIPS, the tokenizer frozen; the unit of these is unknown."""
  cfg.title, cfg.steps = f"{cfg.title}, scorer", steps
  if not cfg.title.startswith("AdapTok smoke"):
    cfg.init_from = "runs/adaptok/model"
  width, heads = cfg.model.decoder_hidden_size, cfg.model.decoder_num_heads
  cfg.model.update(dict(scorer=True, scorer_hidden_size=width, scorer_num_heads=heads))
  cfg.model.update(dict(scorer_depth=depth, scorer_step=step))
  cfg.loss.update({name: 0.0 for name in WEIGHTS})
  cfg.loss.update(dict(scorer=1.0, lpips_net="vgg", counts="grid", sampled=False, scorer_mean=0.15, scorer_std=0.1))
  cfg.freeze = tuple(f"tokenizer/{part}" for part in ("encoder", "quantizer", "decoder", "prior", "fixed"))
  cfg.optim.update(dict(b1=0.9, b2=0.99))
  cfg.optim.lr_groups = cfg.optim.every = cfg.optim.follow = {}
  return cfg
