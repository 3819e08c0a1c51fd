"""Reserves a workdir for a run: its lock, config and compiled programs."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from clip_jax import config as config_lib
from clip_jax import errors, hosts, terminal, whole_files
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.models import clip, variants
from clip_jax.train import origin_paths

_LOGGER = logging.getLogger(__name__)

COMPILED = "compiled"
# Fields that decide which arrays a checkpoint holds beside the model's, and of
# what type; what must stay the same of their values.
_FORMS: dict[str, Callable[[Any], Any]] = {
  "optim.ema_decay": lambda decay: decay > 0,
  "optim.frozen": lambda pattern: pattern,
  "optim.name": lambda name: name,
  "precision": lambda precision: precision == "float64",
}
_MOST_LISTED = 8  # Fields of a message.
LOCK = ".lock"  # Contains the process that trains in the workdir.

# Files that a directory may contain before its first run: the log of this very
# command, what file systems create, and hidden files.
_NOT_OURS = ("*.log", "lost+found", ".*")

# Fields that may differ when a run is resumed; all others would change its
# result.
MAY_CHANGE = (
  "checkpoint.",
  "data.max_bad_fraction",
  "data.text_layout",
  "data.threads",
  "data.workers",
  "eval_every_steps",
  "evals.",
  "log_every_steps",
  "loss.method",
  "mesh.",
  "micro_batches",
  *(
    f"model_overrides.{tower}.{field}"
    for tower in variants.TOWERS
    for field, changes_training in variants.EXECUTION.items()
    if not changes_training
  ),
  "report",
  "tracker",
)


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
  """Makes `workdir` and locks it; every process must call this.

  The operating system releases the lock when the process ends, however it ends.

  Raises:
    UserError: another process trains there, or the directory contains files
      that are not of a run.
  """
  _check_is_ours(workdir)
  with contextlib.ExitStack() as stack:
    mine = jax.process_index() != 0 or _lock(workdir, stack)
    if not hosts.everywhere(mine):
      holder = ""
      with contextlib.suppress(FileNotFoundError):  # It may be another's disk.
        holder = (workdir / LOCK).read_text(errors="replace")
      raise errors.UserError(
        f"Another training is under way in {workdir} "
        f"({holder or 'its process is not known'}). Wait "
        "until it ends, stop it, or take a new workdir."
      )
    yield


def _check_is_ours(workdir: pathlib.Path) -> None:
  """Raises UserError if `workdir` contains files that are not of a run."""
  if not workdir.is_dir() or (workdir / workdir_lib.CONFIG).exists():
    return
  if (workdir / workdir_lib.DIRECTORY).exists():
    raise errors.UserError(
      f"{workdir} holds checkpoints but no {workdir_lib.CONFIG}; take a new "
      "workdir."
    )
  strange = sorted(
    entry.name
    for entry in workdir.iterdir()
    if not any(entry.match(pattern) for pattern in _NOT_OURS)
  )
  if strange:
    more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
    raise errors.UserError(
      f"{workdir} is no workdir: it holds {', '.join(strange[:3])}{more}. Name "
      "a new or an empty directory."
    )


def _lock(workdir: pathlib.Path, stack: contextlib.ExitStack) -> bool:
  """Tries to lock `workdir` until `stack` ends; returns whether it could."""
  workdir.mkdir(parents=True, exist_ok=True)
  file = (workdir / LOCK).open("a", encoding="utf-8")
  stack.callback(file.close)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:  # Some mounted buckets do not support locks.
    _LOGGER.warning("%s cannot be locked: %s", workdir, error.strerror)
    return True
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}")
  file.flush()
  return True


def claim(
  workdir: pathlib.Path,
  config: config_lib.Config,
  *,
  total_steps: int,
  allow_changes: bool,
) -> None:
  """Writes this run's config into `workdir`; every process must call this.

  Args:
    workdir: the directory, locked by `hold`.
    config: the config of this run, which is saved as config.json.
    total_steps: the number of updates of this run.
    allow_changes: whether the run in `workdir` may have another config.

  Raises:
    UserError: `workdir` belongs to another run, or its last checkpoint is of a
      later step than the end of this run.
  """
  path = workdir / workdir_lib.CONFIG
  done = max(workdir_lib.saved_steps(workdir), default=0)
  if done > total_steps:
    raise errors.UserError(
      f"{workdir} is at step {done} already and cannot go back to a run of "
      f"{total_steps} steps. Give at least {done} steps, or take a new workdir."
    )
  # Again: another run may have begun here before the directory was locked.
  check_config(workdir, config, allow_changes=allow_changes)
  if not allow_changes and path.exists() and jax.process_index() == 0:
    kept = workdir_lib.load_config(workdir).data.train
    if kept != config.data.train:
      _LOGGER.info(
        "data.train=%s stands for %s, with which this run began.",
        *(config.data.train, kept),
      )
  # No process may write before all have read the old config, and none may go on
  # before the new one is written.
  _wait_for_all("looked")
  if jax.process_index() == 0:
    whole_files.write(path, config_lib.to_json(config).encode())
  _wait_for_all("claimed")


def check_config(
  workdir: pathlib.Path, config: config_lib.Config, *, allow_changes: bool
) -> None:
  """Raises UserError if the run in `workdir` cannot go on with `config`.

  Args:
    workdir: the directory, which need not exist.
    config: the config of this run.
    allow_changes: whether fields that change the result may differ.
  """
  if not (workdir / workdir_lib.CONFIG).exists():
    return
  before = workdir_lib.load_config(workdir)
  if origin_paths.is_same(before.init, config.init):  # One may be relative.
    before = dataclasses.replace(before, init=config.init)
  if origin_paths.may_be_same_data(before.data.train, config.data.train):
    data = dataclasses.replace(before.data, train=config.data.train)
    before = dataclasses.replace(before, data=data)
  changed = {
    field: values
    for field, values in config_lib.differences(before, config).items()
    if not field.startswith(MAY_CHANGE)
  }
  if not changed:
    return
  is_empty = not workdir_lib.holds_checkpoint(workdir)
  forms = {} if is_empty else _FORMS
  fixed = [
    field
    for field, form in forms.items()
    if field in changed and len(set(map(form, changed[field]))) > 1
  ]
  may_reshape = any(x.startswith(("model", "objective.")) for x in changed)
  if may_reshape and not is_empty and "precision" not in fixed:
    old, new = (_shapes(run_model.make(x)) for x in (before, config))
    fixed += ["model"] if old != new else []
  if not allow_changes or fixed:
    raise _refusal(workdir, changed, fixed=fixed, is_empty=is_empty)


def _refusal(
  workdir: pathlib.Path,
  changed: dict[str, tuple[Any, Any]],
  *,
  fixed: list[str],
  is_empty: bool,
) -> errors.UserError:
  """Returns why a run does not go on; `fixed` fits no checkpoint."""
  saved = ", which saved no checkpoint" if is_empty else ""
  said = (
    f"{workdir} holds a run of another config ({_listed(changed)}){saved}. "
    "Give the old values to go on with it, "
  )
  if fixed:
    said += "or take another workdir"
    if "model" not in fixed:
      said += f" (--config.init.model={workdir} begins with its parameters)"
    return errors.UserError(
      f"{said}. --allow-changes does not help: its checkpoints do not fit "
      f"another {' or '.join(fixed)}."
    )
  way_on = "start anew" if is_empty else "go on"
  return errors.UserError(
    f"{said}take another workdir, or pass --allow-changes to {way_on} with "
    "the new values."
  )


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
  """Returns fields with their old and new values, a model's many last."""
  fields = sorted(changed, key=lambda x: x.startswith("model_overrides."))
  words = [
    f"{field}: {' -> '.join(_short(value) for value in changed[field])}"
    for field in fields[:_MOST_LISTED]
  ]
  if more := len(fields) - len(words):
    words.append(f"and {more} more than those; {workdir_lib.CONFIG} has them")
  return ", ".join(words)


def _short(value: Any) -> str:
  return terminal.printable(repr(value), limit=80)


def _shapes(model: clip.CLIP) -> Any:
  return jax.tree.map(lambda x: x.shape, variants.abstract_variables(model))


@contextlib.contextmanager
def explain_interrupt(workdir: pathlib.Path) -> Iterator[None]:
  """If Ctrl-C ends a run, logs what is saved and how to resume."""
  try:
    yield
  except KeyboardInterrupt:
    steps = workdir_lib.saved_steps(workdir)
    _LOGGER.warning("%s", what_is_saved(max(steps, default=None)))
    raise


def what_is_saved(step: int | None) -> str:
  """Returns where the same command goes on, given the last step saved."""
  if step is None:
    return "No step is saved yet: the same command starts anew."
  return f"Step {step} is saved: the same command goes on from there."


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def keep_compilations(workdir: pathlib.Path) -> Iterator[None]:
  """Caches compiled programs in `workdir`, unless another cache is set.

  A resumed run then loads its programs instead of compiling them.
  """
  if jax.config.values["jax_compilation_cache_dir"] is not None:
    yield
    return
  try:
    _set_cache(str(workdir / COMPILED))
    yield
  finally:
    _set_cache(None)


def _set_cache(path: str | None) -> None:
  jax.config.update("jax_compilation_cache_dir", path)
  # JAX reads the setting once and ignores changes until the cache is reset.
  compilation_cache.reset_cache()
