"""The items of a checkpoint: made of a state, read back and verified."""

import logging
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from clip_jax import errors, json_text
from clip_jax.checkpoints import integrity
from clip_jax.checkpoints import state as state_lib

_LOGGER = logging.getLogger(__name__)

VARIABLES, PROGRESS, META = "variables", "progress", "meta"
NAMES = (VARIABLES, PROGRESS, META)


def of_state(state: state_lib.TrainState) -> dict[str, Any]:
  """Returns the state as the two array items of a checkpoint."""
  progress = {
    "step": state.step,
    "skipped": state.skipped,
    "opt_state": state.opt_state,
  }
  if state.ema:  # `state.variables` are the averages then.
    progress["params"] = state.params
    progress["batch_stats"] = state.batch_stats
  return {VARIABLES: state.variables, PROGRESS: progress}


def to_state(items: dict[str, Any]) -> state_lib.TrainState:
  """Returns the state of the items that `of_state` made."""
  variables, progress = items[VARIABLES], items[PROGRESS]
  if "params" in progress:
    variables = {"ema": variables}
  return state_lib.TrainState(**{**variables, **progress})


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Returns a checkpoint's meta; may raise any error if it is damaged."""
  read = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
  return json_text.unseal(manager.restore(step, args=read)[META])


def restore(
  manager: ocp.CheckpointManager,
  step: int,
  abstract: dict[str, Any],
  meta: dict[str, Any],
) -> dict[str, Any]:
  """Returns the items named in `abstract`, verified against `meta`.

  Raises:
    UserError: the checkpoint holds another model.
    Exception: any error, if the files are damaged.
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


def warn_of_damage(
  directory: pathlib.Path, step: int, error: Exception
) -> None:
  """Logs that a damaged checkpoint is not used, and the error."""
  _LOGGER.warning(
    "Checkpoint %d in %s is damaged and not used: %s: %s",
    step,
    directory,
    type(error).__name__,
    errors.first_line(error)[:300],
  )
