"""Without PyAV, grain, TFDS, tensorboardX and the like: training and evaluation run, the rest says what to install."""

import json

import numpy as np
import pytest
from bare import run_bare
from PIL import Image

from vftok.io import video_writer

TRAIN = """
import jax
from configs import {name} as experiment
from vftok.train import evaluate, loop

cfg = experiment.get_config("smoke")
cfg.media_every = 2
loop.run(cfg, {workdir!r})
print("SCORES", evaluate.run(cfg, {workdir!r}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "tokenizer"])
def test_a_run_and_its_evaluation(name, tmp_path, cache_dir):
  out = run_bare(TRAIN.format(name=name, workdir=str(tmp_path)), JAX_COMPILATION_CACHE_DIR=cache_dir)
  assert "no TensorBoard events are written" in out and "psnr" in out.rsplit("SCORES")[1]
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]  # films come with numbers of their own
  assert (tmp_path / "model" / "model.safetensors").exists() and (tmp_path / "curves.png").exists()
  (film,) = (tmp_path / "media").iterdir()
  with Image.open(film) as picture:
    assert picture.format == "WEBP" and picture.n_frames == (9 if name == "vae" else 17)
  page = (tmp_path / "eval" / "shapes" / "report.html").read_text()
  assert "data:image/webp;base64," in page and "<video" not in page


def test_every_public_name_and_one_sentence_for_what_is_missing(tmp_path):
  (tmp_path / "a.mp4").write_bytes(b"0")
  out = run_bare(f"""
    import vftok
    for name in vftok.__all__:
      getattr(vftok, name)
    import numpy as np
    from vftok.data import ClipSpec, make_loader, tfds_source
    from vftok.io import video, video_writer
    folder = dict(a=dict(kind="video_folder", path={str(tmp_path)!r}, split="all"))
    spec = ClipSpec(frames=2, size=(16, 16))
    tries = (
      lambda: video.read_video({str(tmp_path / "a.mp4")!r}),
      lambda: video_writer.write_video({str(tmp_path / "b.mp4")!r}, np.zeros((2, 8, 8, 3), np.uint8), 8),
      lambda: make_loader(folder, spec, 2, process_index=0, process_count=1),
      lambda: tfds_source.open_tfds({str(tmp_path)!r}),
    )
    for attempt in tries:
      try:
        attempt()
      except ModuleNotFoundError as error:
        print(error)
  """)
  assert out.splitlines() == [
    "reading and writing video files needs av, which is not installed: pip install av.",
    "reading and writing video files needs av, which is not installed: pip install av.",
    "a loader of clips that are not in memory needs grain, which is not installed: pip install grain.",
    "reading a TFDS set needs tensorflow_datasets, which is not installed: pip install tensorflow-datasets.",
  ]
  assert not (tmp_path / "b.mp4").exists()


def test_webp_films_keep_time_size_and_order(tmp_path):
  frames = np.zeros((7, 20, 30, 3), np.uint8) + 30 * np.arange(7, dtype=np.uint8)[:, None, None, None]
  with video_writer.video_writer(tmp_path / "a.webp", 24) as writer:
    writer.write(frames[:3])
    writer.write(frames[3:])
  with Image.open(tmp_path / "a.webp") as picture:
    assert picture.n_frames == 7 and picture.size == (30, 20)
    times = []
    for k in range(7):
      picture.seek(k)
      picture.load()
      times.append(picture.info["duration"])
      assert abs(np.asarray(picture.convert("RGB")).astype(int) - frames[k]).max() < 6
  assert sum(times) == round(7000 / 24)
  with (
    pytest.raises(ValueError, match=r"frames are \(9, 30, 3\), expected \(20, 30, 3\)"),
    video_writer.video_writer(tmp_path / "b.webp", 24) as writer,
  ):
    writer.write(frames)
    writer.write(frames[:, :9])
  assert [path.name for path in tmp_path.iterdir()] == ["a.webp"]
