"""The arguments of completion."""

from clip_jax.cli import flags


def add_completion(parser: flags.Parser) -> None:
  """Adds the arguments of `completion`."""
  parser.add_argument(
    "shell", choices=("bash", "zsh", "fish"), help="whose script to print"
  )
  flags.add_json(parser)
