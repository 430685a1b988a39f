"""Encoder and decoder of `python -m vftok.tools.bench tokenizer` in PyTorch: `python launch/peers/torch_tokenizer.py`.

Config M: 6 layers of width 384, 5 steps of 256 patches and 256 registers, batch 1, float32: pre-norm without affine,
QK-norm, SwiGLU, and in the decoder modulation by flow time for two kinds of token. The time-causal mask is the form
that is fastest there, scaled_dot_product_attention once per step over the steps that it sees; a mask over all pairs is
slower. All registers are computed, whatever is kept. Rows, in seconds, eager and compiled. Prints JSON. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

STEPS, PATCHES, REGISTERS, DIM, DEPTH, HEAD = 5, 256, 256, 384, 6, 64


def attend(q, k, v, causal: bool):
  if not causal:
    return F.scaled_dot_product_attention(q, k, v, scale=8 / HEAD)
  block = q.shape[2] // STEPS
  parts = []
  for t in range(STEPS):
    own, seen = slice(t * block, (t + 1) * block), slice(0, (t + 1) * block)
    parts.append(F.scaled_dot_product_attention(q[:, :, own], k[:, :, seen], v[:, :, seen], scale=8 / HEAD))
  return torch.cat(parts, 2)


class Block(nn.Module):
  def __init__(self, modulated: bool):
    super().__init__()
    linear, hidden = lambda a, b: nn.Linear(a, b, bias=False), int(2 * 4 * DIM / 3)
    self.qkv, self.proj, self.up, self.down = (
      linear(DIM, 3 * DIM),
      linear(DIM, DIM),
      linear(DIM, 2 * hidden),
      linear(hidden, DIM),
    )
    self.mod = nn.Linear(DIM, 2 * 6 * DIM) if modulated else None

  def forward(self, x_BxNxD, cond_BxD, causal: bool):
    b, n, d = x_BxNxD.shape
    norm = lambda x: F.layer_norm(x, x.shape[-1:])
    if self.mod is None:
      one = [None] * 6
    else:
      m = self.mod(F.silu(cond_BxD)).view(b, 1, 2, 1, 6, d).expand(b, 1, 2, PATCHES, 6, d).reshape(b, 1, -1, 6, d)
      one = m.unbind(3)
    fold = lambda x: x.view(b, STEPS, -1, d)
    shifted = lambda x, i, j: x if self.mod is None else (fold(x) * (1 + one[i]) + one[j]).view(b, n, d)
    gated = lambda x, i: x if self.mod is None else (fold(x) * one[i]).view(b, n, d)
    q, k, v = self.qkv(shifted(norm(x_BxNxD), 3, 2)).view(b, n, 3, -1, HEAD).permute(2, 0, 3, 1, 4)
    y = attend(norm(q), norm(k), v, causal).transpose(1, 2).reshape(b, n, d)
    x_BxNxD = x_BxNxD + gated(self.proj(y), 0)
    value, gate = self.up(shifted(norm(x_BxNxD), 5, 4)).chunk(2, -1)
    return x_BxNxD + gated(self.down(F.silu(gate) * value), 1)


class Half(nn.Module):
  """Encoder or decoder: what goes in becomes patches, ids' codes registers, and one of the two is read out."""

  def __init__(self, decoder: bool):
    super().__init__()
    self.decoder, self.patch_in = decoder, nn.Linear(16, DIM)
    self.places = nn.Parameter(torch.randn(STEPS, PATCHES, DIM) * 0.02)
    self.registers = nn.Parameter(torch.randn(STEPS, REGISTERS, DIM) * 0.02)
    self.codes_in, self.time_in, self.time_out = nn.Linear(6, DIM), nn.Linear(256, DIM), nn.Linear(DIM, DIM)
    self.blocks = nn.ModuleList(Block(decoder) for _ in range(DEPTH))
    self.head = nn.Linear(DIM, 16 if decoder else 6)

  def forward(self, latents_BxTxPxC, codes_BxTxKxC=None, causal: bool = True):
    b = len(latents_BxTxPxC)
    patches = self.patch_in(latents_BxTxPxC) + self.places
    registers = self.registers.expand(b, -1, -1, -1)
    cond = None
    if self.decoder:
      registers = registers + self.codes_in(codes_BxTxKxC)
      cond = self.time_out(F.silu(self.time_in(torch.ones(b, 256, device=patches.device))))
    x = torch.cat([patches, registers], 2).flatten(1, 2)
    for block in self.blocks:
      x = block(x, cond, causal)
    x = F.layer_norm(x, (DIM,)).view(b, STEPS, PATCHES + REGISTERS, DIM)
    return self.head(x[:, :, :PATCHES] if self.decoder else x[:, :, PATCHES:])


def median(fn, repeats: int) -> float:
  fn()
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    fn()
    times.append(time.perf_counter() - begin)
  return round(statistics.median(times), 4)


def rows(form: str, repeats: int, only: str) -> dict[str, float]:
  torch.manual_seed(0)
  halves = [Half(False), Half(True)]
  encoder, decoder = [torch.compile(half, dynamic=False) if form == "compiled" else half for half in halves]
  x, noise = torch.randn(2, 1, STEPS, PATCHES, 16)
  codes = torch.randn(1, STEPS, REGISTERS, 6)
  out = {}

  def add(name, fn, repeats=repeats):
    if not name.startswith(only):
      return
    out[name] = median(fn, repeats)
    print(f"{form:10s} {name:44s} {out[name]:8.4f} s", file=sys.stderr, flush=True)

  for mask in ("time_block_causal", "full"):
    causal, suffix = mask != "full", f"[{mask}]"
    with torch.inference_mode():
      if causal:
        add("encode", lambda: encoder(x))
      add(f"decode keep 256 {suffix}", lambda causal=causal: decoder(x, codes, causal))
      both = lambda causal=causal: decoder(torch.cat([x, x]), torch.cat([codes, 0 * codes]), causal)
      add(f"decode keep 256 guided {suffix}", both)

    def step(causal=causal):
      v = decoder((x + noise) / 2, codes, causal)
      (((v - noise + x) ** 2).mean() + (encoder(x, causal=causal) ** 2).mean()).backward()
      for half in halves:
        half.zero_grad(set_to_none=True)

    add(f"forward + backward, encoder and decoder {suffix}", step, 3)
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--only", default="", help="rows whose name begins so")
  parser.add_argument("--forms", default="eager,compiled")
  args = parser.parse_args()
  found = {form: rows(form, args.repeats, args.only) for form in args.forms.split(",")}
  print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": found}))


if __name__ == "__main__":
  main()
