"""The verb that trains."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from clip_jax import errors, host_memory, terminal
from clip_jax.cli import flags, measures, verb

# As long as JAX waits by itself.
_JOIN_SECONDS = 300
_HEARTBEAT_SECONDS = 30


def _add_train(parser: flags.Parser) -> None:
  flags.add_config(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="where everything goes; a run that was stopped goes on from there",
  )
  parser.add_argument(
    "--allow-changes",
    action="store_true",
    help="go on with a workdir although the config has changed",
  )
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes, found by the cluster's environment",
  )
  parser.add_argument(
    "--coordinator",
    type=_host_and_port,
    metavar="HOST:PORT",
    help="address of process 0, where the environment does not say it",
  )
  parser.add_argument(
    "--processes", type=flags.count, metavar="N", help="number of processes"
  )
  parser.add_argument(
    "--process-id", type=int, metavar="I", help="number of this one, from 0"
  )
  parser.add_argument(
    "--heartbeat",
    type=flags.count,
    metavar="SECONDS",
    default=_HEARTBEAT_SECONDS,
    help="a process that is silent for longer counts as gone, and all others"
    f" end (default: {_HEARTBEAT_SECONDS})",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...] "
    "[--allow-changes] [--json]\n       [--distributed | --coordinator "
    "HOST:PORT --processes N --process-id I] [--heartbeat SECONDS]"
  )


def _host_and_port(text: str) -> str:
  host, _, port = text.rpartition(":")
  if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
    raise argparse.ArgumentTypeError(
      f"must be HOST:PORT, such as 10.0.0.1:1234; got {text!r}"
    )
  return text


def _check_train(arguments: argparse.Namespace) -> str | None:
  """Returns what is wrong with how the processes are named."""
  number, processes = arguments.process_id, arguments.processes
  given = [x is not None for x in (arguments.coordinator, processes, number)]
  if any(given) and not all(given):
    return (
      "--coordinator, --processes and --process-id go together; or give "
      "--distributed alone where the cluster's environment knows them"
    )
  if all(given) and not 0 <= number < processes:
    return f"--process-id {number} must be from 0 to {processes - 1}"
  return None


def train(arguments: argparse.Namespace) -> verb.Answer:
  """Trains a model as a config says."""
  host_memory.keep_freed()
  with joined_processes(arguments):
    return _train(arguments)


def _train(arguments: argparse.Namespace) -> verb.Answer:
  from clip_jax import config
  from clip_jax.train import loop

  summary = loop.train(
    config.load(arguments.config, arguments.overrides),
    arguments.workdir,
    allow_changes=arguments.allow_changes,
  )
  steps, now = summary["steps"], summary["steps_now"]
  lines = [
    f"Trained {steps} steps{f' ({now} of them now)' if now < steps else ''} in "
    f"{terminal.duration(summary['seconds'])}: {arguments.workdir}"
  ]
  if summary["evals"]:
    lines += ["", measures.table(summary["evals"], before=summary["before"])]
  if summary.get("report"):
    lines += ["", f"Report: {summary['report']}"]
  return verb.Answer(summary, "\n".join(lines))


@contextlib.contextmanager
def joined_processes(arguments: argparse.Namespace) -> Iterator[None]:
  """Joins the processes of a run; no device may have been used before."""
  if arguments.coordinator is None:
    if arguments.distributed:
      _initialize(heartbeat_seconds=arguments.heartbeat)
    yield
    return
  import jax

  from clip_jax.train import peers

  others = "process 0" if arguments.process_id else "the other processes"
  logging.info(
    "Waiting for %s at %s (up to %d s)",
    others,
    arguments.coordinator,
    _JOIN_SECONDS,
  )
  watch = peers.connect(
    arguments.coordinator,
    process=arguments.process_id,
    processes=arguments.processes,
    join_seconds=_JOIN_SECONDS,
    heartbeat_seconds=arguments.heartbeat,
  )
  try:
    _initialize(
      coordinator_address=watch.coordinator,
      coordinator_bind_address=watch.coordinator,
      num_processes=arguments.processes,
      process_id=arguments.process_id,
      # The watch knows sooner; what JAX does about it says little.
      heartbeat_seconds=3 * arguments.heartbeat,
    )
    _meet()
    yield
    jax.distributed.shutdown()
  except SystemExit:  # All of them were told to stop, and have saved.
    jax.distributed.shutdown()
    watch.close()
    raise
  except BaseException as error:
    watch.fail(error)
    raise
  watch.close()


def _meet() -> None:
  """Runs a sum over all devices, now that all processes are at one point.

  On CPUs a process waits for the others at its first sum for 30 s only, and a
  step's compilation may take one of them longer than that.
  """
  import jax
  import numpy as np

  from clip_jax import sharding

  mesh = sharding.make_mesh()
  ones = jax.make_array_from_callback(
    (mesh.size,), sharding.batch_sharding(mesh), lambda _: np.ones(1, np.int32)
  )
  total = jax.jit(jax.numpy.sum, out_shardings=sharding.replicated(mesh))(ones)
  assert total == mesh.size, total


def _initialize(*, heartbeat_seconds: int, **options: Any) -> None:
  import jax

  try:
    # What is not given is found in the cluster's environment.
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


VERBS = {
  "train": verb.Verb(
    "train a model",
    _add_train,
    train,
    check=_check_train,
    takes_overrides=True,
  ),
}
