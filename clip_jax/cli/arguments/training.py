"""The arguments of train."""

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
  flags.add_processes(parser)
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE --workdir DIR [--config.FIELD=VALUE ...] "
    "[--allow-changes] [--profile STEP]\n       [--json] "
    f"{flags.USAGE_OF_PROCESSES}"
  )
