"""The processes of a command on several hosts: they join, and end together."""

import argparse
import contextlib
import hashlib
import logging
import os
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax import errors, hosts, sharding
from clip_jax.train import links, peers, preemption

_LOGGER = logging.getLogger(__name__)

# As long as JAX waits by itself.
_JOIN_SECONDS = 300
_MEET_SECONDS = 60  # For processes that JAX has joined before.
# Arguments that may differ between the processes of one command: where the
# same files lie on their hosts, and what is no business of the others.
_OF_ONE_HOST = (
  *("model", "data", "train_data", "data_root", "interpolate_with"),
  *("out", "csv", "json", "threads"),
  *("process_id", "coordinator", "remarks"),
)
# Arguments that may name a file, which is then compared by what it holds.
_FILES = ("labels", "templates", "search_templates", "groups", "folds")
_FOLDERS = ("folds",)  # And these a folder of files.


@contextlib.contextmanager
def joined_processes(
  arguments: argparse.Namespace, *, polls_sigterm: bool = False
) -> Iterator[None]:
  """Joins the processes of a run; no device may have been used before.

  Args:
    arguments: of the command.
    polls_sigterm: whether it stops by itself where one of the processes got
      SIGTERM (train/preemption.py); if not, the signal ends a process, as it
      does where none was joined.
  """
  if arguments.coordinator is None and not arguments.distributed:
    yield
    return
  named = arguments.coordinator is not None
  # With it JAX takes the signal.
  jax.config.update(
    "jax_enable_preemption_service", polls_sigterm and not named
  )
  # Our own watch notices a lost process sooner and explains it better than JAX.
  patience = {"heartbeat_seconds": 3 * arguments.heartbeat}
  if not named:
    _initialize(**patience)
  watch = _watch_named(arguments) if named else _watch_found(arguments)
  handling = contextlib.ExitStack()
  try:
    if named and polls_sigterm:
      handling.enter_context(preemption.agreed_through(watch))
    if named:
      _initialize(
        coordinator_address=watch.coordinator,
        coordinator_bind_address=watch.coordinator,
        num_processes=arguments.processes,
        process_id=arguments.process_id,
        **patience,
      )
    _meet()
    yield
    jax.distributed.shutdown()
  except SystemExit:  # All processes got SIGTERM, and have saved.
    jax.distributed.shutdown()
    if watch:
      watch.close()
    raise
  except BaseException as error:
    if watch:
      watch.fail(error)
    raise
  finally:
    handling.close()
  if watch:
    watch.close()


def check_same_command(
  arguments: argparse.Namespace, *, also: Collection[str] = ()
) -> None:
  """Raises UserError where the processes were told different things.

  Args:
    arguments: of this process.
    also: names of those that may otherwise differ between hosts.
  """
  hosts.check_same(
    {
      f"--{name.replace('_', '-')}": _held_or_text(name, value)
      if name in _FILES
      else repr(value)
      for name, value in sorted(vars(arguments).items())
      if name in also or name not in _OF_ONE_HOST
    }
  )


def _held_or_text(name: str, value: Any) -> str:
  """Returns the value, or what a file or folder holds, in a few words."""
  path = os.path.expanduser(value or "")
  try:
    if os.path.isfile(path):
      return f"a file of SHA-256 {_digest(path)}"
    if name in _FOLDERS and os.path.isdir(path):
      held = {
        entry: _digest(file)
        for entry in sorted(os.listdir(path))
        if os.path.isfile(file := os.path.join(path, entry))
      }
      digest = hashlib.sha256(repr(held).encode()).hexdigest()
      return f"a folder of SHA-256 {digest[:16]}"
  except (OSError, ValueError):  # Text, or what is wrong is said soon.
    pass
  return repr(value)


def _digest(path: str) -> str:
  """Returns the first characters of the SHA-256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _watch_named(arguments: argparse.Namespace) -> Any:
  """Connects the processes, given the address of process 0."""
  others = "process 0" if arguments.process_id else "the other processes"
  _LOGGER.info(
    "Waiting for %s at %s (up to %d s)",
    others,
    arguments.coordinator,
    _JOIN_SECONDS,
  )
  return peers.connect(
    arguments.coordinator,
    process=arguments.process_id,
    processes=arguments.processes,
    join_seconds=_JOIN_SECONDS,
    heartbeat_seconds=arguments.heartbeat,
  )


def _watch_found(arguments: argparse.Namespace) -> Any:
  """Connects the processes after JAX has found and joined them.

  Returns None if they cannot connect; then only JAX watches them.
  """
  address = np.zeros(64, np.uint8)
  if jax.process_index() == 0:
    own = links.own_address().encode()
    address[: len(own)] = np.frombuffer(own, np.uint8)
  address = multihost_utils.broadcast_one_to_all(address)
  try:
    return peers.connect(
      address.tobytes().rstrip(b"\0").decode(),
      process=jax.process_index(),
      processes=jax.process_count(),
      join_seconds=_MEET_SECONDS,
      heartbeat_seconds=arguments.heartbeat,
    )
  except errors.UserError as error:
    _LOGGER.warning(
      "The processes cannot watch each other: %s The run goes on; if one is "
      "gone, JAX ends the others within %d s, and says it at length.",
      error,
      3 * arguments.heartbeat,
    )
    return None


def _meet() -> None:
  """Sums a number over all devices, while all processes are at one point.

  On CPUs a process waits only 30 s for the others at its first collective, and
  compiling the step may take one of them longer than that.
  """
  mesh = sharding.make_mesh()
  ones = jax.make_array_from_callback(
    (mesh.size,), sharding.batch_sharding(mesh), lambda _: np.ones(1, np.int32)
  )
  total = jax.jit(jax.numpy.sum, out_shardings=sharding.replicated(mesh))(ones)
  assert total == mesh.size, total


def _initialize(*, heartbeat_seconds: int, **options: Any) -> None:
  try:
    # JAX finds missing options in the cluster's environment.
    jax.distributed.initialize(
      initialization_timeout=_JOIN_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      **options,
    )
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
      f"Cannot join the other processes: {error} Where no cluster's "
      "environment names them, give --coordinator, --processes and "
      "--process-id."
    ) from error
