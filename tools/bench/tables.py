"""Where the figures of these scripts go."""

import argparse
import json
import pathlib
from typing import Any


def add_outputs(parser: argparse.ArgumentParser) -> None:
  """Adds --json and --markdown."""
  for name in ("--json", "--markdown"):
    parser.add_argument(
      name, type=pathlib.Path, metavar="FILE", help="also write this file"
    )


def write(arguments: argparse.Namespace, report: Any, text: str) -> None:
  """Prints the table `text`; writes it and the figures where told to."""
  print(text, end="")
  if arguments.json:
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
  if arguments.markdown:
    arguments.markdown.write_text(text)
