"""Small video files for tests, as other programs would make them."""

import av
import numpy as np


def scene(frames=24, height=48, width=64, seed=0):
  """A smooth moving picture whose frames are all different: uint8 [F, H, W, 3]."""
  y, x = np.mgrid[:height, :width]
  waves = [
    np.stack(
      [128 + 100 * np.sin((x + 3 * f) / 9 + seed), 128 + 100 * np.cos((y + 2 * f) / 7), 8.0 * (f % 30) + 0 * x], -1
    )
    for f in range(frames)
  ]
  return np.clip(np.stack(waves), 0, 255).astype(np.uint8)


def encode(path, frames, codec="libx264", *, rate=25, pix_fmt="yuv420p", colour=None, **options):
  """Writes a file; `colour` = (primaries, transfer, matrix) by their numbers in H.273."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
    stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
    if colour:
      context = stream.codec_context
      context.color_primaries, context.color_trc, context.colorspace = colour
    for pixels in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
    container.mux(stream.encode(None))
  return path


def tree(root, files):
  """Files that only their names are read of, below root."""
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(b"video")
  return root


def every(source):
  """All records of a source."""
  return [source[i] for i in range(len(source))]
