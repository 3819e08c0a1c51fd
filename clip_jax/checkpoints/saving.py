"""Saves and restores checkpoints with Orbax: asynchronously, and verified."""

import contextlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import clip_jax
from clip_jax import config as config_lib
from clip_jax import errors, hosts, json_text
from clip_jax.checkpoints import integrity, storage_errors, workdir
from clip_jax.checkpoints import items as items_lib
from clip_jax.checkpoints import state as state_lib

_LOGGER = logging.getLogger(__name__)


class Restored(NamedTuple):
  """A state as it was saved, and the checkpoint's meta item."""

  state: state_lib.TrainState
  meta: dict[str, Any]


class _Manager(ocp.CheckpointManager):
  """Orbax's manager without its handling of preemption; the loop handles it."""

  def reached_preemption(self, step: int) -> bool:
    """Returns False; asking JAX would disturb the loop's own handling."""
    del step
    return False


def _among_processes(
  is_shared: bool,
) -> ocp.options.MultiprocessingOptions:
  if is_shared:
    return ocp.options.MultiprocessingOptions()
  own = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f"process-{own}",
  )


def _whole(x: Any) -> np.ndarray:
  """Returns a copy of an array, of which each process may hold a part.

  All processes must call this.
  """
  if isinstance(x, jax.Array) and not (
    x.is_fully_addressable or x.is_fully_replicated
  ):
    return multihost_utils.process_allgather(x, tiled=True)
  return np.array(x)  # The array itself may be donated.


class Checkpoints:
  """The checkpoints of one working directory."""

  def __init__(
    self, path: str | os.PathLike, *, keep: int = 3, is_shared: bool = True
  ):
    """Opens (and makes) the directory, and deletes unfinished saves.

    Args:
      path: path of the workdir.
      keep: number of checkpoints to keep, the newest ones.
      is_shared: whether all processes see the same directory; if not, the first
        saves the whole state in its own, and each restores from its own.
    """
    storage_errors.silence_echoes()
    self._directory = pathlib.Path(path).absolute() / workdir.DIRECTORY
    self._quarantine = pathlib.Path(path).absolute() / workdir.QUARANTINE
    self._directory.mkdir(parents=True, exist_ok=True)
    self._keep, self._is_shared = keep, is_shared
    self._saving: int | None = None  # The step that may not be on disk yet.
    self._failed = False
    self._manager = self._open()
    # Of processes that save nothing themselves.
    self._latest = self._manager.latest_step()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      # The loop decides when to save, after its evaluations.
      save_decision_policy=ocp.checkpoint_managers.AnySavePolicy([]),
      cleanup_tmp_directories=True,
      create=self._is_shared,  # Orbax makes no other; it is there.
      enable_async_checkpointing=True,
      multiprocessing_options=_among_processes(self._is_shared),
    )
    return _Manager(
      self._directory,
      options=options,
      item_names=items_lib.NAMES,
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
    if isinstance(error, Exception) and jax.process_count() > 1:
      return  # A save waits for all processes, and the others may be gone.
    is_reported = self._failed
    try:
      self.close()
    except errors.UserError as failure:
      if kind is None:
        raise
      if not is_reported:  # The error that stopped the run is raised anyway.
        _LOGGER.warning("%s", failure)

  def latest_step(self) -> int | None:
    """Returns the newest step whose save was finished; it may be damaged."""
    return self._manager.latest_step() if self._is_shared else self._latest

  def save(
    self,
    state: state_lib.TrainState,
    *,
    step: int,
    config: config_lib.Config,
    counters: dict[str, Any],
  ) -> None:
    """Starts to save `state`; its arrays may be donated once this returns.

    Args:
      state: the state after `step` updates.
      step: the checkpoint's number; nothing happens if it exists already.
      config: the run's config.
      counters: JSON values that a resumed run needs.
    """
    if self.latest_step() == step:
      return
    items = items_lib.of_state(state)
    if not self._is_shared:
      self._latest = step
      items = jax.tree.map(_whole, items)
      if jax.process_index():
        return
    meta = {
      "step": step,
      "counters": counters,
      "digests": {
        name: integrity.digests(tree) for name, tree in items.items()
      },
      "shapes": {name: integrity.shapes(tree) for name, tree in items.items()},
      "config": json.loads(config_lib.to_json(config)),
      "versions": {"clip_jax": clip_jax.__version__, "jax": jax.__version__},
    }
    arguments: dict[str, ocp.args.CheckpointArgs] = {
      name: ocp.args.StandardSave(x) for name, x in items.items()
    }
    # A copy, since it is written in the background while the counters change.
    meta = json_text.seal(meta)
    arguments[items_lib.META] = ocp.args.JsonSave(meta)
    self.wait()
    self._saving = step
    with self._explained():
      self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)

  def check(self) -> None:
    """Raises UserError if a save in the background has failed; never waits."""
    # Orbax reports a failure only from its method that waits.
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Waits until every save is on disk.

    Raises:
      UserError: a save failed, for example because the disk is full.
    """
    with self._explained():
      self._manager.wait_until_finished()
    self._saving = None

  def close(self) -> None:
    """Waits for an unfinished save and ends the manager's threads."""
    with self._explained():
      self._manager.close()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns any error of a save into a UserError."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      self._failed = True
      raise errors.UserError(self._explain(error)) from error

  def _explain(self, error: Exception) -> str:
    message = (
      f"Checkpoint {self._saving} could not be saved in {self._directory}: "
      f"{storage_errors.reason(error)}. "
    )
    earlier = [s for s in self._manager.all_steps() if s != self._saving]
    if not earlier:
      return message + "There is none before it; fix that and start again."
    return message + (
      f"The one of step {max(earlier)} is untouched. Fix that (if the disk is "
      "full: free some space, or lower checkpoint.keep) and give the same "
      "command again; the run resumes from there."
    )

  def restore_latest(self, abstract: state_lib.TrainState) -> Restored | None:
    """Returns the newest good checkpoint, or None if none was saved.

    Damaged checkpoints are logged and, if an earlier one is good, moved to
    `quarantine/`, so that the run can save a checkpoint of that step again.

    Args:
      abstract: shapes, types and shardings; arrays are read straight into
        them, on any mesh.

    Raises:
      UserError: there are checkpoints, but all of them are damaged, or the
        processes' own directories hold different ones.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not self._is_shared:  # Another run may have gone on between the copies.
      hosts.check_same({"saved steps": str(steps)})
    for number, step in enumerate(steps):
      restored = self._try_restore(step, abstract)
      if restored is not None:
        self._set_aside(steps[:number])
        self._latest = step
        return restored
    if steps:
      raise errors.UserError(
        f"None of the {len(steps)} checkpoints in {self._directory} is good. "
        "Restore one from a backup, or start again in a new workdir."
      )
    return None

  def _try_restore(self, step, abstract):
    restored = None
    try:
      with storage_errors.quiet():
        meta = items_lib.read_meta(self._manager, step)
        items = items_lib.restore(
          self._manager, step, items_lib.of_state(abstract), meta
        )
      restored = Restored(items_lib.to_state(items), meta)
    except errors.UserError:
      raise
    except Exception as error:  # Several libraries read the damaged files.
      if storage_errors.is_passing(error):
        raise
      items_lib.warn_of_damage(self._directory, step, error)
    return restored if hosts.everywhere(restored is not None) else None

  def _set_aside(self, steps: list[int]) -> None:
    """Moves damaged checkpoints to `quarantine/` and reopens the manager."""
    if not steps:
      return
    self._manager.close()
    if jax.process_index() == 0 or not self._is_shared:
      self._quarantine.mkdir(parents=True, exist_ok=True)
      for step in steps:
        names = (f"{step}-{number}" for number in itertools.count())
        free = next(x for x in names if not (self._quarantine / x).exists())
        source = self._directory / str(step)
        source.rename(self._quarantine / free)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("quarantined")
    self._manager = self._open()
