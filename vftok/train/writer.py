"""What a run leaves to look at: metrics.jsonl, TensorBoard events, videos, curves; W&B where asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vftok.io.video_writer import film_ending, write_video
from vftok.runtime.files import whole_file
from vftok.runtime.optional import present

METRICS = "metrics.jsonl"


class Writer:
  """Writes under `workdir` from one process (`active`); the others' calls do nothing.

  Args:
    resume: step that the run goes on from; lines and events beyond it are taken out, so that a run that was killed
      and resumed leaves the trace of one that never stopped.
    wandb: project name, "" for none.
  """

  def __init__(self, workdir, *, active: bool = True, resume: int = 0, wandb: str = "", config: Any = None):
    self.active, self.workdir = active, Path(workdir)
    self._board: Any = None
    self._wandb: Any = None
    if not active:
      return
    if wandb and not present("wandb"):
      raise ValueError("config.wandb is set and wandb is not installed: pip install 'vftok[wandb]'.")
    (self.workdir / "media").mkdir(parents=True, exist_ok=True)
    self._path = self.workdir / METRICS
    keep_until(self._path, resume)
    self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by close)
    if present("tensorboardX"):
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=resume + 1 if resume else None)
    else:
      print("no TensorBoard events are written, metrics.jsonl has all numbers: pip install tensorboardX for both.")
    if wandb:
      self._wandb = _open_wandb(wandb, self.workdir, config, resume)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """One JSON line; numbers also as TensorBoard scalars."""
    if not self.active:
      return
    self._file.write(json.dumps({"step": step, **{k: plain(v) for k, v in values.items()}}) + "\n")
    numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float, np.number))}
    for name, value in numbers.items() if self._board else ():
      self._board.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(numbers, step=step)

  def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
    """uint8 [F, H, W, 3] as media/name_step.mp4 (.webp without PyAV), and as a moving picture in TensorBoard."""
    if not self.active:
      return
    stem = self.workdir / "media" / f"{name.replace('/', '_')}_{step:08d}"
    film = f"{stem}{film_ending()}"
    write_video(film, frames, fps)
    if self._board and present("av"):
      write_video(f"{stem}.gif", frames, min(fps, 50))
      gif = Path(f"{stem}.gif")
      self._add_image(step, name, gif.read_bytes(), frames.shape[1:3])
      gif.unlink()
    if self._wandb:
      import wandb

      self._wandb.log({name: wandb.Video(film)}, step=step)

  def image(self, step: int, name: str, png: Path) -> None:
    """A PNG that is on disk already."""
    if self.active and self._board:
      self._add_image(step, name, Path(png).read_bytes(), (1, 1))

  def _add_image(self, step: int, name: str, encoded: bytes, size) -> None:
    from tensorboardX.proto.summary_pb2 import Summary

    height, width = size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

  def flush(self) -> None:
    if self.active:
      self._file.flush()
      if self._board:
        self._board.flush()

  def close(self) -> None:
    if self.active:
      self._file.close()
      if self._board:
        self._board.close()
      if self._wandb:
        self._wandb.finish()


def keep_until(path: Path, step: int) -> None:
  """Takes lines beyond `step` out of a metrics file, and a half-written last line."""
  if not path.exists():
    return
  lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
  with whole_file(path) as temporary:
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_metrics(path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl."""
  return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return math.inf


def plain(value):
  """JSON's own kinds; numbers keep every bit, and what JSON cannot say (NaN, infinity) becomes text."""
  if isinstance(value, (np.integer, np.floating)) or (hasattr(value, "ndim") and value.ndim == 0):
    value = value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _open_wandb(project: str, workdir: Path, config, resume: int):
  import wandb

  return wandb.init(
    project=project, dir=str(workdir), name=workdir.name, config=config, resume="allow", id=workdir.name
  )


def curves(workdir, names: Mapping[str, str] | None = None) -> Path | None:
  """Writes curves.png: every number of metrics.jsonl over steps, one panel each. None where there is nothing yet."""
  from matplotlib.figure import Figure

  workdir = Path(workdir)
  rows = read_metrics(workdir / METRICS) if (workdir / METRICS).exists() else []
  series: dict[str, list[tuple[int, float]]] = {}
  for row in rows:
    for name, value in row.items():
      if name != "step" and isinstance(value, (int, float)) and (names is None or name in names):
        series.setdefault(name, []).append((row["step"], value))
  series = {k: v for k, v in series.items() if len(v) > 1 and not k.startswith(("time/", "data/"))}
  if not series:
    return None
  columns = min(4, len(series))
  lines = math.ceil(len(series) / columns)
  figure = Figure(figsize=(4.2 * columns, 2.8 * lines), dpi=120, layout="constrained")
  panels = np.atleast_1d(figure.subplots(lines, columns)).reshape(-1)
  for axes, (name, points) in zip(panels, sorted(series.items()), strict=False):
    x, y = np.array(points, float).T
    axes.plot(x, y, color="#1f6fb4", linewidth=0.8, alpha=0.4)
    width = max(1, len(y) // 25)
    if width > 1:
      axes.plot(x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid"), color="#1f6fb4", linewidth=1.6)
    axes.set_title(name, fontsize=9)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.tick_params(labelsize=7)
  for axes in panels[len(series) :]:
    axes.set_visible(False)
  path = workdir / "curves.png"
  with whole_file(path) as temporary:
    figure.savefig(temporary, format="png")
  return path
