"""The arguments of data inspect, data prepare and data doctor."""

from clip_jax.cli import flags


def add_data(parser: flags.Parser) -> None:
  """Adds the arguments of `data`."""
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True, parser_class=flags.Parser
  )
  inspect = actions.add_parser(
    "inspect", help="say what is in DATA and what is wrong with it"
  )
  inspect.add_argument("data", metavar="DATA", help=flags.DATA)
  prepare = actions.add_parser(
    "prepare", help="copy DATA into ArrayRecord files, for fast random access"
  )
  prepare.add_argument("data", metavar="DATA", help=flags.DATA)
  prepare.add_argument("out", metavar="OUT", help="a new directory")
  prepare.add_argument(
    "--drop-bad",
    action="store_true",
    help="decode every image and leave the bad ones out",
  )
  doctor = actions.add_parser(
    "doctor", help="say which data sets of a suite are there, and are right"
  )
  flags.add_suite(doctor, required=True)
  for action in (inspect, prepare, doctor):
    if action is not doctor:
      flags.add_max_pixels(action)
    flags.add_json(action)
    parser.flags += action.flags
