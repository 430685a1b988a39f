"""Checkpoints of a run by Orbax: arrays, data position and config in one step folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from vftok.runtime.checksums import checksums, differing
from vftok.runtime.process import everywhere, together
from vftok.train.state import TrainState

MARK = "_CHECKPOINT_METADATA"  # Orbax writes it into every whole step folder


class NotSaved(RuntimeError):
  """A checkpoint could not be written; the message names it, says why, and what is still whole."""


class Damaged(Exception):
  """A checkpoint that cannot be read, or is not what was saved; the message is the reason alone."""


class Restored(NamedTuple):
  """state: as the target asked for it. data: position of the data. config: what the run was made with."""

  step: int
  state: Any
  data: dict[str, Any]
  config: dict[str, Any]


class Checkpoints:
  """The checkpoints of one work directory, saved in the background.

  A save that fails in the background raises at the next `save`, `wait` or `close`; a step counts only once all of it
  is on disk, so a run that is killed while it writes resumes from the step before. Checksums of all arrays are saved
  with them and compared when they are read.

  Args:
    keep: how many; 0: all.
    read_only: nothing is made, moved or cleaned up there: for other runs' and for evaluation.
  """

  def __init__(self, workdir, *, keep: int = 2, background: bool = True, read_only: bool = False):
    self.directory = Path(workdir).absolute() / "checkpoints"
    self._read_only, self._failed = read_only, False
    if not read_only and not jax.process_index():
      for path in self._folders():
        with contextlib.suppress(OSError):
          path.rmdir()  # empty ones block nothing; others are looked at when they are read
    together("checkpoints")
    self._manager: Any = None  # there is none where nothing is to be read and nothing may be made
    if self.directory.is_dir() or not read_only:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep or None,
        enable_async_checkpointing=background,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
      )
      self._manager = ocp.CheckpointManager(self.directory, options=options)

  def _folders(self) -> list[Path]:
    """Step folders, the newest first."""
    found = self.directory.iterdir() if self.directory.is_dir() else ()
    return sorted((p for p in found if p.is_dir() and p.name.isdecimal()), key=lambda p: -int(p.name))

  def steps(self) -> list[int]:
    """Steps that something was written of, the newest first."""
    return [int(path.name) for path in self._folders() if any(path.iterdir())]

  def latest(self) -> int | None:
    """The newest step, or None. It may turn out to be damaged when it is read: `restore` then goes on."""
    return next(iter(self.steps()), None)

  def save(self, step: int, state: TrainState, data: dict[str, Any], config: dict[str, Any]) -> None:
    """Starts writing; returns as soon as the arrays are copied. Raises NotSaved, also for the save before."""
    with self._told(self._saving):
      self._manager.check_for_errors()
    if step in self._manager.all_steps():
      return
    config = json.loads(json.dumps(config, default=list))
    data = {**data, "step": step, "sums": checksums(_dict(state)), "config": _crc(config)}
    data["check"] = _crc(data)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
    )
    self._saving = step
    with self._told(step):
      self._manager.save(step, args=items, force=True)

  _saving: int | None = None

  @contextlib.contextmanager
  def _told(self, step: int | None) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:  # of files, of TensorStore and of Orbax
      self._failed = True
      for left in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):  # what takes up the room
        shutil.rmtree(left, ignore_errors=True)
      whole = self.latest()
      raise NotSaved(
        f"{self.directory / str(step)} could not be written ({_reason(error)}): make room there or mend it, then give "
        f"the same command again, which goes on from {'the start' if whole is None else f'step {whole}'}."
      ) from error

  def restore(self, target: TrainState) -> Restored:
    """The newest checkpoint that is whole, onto the shapes and shardings of `target`.

    A newer one that is damaged is named on stdout, and set aside as STEP.damaged where this may write.

    Raises:
      ValueError: the checkpoint is of another model, or all of them are damaged.
    """
    return self._first_whole(lambda s: self._read(s, target, False))

  def restore_part(self, target: dict[str, Any]) -> Restored:
    """As `restore`, of some fields of a TrainState only; `target` and the state are dicts of these."""
    return self._first_whole(lambda s: self._read(s, target, True))

  def _first_whole(self, read) -> Restored:
    steps, reasons = self.steps(), []
    for step in steps:
      found, reason = None, "another process could not read it"
      try:
        found = read(step)
      except Damaged as error:
        reason = str(error)
      if everywhere(found is not None) and found:
        return found
      reasons.append(reason)
      if step != steps[-1]:
        print(f"{self.directory / str(step)} is damaged ({reason}): going on from an older one", flush=True)
        if not self._read_only and not jax.process_index():
          self._set_aside(self.directory / str(step), reason)
        together("damaged checkpoint")
        if not self._read_only:
          self._manager.reload()
    raise ValueError(
      f"{self.directory} holds no checkpoint that can be read; the newest, step {steps[0]}, is damaged ({reasons[0]}): "
      "get a whole copy of it, or start in an empty workdir."
    )

  def _read(self, step: int, target, part: bool) -> Restored:
    """One checkpoint. Raises Damaged; ValueError where it is of another model."""
    path = self.directory / str(step)
    if not _looks_whole(path):
      raise Damaged("files of it are missing")
    facts = ocp.args.Composite(data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
    try:
      found = self._manager.restore(step, args=facts)
      data, config = dict(found.data), dict(found.config)
      shapes = _stored_shapes(path / "state")
    except Exception as error:  # whatever JSON, Orbax and TensorStore say of bytes that are not theirs
      raise Damaged(_reason(error)) from error
    if data.get("check") not in (None, _crc({k: v for k, v in data.items() if k != "check"})):
      raise Damaged("its data position is not what was saved")
    if data.get("config") not in (None, _crc(config)):
      raise Damaged("its config is not what was saved")
    if "examples" not in data or data.get("step", step) != step:
      raise Damaged(f"its data position is of step {data.get('step')}")
    self._check_fit(path, shapes, target, whole=not part)
    try:
      state = self._arrays(step, target, part)
    except Exception as error:  # as above
      raise Damaged(_reason(error)) from error
    tree = _dict(state)
    if "step" in tree and int(tree["step"]) != step:
      raise Damaged(f"its arrays are of step {int(tree['step'])}")
    if wrong := differing(data.get("sums", {}), checksums(tree)):
      raise Damaged(f"{wrong} is not what was saved")
    return Restored(step, state, data, config)

  def _arrays(self, step: int, target, part: bool):
    if not part:
      return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state
    how = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape), target)
    arguments = ocp.args.PyTreeRestore(item=target, restore_args=how, partial_restore=True)
    return self._manager.restore(step, args=ocp.args.Composite(state=arguments)).state

  def _check_fit(self, path: Path, shapes: dict[str, tuple[int, ...]], target, whole: bool) -> None:
    wanted = {_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_flatten_with_path(_dict(target))[0]}
    for name in sorted(wanted if not whole else wanted | shapes):
      have, want = shapes.get(name), wanted.get(name)
      if have != want:
        said = lambda shape: "not there" if shape is None else f"of shape {shape}"
        raise ValueError(
          f"{path} does not fit this config ({name} is {said(have)} in it, expected {said(want)}): resume with the "
          "config it was made with, or start in an empty workdir."
        )

  def _set_aside(self, path: Path, reason: str) -> None:
    """Keeps a folder beside the others, where it does not count as a checkpoint."""
    aside, n = path.with_name(f"{path.name}.damaged"), 1
    while aside.exists():
      aside, n = path.with_name(f"{path.name}.damaged{n}"), n + 1
    path.rename(aside)
    print(f"{path} was moved to {aside.name} ({reason})", flush=True)

  def stop_requested(self, step: int) -> bool:
    """True where the cluster told any process that its machine goes away (multi-host preemption notice)."""
    return jax.process_count() > 1 and self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Until the last save is on disk. Raises NotSaved."""
    if self._manager is None:
      return
    with self._told(self._saving):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    if self._manager is None:
      return
    with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():  # it was told already
      self.wait()
      self._manager.close()


def _looks_whole(path: Path) -> bool:
  return (path / MARK).is_file() and all((path / item).is_dir() for item in ("state", "data", "config"))


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.metadata(path).tree
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(place): tuple(x.shape) for place, x in leaves if hasattr(x, "shape")}


def _dict(state) -> dict[str, Any]:
  """Fields of a TrainState by name, or of a part of one."""
  if isinstance(state, dict):
    return state
  return {name: getattr(state, name) for name in ("step", "params", "fixed", "opt_state", "ema", "rng")}


def _name(path) -> str:
  """One name for a leaf, whether its containers are dicts, tuples or what Orbax makes of them."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _crc(value: Any) -> str:
  return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _reason(error: BaseException) -> str:
  """The system's own words where there are some in a page of text."""
  text = " ".join(str(error).split())
  told = re.search(r": ([^:\[\]]{3,80}?) \[os_error_code", text)
  return told[1] if told else text[:120] or type(error).__name__
