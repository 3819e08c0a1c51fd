"""Sends what a run writes down to Weights & Biases or trackio, too.

Nothing that a tracker does stops a run: after its first failure it is left
alone, and metrics.jsonl and the TensorBoard events go on.
"""

import json
import logging
import os
import pathlib
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from clip_jax import errors, terminal, versions, whole_files

_LOGGER = logging.getLogger(__name__)

IDENTITY = "tracker.json"  # In the workdir: which tracked run it is.
PROJECT = "clip_jax"
# How long the end of a run waits for what is not sent yet.
_FINISH_SECONDS = 60.0
# trackio asks for an older Pillow than we do, so that no extra can name it.
_INSTALL = {
  "wandb": versions.install("track"),
  "trackio": "pip install --no-deps trackio && pip install gradio_client "
  "httpx orjson python-multipart starlette 'uvicorn[standard]' brotli",
}


class Connection(Protocol):
  """A run at a tracker."""

  def log(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs the numbers of a step."""

  def finish(self, *, failed: bool) -> None:
    """Ends the run there."""


class _WandB:
  def __init__(
    self, workdir: pathlib.Path, identity: str, config: dict[str, Any]
  ):
    wandb = _library("wandb")
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT") or PROJECT,
      name=os.environ.get("WANDB_NAME") or workdir.name,
      id=identity,
      resume="allow",
      dir=str(workdir),
      config=config,
      allow_val_change=True,
      # Standard output is ours: the answer of the command, and progress.
      settings=wandb.Settings(console="off"),
    )
    # Our steps are the x axis. wandb's own must never decrease, which they do
    # where a killed run goes on from a checkpoint.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def log(self, step: int, values: Mapping[str, Any]) -> None:
    self._run.log({"step": step, **values})

  def finish(self, *, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))


class _Trackio:
  def __init__(
    self, workdir: pathlib.Path, identity: str, config: dict[str, Any]
  ):
    self._run = _library("trackio").init(
      project=PROJECT,
      name=f"{workdir.name}-{identity}",
      resume="allow",
      config=config,
      embed=False,
    )

  def log(self, step: int, values: Mapping[str, Any]) -> None:
    self._run.log(dict(values), step=step)

  def finish(self, *, failed: bool) -> None:
    del failed
    self._run.finish()


_CONNECT: dict[
  str, Callable[[pathlib.Path, str, dict[str, Any]], Connection]
] = {"wandb": _WandB, "trackio": _Trackio}
TRACKERS = ("none", *_CONNECT)


def check(tracker: str) -> None:
  """Raises UserError where a tracker's library is not installed."""
  if tracker in _CONNECT:
    _library(tracker)


def _library(tracker: str) -> Any:
  try:
    if tracker == "wandb":
      import wandb  # pyright: ignore[reportMissingImports]

      return wandb
    import trackio  # pyright: ignore[reportMissingImports]

    return trackio
  except ImportError as error:
    raise errors.UserError(
      f"config.tracker={tracker!r} needs {tracker}, which does not import "
      f"({error}); install it: {_INSTALL[tracker]}"
    ) from error


class Tracking:
  """The tracker of one run, or none; only process 0 has one."""

  def __init__(
    self, tracker: str, workdir: pathlib.Path, described: dict[str, Any]
  ):
    """Begins the tracked run of `workdir`, or goes on with it.

    Args:
      tracker: `config.tracker`.
      workdir: keeps which tracked run is its own.
      described: JSON values, sent as what the tracker calls a config.
    """
    self._name = tracker
    self._connection: Connection | None = None
    if jax.process_index() == 0 and self._name in _CONNECT:
      self._try(lambda: self._connect(described, workdir))

  def _connect(self, described: dict[str, Any], workdir: pathlib.Path) -> None:
    connect = _CONNECT[self._name]
    self._connection = connect(workdir, _identity(workdir), described)

  def log(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends the numbers among the values of a step."""
    connection = self._connection
    if connection is not None:
      numbers = {k: x for k, x in values.items() if isinstance(x, int | float)}
      self._try(lambda: connection.log(step, numbers))

  def close(self, *, failed: bool = False) -> None:
    """Ends the tracked run, waiting a minute at most for what is not sent."""
    connection, self._connection = self._connection, None
    if connection is None:
      return
    # A daemon: without the network its end may never come.
    ending = threading.Thread(
      target=lambda: self._try(lambda: connection.finish(failed=failed)),
      daemon=True,
    )
    ending.start()
    ending.join(_FINISH_SECONDS)
    if ending.is_alive():
      _LOGGER.warning(
        "%s has not sent everything within %d s; the run ends without waiting "
        "any longer.",
        self._name,
        _FINISH_SECONDS,
      )

  def _try(self, action: Callable[[], None]) -> None:
    """Runs what a tracker does; after a failure there is no tracker."""
    try:
      action()
    # Whatever a library raises, the run goes on.
    except (Exception, SystemExit) as error:
      self._connection = None
      _LOGGER.warning(
        "%s failed (%s: %s); the run goes on without it.",
        self._name,
        type(error).__name__,
        terminal.printable(errors.first_line(error), limit=300),
      )


def _identity(workdir: pathlib.Path) -> str:
  """Returns the name of the workdir's run at a tracker, made at its first."""
  path = workdir / IDENTITY
  try:
    identity = json.loads(path.read_text("utf-8"))["id"]
    if isinstance(identity, str) and identity.isalnum():
      return identity
  except (OSError, ValueError, KeyError, TypeError):
    pass  # None yet, or not one of ours.
  identity = uuid.uuid4().hex[:8]
  whole_files.write(path, (json.dumps({"id": identity}) + "\n").encode())
  return identity
