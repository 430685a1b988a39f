"""The generator's decoding in PyTorch, as one would write it there: `python launch/peers/torch_generator.py --batch=1`.

A LLaMA of the same sizes as `python -m vftok.tools.bench_generator`: RMSNorm, SwiGLU, no biases, a static cache of keys
and values, sampling by Gumbel noise, guidance as twice the rows. Forms: "filled", which attends to what the cache holds
so far and so is not compiled; "compiled", torch.compile over the whole cache under a mask. Rates are of the second
pass. Prints JSON. Needs torch alone.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

HEAD = 64


class Block(nn.Module):
  def __init__(self, dim: int, rows: int, length: int):
    super().__init__()
    hidden = -(-int(8 * dim / 3) // 64) * 64
    self.attention_norm, self.mlp_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
    linear = lambda a, b: nn.Linear(a, b, bias=False)
    self.qkv, self.out, self.up, self.down = (
      linear(dim, 3 * dim),
      linear(dim, dim),
      linear(dim, 2 * hidden),
      linear(hidden, dim),
    )
    for name in ("keys", "values"):
      self.register_buffer(name, torch.zeros(rows, dim // HEAD, length, HEAD))

  def forward(self, x_Bx1xD, at_1, seen_1xL, filled: int | None):
    b, _, d = x_Bx1xD.shape
    q, k, v = self.qkv(self.attention_norm(x_Bx1xD)).view(b, 1, 3, d // HEAD, HEAD).permute(2, 0, 3, 1, 4)
    self.keys.index_copy_(2, at_1, k)
    self.values.index_copy_(2, at_1, v)
    if filled is None:
      y = F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=seen_1xL)
    else:
      y = F.scaled_dot_product_attention(q, self.keys[:, :, :filled], self.values[:, :, :filled])
    x_Bx1xD = x_Bx1xD + self.out(y.transpose(1, 2).reshape(b, 1, d))
    gate, value = self.up(self.mlp_norm(x_Bx1xD)).chunk(2, -1)
    return x_Bx1xD + self.down(F.silu(gate) * value)


class Model(nn.Module):
  def __init__(self, depth: int, vocab: int, rows: int, length: int):
    super().__init__()
    dim, self.length = HEAD * depth, length
    self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
    self.blocks = nn.ModuleList(Block(dim, rows, length) for _ in range(depth))
    self.norm, self.head = nn.RMSNorm(dim, eps=1e-6), nn.Linear(dim, vocab, bias=False)

  def forward(self, ids_Bx1, at_1, guidance: float, filled: int | None = None):
    """The next ids, int64 [B, 1]; with guidance the second half of the rows knows no condition."""
    seen_1xL = torch.arange(self.length, device=ids_Bx1.device)[None] <= at_1
    x = self.tokens(ids_Bx1) + self.places(at_1)
    for block in self.blocks:
      x = block(x, at_1, seen_1xL, filled)
    logits_BxV = self.head(self.norm(x))[:, 0].float()
    if guidance != 1:
      known, unknown = logits_BxV.chunk(2)
      logits_BxV = unknown + guidance * (known - unknown)
    noise = -torch.log(torch.empty_like(logits_BxV).exponential_())
    ids = (logits_BxV + noise).argmax(-1, keepdim=True)
    return torch.cat([ids, ids]) if guidance != 1 else ids


def rate(step, length: int, batch: int) -> float:
  """Tokens per second of `length` steps; the first pass compiles and warms up."""
  for _ in range(2):
    begin = time.perf_counter()
    for i in range(length):
      step(i)
    if torch.cuda.is_available():
      torch.cuda.synchronize()
    took = time.perf_counter() - begin
  return batch * length / took


@torch.inference_mode()
def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--depth", type=int, default=10)
  parser.add_argument("--vocab", type=int, default=8_000)
  parser.add_argument("--slots", type=int, default=256, help="tokens of each of the five time steps")
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--guidance", type=float, default=2.0)
  parser.add_argument("--forms", default="filled,compiled")
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  rows, length = args.batch * (2 if args.guidance != 1 else 1), 5 * args.slots
  model = Model(args.depth, args.vocab, rows, length).to(device, getattr(torch, args.dtype)).eval()
  ids, places = torch.zeros(rows, 1, dtype=torch.long, device=device), torch.arange(length, device=device)[:, None]
  compiled = torch.compile(model, dynamic=False)

  def filled(i: int):
    ids.copy_(model(ids, places[i], args.guidance, i + 1))

  def whole(i: int):
    ids.copy_(compiled(ids, places[i], args.guidance))

  out = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device == "cuda" else device}
  out |= {"threads": torch.get_num_threads(), "batch": args.batch, "guidance": args.guidance, "tokens": length}
  for form in args.forms.split(","):
    out[f"tokens_per_second_{form}"] = round(rate({"filled": filled, "compiled": whole}[form], length, args.batch), 2)
  print(json.dumps(out))


if __name__ == "__main__":
  main()
