"""Makes a workdir the one of a run: its lock, its config, its programs."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.models import variants

_LOGGER = logging.getLogger(__name__)

COMPILED = "compiled"
LOCK = ".lock"  # Names the process that trains here.

# What may lie in a directory before its first run: a shell's log of this very
# command, and what every file system has. Hidden files are let be too.
_NOT_OURS = ("*.log", "lost+found", ".*")

# A resumed run may differ in these; anything else would change its result.
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
  """Makes `workdir` and keeps other trainings out; every process calls this.

  The system lets go of the lock when the process dies, in whatever way.

  Raises:
    UserError: another process trains there, or it holds something else.
  """
  _check_is_ours(workdir)
  with contextlib.ExitStack() as stack:
    mine = jax.process_index() != 0 or _lock(workdir, stack)
    if not _on_all(mine):
      holder = (workdir / LOCK).read_text(errors="replace")
      raise errors.UserError(
        f"Another training is under way in {workdir} "
        f"({holder or 'its process is not known'}). Wait "
        "for its end or stop it, or take a new workdir."
      )
    yield


def _check_is_ours(workdir: pathlib.Path) -> None:
  """Raises UserError where `workdir` holds files that are not of a run."""
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
  """Returns whether this process has the lock, up to the end of `stack`."""
  workdir.mkdir(parents=True, exist_ok=True)
  file = (workdir / LOCK).open("a", encoding="utf-8")
  stack.callback(file.close)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:  # Some mounted buckets have no locks.
    _LOGGER.warning("%s cannot be locked: %s", workdir, error.strerror)
    return True
  file.truncate(0)
  file.write(f"process {os.getpid()} on {socket.gethostname()}")
  file.flush()
  return True


def _on_all(fine: bool) -> bool:
  if jax.process_count() == 1:
    return fine
  return bool(multihost_utils.process_allgather(np.array(fine)).all())


def claim(
  workdir: pathlib.Path,
  config: config_lib.Config,
  *,
  total_steps: int,
  allow_changes: bool,
) -> None:
  """Makes `workdir` the one of this run; every process must call this.

  Args:
    workdir: of `hold`.
    config: of this run; left in config.json.
    total_steps: updates of this run.
    allow_changes: whether the run there may have had another config.

  Raises:
    UserError: it belongs to another run, or is further than this one goes.
  """
  path = workdir / workdir_lib.CONFIG
  if path.exists() and not allow_changes:
    before = workdir_lib.load_config(workdir)
    _check_changes(workdir, config_lib.differences(before, config))
  done = max(workdir_lib.saved_steps(workdir), default=0)
  if done > total_steps:
    raise errors.UserError(
      f"{workdir} is at step {done} already and cannot go back to a run of "
      f"{total_steps} steps. Give at least {done}, or take a new workdir."
    )
  # Nobody writes before everybody has looked, nobody goes on before it stands.
  _wait_for_all("looked")
  if jax.process_index() == 0:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(config_lib.to_json(config))
    partial.replace(path)
  _wait_for_all("claimed")


def _check_changes(
  workdir: pathlib.Path, differences: dict[str, tuple[Any, Any]]
) -> None:
  changed = [
    f"{field}: {old!r} -> {new!r}"
    for field, (old, new) in differences.items()
    if not field.startswith(MAY_CHANGE)
  ]
  if not changed:
    return
  is_empty = not workdir_lib.holds_checkpoint(workdir)
  way_on = "start anew" if is_empty else "go on"
  raise errors.UserError(
    f"{workdir} holds a run of another config ({', '.join(changed)})"
    f"{', which saved no checkpoint' if is_empty else ''}. Take a new workdir, "
    f"or pass --allow-changes to {way_on} with the new values."
  )


@contextlib.contextmanager
def explain_interrupt(workdir: pathlib.Path) -> Iterator[None]:
  """Says, where Ctrl-C ends a run, what is saved and how to go on."""
  try:
    yield
  except KeyboardInterrupt:
    steps = workdir_lib.saved_steps(workdir)
    _LOGGER.warning(
      "%s; the same command goes on from there.",
      f"Step {max(steps)} is saved" if steps else "No step is saved yet",
    )
    raise


@contextlib.contextmanager
def begin(
  workdir: pathlib.Path,
  config: config_lib.Config,
  *,
  total_steps: int,
  allow_changes: bool,
) -> Iterator[None]:
  """Makes `workdir` the one of this run until its end; see `claim`."""
  with hold(workdir):
    claim(workdir, config, total_steps=total_steps, allow_changes=allow_changes)
    with explain_interrupt(workdir), keep_compilations(workdir):
      yield


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def keep_compilations(workdir: pathlib.Path) -> Iterator[None]:
  """Lets a resumed run load its programs, where no other cache is set."""
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
  # JAX looks at the setting once, until it is reset.
  compilation_cache.reset_cache()
