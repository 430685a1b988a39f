"""Where clips come from: one random-access interface, and the table `DATASETS` of everything that has it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vftok.data.curves import curves
from vftok.data.folder import image_folder, video_folder
from vftok.data.latents import latents
from vftok.data.packed import packed
from vftok.data.published import kinetics, panda70m, ucf101
from vftok.data.shapes import ShapesSource
from vftok.data.sim import SimSource
from vftok.data.tfds_source import TfdsSource, named_tfds, open_tfds
from vftok.data.tokens import tokens
from vftok.data.world import WorldSource
from vftok.io.sides import NoSuchSplit
from vftok.runtime.words import brief, is_number, is_text, is_whole


class Source(Protocol):
  """A picklable random-access collection of clips; may also have `label_names: tuple[str, ...]`.

  One that knows more of its clips has `attribute_names: dict[str, tuple[str, ...]]` and `attributes(indices int64 [n])
  -> {attribute: int [n]}`, places in these names, -1 where unknown: what the semantic probe asks for.

  For a bad clip `source[i]` raises ValueError (or OSError) that names the file: it is logged and left out. KeyError,
  TypeError and AttributeError are taken for errors in code and end the run. A collection without splits of its own gets
  them by `vftok.io.sides.Sides.by_name(names).chosen(split, holdout, where)`: positions of its clips.

  Sources of stored arrays have `arrays`, ((key, shape, dtype), ...): what of a record goes into a batch as it is.

  A record is a dict with one of
    "mp4": bytes of a video file (any container and codec),
    "path": of a video file, with "start" and "end" in seconds where only a part of it counts,
    "frames": uint8 [F, H, W, 3],
    "latents": float16 [T, h, w, C],
    "ids": uint16 [T, K], with "text_emb" and "text_mask" where texts were embedded,
    "latents" and "losses" float32 [N, T, times] of a set of curves,
  and "caption" (str), "label" (int, -1 unknown), "name" (str, what a log calls the clip), "fps" (float or None).

  A source that can give many clips at once also has

    take(indices int64 [n], spec: ClipSpec, seeds uint64 [n] or None) -> {"video": uint8 [n, F, H, W, 3]}

  numpy, or a jax.Array that is on the accelerator already; moment, crop and flip of each clip are drawn from its seed,
  and are the middle ones where seeds is None. It is called from a thread. Beside it there may be
  describe(indices) -> (captions, labels), which saves making a record of each clip for those.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def clips(split: str, *, directory: str | os.PathLike | None = None) -> Source:
  """The packaged real clips, as `python -m vftok.tools.prepare_clips` writes them."""
  from vftok.runtime.files import cache_dir

  directory = Path(directory) if directory else cache_dir() / "clips"
  if not any(directory.glob("**/dataset_info.json")):
    raise FileNotFoundError(
      f"{directory} holds no prepared clips: run `python -m vftok.tools.prepare_clips`, or pass the directory it wrote."
    )
  return TfdsSource(open_tfds(directory), split, video="mp4", name="source", time="start")


def tfds(
  split: str,
  *,
  name: str | None = None,
  directory: str | os.PathLike | None = None,
  video: str = "video",
  caption: str | None = None,
  label: str | None = "label",
  fps: float | None = None,
) -> Source:
  """Any TensorFlow Datasets set that is prepared as ArrayRecord; TensorFlow itself is not needed.

  Args:
    split: of the set, slices such as "train[:90%]" included.
    name: as tfds.builder takes it, looked for in `directory` or in the TFDS default folder.
    directory: without `name`: the folder of one prepared set, or one of its parents.
    video, caption, label: names of features. A video is the bytes of a file, or uint8 [F, H, W, 3].
    fps: of videos that are stored as frames.
  """
  if name is None and directory is None:
    raise ValueError("neither name nor directory of the TFDS set is given: pass one of them.")
  builder = open_tfds(directory) if name is None else named_tfds(name, directory)
  return TfdsSource(builder, split, video=video, caption=caption, label=label, fps=fps)


def prepared(split: str, *, directory: str | os.PathLike) -> Source:
  """Videos of one size and rate, as `python -m vftok.tools.prepare_videos` writes them to `directory`."""
  return TfdsSource(open_tfds(directory), split, video="mp4", name="source")


DATASETS: dict[str, Callable[..., Source]] = {
  "clips": clips,
  "video_folder": video_folder,
  "image_folder": image_folder,
  "prepared": prepared,
  "panda70m": panda70m,
  "kinetics": kinetics,
  "ucf101": ucf101,
  "tfds": tfds,
  "packed": packed,
  "sim": SimSource,
  "shapes": ShapesSource,
  "world": WorldSource,
  "latents": latents,
  "tokens": tokens,
  "curves": curves,
}


def source_of(entry: Mapping[str, Any], split: str = "train") -> Source:
  """The source of an entry of `config.data.sources`: its own split before `split`; `weight` is the loader's."""
  options = {key: value for key, value in entry.items() if key not in ("kind", "weight", "split")}
  return make_source(entry["kind"], entry.get("split", split), options)


def make_source(kind: str, split: str, options: Mapping[str, Any]) -> Source:
  """One source of `DATASETS`. Raises ValueError or FileNotFoundError with one sentence where it cannot be had."""
  if kind not in DATASETS:
    raise ValueError(f"kind is {kind!r}, expected one of {', '.join(DATASETS)}: see vftok.data.sources.DATASETS.")
  for name, value in options.items():
    if name in ("path", "directory", "root") and "://" in str(value):
      raise ValueError(
        f"{kind} has {name} {str(value)[:200]}, expected a path: mount the bucket (gcsfuse) and pass where it lies."
      )
  signature = inspect.signature(DATASETS[kind])
  try:
    signature.bind(split=split, **options)
  except TypeError as error:  # of the call alone: one inside is the source's own
    raise ValueError(f"{kind} does not take these options ({error}): see vftok.data.sources.") from error
  _check_types(kind, signature.parameters, options)
  source = DATASETS[kind](split=split, **options)
  if len(source) == 0:
    raise NoSuchSplit(f"{kind} has no clips in split {split!r}: choose another split or change the options.")
  return source


# What an option that says so may be. Others, paths and lists of names, are their kind's own to check.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "int": (is_whole, "a whole number"),
  "float": (is_number, "a number"),
  "bool": (lambda value: isinstance(value, bool), "True or False"),
  "str": (is_text, "text"),
}


def _check_types(kind: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
  """By the annotations of a kind's function, which are text; `true` of JSON is no number of clips."""
  for name, value in options.items():
    asked = str(parameters[name].annotation) if name in parameters else ""
    fits, what = _TYPES.get(asked.removesuffix(" | None"), (None, ""))
    if fits is None or (value is None and asked.endswith(" | None")) or fits(value):
      continue
    raise ValueError(f"{name} of {kind} is {brief(value)}, expected {what}: pass {what}.")
