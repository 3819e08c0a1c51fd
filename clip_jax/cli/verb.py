"""The types of a verb of the command line and of its answer."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from clip_jax.cli import flags


@dataclasses.dataclass(frozen=True)
class Answer:
  """A verb's answer.

  Attributes:
    payload: what `--json` prints.
    text: what is printed otherwise.
    problem: one sentence for stderr on why the exit code is 1; "" where
      nothing is wrong and it is 0.
  """

  payload: Any
  text: str
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Verb:
  """One verb: its arguments, and the function that runs it.

  Attributes:
    summary: its line in `clip-jax --help`.
    add_arguments: adds its arguments to a parser.
    run: runs it.
    check: returns an error message if arguments do not go together, or None.
    takes_overrides: whether it accepts --config.FIELD=VALUE.
    has_actions: whether it has actions, with a parser for each.
  """

  summary: str
  add_arguments: Callable[[flags.Parser], None]
  run: Callable[[argparse.Namespace], Answer]
  check: Callable[[argparse.Namespace], str | None] = lambda _: None
  takes_overrides: bool = False
  has_actions: bool = False
