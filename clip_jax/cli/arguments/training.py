"""The arguments of train."""

import argparse

from clip_jax import names
from clip_jax.cli import flags


def add_train(parser: flags.Parser) -> None:
  """Adds the arguments of `train`."""
  flags.add_config(parser)
  parser.add_argument(
    "--workdir",
    required=True,
    metavar="DIR",
    help="directory for all files of the run; a stopped run resumes from it",
  )
  parser.add_argument(
    "--allow-changes",
    action="store_true",
    help="resume a workdir although the config has changed",
  )
  parser.add_argument(
    "--profile",
    type=flags.count,
    metavar="STEP",
    help="write a trace of STEP and the two after it into the workdir, for "
    "xprof and TensorBoard; step 1 compiles",
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
    help="address of process 0, if the environment does not say it",
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
    default=names.HEARTBEAT_SECONDS,
    help="a process that is silent for longer counts as gone, and all others"
    f" stop (default: {names.HEARTBEAT_SECONDS})",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...] "
    "[--allow-changes] [--profile STEP]\n       [--json] [--distributed | "
    "--coordinator HOST:PORT --processes N --process-id I]\n       "
    "[--heartbeat SECONDS]"
  )


def _host_and_port(text: str) -> str:
  host, _, port = text.rpartition(":")
  if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
    raise argparse.ArgumentTypeError(
      f"must be HOST:PORT, such as 10.0.0.1:1234; got {text!r}"
    )
  return text


def check_train(arguments: argparse.Namespace) -> str | None:
  """Returns an error message about --coordinator and the like, or None."""
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
