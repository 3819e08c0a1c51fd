"""What the arguments of several verbs are made of."""

import argparse
import contextlib

MODEL = (
  "a model: a workdir of `clip-jax train`, a checkpoint in any format that "
  "`clip-jax convert` reads, or hf-hub:ORG/NAME"
)
DATA = (
  "a DATA address, such as builtin:digits/test, folder:PATH, csv:PATH, "
  "wds:PATH/{0000..0012}.tar, arrayrecord:PATH, tfds:NAME/SPLIT"
)
LABELS = "comma-separated, or a file: text with a label a line, or JSON"
TEMPLATE = "a text with {} for the label, or a file with one a line"


class Parser(argparse.ArgumentParser):
  """An argument parser that knows its flags, to suggest the meant one."""

  def __init__(self, **settings):
    self.flags: list[str] = []
    super().__init__(allow_abbrev=False, **settings)

  def add_argument(self, *names: str, **settings):
    """Adds an argument as argparse does."""
    self.flags += [name for name in names if name.startswith("--")]
    return super().add_argument(*names, **settings)


def add_config(parser: Parser) -> None:
  """Adds --config, without which the verb has nothing to do."""
  parser.add_argument(
    "--config", required=True, metavar="FILE", help="a file of configs/"
  )


def add_json(parser: Parser) -> None:
  """Adds --json."""
  parser.add_argument(
    "--json", action="store_true", help="print JSON on stdout, nothing else"
  )


def add_max_pixels(parser: Parser) -> None:
  """Adds --max-pixels, for images larger than what is read by default."""
  parser.add_argument(
    "--max-pixels",
    type=count,
    metavar="N",
    help="of the largest image that is read (default: 250 million of a JPEG, "
    "64 million of others)",
  )


def add_batches(parser: Parser) -> None:
  """Adds how a verb reads and embeds: --batch-size and --threads."""
  parser.add_argument(
    "--batch-size", type=count, default=256, metavar="N", help="default: 256"
  )
  parser.add_argument(
    "--threads",
    type=count,
    default=4,
    metavar="N",
    help="threads that read and decode (default: 4)",
  )


def count(text: str) -> int:
  """Returns a whole number of at least 1, for argparse's `type`."""
  with contextlib.suppress(ValueError):
    if (number := int(text)) >= 1:
      return number
  raise argparse.ArgumentTypeError(
    f"must be a whole number, at least 1; got {text!r}"
  )
