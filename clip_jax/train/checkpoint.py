"""Checkpoints with Orbax: asynchronous, verified, with a way back."""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import clip_jax
from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.checkpoints import integrity, storage_errors
from clip_jax.models import variants
from clip_jax.train import step as step_lib

VARIABLES, PROGRESS, META = "variables", "progress", "meta"
DIRECTORY, QUARANTINE, CONFIG = "checkpoints", "quarantine", "config.json"
# The counter that holds a digest of the model that a run began with.
ORIGIN = "origin"


def _items(state: step_lib.TrainState) -> dict[str, Any]:
  """Returns the state as the two array items of a checkpoint."""
  progress = {
    "step": state.step,
    "skipped": state.skipped,
    "opt_state": state.opt_state,
  }
  if state.ema:  # Then the variables are the averages.
    progress["params"] = state.params
    progress["batch_stats"] = state.batch_stats
  return {VARIABLES: state.variables, PROGRESS: progress}


def _state(items: dict[str, Any]) -> step_lib.TrainState:
  variables, progress = items[VARIABLES], items[PROGRESS]
  if "params" in progress:
    variables = {"ema": variables}
  return step_lib.TrainState(**{**variables, **progress})


def _everywhere(fine: bool) -> bool:
  """Returns whether it is fine on every process; each must call this."""
  if jax.process_count() == 1:
    return fine
  return bool(multihost_utils.process_allgather(np.array(fine)).all())


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves the matter of preemption to the loop."""

  def reached_preemption(self, step: int) -> bool:
    """Returns False; asking JAX about `step` would disturb `Preemption`."""
    del step
    return False


class Checkpoints:
  """The checkpoints of one working directory."""

  def __init__(self, workdir: str | os.PathLike, *, keep: int = 3):
    """Opens (and makes) the directory and clears unfinished saves.

    Args:
      workdir: of the run.
      keep: newest checkpoints kept.
    """
    storage_errors.silence_echoes()
    self._directory = pathlib.Path(workdir).absolute() / DIRECTORY
    self._quarantine = pathlib.Path(workdir).absolute() / QUARANTINE
    self._directory.mkdir(parents=True, exist_ok=True)
    self._keep = keep
    self._saving: int | None = None  # The step that may not be on disk yet.
    self._failed = False
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep,
      # When to save is the loop's decision, after its evaluations.
      save_decision_policy=ocp.checkpoint_managers.AnySavePolicy([]),
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    )
    return _Manager(
      self._directory,
      options=options,
      item_names=(VARIABLES, PROGRESS, META),
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if isinstance(error, Exception) and jax.process_count() > 1:
      return  # A save waits for all processes, and the others may be gone.
    told = self._failed
    try:
      self.close()
    except errors.UserError as failure:
      if kind is None:
        raise
      if not told:  # What stopped the run comes first, but not alone.
        logging.warning("%s", failure)

  def latest_step(self) -> int | None:
    """Returns the newest step that was saved whole, good or damaged."""
    return self._manager.latest_step()

  def save(
    self,
    state: step_lib.TrainState,
    *,
    step: int,
    config: ml_collections.ConfigDict,
    counters: dict[str, Any],
  ) -> None:
    """Starts to save `state`; the arrays may be donated once this returns.

    Args:
      state: after `step` updates.
      step: the checkpoint's number; nothing happens if it is there already.
      config: of the run.
      counters: anything JSON that a resumed run needs back.
    """
    if self._manager.latest_step() == step:
      return
    items = _items(state)
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
    arguments = {name: ocp.args.StandardSave(x) for name, x in items.items()}
    # A copy: it is written in the background, while the counters go on.
    meta = integrity.seal(json.loads(json.dumps(meta)))
    arguments[META] = ocp.args.JsonSave(meta)
    self.wait()
    self._saving = step
    with self._explained():
      self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)

  def check(self) -> None:
    """Raises UserError if a save in the background has failed; never waits."""
    # Orbax tells of a failure only to those who wait.
    if self._saving is not None and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns once every save is on disk.

    Raises:
      UserError: one failed: the disk is full, or whatever it is.
    """
    with self._explained():
      self._manager.wait_until_finished()
    self._saving = None

  def close(self) -> None:
    """Waits for the save in flight and frees the manager's threads."""
    with self._explained():
      self._manager.close()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turns whatever a save raises into a UserError."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore raise nearly any.
      self._failed = True
      raise errors.UserError(self._explain(error)) from error

  def _explain(self, error: Exception) -> str:
    message = (
      f"Checkpoint {self._saving} could not be saved in {self._directory}: "
      f"{storage_errors.reason(error)}. "
    )
    earlier = [s for s in self._manager.all_steps() if s != self._saving]
    if not earlier:
      return message + "There is none before it; mend that and start again."
    return message + (
      f"The one of step {max(earlier)} is untouched. Mend that (if space is "
      "short: make some, or lower checkpoint.keep) and give the same command "
      "again; the run goes on from there."
    )

  def restore_latest(
    self, abstract: step_lib.TrainState
  ) -> tuple[step_lib.TrainState, dict[str, Any]] | None:
    """Returns the newest good state and its meta; None where none was saved.

    A damaged step is reported and, once an earlier one is found good, moved to
    `quarantine/`, so that the run can save a step of that number again.

    Args:
      abstract: shapes, types and shardings; arrays are read straight into
        them, on any mesh.

    Raises:
      UserError: checkpoints are there, but not one of them is good.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for number, step in enumerate(steps):
      restored = self._try_restore(step, abstract)
      if restored is not None:
        self._set_aside(steps[:number])
        return restored
    if steps:
      raise errors.UserError(
        f"None of the {len(steps)} checkpoints in {self._directory} is good. "
        "Bring a copy back, or start again in a new workdir."
      )
    return None

  def _try_restore(self, step, abstract):
    restored = None
    try:
      with storage_errors.quiet():
        meta = _read_meta(self._manager, step)
        items = _restore(self._manager, step, _items(abstract), meta)
      restored = _state(items), meta
    except errors.UserError:
      raise
    except Exception as error:  # Damaged files fail in many libraries' ways.
      if storage_errors.is_passing(error):
        raise
      _warn_damaged(self._directory, step, error)
    return restored if _everywhere(restored is not None) else None

  def _set_aside(self, steps: list[int]) -> None:
    """Moves damaged steps away and forgets them."""
    if not steps:
      return
    self._manager.close()
    if jax.process_index() == 0:
      self._quarantine.mkdir(parents=True, exist_ok=True)
      for step in steps:
        taken = len(list(self._quarantine.iterdir()))
        source = self._directory / str(step)
        source.rename(self._quarantine / f"{step}-{taken}")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("quarantined")
    self._manager = self._open()


def _warn_damaged(directory: pathlib.Path, step: int, error: Exception) -> None:
  logging.warning(
    "Checkpoint %d in %s is damaged and not used: %s: %s",
    step,
    directory,
    type(error).__name__,
    storage_errors.first_line(error),
  )


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Returns a checkpoint's meta; raises anything where it is damaged."""
  read = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
  return integrity.unseal(manager.restore(step, args=read)[META])


def _open_to_read(workdir: str | os.PathLike) -> ocp.CheckpointManager:
  # Orbax warns that what is read only is read only.
  with storage_errors.quiet():
    return ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / DIRECTORY,
      options=ocp.CheckpointManagerOptions(read_only=True),
      item_names=(VARIABLES, PROGRESS, META),
    )


def _restore(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: dict[str, Any],
  meta: dict[str, Any],
) -> dict[str, Any]:
  """Returns the items named in `abstract`, verified against `meta`.

  Raises:
    UserError: the checkpoint holds another model.
    Exception: of any kind, where the files are damaged.
  """
  for name, tree in abstract.items():
    integrity.check_shapes(
      tree, meta["shapes"][name], step=step, has_model=name == VARIABLES
    )
  arguments = {
    name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()
  }
  restored = manager.restore(step, args=ocp.args.Composite(**arguments))
  items = {name: restored[name] for name in abstract}
  for name, tree in items.items():
    integrity.check_digests(tree, meta["digests"][name])
  return items


def load_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config that a run left in its working directory.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = pathlib.Path(workdir) / CONFIG
  if not path.is_file():
    raise errors.UserError(
      f"{workdir} is no workdir: it has no {CONFIG}. `clip-jax train "
      "--workdir` makes one."
    )
  try:
    return config_lib.from_json(path.read_text("utf-8"))
  except UnicodeDecodeError as error:
    damage = f"It is no UTF-8 ({error.reason} at byte {error.start})."
  except errors.UserError as error:
    damage = str(error)
  raise errors.UserError(
    f"{path}: {damage} If the file is damaged, bring a copy back; in a workdir "
    "without checkpoints, delete it."
  )


def load_counters(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
  """Returns what a run had counted when it saved a step that is good."""
  with _open_to_read(workdir) as manager:
    return _read_meta(manager, step)["counters"]


def load_variables(
  workdir: str | os.PathLike, *, step: int | None = None
) -> tuple[ml_collections.ConfigDict, dict[str, Any], int]:
  """Returns config, variables and step of a workdir; changes nothing there.

  The arrays are numpy's.

  Args:
    workdir: of a run.
    step: the checkpoint to take; None takes the newest good one.

  Raises:
    UserError: it is no workdir, holds no such checkpoint, or none is good.
  """
  config = load_config(workdir)
  directory = pathlib.Path(workdir).absolute() / DIRECTORY
  step_lib.make_model(config)  # Raises where the config is not good.
  if not directory.is_dir():
    raise errors.UserError(
      f"{workdir} holds no checkpoint yet; train it first."
    )
  with _open_to_read(workdir) as manager:
    steps = sorted(manager.all_steps(), reverse=True)
    if step is not None and step not in steps:
      raise errors.UserError(
        f"{directory} holds no checkpoint of step {step}; it holds {steps}."
      )
    for candidate in steps if step is None else [step]:
      try:
        with storage_errors.quiet():
          meta = _read_meta(manager, candidate)
          abstract = {VARIABLES: _host_arrays(config, meta)}
          items = _restore(manager, candidate, abstract, meta)
      except errors.UserError:
        raise
      except Exception as error:  # As in `Checkpoints._try_restore`.
        if storage_errors.is_passing(error):
          raise
        _warn_damaged(directory, candidate, error)
      else:
        if candidate != (step or steps[0]):
          logging.warning("Using step %d instead.", candidate)
        return config, items[VARIABLES], candidate
  raise errors.UserError(
    f"{directory} holds {len(steps)} checkpoints, none of them good; train "
    "first, or resume the training to save a new one."
  )


def _host_arrays(config, meta: dict[str, Any]) -> dict[str, Any]:
  """Returns arrays on the host, to be filled with the variables of a model.

  Tracing a deep model for its shapes takes seconds. They are the stored ones
  where this version has written them for a model of the same description.
  """
  fields = ("model", "model_overrides", "precision")
  now, then = json.loads(config_lib.to_json(config)), meta["config"]
  if meta["versions"]["clip_jax"] == clip_jax.__version__ and all(
    now[field] == then[field] for field in fields
  ):
    shapes = integrity.abstract(meta["shapes"][VARIABLES])
  else:
    shapes = variants.abstract_variables(step_lib.make_model(config))
  return jax.tree.map(
    lambda x: np.empty(x.shape, x.dtype), {"batch_stats": {}} | shapes
  )
