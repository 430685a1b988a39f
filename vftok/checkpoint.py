"""Checkpoints of a run by Orbax: arrays, data position and config in one step folder, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vftok.state import TrainState


class Checkpoints:
  """The checkpoints of one work directory, saved in the background.

  A save that fails in the background raises at the next `save`, `wait` or `close`; a step counts only once all of it
  is on disk, so a run that is killed while it writes resumes from the step before.
  """

  def __init__(self, workdir, *, keep: int = 2, background: bool = True):
    self.directory = Path(workdir).absolute() / "checkpoints"
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep or None, enable_async_checkpointing=background, cleanup_tmp_directories=True, create=True
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)

  def latest(self) -> int | None:
    """The newest whole step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, data: dict[str, Any], config: dict[str, Any]) -> None:
    """Starts writing; returns as soon as the arrays are copied."""
    self._manager.check_for_errors()
    if step == self.latest():
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
    )
    self._manager.save(step, args=items, force=True)

  def restore(self, target: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
    """(state, data, config) of a step, the newest by default, onto the shapes and shardings of `target`.

    Raises:
      ValueError: the checkpoint is of another model.
    """
    step = self.latest() if step is None else step
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore()
    )
    try:
      found = self._manager.restore(step, args=items)
    except (ValueError, KeyError, TypeError) as error:
      reason = " ".join(str(error).split())[:300]
      raise ValueError(
        f"{self.directory}/{step} does not fit this config ({reason}): resume with the config it was made with, or "
        "start in an empty workdir."
      ) from error
    return found.state, found.data, found.config

  def stop_requested(self, step: int) -> bool:
    """True where the cluster told any process that its machine goes away (multi-host preemption notice)."""
    return jax.process_count() > 1 and self._manager.reached_preemption(step)

  def wait(self) -> None:
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self) -> None:
    self.wait()
    self._manager.close()
