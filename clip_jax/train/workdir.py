"""The directory of a run: whose it is, and what it keeps between starts."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.train import checkpoint

COMPILED = "compiled"

# A resumed run may differ in these; anything else would change its result.
MAY_CHANGE = (
  "checkpoint.",
  "data.max_bad_fraction",
  "data.threads",
  "data.workers",
  "eval_every_steps",
  "evals.",
  "log_every_steps",
  "mesh.",
  "report",
)


def find(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the absolute path of `workdir`, which need not exist.

  Raises:
    UserError: it is an address, or a file.
  """
  if "://" in str(workdir):
    raise errors.UserError(
      f"The workdir {str(workdir)!r} is remote; mount the bucket (gcsfuse, "
      "mountpoint-s3) and give the path where it is mounted."
    )
  path = pathlib.Path(workdir).absolute()
  if path.exists() and not path.is_dir():
    raise errors.UserError(f"The workdir {path} is a file; name a directory.")
  return path


def claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  *,
  allow_changes: bool,
) -> None:
  """Makes `workdir` the one of this run; every process must call this.

  Args:
    workdir: of `find`.
    config: of this run; left in config.json.
    allow_changes: whether the run there may have had another config.

  Raises:
    UserError: it belongs to another run.
  """
  path = workdir / checkpoint.CONFIG
  saved = workdir / checkpoint.DIRECTORY
  if path.exists() and not allow_changes:
    _check_config(workdir, config)
  elif not path.exists() and saved.exists():
    raise errors.UserError(
      f"{workdir} holds checkpoints but no {checkpoint.CONFIG}; take a new "
      "workdir."
    )
  # Nobody writes before everybody has looked, nobody goes on before it stands.
  _wait_for_all("looked")
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(config_lib.to_json(config))
    partial.replace(path)
  _wait_for_all("claimed")


def _check_config(
  workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  before = checkpoint.load_config(workdir)
  changed = [
    f"{field}: {old!r} -> {new!r}"
    for field, (old, new) in config_lib.differences(before, config).items()
    if not field.startswith(MAY_CHANGE)
  ]
  if not changed:
    return
  is_empty = not holds_checkpoint(workdir)
  way_on = "start anew" if is_empty else "go on"
  raise errors.UserError(
    f"{workdir} holds a run of another config ({', '.join(changed)})"
    f"{', which saved no checkpoint' if is_empty else ''}. Take a new workdir, "
    f"or pass --allow-changes to {way_on} with the new values."
  )


def holds_checkpoint(workdir: pathlib.Path) -> bool:
  """Whether a step was saved in `workdir`."""
  saved = workdir / checkpoint.DIRECTORY
  # A save under way has a name, not a number.
  return any(
    entry.name.isdecimal() for entry in saved.glob("*") if entry.is_dir()
  )


def _wait_for_all(what: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def keep_compilations(workdir: pathlib.Path) -> Iterator[None]:
  """Lets a resumed run load its programs, where no other cache is set."""
  if jax.config.jax_compilation_cache_dir is not None:
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
