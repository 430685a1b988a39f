"""The generator's training step in PyTorch, as one would write it there: `python launch/peers/torch_train.py`.

The sizes of configs/t2v.py:mini: a LLaMA of width 192 and depth 4 with cross-attention to 24 text features beside 16
learned vectors, 5 x 16 tokens, batch 32, clipping, AdamW, a running mean of the weights. Forms: "eager" and
"compiled" (forward and loss under torch.compile; AdamW fused in both). Prints JSON. Needs torch alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
  def __init__(self, dim: int, head: int):
    super().__init__()
    hidden, linear = -(-int(8 * dim / 3) // 64) * 64, lambda a, b: nn.Linear(a, b, bias=False)
    self.head = head
    self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=1e-6) for _ in range(3))
    self.qkv, self.out = linear(dim, 3 * dim), linear(dim, dim)
    self.q, self.kv, self.text_out = linear(dim, dim), linear(dim, 2 * dim), linear(dim, dim)
    self.up, self.down = linear(dim, 2 * hidden), linear(hidden, dim)

  def _heads(self, x, parts: int):
    b, length, _ = x.shape
    return x.view(b, length, parts, -1, self.head).permute(2, 0, 3, 1, 4)

  def forward(self, x_BxLxD, text_BxMxD, seen_Bx1x1xM):
    flat = lambda y: y.transpose(1, 2).flatten(2)
    q, k, v = self._heads(self.qkv(self.norms[0](x_BxLxD)), 3)
    x_BxLxD = x_BxLxD + self.out(flat(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
    (q,), (k, v) = self._heads(self.q(self.norms[1](x_BxLxD)), 1), self._heads(self.kv(text_BxMxD), 2)
    x_BxLxD = x_BxLxD + self.text_out(flat(F.scaled_dot_product_attention(q, k, v, attn_mask=seen_Bx1x1xM)))
    gate, value = self.up(self.norms[2](x_BxLxD)).chunk(2, -1)
    return x_BxLxD + self.down(F.silu(gate) * value)


class Model(nn.Module):
  def __init__(self, dim: int, depth: int, head: int, vocab: int, length: int, text: int, null: int):
    super().__init__()
    self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
    self.start, self.null = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.randn(null, dim) * 0.02)
    self.text_in = nn.Linear(text, dim, bias=False)
    self.blocks = nn.ModuleList(Block(dim, head) for _ in range(depth))
    self.norm, self.readout = nn.RMSNorm(dim, eps=1e-6), nn.Linear(dim, vocab, bias=False)

  def forward(self, ids_BxL, text_BxSxC, mask_BxS):
    """The mean loss in nats of every token, given the ones before it and the text."""
    b = len(ids_BxL)
    x = torch.cat([self.start.expand(b, 1, -1), self.tokens(ids_BxL[:, :-1])], 1) + self.places.weight
    text = torch.cat([self.text_in(text_BxSxC), self.null.expand(b, -1, -1)], 1)
    seen = torch.cat([mask_BxS, ~mask_BxS[:, :1].expand(-1, len(self.null))], 1)[:, None, None]
    for block in self.blocks:
      x = block(x, text, seen)
    logits = self.readout(self.norm(x)).float()
    return F.cross_entropy(logits.flatten(0, 1), ids_BxL.flatten())


def seconds(args, form: str) -> float:
  torch.manual_seed(0)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  length = args.steps * args.slots
  model = Model(args.dim, args.depth, args.head, args.vocab, length, 384, 16).to(device)
  mean = [p.detach().clone() for p in model.parameters()]
  tx = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
  loss_of = torch.compile(model, dynamic=False) if form == "compiled" else model
  ids = torch.randint(args.vocab, (args.batch, length), device=device)
  text = torch.randn(args.batch, 24, 384, device=device)
  mask = torch.arange(24, device=device)[None] < torch.randint(8, 24, (args.batch, 1), device=device)

  def step() -> None:
    loss_of(ids, text, mask).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    tx.step()
    tx.zero_grad(set_to_none=True)
    with torch.no_grad():
      torch._foreach_lerp_(mean, list(model.parameters()), 0.002)
    if device == "cuda":
      torch.cuda.synchronize()

  times = []
  for i in range(args.count + 3):
    begin = time.perf_counter()
    step()
    if i >= 3:
      times.append(time.perf_counter() - begin)
  return statistics.median(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  for name, value in dict(dim=192, depth=4, head=64, vocab=64_000, steps=5, slots=16, batch=32, count=15).items():
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--forms", default="eager,compiled")
  args = parser.parse_args()
  a, b = torch.randn(2, 2048, 2048)
  times = []
  for _ in range(9):
    begin = time.perf_counter()
    a @ b
    times.append(time.perf_counter() - begin)
  out = {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch": args.batch, "vocab": args.vocab}
  out["matmul_gflop_per_s"] = round(2 * 2048**3 / statistics.median(times) / 1e9, 1)
  out |= {f"step_s_{form}": round(seconds(args, form), 4) for form in args.forms.split(",")}
  print(json.dumps(out))


if __name__ == "__main__":
  main()
