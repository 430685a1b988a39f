"""A loader of clips in PyTorch: `python launch/peers/torch_loader.py --folder DIR --workers 2`.

torch's DataLoader over torchcodec's VideoDecoder: a clip of so many frames at a rate, from a random start, resized with
antialias and cut to a square in the middle, uint8. Peer of `python -m vftok.tools.bench_data --source DIR`. Prints
clips per second. Needs torch, torchcodec and FFmpeg's libraries.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchcodec.decoders import VideoDecoder


class Clips(Dataset):
  def __init__(self, folder: str, frames: int, size: int, fps: float):
    self.paths = sorted(str(p) for p in Path(folder).rglob("*.mp4"))
    self.frames, self.size, self.fps = frames, size, fps

  def __len__(self):
    return 1 << 30

  def __getitem__(self, index: int):
    decoder = VideoDecoder(self.paths[index % len(self.paths)], num_ffmpeg_threads=1)
    first, last = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    start = random.uniform(first, max(first, last - self.frames / self.fps))
    moments = [min(start + i / self.fps, last - 1e-3) for i in range(self.frames)]
    video = decoder.get_frames_played_at(moments).data
    scale = self.size / min(video.shape[2:])
    size = [max(self.size, round(side * scale)) for side in video.shape[2:]]
    video = F.interpolate(video, size, mode="bilinear", antialias=True)
    top, left = ((side - self.size) // 2 for side in size)
    return video[:, :, top : top + self.size, left : left + self.size]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--folder", required=True)
  parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--frames", type=int, default=17)
  parser.add_argument("--size", type=int, default=64)
  parser.add_argument("--fps", type=float, default=8.0)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--seconds", type=float, default=15.0)
  args = parser.parse_args()
  torch.set_num_threads(1)
  rates = {}
  for workers in args.workers:
    loader = iter(DataLoader(Clips(args.folder, args.frames, args.size, args.fps), args.batch, num_workers=workers))
    for _ in range(4):
      next(loader)
    begin, clips = time.perf_counter(), 0
    while time.perf_counter() - begin < args.seconds:
      clips += len(next(loader))
    rates[workers] = round(clips / (time.perf_counter() - begin), 1)
  print(json.dumps({"torch": torch.__version__, "clips_per_s_by_workers": rates}))


if __name__ == "__main__":
  main()
