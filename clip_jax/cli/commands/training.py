"""The verb that trains."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from clip_jax import config, errors, sharding, terminal
from clip_jax.cli import verb
from clip_jax.cli.commands import measures
from clip_jax.train import loop, peers

# As long as JAX waits by itself.
_JOIN_SECONDS = 300


def train(arguments: argparse.Namespace) -> verb.Answer:
  """Trains a model as a config says."""
  with joined_processes(arguments):
    return _train(arguments)


def _train(arguments: argparse.Namespace) -> verb.Answer:
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
  mesh = sharding.make_mesh()
  ones = jax.make_array_from_callback(
    (mesh.size,), sharding.batch_sharding(mesh), lambda _: np.ones(1, np.int32)
  )
  total = jax.jit(jax.numpy.sum, out_shardings=sharding.replicated(mesh))(ones)
  assert total == mesh.size, total


def _initialize(*, heartbeat_seconds: int, **options: Any) -> None:
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
