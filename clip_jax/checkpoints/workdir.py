"""The working directory of a run: its layout, and how it is read."""

import dataclasses
import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import clip_jax
from clip_jax import buckets, errors, whole_files
from clip_jax import config as config_lib
from clip_jax.checkpoints import integrity, items, run_model, storage_errors
from clip_jax.models import variants

_LOGGER = logging.getLogger(__name__)

CONFIG = "config.json"
REPORT = "report.png"  # What a run finds, drawn at its end.
DIRECTORY, QUARANTINE = "checkpoints", "quarantine"
TOKENIZER = "tokenizer"  # The directory of the tokenizer's files.
# The counter that holds a digest of the model that a run started from.
ORIGIN = "origin"


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """The model in a checkpoint of a run.

  Attributes:
    config: the run's config.
    spec: the description of the model.
    variables: its parameters and batch statistics, as numpy arrays.
    step: number of updates it was trained for.
    files: its tokenizer's files by name.
  """

  config: config_lib.Config
  spec: dict[str, Any]
  variables: dict[str, Any]
  step: int
  files: dict[str, bytes]


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a workdir: it has a config and checkpoints."""
  return all((path / part).exists() for part in (CONFIG, DIRECTORY))


def split_step(path: str | os.PathLike) -> tuple[str, int | None]:
  """Returns the workdir and the step that "WORKDIR/checkpoints/STEP" names.

  Any other path, or address in a bucket, is returned as it is, without a step.
  """
  whole = os.fspath(path)
  head, name = os.path.split(whole.rstrip("/"))
  workdir, folder = os.path.split(head)
  if folder != DIRECTORY or not name.isdecimal():
    return whole, None
  workdir = workdir or os.curdir
  if buckets.is_address(workdir):
    is_one = buckets.kind(f"{workdir}/{CONFIG}") is not None
  else:
    is_one = recognise(pathlib.Path(workdir))
  return (workdir, int(name)) if is_one else (whole, None)


def find(workdir: str | os.PathLike) -> str:
  """Returns the absolute path of `workdir`, which need not exist.

  What lies in a bucket is named by its address.

  Raises:
    UserError: it is empty, another network address, a file, or a checkpoint.
  """
  if not str(workdir):
    raise errors.UserError("The workdir is empty; name a directory.")
  run, step = split_step(workdir)
  if step is not None:
    raise errors.UserError(
      f"The workdir {workdir} is a checkpoint of the run in {run}; give that "
      "to go on with the run, or name a new directory."
    )
  if buckets.is_address(workdir):
    return str(workdir)
  errors.check_new("The workdir", workdir)
  path = pathlib.Path(workdir).absolute()
  if path.exists() and not path.is_dir():
    raise errors.UserError(f"The workdir {path} is a file; name a directory.")
  return str(path)


def holds_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether a step was saved in `workdir`."""
  return bool(saved_steps(workdir))


def saved_steps(workdir: pathlib.Path) -> list[int]:
  """Returns the steps saved in `workdir`, damaged ones included."""
  saved = workdir / DIRECTORY
  # The name of an unfinished save is not a number.
  return [
    int(entry.name)
    for entry in saved.glob("*")
    if entry.name.isdecimal() and entry.is_dir()
  ]


def load_config(workdir: str | os.PathLike) -> config_lib.Config:
  """Returns the config that a run left in its working directory.

  Args:
    workdir: the working directory, or one of its checkpoints.

  Raises:
    UserError: the directory has no config, or a damaged one.
  """
  path = pathlib.Path(split_step(workdir)[0]) / CONFIG
  if not path.is_file():
    raise errors.UserError(
      f"{workdir} is no workdir: it has no {CONFIG}. `clip-jax train "
      "--workdir` makes one."
    )
  try:
    return config_lib.from_json(path.read_text("utf-8"))
  except UnicodeDecodeError as error:
    damage = f"It is not UTF-8 ({error.reason} at byte {error.start})."
  except errors.UserError as error:
    damage = str(error)
  raise errors.UserError(
    f"{path}: {damage} If the file is damaged, restore it from a backup; in a "
    "workdir without checkpoints, delete it."
  )


def load_counters(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
  """Returns the counters that a run saved with an undamaged checkpoint.

  Args:
    workdir: the working directory, or one of its checkpoints.
    step: the checkpoint.
  """
  workdir, _ = split_step(workdir)
  with _open_to_read(workdir) as manager:
    return items.read_meta(manager, step)["counters"]


def load_model(
  workdir: str | os.PathLike, *, step: int | None = None
) -> SavedModel:
  """Returns the model of a workdir; changes nothing there.

  Args:
    workdir: the working directory of a run, or one of its checkpoints.
    step: the checkpoint to read; None for the newest good one, or for the one
      that `workdir` names.

  Raises:
    NoGoodCheckpointError: it has no good one.
    UserError: it is not a workdir, or has no such checkpoint.
  """
  config = load_config(workdir)
  workdir, own_step = split_step(workdir)
  if own_step is not None:
    if step not in (None, own_step):
      raise errors.UserError(
        f"step={step} is not the step of {workdir}/{DIRECTORY}/{own_step}; "
        "leave one of them out."
      )
    step = own_step
  directory = pathlib.Path(workdir).absolute() / DIRECTORY
  model = run_model.make(config)
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
          meta = items.read_meta(manager, candidate)
          shapes = _stored_shapes(json.loads(config_lib.to_json(config)), meta)
          if shapes is None:
            shapes = variants.abstract_variables(model)
          abstract = {items.VARIABLES: _host_arrays(shapes)}
          found = items.restore(manager, candidate, abstract, meta)
      except errors.UserError:
        raise
      except Exception as error:  # As in `saving.Checkpoints`.
        if storage_errors.is_passing(error):
          raise
        items.warn_of_damage(directory, candidate, error)
      else:
        if candidate != (step or steps[0]):
          _LOGGER.warning("Using step %d instead.", candidate)
        return SavedModel(
          config=config,
          spec=run_model.spec(
            config.model,
            config.model_overrides,
            objective=config.objective.kind,
            loss=config.loss.kind,
          ),
          variables=found[items.VARIABLES],
          step=candidate,
          files=tokenizer_files(pathlib.Path(workdir)),
        )
  raise errors.NoGoodCheckpointError(
    f"{directory} holds {len(steps)} checkpoints, none of them good; train "
    "first, or resume the training to save a new one.",
    steps,
  )


def _stored_shapes(
  config: dict[str, Any], meta: dict[str, Any]
) -> dict[str, Any] | None:
  """Returns the stored shapes of a checkpoint's variables, or None.

  Tracing a deep model for its shapes takes seconds. The stored shapes are used
  only if this version wrote them, for a model of the same description.
  """
  fields = ("model", "model_overrides", "objective", "precision")
  if meta["versions"]["clip_jax"] == clip_jax.__version__ and all(
    config[field] == meta["config"].get(field) for field in fields
  ):
    return integrity.abstract(meta["shapes"][items.VARIABLES])
  return None


def _host_arrays(shapes: dict[str, Any]) -> dict[str, Any]:
  """Returns empty numpy arrays of these shapes, to be filled."""
  try:
    return jax.tree.map(
      lambda x: np.empty(x.shape, x.dtype), {"batch_stats": {}} | shapes
    )
  except (MemoryError, ValueError) as error:
    raise errors.UserError(
      "The model that the workdir's config describes does not fit in memory "
      f"({error}); the config is damaged, or this machine is too small."
    ) from None


def _open_to_read(workdir: str | os.PathLike) -> ocp.CheckpointManager:
  storage_errors.silence_echoes()
  # Silences Orbax's warning that a read-only manager cannot save.
  with storage_errors.quiet():
    return ocp.CheckpointManager(
      pathlib.Path(workdir).absolute() / DIRECTORY,
      options=ocp.CheckpointManagerOptions(read_only=True),
      item_names=items.NAMES,
    )


def tokenizer_files(workdir: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of a run's tokenizer by name, if it needs any."""
  kept = sorted((workdir / TOKENIZER).glob("*"))
  return {file.name: file.read_bytes() for file in kept}


def keep_tokenizer(workdir: pathlib.Path, files: dict[str, bytes]) -> None:
  """Copies the tokenizer's files into the workdir, to make it complete."""
  if not files or jax.process_index():
    return
  directory = workdir / TOKENIZER
  directory.mkdir(exist_ok=True)
  for name, data in files.items():
    whole_files.write(directory / name, data)
